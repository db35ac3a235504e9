"""Keys that the user set and that nothing in the run reads."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from fnmatch import fnmatchcase

from smope.config.identity import flatten
from smope.config.signatures import chosen_name, takes
from smope.methods._shared.routed_method import RoutedMethod
from smope.run.build import Experiment
from smope.training.trainer import Trainer

ROUTER = ("router", "router.*")
TRAINING_STEPS = (
    "trainer.batch_size",
    "trainer.gradient_accumulation_steps",
    "trainer.epochs",
    "trainer.learning_rate",
    "trainer.weight_decay",
    "trainer.schedule",
    "trainer.frozen_steps",
    "trainer.iter_step",
    "trainer.schedule_lag",
    "trainer.activation_checkpointing",
    "trainer.checkpoint_minutes",
    "trainer.checkpoint_steps",
)
AUGMENTATION = ("stream.crop_scale", "stream.flip")
WARM_UP = ("trainer.dense_epochs",)
ALIGNMENT = ("trainer.alignment_*",)
STATISTICS = ("trainer.statistics_images", "method.centroids")
FROZEN = ("trainer.frozen_steps", "trainer.iter_step")
BLURRY = ("stream.blurry_images",)
CACHE = ("stream.cache_dir",)
RANK = ("method.rank",)
PREFIX = ("method.expert_space", "method.expert_init")
LINEAR_TRANSPORT = ("method.penalty", "method.patience")
NONLINEAR_TRANSPORT = ("method.bend_penalty", "method.transport_steps")


def unread_keys(given: Collection[str], experiment: Experiment, trainer: Trainer) -> str:
    """One line that names the keys that change nothing in this run.

    Args:
        given: the dotted keys that the user set.
        experiment: the objects of the run.
        trainer: its trainer.

    Returns:
        The line; "" if every key is read, as far as is known.
    """
    patterns = dict(_unread(experiment, trainer))
    reasons: dict[str, list[str]] = {}
    for key in sorted(given):
        reason = next((patterns[name] for name in patterns if fnmatchcase(key, name)), None)
        if reason is not None:
            reasons.setdefault(reason, []).append(key)
    if not reasons:
        return ""
    named = "; ".join(f"{', '.join(keys)} ({reason})" for reason, keys in reasons.items())
    return f"these keys change nothing in this run: {named}"


def _unread(experiment: Experiment, trainer: Trainer) -> Iterator[tuple[str, str]]:
    """Patterns of keys that the run does not read, each with the reason."""
    method, values = experiment.method, flatten(experiment.config.as_dict())
    target = values["method._target_"]
    name = f"method={chosen_name(target)}"
    trains = any(trainer.phases(span) for span in trainer.spans)
    records = bool(method.recorded())
    placement = values.get("method.placement", "prefix")
    transport = values.get("method.transport")
    rules = [
        (takes(target, "router"), ROUTER, f"{name} has no router"),
        (trains, TRAINING_STEPS, f"{name} takes no training steps"),
        (trains or records, AUGMENTATION, f"{name} does not augment images"),
        (isinstance(method, RoutedMethod), WARM_UP, f"{name} has no experts"),
        (bool(method.aligned()), ALIGNMENT, f"{name} does not retrain its classifier"),
        (records, STATISTICS, f"{name} records no class statistics"),
        (values["trainer.schedule"] != "epoch_cosine", FROZEN, "trainer.schedule=epoch_cosine"),
        (values["stream.disjoint_classes"] < 1, BLURRY, "stream.disjoint_classes=1"),
        (values["stream.cache_gb"] > 0, CACHE, "stream.cache_gb=0"),
        (placement != "prefix", RANK, f"method.placement={placement}"),
        (placement == "prefix", PREFIX, f"method.placement={placement}"),
        (transport != "weakly_nonlinear", LINEAR_TRANSPORT, f"method.transport={transport}"),
        (transport != "linear", NONLINEAR_TRANSPORT, f"method.transport={transport}"),
    ]
    for is_read, patterns, reason in rules:
        if not is_read:
            yield from ((pattern, reason) for pattern in patterns)
