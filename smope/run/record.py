"""The part of run.json that is known before training."""

from __future__ import annotations

from typing import Any

import torch

from smope.config.config import chosen_name
from smope.distributed import collectives
from smope.methods._shared.frozen_hash import frozen_sha256
from smope.metrics.cost import count_flops, count_parameters, stored_bytes
from smope.run.build import Experiment
from smope.storage.versions import versions
from smope.training.device import float32_products
from smope.training.trainer import Trainer


def run_facts(experiment: Experiment, trainer: Trainer) -> dict[str, Any]:
    """The part of run.json that is known before training; of the method as it was built, nothing
    restored yet.
    """
    config, stream, method = experiment.config, experiment.stream, experiment.method
    return {
        "config": config.as_dict(),
        "config_hash": config.config_hash,
        "seed": config.seed,
        "method": chosen_name(config.method["_target_"]),
        "stream": {
            "name": stream.name,
            "content_hash": stream.content_hash,
            "identity": stream.identity,
            "skipped_images": list(stream.skipped),
            **stream.facts,
        },
        "class_order": list(stream.class_order),
        "class_names": list(stream.class_names),
        "tasks": [
            {
                "name": task.name,
                "classes": list(task.classes),
                "train": len(task.train),
                "test": len(task.test),
            }
            for task in stream.tasks
        ],
        "evaluated_on": stream.evaluated_on,
        "backbone": experiment.backbone.identity.as_dict(),
        "frozen_weights": {"loaded": frozen_sha256(method), "trained": None},
        "trainable_parameters": count_parameters(method),
        "cost": {
            "trainable_parameters": count_parameters(method),
            "stored_state_bytes": stored_bytes(method),
            "gflops_per_image": _flops(trainer),
        },
        "device": str(experiment.device),
        "world_size": collectives.world(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "float32_products": float32_products(),
        "versions": versions(),
    }


def _flops(trainer: Trainer) -> dict[str, Any]:
    with collectives.alone():  # an image costs what it costs, and the other processes do not count
        return count_flops(trainer.method, trainer.spans[0])
