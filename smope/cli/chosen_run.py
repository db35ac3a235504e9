"""The run that a command's argument means."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from smope.errors import UserError
from smope.serving.hub import SCHEME, download, is_hub_reference, repository_id
from smope.storage.run_directory import check_run, model_file
from smope.storage.run_search import finished_run


def chosen_run(path: Path, key: str = "RUN") -> Path:
    """The run directory or file; of a folder or `latest` the latest finished run, which is printed.

    Args:
        path: What the user wrote.
        key: What errors call it.

    Raises:
        UserError: No run is finished, or this is a model on the Hub.
    """
    if is_hub_reference(path):
        raise UserError(
            f"{key}={SCHEME}{Path(*path.parts[1:])}: is a model on the Hub, and this needs a run "
            "directory; name a run on this machine"
        )
    return finished_run(
        path.expanduser(), lambda line: print(line, file=sys.stderr, flush=True), key
    )


def chosen_model(text: str, key: str = "MODEL") -> Path:
    """The run directory or model.safetensors that a command's argument means.

    Args:
        text: What the user wrote; hf://OWNER/NAME is downloaded into the Hub's cache.
        key: What errors call it.
    """
    if is_hub_reference(text):
        return download(text, key)
    path = chosen_run(Path(text), key)
    check_run(path, key)
    return path


def check_folder(model: Path, out: Path | None, option: str = "--out FILE") -> None:
    """UserError if a new version would go beside a model into a folder that cannot be written to.

    Args:
        model: The run directory or file.
        out: What the option gives; None for a file beside the model.
        option: Which names another place.
    """
    if out is None and not os.access(model_file(model).parent, os.W_OK):
        raise UserError(
            f"MODEL={model}: new versions are written beside it, and its folder cannot be written "
            f"to; name another with {option}"
        )


def check_out(out: Path | None, text: str, key: str = "MODEL") -> None:
    """UserError if a new model would go beside a downloaded one, into the Hub's cache.

    Args:
        out: The file of --out; None for one beside the model.
        text: The model that the user wrote.
        key: What errors call it.
    """
    if not is_hub_reference(text):
        return
    repository_id(text, key)
    if out is None:
        raise UserError(f"{key}={text}: what is made of it needs a file: name one with --out FILE")
