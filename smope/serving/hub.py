"""Models on the Hugging Face Hub: hf://OWNER/NAME.

A repository holds model.safetensors, README.md (the model card) and, where the weights of the
backbone are nowhere else to be had, these as backbone.*. The Hub's client is imported late, and no
torch at all, so that a wrong name is answered at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from smope.backbones.files import SUFFIXES
from smope.errors import UserError, one_line
from smope.serving.weights_beside import STEM

SCHEME = "hf://"
MODEL = "model.safetensors"
CARD = "README.md"
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
TOKEN_HELP = "run `hf auth login`, or set HF_TOKEN to a token from huggingface.co/settings/tokens"


def is_hub_reference(text: str | Path) -> bool:
    return str(text).startswith((SCHEME, "hf:/"))


def repository_id(text: str, key: str) -> str:
    """OWNER/NAME of a repository.

    Args:
        text: What the user wrote, with or without hf://.
        key: What errors call it.

    Raises:
        UserError: It has another form.
    """
    name = text.removeprefix(SCHEME).removesuffix("/")
    if not NAME.fullmatch(name) or "--" in name or ".." in name:
        raise UserError(
            f"{key}={text}: must be OWNER/NAME of letters, digits, dots, - and _; write for "
            "example me/birds"
        )
    return name


def download(reference: str, key: str = "MODEL") -> Path:
    """The model.safetensors of hf://OWNER/NAME in the Hub's cache, with what lies beside it.

    Args:
        reference: hf://OWNER/NAME.
        key: What errors call it.

    Raises:
        UserError: There is no such model, or the Hub cannot be reached.
    """
    repository = repository_id(reference, key)
    from huggingface_hub import snapshot_download

    patterns = [MODEL, CARD, *(f"{STEM}{suffix}" for suffix in SUFFIXES)]
    with _answers(reference, key):
        folder = Path(snapshot_download(repository, allow_patterns=patterns))
    if not (folder / MODEL).is_file():
        raise UserError(
            f"{key}={reference}: this repository has no {MODEL}; name one that `smope push` made"
        )
    return folder / MODEL


def check_token() -> None:
    """Raise UserError without a token of the Hub."""
    from huggingface_hub import get_token

    if not get_token():
        raise UserError(f"smope push: there is no token of the Hugging Face Hub; {TOKEN_HELP}")


def upload(repository: str, files: dict[str, Path | bytes], *, private: bool) -> str:
    """Write files to a repository of the Hub, in one commit; it is made if it does not exist.

    Args:
        repository: OWNER/NAME.
        files: Path or content by name in the repository.
        private: Whether a new repository is private.

    Returns:
        The address of the repository.

    Raises:
        UserError: The Hub refuses, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    with _answers(f"{SCHEME}{repository}", "OWNER/NAME"):
        url = api.create_repo(repository, private=private, exist_ok=True)
        api.create_commit(
            repository,
            [CommitOperationAdd(name, content) for name, content in files.items()],
            commit_message="Written by smope push",
        )
    return str(url)


@contextmanager
def _answers(reference: str, key: str) -> Iterator[None]:
    """What the Hub's client raises, as one line that says what to do."""
    from huggingface_hub import errors

    try:
        yield
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise UserError(
            f"{key}={reference}: there is no such repository on the Hub, or it is private; check "
            f"the name, or {TOKEN_HELP}"
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no status"
        way_out = TOKEN_HELP if status in (401, 403) else "try again later"
        raise UserError(
            f"{key}={reference}: the Hub refuses ({status}: {one_line(error)[:100]}); {way_out}"
        ) from error
    except (UserError, MemoryError):
        raise
    except Exception as error:  # of the client's HTTP library, which changes with its version
        raise UserError(
            f"{key}={reference}: the Hub cannot be reached ({type(error).__name__}); try again "
            "with a network"
        ) from error
