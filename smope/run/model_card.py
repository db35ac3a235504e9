"""The model card: README.md of a model on the Hugging Face Hub, and RUN/model_card.md.

It begins with the Hub's metadata (YAML) and says in Markdown what the model is, how to use it, how
it was evaluated and what it cannot do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from smope.backbones.licences import Origin, origin
from smope.config.signatures import chosen_name
from smope.metrics.scores import SCORES, all_scores
from smope.storage.commands import command

if TYPE_CHECKING:
    from smope.run.artefact import Artefact

SCORES_SHOWN = ("final_average_accuracy", "cumulative_average_accuracy", "forgetting")
LISTED_CLASSES = 1000
WITHOUT_SCORES = "It has not been evaluated since it was made."


def model_card(
    artefact: Artefact, record: Mapping[str, Any] | None = None, reference: str | None = None
) -> str:
    """The text of a model card.

    Args:
        artefact: the model.
        record: run.json of the run that trained it, with results of the same tasks; None where
            there is none.
        reference: what loads the model, such as hf://OWNER/NAME; None: its file.
    """
    source = origin(artefact.identity["name"], artefact.identity["source"])
    title = (reference or "").rpartition("/")[2] or f"{_method(artefact)} on {_backbone(artefact)}"
    sections = [
        f"# {title}",
        _summary(artefact, source),
        "## Use it",
        _use(reference),
        "## Evaluation",
        WITHOUT_SCORES if record is None else _evaluation(artefact, record),
        "## Limits",
        _limits(artefact, source),
        "## Classes",
        _classes(artefact.class_names),
    ]
    metadata = yaml.safe_dump(
        _metadata(artefact, source, record, title), sort_keys=False, allow_unicode=True
    )
    return f"---\n{metadata}---\n\n" + "\n\n".join(sections) + "\n"


def _method(artefact: Artefact) -> str:
    """The name of the method as `method=` takes it."""
    return chosen_name(str(artefact.method.get("_target_", "")))


def _backbone(artefact: Artefact) -> str:
    embedded = artefact.identity["source"] == "embedded"
    return "the embedded ViT" if embedded else artefact.identity["name"]


def _metadata(
    artefact: Artefact, source: Origin, record: Mapping[str, Any] | None, title: str
) -> dict[str, Any]:
    """What the Hub reads: https://huggingface.co/docs/hub/model-cards#model-card-metadata."""
    tags = ["continual-learning", "class-incremental-learning", "vision-transformer"]
    metadata: dict[str, Any] = {
        **({"license": source.licence} if source.licence else {}),
        "library_name": "smope",
        "pipeline_tag": "image-classification",
        "tags": ["smope", *tags, f"method:{_method(artefact)}"],
        **({"base_model": source.hub_id} if source.hub_id else {}),
    }
    if record is not None:
        name = record["stream"]["name"]
        metrics = [
            {"type": "accuracy", "name": SCORES[key].title, "value": round(value, 4)}
            for key, value in _scores(record).items()
            if SCORES[key].better == "high"
        ]
        result = {
            "task": {"type": "image-classification"},
            "dataset": {"name": name, "type": name},
            "metrics": metrics,
        }
        metadata["model-index"] = [{"name": title, "results": [result]}]
    return metadata


def _scores(record: Mapping[str, Any]) -> dict[str, float]:
    """The scores that are defined after the tasks that are done, fractions."""
    matrix = [row for row in record["accuracy_matrix"] if any(value is not None for value in row)]
    scores = all_scores(matrix, [task["test"] for task in record["tasks"]])
    shown = {key: scores[key] for key in SCORES_SHOWN}
    return {key: value for key, value in shown.items() if value is not None}


def _summary(artefact: Artefact, source: Origin) -> str:
    licence = source.licence or "not known here"
    where = artefact.identity["source"]
    where = (
        "the Hub"
        if where.startswith("hub:")
        else "the package"
        if where == "embedded"
        else "a file"
    )
    own = "They are in this model." if artefact.has_backbone else "They are not part of this model."
    return (
        f"Classifies images among {len(artefact.class_names)} classes, which were learned one task "
        f"after the other ({artefact.tasks_done} of {artefact.total_tasks} tasks).\n\n"
        f"- Method: `{_method(artefact)}` of smope "
        f"{artefact.smope_version}\n"
        f"- Backbone: {_backbone(artefact)}, weights from {where} (sha256 "
        f"`{artefact.identity['sha256'][:12]}`), licence: {licence}. {own}\n"
        f"- Configuration: `{artefact.config_hash}`, seed {artefact.seed}"
    )


def _use(reference: str | None) -> str:
    model = reference or "model.safetensors"
    return (
        "```python\nimport smope\n\n"
        f'classifier = smope.load("{model}")\n'
        'for prediction in classifier.predict(["photo.jpg"], top=3):\n'
        "    print(prediction.class_name, prediction.probability)\n```\n\n"
        f"On the command line: `{command('predict', model, 'photo.jpg')}`."
    )


def _evaluation(artefact: Artefact, record: Mapping[str, Any]) -> str:
    images = sum(task["test"] for task in record["tasks"][: artefact.tasks_done])
    rows = [
        f"| {SCORES[key].title} | {100 * value:.2f} % | {SCORES[key].definition} |"
        for key, value in _scores(record).items()
    ]
    side = artefact.image_size or "the backbone's number of"
    stream = record["stream"]["name"]
    return (
        "\n".join(["| score | value | definition |", "|---|---|---|", *rows])
        + f"\n\nMeasured on {images} {record['evaluated_on']} images of `{stream}` "
        f"after each task, among all classes seen and without the number of the task. The shorter "
        f"side was resized to {side} pixels / {artefact.eval_crop:g}, and the central square "
        "shown. One run with one seed."
    )


def _limits(artefact: Artefact, source: Origin) -> str:
    lines = [
        "It always answers with one of its classes. A probability is a share of the softmax and "
        "may be too high or too low; `--min-probability` answers `unknown` below a bound.",
        "Classes of early tasks may be recognised worse than those of late ones.",
        "It knows the kind of images that it was trained on; test it on yours.",
    ]
    if artefact.tasks_done < artefact.total_tasks:
        lines.append("Training had not ended when this was written.")
    if source.licence is None:
        lines.append(
            "The licence of the backbone is not known here: ask where its weights are from."
        )
    return "\n".join(f"- {line}" for line in lines)


def _classes(names: list[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:LISTED_CLASSES])
    more = len(names) - LISTED_CLASSES
    return shown + (f" and {more} more" if more > 0 else "")
