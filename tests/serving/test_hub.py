"""Models on the Hugging Face Hub, with a fake of it: its client's calls, and its cache's layout."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import constants

import smope
from smope.cli.main import main

from .colours import Run, loaded

Capture = pytest.CaptureFixture[str]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """The calls of HfApi that are used; a commit fills the cache as a download would."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.private: dict[str, bool] = {}

    def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> str:
        assert exist_ok
        self.private[repo_id] = private
        return f"https://huggingface.co/{repo_id}"

    def create_commit(self, repo_id: str, operations: list[Any], commit_message: str) -> None:
        assert commit_message
        root = self.cache / f"models--{repo_id.replace('/', '--')}"
        snapshot = root / "snapshots" / COMMIT
        snapshot.mkdir(parents=True)
        (root / "refs").mkdir()
        (root / "refs" / "main").write_text(COMMIT)
        for operation in operations:
            with operation.as_file() as file:
                (snapshot / operation.path_in_repo).write_bytes(file.read())


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path / "cache")
    fake.cache.mkdir()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(fake.cache))
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_token")
    # snapshot_download has the cache's folder as a default of its own
    plain = huggingface_hub.snapshot_download
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda *names, **options: plain(*names, cache_dir=fake.cache, **options),
    )
    return fake


def metadata(card: str) -> dict[str, Any]:
    _, head, _ = card.split("---\n", 2)
    return yaml.safe_load(head)


def test_pushed_and_loaded_it_classifies_as_the_run_does(
    hub: FakeHub, run_dir: Path, pictures: Path, capsys: Capture
) -> None:
    capsys.readouterr()
    assert main(["push", str(run_dir), "me/colours", "--private"]) == 0
    assert capsys.readouterr().out.endswith(
        'https://huggingface.co/me/colours\nto load it: smope.load("hf://me/colours")\n'
    )
    assert hub.private == {"me/colours": True}
    images = torch.rand(3, 3, 16, 16)
    assert torch.equal(smope.load("hf://me/colours")(images), smope.load(run_dir)(images))
    assert main(["predict", "hf://me/colours", str(pictures)]) == 0
    pushed = capsys.readouterr().out
    assert main(["predict", str(run_dir), str(pictures)]) == 0
    assert capsys.readouterr().out == pushed


