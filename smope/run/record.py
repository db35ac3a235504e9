"""run.json: what is known before training, and what is added during a run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from smope.config.signatures import chosen_name
from smope.distributed import collectives
from smope.methods._shared.frozen_hash import frozen_sha256
from smope.metrics.cost import count_flops, count_parameters, stored_bytes
from smope.metrics.scores import all_scores
from smope.run.artefact import write_model
from smope.run.build import Experiment
from smope.run.partial import PartialRun
from smope.storage.launch import launch_facts
from smope.storage.run_directory import RUN_FORMAT_VERSION, RunDirectory
from smope.storage.versions import installed_versions
from smope.streams.stream import Stream
from smope.training.device import device_name, float32_products
from smope.training.trainer import Trainer


class RunRecord:
    """Writes run.json and model.safetensors of a run.

    Args:
        directory: the run.
        trainer: its history and method are written.
        facts: what run_facts() gave.
        partial: set for a partial run, which keeps no model.
    """

    def __init__(
        self,
        directory: RunDirectory,
        trainer: Trainer,
        facts: dict[str, Any],
        partial: PartialRun | None = None,
    ) -> None:
        self._directory = directory
        self._trainer = trainer
        self._facts = facts
        self._partial = partial
        self._reference: dict[str, Any] = {}

    def measure_reference(self) -> None:
        """Measure what the simplest method reaches here: `reference` of run.json.

        A partial run has none.
        """
        if self._partial is not None:
            return
        started = time.perf_counter()
        matrix = self._trainer.reference_matrix()
        if matrix is not None:
            self._reference["reference"] = {
                "method": self._trainer.settings.reference,
                "accuracy_matrix": matrix,
                **all_scores(matrix, self._trainer.history.test_images),
                "seconds": time.perf_counter() - started,
            }

    def write(self, status: str) -> dict[str, Any]:
        """Write run.json with a status: running, finished, interrupted, failed or ended early.

        Returns its content.
        """
        history = self._trainer.history
        record = {
            "format_version": RUN_FORMAT_VERSION,
            "status": status,
            **self._facts,
            **history.record(),
            **self._reference,
        }
        if self._partial is not None:
            record["part"] = {"first_tasks": self._partial.tasks, **self._partial.note}
        stored = {"stored_state_bytes": stored_bytes(self._trainer.method)}
        record["cost"] = {**self._facts["cost"], **history.cost(), **stored}
        self._directory.write_record(record)
        return record

    def begin(self) -> None:
        """Write run.json, and the model if a resumed run lacks that of its last task.

        The process before may have been killed after its checkpoint.
        """
        record = self.write("running")
        if self._trainer.checkpoints.at_boundary:
            self._write_model(record)

    def end_task(self) -> None:
        """Write what was learned and measured until the end of a task."""
        self._write_model(self.write("running"))
        if self._partial is not None:
            self._partial.after_task(self._trainer.history)

    def check_frozen_weights(self) -> bool:
        """Note the hash of the frozen weights after training; whether it is the one of before."""
        hashes = self._facts["frozen_weights"]
        hashes["trained"] = frozen_sha256(self._trainer.method)
        return hashes["trained"] == hashes["loaded"]

    def _write_model(self, record: Mapping[str, Any]) -> None:
        if self._partial is None:
            write_model(self._directory, self._trainer.method, record)


def run_facts(
    experiment: Experiment, trainer: Trainer, earlier_launches: Sequence[Any] = ()
) -> dict[str, Any]:
    """The part of run.json that is known before training.

    Args:
        experiment: the objects of the run.
        trainer: its method must be as it was built, with nothing restored yet.
        earlier_launches: of a resumed run, its `launches` so far.

    Returns:
        Plain values, by key of run.json.
    """
    config, stream, method = experiment.config, experiment.stream, experiment.method
    parameters = count_parameters(method)
    return {
        "config": config.as_dict(),
        "config_hash": config.config_hash,
        "seed": config.seed,
        "method": chosen_name(config.method["_target_"]),
        **_stream_facts(stream),
        "backbone": experiment.backbone.identity.as_dict(),
        "frozen_weights": {"loaded": frozen_sha256(method), "trained": None},
        "trainable_parameters": parameters,
        "cost": {
            "trainable_parameters": dict(parameters),
            "stored_state_bytes": stored_bytes(method),
            "gflops_per_image": _flops(trainer),
        },
        "device": str(experiment.device),
        "device_name": device_name(experiment.device),
        "world_size": collectives.world(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "float32_products": float32_products(),
        "versions": installed_versions(),
        "launches": [*earlier_launches, launch_facts()],
    }


def _stream_facts(stream: Stream) -> dict[str, Any]:
    tasks = [
        {
            "name": task.name,
            "classes": list(task.classes),
            "train": len(task.train),
            "test": len(task.test),
        }
        for task in stream.tasks
    ]
    return {
        "stream": {
            "name": stream.name,
            "content_hash": stream.content_hash,
            "identity": stream.identity,
            "skipped_images": list(stream.skipped),
            **stream.facts,
        },
        "class_order": list(stream.class_order),
        "class_names": list(stream.class_names),
        "tasks": tasks,
        "evaluated_on": stream.evaluated_on,
    }


def _flops(trainer: Trainer) -> dict[str, Any]:
    with collectives.alone():  # an image costs the same however many processes there are
        return count_flops(trainer.method, trainer.spans[0])
