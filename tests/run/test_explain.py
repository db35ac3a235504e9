"""What a first run prints: what will happen, what its numbers mean, and what to type next."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from smope.cli.main import main
from smope.config.hydra import compose
from smope.config.overrides import read_overrides
from smope.run.explain import about, introduction, meaning, next_steps
from smope.run.prepare import prepare

SMALL = [
    "experiment=smoke", "backbone.image_size=8", "trainer.batch_size=128", "trainer.device=cpu",
    "trainer.reference=none",
]  # fmt: skip


def record(**changes: Any) -> dict[str, Any]:
    """A run.json with what is explained."""
    use = {"experts": 25, "chosen": 5, "effective": [5.0, 7.0], "dead": [0.8, 0.4]}
    numbers = {
        "method": "smope",
        "config": {
            "name": "digits",
            "method": {},
            "router": {"_target_": "smope.routers.topk.TopK"},
        },
        "evaluated_on": "test",
        "class_names": list("abcdefgh"),
        "final_average_accuracy": 0.9,
        "learning_accuracy": 0.97,
        "backward_transfer": -0.08,
        "reference": {"final_average_accuracy": 0.85},
        "experts": [{}, use],
    }
    return {**numbers, **changes}


def plain(text: str) -> str:
    """A text without its line breaks."""
    return " ".join(text.split())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "10 seconds"),
        (47, "50 seconds"),
        (58, "1 minute"),
        (100, "2 minutes"),
        (3400, "1 hour"),
        (20000, "6 hours"),
    ],
)
def test_a_duration_is_rounded_to_what_is_known(seconds: float, text: str) -> None:
    assert about(seconds) == f"about {text}"


def test_three_sentences_are_of_the_run() -> None:
    text = plain(meaning(record()))
    assert "90.0 % of the test images" in text
    assert "all 8 classes" in text
    assert "it was 97.0 %, and earlier tasks have lost 8.0 points since." in text
    assert "reaches 85.00 %, 5.00 points less." in text
    assert "25 experts, and an image uses 5" in text
    assert "falls on about 6.0, and 15.0 are never chosen." in text


def test_sentences_say_what_went_the_other_way() -> None:
    text = plain(
        meaning(record(backward_transfer=0.01, reference={"final_average_accuracy": 0.95}))
    )
    assert "and nothing was forgotten since." in text
    assert "which is 5.00 points more." in text
    same = meaning(record(reference={"final_average_accuracy": 0.9}))
    assert "reaches 90.00 % as well." in plain(same)


def test_runs_without_experts_or_a_reference_have_fewer_sentences() -> None:
    run = record(reference=None)
    del run["experts"]
    assert plain(meaning(run)).count(".") == plain(meaning(record())).split("Nearest")[0].count(".")


def test_the_next_commands_repeat_the_settings_and_compose(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["experiment=smoke", "method=smope", "router.top_k=3", "seed=1", "run_dir=a/first"]
    text = next_steps(record(), Path("a/first/report.html"), given)
    trained = [
        line.split("   ")[0].split("  ")[1] for line in text.splitlines() if "train " in line
    ]
    first, second, _ = [line.removeprefix("smope train ") for line in trained]
    assert first == "method=ridge experiment=smoke seed=1"
    assert second == "router=standardised experiment=smoke method=smope seed=1"
    for words in (first, second):
        compose(read_overrides(words.split()))
    assert "open a/first/report.html" in text
    assert "smope collect a " in text


@pytest.mark.parametrize("installed", [True, False])
def test_the_environment_is_activated_if_the_shell_lacks_it(
    installed: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"bin/{name}" if installed else None)
    monkeypatch.setattr("sys.prefix", str(tmp_path / ".venv"))
    monkeypatch.chdir(tmp_path)
    assert "activate" not in next_steps(record(), Path("report.html"), []), "there is none"
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()
    text = next_steps(record(), Path("report.html"), [])
    assert ("source .venv/bin/activate" in text) is not installed


def test_a_run_that_explains_prints_that_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--explain", *SMALL, f"run_dir={tmp_path}/first"]) == 0
    printed = capsys.readouterr().out
    run = json.loads((tmp_path / "first" / "run.json").read_text())
    assert re.match(r"(loading .*\n)?SMoPE learns the 10 classes of digits in 2 tasks\.", printed)
    assert re.search(r"about \d+ (second|minute|hour)s? on this machine", plain(printed))
    assert f"{100 * run['final_average_accuracy']:.1f} % of the test images" in plain(printed)
    assert plain(meaning(run)) in plain(printed)
    assert f"open {tmp_path}/first/report.html" in printed
    assert (tmp_path / "first" / "report.html").is_file()
    log = (tmp_path / "first" / "train.log").read_text()
    for detail in ("epoch 1/1: loss", "forgetting  ", "GFLOPs", "writing to"):
        assert detail in log
        assert detail not in printed
    assert len(printed.splitlines()) < 30


def test_timing_a_run_changes_nothing_of_it() -> None:
    experiment, trainer = prepare(compose(read_overrides(SMALL)))
    state = {name: value.clone() for name, value in trainer.method.state_dict().items()}
    drawn = torch.get_rng_state()
    assert "10 classes of digits" in introduction(experiment, trainer)
    assert torch.equal(torch.get_rng_state(), drawn)
    for name, value in trainer.method.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert all(parameter.grad is None for parameter in trainer.method.parameters())


def test_a_busy_machine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time was measured beside other work, so it says less about a run."""
    experiment, trainer = prepare(compose(read_overrides(SMALL)))
    busy = "Other work keeps this machine busy"
    for load, named in ((1.0, False), (2.0, False), (7.5, True)):
        monkeypatch.setattr("os.getloadavg", lambda load=load: (load, 0.0, 0.0))
        monkeypatch.setattr("smope.run.explain.available_cores", lambda: 2)
        text = plain(introduction(experiment, trainer))
        assert (f"{busy} (load 7.5, 2 cores)" in text) is named
    monkeypatch.delattr("os.getloadavg")  # as on Windows
    assert busy not in introduction(experiment, trainer)


def test_a_sweep_is_not_explained(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "-m", "--explain", "seed=0,1"]) == 2
    assert "--explain belongs to a single run" in capsys.readouterr().err


def test_a_method_that_revisits_says_so() -> None:
    experiment, trainer = prepare(compose(read_overrides([*SMALL, "method=joint"])))
    assert "images of earlier tasks are shown again." in plain(introduction(experiment, trainer))