def test_a_dry_run_prints_the_card_and_uploads_nothing(
    hub: FakeHub, run_dir: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    capsys.readouterr()
    assert main(["push", str(run_dir), "me/colours", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert re.match(r"model\.safetensors: 0\.\d\d MB\nREADME\.md: 0\.00 MB\n\n---\n", printed)
    assert printed.endswith("\nnothing was uploaded (--dry-run)\n")
    assert not hub.private and not list(hub.cache.iterdir())


def test_the_card_says_what_the_model_is(run_dir: Path) -> None:
    """Beside every model.safetensors, and it says nothing of folders of this machine."""
    card = (run_dir / "model_card.md").read_text(encoding="utf-8")
    record = smope.load(run_dir).artefact
    head = metadata(card)
    assert head["license"] == "apache-2.0"
    assert head["library_name"] == "smope" and head["pipeline_tag"] == "image-classification"
    assert {"smope", "continual-learning", "method:smope"} <= set(head["tags"])
    [result] = head["model-index"][0]["results"]
    assert result["dataset"] == {"name": "folder", "type": "folder"}
    assert 0 < result["metrics"][0]["value"] <= 1
    for text in ("final average accuracy (FAA)", "20 test images", "`red fish`", "2 of 2 tasks"):
        assert text in card, text
    assert record.config_hash in card and str(run_dir.parent) not in card


def test_weights_of_a_file_go_along_when_asked(
    hub: FakeHub, run_dir: Path, tmp_path: Path, capsys: Capture
) -> None:
    """And are then read from beside the model, where the file of the run is not."""
    from dataclasses import replace

    from smope.backbones.weights import EMBEDDED
    from smope.run.artefact import read_model, to_bytes

    weights = shutil.copy(EMBEDDED, tmp_path / "vit.safetensors")
    artefact = read_model(run_dir)
    artefact = replace(
        artefact,
        backbone={**artefact.backbone, "weights": str(weights)},
        identity={**artefact.identity, "source": str(weights)},
    )
    model = tmp_path / "model.safetensors"
    model.write_bytes(to_bytes(artefact))
    capsys.readouterr()
    assert main(["push", str(model), "me/without", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "from a file of yours and are not uploaded: add --with-backbone" in printed
    assert "license" not in metadata(printed[printed.index("---\n") :])
    assert main(["push", str(model), "me/with", "--with-backbone"]) == 0
    assert re.search(r"^backbone\.safetensors: 6\.\d\d MB$", capsys.readouterr().out, re.MULTILINE)
    uploaded = [path for path in hub.cache.rglob("*.safetensors") if path.is_file()]
    assert uploaded and not any(str(tmp_path).encode() in file.read_bytes() for file in uploaded), (
        "folders of a machine are nobody else's business"
    )
    Path(weights).unlink()
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(smope.load("hf://me/with")(images), smope.load(run_dir)(images))


def test_pushed_it_learns_forgets_and_is_exported(
    hub: FakeHub,
    colour_run: Callable[..., Run],
    colours: Path,
    tmp_path: Path,
    capsys: Capture,
) -> None:
    """Into a file that is named; nothing is written beside the download."""
    model = loaded(colour_run("ncm").artefacts[1], tmp_path / "model").artefact.file
    assert model is not None
    assert main(["push", str(model.path), "me/colours"]) == 0
    cached = sorted(hub.cache.rglob("*"))
    reference, new = "hf://me/colours", str(colours / "train" / "emerald")
    device, out = ["--device", "cpu"], str(tmp_path / "out.safetensors")
    for words in (["learn", reference, new], ["forget", reference, "amber"], ["export", reference]):
        assert (
            f"MODEL={reference}: what is made of it needs a file: name one with --out"
            in main_err(words, capsys)
        )
    assert main(["learn", reference, new, "--dry-run", *device]) == 0
    assert main(["learn", reference, new, "--out", out, *device]) == 0
    assert "emerald" in smope.load(out).class_names
    assert main(["forget", reference, "amber", "--out", out + "2", *device]) == 0
    assert main(["pack", reference, "--out", out + "3"]) == 0
    graph = ["--format", "torch", "--out", str(tmp_path / "out.pt2")]
    assert main(["export", reference, *graph]) == 0
    assert sorted(hub.cache.rglob("*")) == cached
    for command in ("eval", "audit"):
        line = main_err([command, reference], capsys)
        assert f"={reference}: is a model on the Hub, and this needs a run directory" in line


def main_err(words: list[str], capsys: Capture) -> str:
    """The one line of a mistake."""
    capsys.readouterr()
    assert main(words) == 2
    [line] = capsys.readouterr().err.splitlines()
    return line


def test_offline_is_one_line(hub: FakeHub, capsys: Capture) -> None:
    assert main(["predict", "hf://me/nothing", "."]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert re.search(r"RUN=hf://me/nothing: the Hub cannot be reached \(.+\); try again with", line)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["push", ".", "birds"], r"OWNER/NAME=birds: must be OWNER/NAME of letters, digits"),
        (["push", ".", "me/../birds"], r"OWNER/NAME=me/\.\./birds: must be OWNER/NAME"),
        (["push", ".", "me/birds"], r"smope push: there is no token .*; run `hf auth login`, or"),
        (["push", "nowhere", "me/birds", "--dry-run"], r"MODEL=nowhere: no such file or dir"),
        (["predict", "hf://birds", "a.jpg"], r"RUN=hf://birds: must be OWNER/NAME"),
        (["export", "hf://"], r"MODEL=hf://: must be OWNER/NAME"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], message: str, mistake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert re.search(message, mistake(*words))


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (401, "RepositoryNotFoundError", "there is no such repository on the Hub, or it is priv"),
        (403, "HfHubHTTPError", r"the Hub refuses \(403: .*\); run `hf auth login`, or set HF_TO"),
        (500, "HfHubHTTPError", r"the Hub refuses \(500: .*\); try again later"),
    ],
)
def test_what_the_hub_answers_is_one_line(
    status: int, kind: str, message: str, hub: FakeHub, run_dir: Path, capsys: Capture
) -> None:
    import httpx

    response = httpx.Response(status, request=httpx.Request("POST", "https://huggingface.co"))

    def refuse(*_: Any, **__: Any) -> None:
        raise getattr(huggingface_hub.errors, kind)("no", response=response)

    hub.create_repo = refuse  # pyright: ignore[reportAttributeAccessIssue]
    capsys.readouterr()
    assert main(["push", str(run_dir), "me/colours"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
