"""Answers in JSON: predictions, the model, and errors of one line."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from starlette.responses import Response

from smope.errors import UserError, one_line
from smope.server.limits import Upload
from smope.server.refusal import UNREADABLE, Refusal
from smope.server.session import Served, Session, Version
from smope.serving.prediction import Prediction


def answer(values: Any, status: int = 200) -> Response:
    """Values as JSON; numbers that are not finite, which JSON lacks, are null.

    Args:
        values: dictionaries, lists and plain values.
        status: of HTTP.
    """
    text = json.dumps(_plain(values), allow_nan=False)
    return Response(text, status, media_type="application/json")


def error_answer(error: Exception, status: int = UNREADABLE) -> Response:
    """An error as {"error": one line}.

    Args:
        error: what happened.
        status: of HTTP, unless the error has one.
    """
    status = error.status if isinstance(error, Refusal) else status
    return answer({"error": one_line(error)}, status)


def predictions_answer(
    version: Version, uploads: Sequence[Upload], results: Sequence[Prediction | UserError]
) -> Response:
    """The predictions of a request; an error if no image of it can be read.

    Args:
        version: the model that made them.
        uploads: the images.
        results: of each image.
    """
    errors = [result for result in results if isinstance(result, UserError)]
    if len(errors) == len(results):
        return error_answer(errors[0])
    images = [_image(*pair) for pair in zip(uploads, results, strict=True)]
    return answer({"version": version.file, "images": images})


def model_document(session: Session, served: Served | None = None) -> dict[str, Any]:
    """What GET /model answers, and the page shows.

    Args:
        session: the server's.
        served: the model to describe; None: that of this moment.
    """
    served = served or session.served  # read once: a lesson may end meanwhile
    artefact, limits = served.artefact, session.limits
    return {
        "method": served.method_name,
        "backbone": artefact.identity.get("name"),
        "classes": artefact.class_names,
        "tasks_done": artefact.tasks_done,
        "total_tasks": artefact.total_tasks,
        "version": served.versions[-1].file,
        "versions": [asdict(version) for version in served.versions],
        "learning": session.teaches,
        "can_undo": served.can_undo,
        "unknown_below": session.min_probability,
        "limits": {
            "bytes": limits.request_bytes,
            "images": limits.images,
            "pixels": limits.pixels,
        },
    }


def _image(upload: Upload, result: Prediction | UserError) -> dict[str, Any]:
    if isinstance(result, UserError):
        return {"name": upload.name, "error": one_line(result)}
    explanation = result.explanation
    assert explanation is not None
    return {
        "name": upload.name,
        "class": result.class_name,
        "probability": result.probability,
        "unknown": result.is_unknown,
        "unknown_score": result.unknown_score,
        "top": [{"class": name, "probability": share} for name, share in result.top],
        "experts": [
            {"block": block, "of": of, "heads": heads} for block, of, heads in explanation.experts
        ],
        "nearest": [{"class": name, "cosine": cosine} for name, cosine in explanation.nearest],
    }


def _plain(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _plain(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_plain(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
