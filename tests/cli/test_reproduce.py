"""`smope reproduce`: seeds, mistakes, and a small row run from start to card."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import smope
from smope.cli import reproduce
from smope.cli.main import main
from smope.cli.reproduce import parse_seeds
from smope.errors import UserError
from smope.reproduction import report
from smope.reproduction.published import PublishedRow, SeedMean
from smope.reproduction.rows import ROWS

pytestmark = pytest.mark.usefixtures("few_digits")

FAA = "final_average_accuracy"
TINY = """\
# @package _global_
# The smallest run, as if it had been published
defaults: [smoke, _self_]
name: paper_tiny
backbone: {image_size: 8}
method: {blocks: [7], num_experts: 5}
trainer: {device: cpu}
"""


def row(paper: dict[str, SeedMean], **others: Any) -> PublishedRow:
    return PublishedRow(
        "SMoPE on digits, 2 tasks", "the digits of scikit-learn", 364, 86, paper, **others
    )


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("0-4", [0, 1, 2, 3, 4]), ("0,2", [0, 2]), ("3", [3]), ("7, 1-2,2", [1, 2, 7])],
)
def test_seeds(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "4-1", "a", "1-", "-1", "0,,1", "1.5"])
def test_seeds_that_are_none(text: str) -> None:
    with pytest.raises(
        UserError, match=rf"--seeds {re.escape(text)}: must be numbers or ascending ranges"
    ):
        parse_seeds(text)


def test_the_list_needs_no_torch() -> None:
    program = (
        "import sys; from smope.cli.main import main; main(['reproduce', '--list']); "
        "print(*sys.modules, file=sys.stderr)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(smope.__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
    )
    assert not {"torch", "timm", "numpy", "torchvision"} & set(done.stderr.split())
    assert re.search(
        r"^paper_cifar100 +cifar100 +10 .* 89\.23 ± 0\.12 +93\.67 +Le et al\. 2026 +stream\.root$",
        done.stdout,
        re.MULTILINE,
    )
    assert re.search(
        r"^paper_imagenet_r_10_ibot .* 72\.17 .*backbone\.weights", done.stdout, re.MULTILINE
    )
    assert all(name in done.stdout for name in ROWS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"ROW is missing; `smope reproduce --list` shows the rows"),
        (["stream.root=x"], r"ROW is missing"),
        (
            ["paper_cifr100"],
            r"ROW=paper_cifr100: no such row was published; did you mean "
            r"paper_cifar100\?",
        ),
        (["qwerty"], r"ROW=qwerty: no such row was published; choose one of paper_cifar100, "),
        (
            ["paper_cifar100"],
            r"stream\.root has no value yet; write stream\.root=<folder of images>",
        ),
        (
            ["paper_imagenet_r_10_ibot", "stream.root=."],
            r"backbone\.weights has no value yet; "
            r"write backbone",
        ),
        (["paper_cifar100", "stream.root=nowhere"], r"stream\.root=.*nowhere: no such folder"),
        (
            ["paper_cifar100", "stream.root=.", "trainer.epoch=1"],
            r"unknown key trainer\.epoch=1; "
            r"did you mean trainer",
        ),
        (["paper_cifar100", "seed=1"], r"seed=1 belongs to `smope train`; say --seeds instead"),
        (
            ["paper_cifar100", "run_dir=x"],
            r"run_dir=x belongs to `smope train`; .* name=\.\.\. "
            r"for another folder",
        ),
        (["paper_cifar100", "--check", "nowhere"], r"--check RUN=nowhere: no such directory"),
        (
            ["paper_cifar100", "seeds=1", "--check", "nowhere"],
            r"seeds=1 has no effect with --check",
        ),
        (["paper_cifar100", "--seeds", "x"], r"--seeds x: must be numbers"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    arguments: list[str], message: str, mistake: Callable[..., str]
) -> None:
    line = mistake("reproduce", *arguments)
    assert re.search(message, line), line


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a small row was reproduced with seeds 0 and 1; its printed text lies in
    screen.txt.
    """
    folder = tmp_path_factory.mktemp("reproduce")
    (folder / "conf/experiment").mkdir(parents=True)
    (folder / "conf/experiment/paper_tiny.yaml").write_text(TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setitem(
            ROWS, "paper_tiny", row({FAA: SeedMean(1.0, 0.1)}, note="Nobody published this.")
        )
        with Path("screen.txt").open("w") as file:
            patch.setattr(sys, "stdout", file)
            assert (
                main(
                    [
                        "reproduce",
                        "paper_tiny",
                        "--seeds",
                        "0,1",
                        "--config-dir",
                        str(folder / "conf"),
                    ]
                )
                == 1
            )
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A copy of that folder to work in, its cards removed; what would have been trained instead of
    training.
    """
    shutil.copytree(finished, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setitem(ROWS, "paper_tiny", row({FAA: SeedMean(1.0, 0.1)}))
    for path in Path().glob("paper_tiny*"):
        path.unlink()
    calls: list[Any] = []

    def train(config: Any, run_dir: Path, resume: bool = False) -> None:
        calls.append((config, run_dir, resume))
        raise KeyboardInterrupt

    monkeypatch.setattr("smope.run.train.train", train)
    return calls


def tiny(*arguments: str) -> int:
    return main(["reproduce", "paper_tiny", *arguments, "--config-dir", "conf"])


def test_the_screen_says_what_was_run_and_how_it_compares(finished: Path) -> None:
    text = (finished / "screen.txt").read_text()
    assert "seed 0 (1 of 2): starting in runs/paper_tiny/seed-0" in text
    assert "seed 1 (2 of 2): starting in runs/paper_tiny/seed-1" in text
    assert re.search(
        r"^FAA +the paper +1\.00 ± 0\.10 +\d+\.\d\d ± \d+\.\d\d +\+\d+\.\d\d +\d+\.\d\d +outside, "
        r"above$",
        text,
        re.M,
    )
    assert "Inside means |difference| <= 2 s sqrt(1/n + 1/m)" in text
    assert re.search(
        r"^outside: differs from the paper in FAA by \+\d+\.\d\d \(\d+\.\d\d allowed\)$", text, re.M
    )
    assert "card: paper_tiny_seeds_0_1.md" in text


def test_the_card_holds_what_a_reader_needs(finished: Path) -> None:
    card = json.loads((finished / "paper_tiny_seeds_0_1.json").read_text())
    runs = [
        json.loads((finished / f"runs/paper_tiny/seed-{seed}/run.json").read_text())
        for seed in (0, 1)
    ]
    assert (card["row"], card["verdict"], card["changed"]) == ("paper_tiny", "outside", [])
    assert [run["seed"] for run in card["runs"]] == [0, 1]
    for shown, run in zip(card["runs"], runs, strict=True):
        assert shown[FAA] == pytest.approx(100 * run[FAA])
        assert shown["config_hash"] == run["config_hash"]
        assert shown["first_classes"] == run["class_order"][:5]
        assert shown["seconds"] == pytest.approx(sum(run["seconds"]["per_task"]))
        assert shown["stream_identity"] == run["stream"]["identity"]
    assert (card["evaluated_on"], card["trained_on"]) == ("86 test images", "364 images")
    assert card["data"]["content_hash"] == runs[0]["stream"]["content_hash"]
    assert card["backbone"]["sha256"] == runs[0]["backbone"]["sha256"]
    assert card["versions"]["torch"] == runs[0]["versions"]["torch"]
    assert card["config"]["router"]["exclude_unused_experts"] is True
    page = (finished / "paper_tiny_seeds_0_1.md").read_text()
    assert page.startswith("# SMoPE on digits, 2 tasks: outside\n")
    for said in (
        "Nobody published this.",
        "evaluated on: 86 test images",
        "router.exclude_unused_experts=true",
        card["rule"],
    ):
        assert said in page
    assert "    smope reproduce paper_tiny --seeds 0,1 --config-dir conf\n" in page
    assert str(finished) not in page + json.dumps(card), (
        "a card is published: no paths of this machine"
    )
    config = yaml.safe_load(page.partition("```yaml\n")[2].partition("```")[0])
    assert config == card["config"]


def test_a_finished_seed_is_not_run_again(
    copy: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny("--seeds", "0-1", "trainer.num_workers=1") == 1
    assert not copy
    text = capsys.readouterr().out
    assert "seed 1 (2 of 2): finished before, in runs/paper_tiny/seed-1" in text
    assert Path("paper_tiny_seeds_0_1.json").is_file()


def test_an_interrupted_seed_goes_on(copy: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    path = Path("runs/paper_tiny/seed-1/run.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "interrupted"}))
    assert tiny("--seeds", "0-2") == 130
    [(config, run_dir, resume)] = copy
    assert (config.seed, run_dir, resume) == (1, Path("runs/paper_tiny/seed-1"), True)
    captured = capsys.readouterr()
    assert (
        "the same command continues: smope reproduce paper_tiny --seeds 0-2 --config-dir "
        "conf" in captured.out
    )
    assert captured.err == "smope: interrupted\n"
    assert not list(Path().glob("*.md"))


def test_changed_settings_have_a_place_and_a_card_of_their_own(copy: list[Any]) -> None:
    assert tiny("--seeds", "0", "trainer.epochs=2") == 130
    [(config, run_dir, resume)] = copy
    assert config.trainer["epochs"] == 2
    assert re.fullmatch(r"runs/paper_tiny/changed-[0-9a-f]{8}/seed-0", str(run_dir))
    assert not resume


def test_a_place_that_holds_other_settings_is_refused(
    copy: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path("runs/paper_tiny/seed-0/run.json")
    saved = json.loads(path.read_text())
    saved["config"]["trainer"]["epochs"] = 7
    path.write_text(json.dumps(saved))
    assert tiny("--seeds", "0") == 2
    message = r"seed-0 holds a run with trainer\.epochs=7 \(1\), .*move that folder away, or write "
    assert re.search(message, capsys.readouterr().err)
    assert tiny("--seeds", "0", "name=again") == 130
    assert copy[0][1] == Path("runs/again/seed-0")


def test_other_images_are_refused_before_training(
    copy: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(ROWS, "paper_tiny", PublishedRow("A row", "all the digits", 5000, 86, {}))
    assert tiny("--seeds", "5") == 2
    message = (
        r"found train images=364 \(5000\), in brackets what the row wants, which is all the "
        r"digits; `smope train"
    )
    assert re.search(message, capsys.readouterr().err)
    assert not copy


def test_check_compares_runs_that_exist(copy: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    score = json.loads(Path("runs/paper_tiny/seed-1/run.json").read_text())[FAA]
    monkeypatch.setitem(ROWS, "paper_tiny", row({FAA: SeedMean(100 * score, 0.1)}))
    assert tiny("--check", "runs/paper_tiny/seed-1", "--out", "cards/new") == 0
    assert not copy
    card = json.loads(Path("cards/new/paper_tiny_seeds_1.json").read_text())
    assert (card["verdict"], card["runs"][0]["directory"]) == ("inside", "runs/paper_tiny/seed-1")


def test_check_names_what_a_run_changed(
    copy: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path("runs/paper_tiny/seed-1/run.json")
    saved = json.loads(path.read_text())
    saved["config"]["trainer"]["epochs"] = 7
    saved["tasks"][0]["test"] -= 5
    path.write_text(json.dumps(saved))
    assert tiny("--check", "runs/paper_tiny/seed-1", "runs/paper_tiny/seed-0") == 0
    [path] = Path().glob("paper_tiny_changed_*_seeds_1_0.json")
    card = json.loads(path.read_text())
    assert card["verdict"] == "not a reproduction"
    assert card["changed"] == ["trainer.epochs=7 (1)", "test images=81 (86)"]
    assert card["evaluated_on"] == ["81 test images", "86 test images"]
    assert [item["verdict"] for item in card["comparisons"]] == ["not judged"]
    page = path.with_suffix(".md").read_text()
    assert "changed trainer.epochs=7 (1), test images=81 (86)" in page
    heading = (
        "Not a repeat of SMoPE on digits, 2 tasks: smope on digits, 2 tasks, vit_tiny_patch16_224"
    )
    assert page.startswith(f"# {heading}\n")
    assert f"\n{heading}, seeds 1, 0: FAA " in capsys.readouterr().out


def test_check_wants_finished_runs_of_different_seeds(
    copy: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    zero, one = (f"runs/paper_tiny/seed-{seed}" for seed in (0, 1))
    shutil.copytree(zero, "twin")
    assert tiny("--check", zero, "twin") == 2
    assert re.search(r"seed-0 twin: both have seed 0; give one run a seed", capsys.readouterr().err)
    path = Path(one, "run.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "running"}))
    assert tiny("--check", one) == 2
    assert re.search(
        r"seed-1: is not finished; continue it with: smope train resume=", capsys.readouterr().err
    )


def test_a_card_goes_to_a_checkouts_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert reproduce._card_folder(None) == Path()
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(reproduce, "CHECKOUT", tmp_path)
    assert reproduce._card_folder(None) == Path("benchmarks/results")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--out file: cannot be made \(.*\); name another folder"):
        reproduce._card_folder(Path("file"))


def test_the_commit_is_that_of_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "CHECKOUT", tmp_path)
    assert report.checkout_state() is None
    author = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    (tmp_path / "smope").mkdir()
    (tmp_path / "smope/a.py").write_text("a = 1\n")
    for command in (["init", "-q"], ["add", "."], [*author, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    found = report.checkout_state()
    assert found is not None and re.fullmatch(r"[0-9a-f]{40}", found["commit"])
    assert found["uncommitted_changes"] == "no"
    (tmp_path / "smope/a.py").write_text("a = 2\n")
    assert report.checkout_state() == found | {"uncommitted_changes": "yes"}
