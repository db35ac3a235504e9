"""Names of folders and files that are not UTF-8: each command works, and shows them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
from PIL import Image

from smope.cli.main import main
from smope.config.config import load_config

CLASSES = (b"caf\xe9", b"f\xfcx", b"dog", b"owl")
AS_TEXT = {"caf\\xe9", "f\\xfcx", "dog", "owl"}


def write(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = numpy.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=numpy.uint8)
    with path.open("wb") as file:
        Image.fromarray(pixels).save(file, format="PNG")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders with three images or more, and a file that is no image: all called so."""
    place = Path(os.fsdecode(os.fsencode(tmp_path_factory.mktemp("data")) + b"/photos\xff"))
    try:
        for label, name in enumerate(CLASSES):
            for number in range(10 if name == b"dog" else 3):
                write(
                    place / os.fsdecode(name) / os.fsdecode(b"%d\xe4.png" % number),
                    10 * label + number,
                )
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (place / "dog" / os.fsdecode(b"broken\xe4.png")).write_bytes(b"no image")
    return place


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run_it(*arguments: str) -> tuple[int, str, str]:
        code = main(list(arguments))
        out, err = capsys.readouterr()
        return code, out, err

    return run_it


def test_a_data_check_names_them(root: Path, run: Run) -> None:
    code, out, _ = run("data", "check", str(root), "stream.num_tasks=2")
    assert code == 1, "an image cannot be read"
    assert r"names of folders are not UTF-8 and are read as text: b'caf\xe9' as caf\xe9" in out
    assert (
        "broken" in out and "test images: 0.2 of each class, drawn with stream.split_seed=0" in out
    )
    report = json.loads(run("data", "check", str(root), "--json")[1])
    assert {row["name"] for row in report["classes"]} == AS_TEXT


def test_an_error_names_the_file(root: Path, run: Run) -> None:
    code, _, err = run("train", "stream=folder", f"stream.root={root}", "stream.num_tasks=2")
    assert code == 2
    assert err.splitlines()[-1].startswith("smope: error: stream folder: cannot read image ")
    assert "Traceback" not in err


@pytest.fixture(scope="module")
def trained(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    overrides = ["stream=folder", f"stream.root={root}", "stream.num_tasks=2", "method=ncm"]
    overrides += ["stream.broken_images=skip", f"run_dir={run_dir}"]
    assert main(["train", *overrides]) == 0
    return run_dir


def test_a_run_records_them_and_is_read_again(root: Path, trained: Path, run: Run) -> None:
    record = json.loads((trained / "run.json").read_text(encoding="utf-8"))
    assert set(record["class_names"]) == AS_TEXT
    assert [os.fsencode(name)[-10:] for name in record["stream"]["skipped_images"]] == [
        b"roken\xe4.png"
    ]
    config = load_config(trained)
    assert config.stream["root"] == str(root)
    assert config.config_hash == record["config_hash"]
    assert "test images: 0.2 of each class" in (trained / "train.log").read_text(encoding="utf-8")
    assert run("eval", str(trained))[0] == 0
    assert run("collect", str(trained))[0] == 0


def test_predictions_name_the_files(root: Path, trained: Path, tmp_path: Path, run: Run) -> None:
    code, out, _ = run("predict", str(trained), str(root / os.fsdecode(CLASSES[0])))
    assert code == 0
    assert out.count("0\\xe4.png") == 1
    csv = tmp_path / "predictions.csv"
    assert run("predict", str(trained), str(root / "owl"), "--csv", str(csv))[0] == 0
    assert b"0\xe4.png" in csv.read_bytes()
