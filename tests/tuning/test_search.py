"""A search on the smallest runs: its files, its end, what happens to killed trials and to trials
without a score.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import smope
from smope.cli.main import main
from smope.config.hydra import compose
from smope.config.overrides import read_overrides
from smope.errors import UserError
from smope.tuning import search
from smope.tuning.settings import TuneSettings
from smope.tuning.space import Choices, NumberRange, Space
from smope.tuning.study import Study, join
from smope.tuning.summary import Protocol, result, write

pytestmark = pytest.mark.usefixtures("few_digits")

SMALL = [
    "experiment=smoke",
    "backbone.image_size=8",
    "method=finetune",
    "trainer.batch_size=16",
    "trainer.device=cpu",
    "tune.first_tasks=2",
    "tune.startup_trials=2",
    "tune.space.trainer.weight_decay=[0.0,0.1]",
]
SPACE: Space = {
    "trainer.learning_rate": NumberRange(1e-3, 1e-1, log=True),
    "method.router_loss": Choices(("code", "paper")),
}


def tune(*arguments: str) -> int:
    return main(["tune", *SMALL, *arguments])


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a search of four trials has run; its printed text lies in screen.txt."""
    folder = tmp_path_factory.mktemp("tune")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with Path("screen.txt").open("w") as file:
            patch.setattr(sys, "stdout", file)
            assert tune("tune.trials=4") == 0
    return folder


def study_in(folder: Path) -> Path:
    [path] = folder.glob("studies/smoke/*")
    return path


def test_the_files_and_the_screen(finished: Path) -> None:
    study, screen = study_in(finished), (finished / "screen.txt").read_text()
    table = rows(study)
    assert [row["trial"] for row in table] == ["0", "1", "2", "3"]
    assert {row["ranked_on"] for row in table} == {"validation"}
    assert {row["state"] for row in table} <= {"finished", "ended early"}
    best = json.loads((study / "best.json").read_text())
    highest = max(
        (row for row in table if row["state"] == "finished"), key=lambda row: float(row["score"])
    )
    assert float(highest["score"]) == pytest.approx(100 * best["value"], abs=0.01)
    assert best["values"].keys() == {"trainer.learning_rate", "trainer.weight_decay"}
    assert best["ranked_on"] == "validation" and "marked" not in best
    assert best["train_command"] in screen
    assert (
        "final average accuracy on 72 validation images of the first 2 of 2 tasks, 4 trials in all"
        in screen
    )
    assert "the search sees every task of the stream" in screen
    assert re.search(r"^trials: \d finished", screen, re.M)
    assert f"study: {study.relative_to(finished)}" in screen
    assert re.fullmatch(r"finetune-[0-9a-f]{12}", study.name)


def test_the_first_trial_is_the_configuration(finished: Path) -> None:
    first = rows(study_in(finished))[0]
    assert (first["trainer.learning_rate"], first["trainer.weight_decay"]) == ("0.005", "0.0")


def test_a_trial_is_a_run_of_the_first_tasks_on_validation_images(finished: Path) -> None:
    run = study_in(finished) / "trials/0"
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "finished" and record["evaluated_on"] == "validation"
    assert record["part"] == {"first_tasks": 2, "searched": True, "ranked_on": "validation"}
    assert not (run / "checkpoints").exists()
    row = rows(study_in(finished))[0]
    assert float(row["score"]) == pytest.approx(100 * record["final_average_accuracy"], abs=0.01)


def test_the_train_command_is_the_configuration_as_given(finished: Path) -> None:
    best = json.loads((study_in(finished) / "best.json").read_text())
    words = best["train_command"].split()
    assert words[:2] == ["smope", "train"]
    assert words[2:7] == SMALL[:5]
    assert not any(word.startswith(("tune", "stream.validation")) for word in words)
    from smope.config.hydra import compose
    from smope.config.overrides import read_overrides

    config = compose(read_overrides(words[2:]))
    assert config.trainer["learning_rate"] == best["values"]["trainer.learning_rate"]
    assert config.stream["validation_fraction"] is None


def test_the_same_command_again_has_nothing_to_do(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished)
    before = rows(study_in(finished))
    monkeypatch.setattr(search, "train", None)
    assert tune("tune.trials=4") == 0
    assert rows(study_in(finished)) == before
    assert "trials: " in capsys.readouterr().out


def test_interrupted_and_given_again_it_ends_as_undisturbed(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Trial 1 is left after its first task as by a kill; the next process takes it up from its
    checkpoint.
    """
    monkeypatch.chdir(tmp_path)
    original = search._Reports.after_task

    def stop(self: Any, history: Any) -> None:
        original(self, history)
        if self.claim.number == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(search._Reports, "after_task", stop)
        assert tune("tune.trials=4") == 130
    assert (
        "stopped in trial 1; the same command continues with it: smope tune experiment=smoke"
        in capsys.readouterr().out
    )
    assert tune("tune.trials=4") == 0
    screen = capsys.readouterr().out
    assert re.search(r"^trial 2: .* \(killed before, continuing\)$", screen, re.M)
    assert "resuming after task 1" in (study_in(tmp_path) / "trials/1/train.log").read_text()
    undisturbed, disturbed = rows(study_in(finished)), rows(study_in(tmp_path))
    assert disturbed.pop(1)["state"] == "killed"
    keys = (
        "state",
        "score",
        "after task 1",
        "after task 2",
        "trainer.learning_rate",
        "trainer.weight_decay",
    )
    assert [[row[key] for key in keys] for row in disturbed] == [
        [row[key] for key in keys] for row in undisturbed
    ]


def test_a_trial_without_a_score_is_noted_and_three_in_a_row_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    wild = "tune.space.trainer.learning_rate={low: 2e37, high: 3e37}"
    assert tune(wild, "tune.trials=5", "tune.folder=wild") == 2
    captured = capsys.readouterr()
    assert re.search(
        r"^trial 0: no score: the loss became (nan|inf) in step \d+ of task 1", captured.out, re.M
    )
    assert "the configuration's own values lie outside the space and are not tried" in captured.out
    assert re.search(r"3 trials in a row have no score.* give the same command again", captured.err)
    table = rows(tmp_path / "wild")
    assert [row["state"] for row in table] == ["no score"] * 3
    assert table[0]["note"].startswith("the loss became ")
    assert not (tmp_path / "wild/best.json").exists()


def test_ranked_on_test_only_when_forced_and_then_marked_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert tune("tune.rank_on=test", "--force", "tune.trials=1", "tune.folder=forced") == 0
    screen, folder = capsys.readouterr().out, tmp_path / "forced"
    assert screen.count("RANKED ON TEST IMAGES (forced)") == 2
    best, study = (json.loads((folder / f"{name}.json").read_text()) for name in ("best", "study"))
    assert best["marked"] == study["marked"] and "RANKED ON TEST IMAGES" in best["marked"]
    assert best["train_command"].split()[-3].startswith("name=smoke_tuned_on_test")
    assert rows(folder)[0]["ranked_on"] == "test (forced)"
    assert json.loads((folder / "trials/0/run.json").read_text())["part"]["ranked_on"] == "test"


def test_a_folder_with_another_study_is_refused(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished)
    folder = study_in(finished)
    assert tune(f"tune.folder={folder}", "trainer.epochs=2") == 2
    assert re.search(
        r"holds a study with trainer\.epochs=1, asked for is trainer\.epochs=2",
        capsys.readouterr().err,
    )
    assert tune(f"tune.folder={folder}", "tune.score=cumulative_average_accuracy") == 2
    assert re.search(
        r"holds a study with score=final_average_accuracy, asked", capsys.readouterr().err
    )
    assert tune(f"tune.folder={finished}") == 2
    assert re.search(r"is not empty and holds no study; name a new folder", capsys.readouterr().err)


def test_a_study_named_by_its_hash_alone_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier versions named its folder so."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(search, "_digest", lambda *_: "0123456789ab")
    job: Any = SimpleNamespace(config=compose(read_overrides(["method=ncm"])))
    parent = Path("studies") / job.config.name
    assert search._study_folder(job, PROTOCOL) == parent / "ncm-0123456789ab"
    (parent / "0123456789ab").mkdir(parents=True)
    assert search._study_folder(job, PROTOCOL) == parent / "0123456789ab"


def test_a_method_without_steps_has_no_learning_rate_to_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        main(
            [
                "tune",
                "experiment=smoke",
                "backbone.image_size=8",
                "method=ncm",
                "tune.first_tasks=1",
            ]
        )
        == 2
    )
    assert (
        "method ncm takes no training steps and has no key in the space" in capsys.readouterr().err
    )
    assert not (tmp_path / "studies").exists()


# Below, Optuna's record alone: nothing is trained.


def test_a_folder_that_another_process_begins_at_this_moment_is_joined(tmp_path: Path) -> None:
    """What write_atomically has there for a moment is no stranger's; a record that nothing
    describes is.
    """
    description: dict[str, Any] = {"protocol": {}, "space": {}, "config": {}}
    (tmp_path / ".study.json.1.tmp").touch()
    join(tmp_path, description)
    assert json.loads((tmp_path / "study.json").read_text())["protocol"] == {}
    (tmp_path / "study.json").rename(tmp_path / "study.db")
    with pytest.raises(UserError, match="is not empty and holds no study"):
        join(tmp_path, description)


def test_a_folder_of_something_else_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UserError, match="is not empty and holds no study"):
        join(tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_of_two_processes_that_begin_a_study_one_waits_for_the_other(tmp_path: Path) -> None:
    """The second is at its start while the first holds the lock, and is then refused by what that
    one wrote.
    """
    held = lock_in_another_process(tmp_path / ".lock")
    written = json.dumps({"protocol": {"score": "first"}, "space": {}, "config": {}})
    let_go = threading.Timer(
        0.3, lambda: ((tmp_path / "study.json").write_text(written), held.kill())
    )
    let_go.start()
    with pytest.raises(
        UserError, match="holds a study with score=first, asked for is score=second"
    ):
        join(tmp_path, {"protocol": {"score": "second"}, "space": {}, "config": {}})
    let_go.join()
    held.wait()


def lock_in_another_process(path: Path) -> subprocess.Popen[str]:
    """A process that holds the lock until it is killed."""
    program = (
        "import sys\nfrom pathlib import Path\nfrom smope.storage.files import lock_file\n"
        "file = lock_file(Path(sys.argv[1]))\nprint('held', flush=True)\nsys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(Path(smope.__file__).parent.parent)},
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def claimed(study: Study) -> int:
    claim = study.claim()
    assert claim is not None
    return claim.number


PROTOCOL = Protocol("validation", 2, 5, "final_average_accuracy", (10, 10), "i w", ("method=x",))


def scored(folder: Path, scores: list[float]) -> Study:
    """A study whose trials have these scores."""
    study = Study(folder, SPACE, TuneSettings(trials=len(scores)), 0)
    for score in scores:
        trial = study.claim()
        assert trial is not None
        trial.trial.set_user_attr("row", [score, score])
        study.optuna.tell(trial.trial, score)
        study.release()
    write(study, PROTOCOL)
    return study


@pytest.mark.parametrize("number", [2, 4])
def test_where_all_trials_tie_nothing_is_recommended(number: int, tmp_path: Path) -> None:
    text = result(scored(tmp_path, [0.75] * number), PROTOCOL)
    assert f"all {number} trials tie at 75.00 %" in text
    assert "keep the configuration's own" in text
    assert "smope train" not in text and "train with" not in text
    assert json.loads((tmp_path / "best.json").read_text())["tied_trials"] == list(range(number))


def test_a_tie_of_the_best_is_named_and_the_earliest_taken(tmp_path: Path) -> None:
    text = result(scored(tmp_path, [0.5, 0.75, 0.25, 0.75]), PROTOCOL)
    assert "trials 1, 3 tie at 75.00 %; the earliest of them is taken below" in text
    assert "smope train method=x" in text
    assert json.loads((tmp_path / "best.json").read_text())["tied_trials"] == [1, 3]


def test_without_a_tie_none_is_named(tmp_path: Path) -> None:
    assert " tie " not in result(scored(tmp_path, [0.5, 0.75]), PROTOCOL)
    assert " tie " not in result(scored(tmp_path / "one", [0.5]), PROTOCOL)


def test_a_killed_trial_is_given_out_again_three_times(tmp_path: Path) -> None:
    study = Study(tmp_path, SPACE, TuneSettings(trials=1), 0)
    values = []
    for _ in range(3):
        claim = study.claim()
        assert claim is not None and claim.run_dir == tmp_path / "trials/0"
        values.append(claim.values)
        study.release()
    assert values[0] == values[1] == values[2]
    fresh = study.claim()  # given up: values of its own, in a place of its own
    assert (
        fresh is not None and fresh.run_dir == tmp_path / "trials/3" and fresh.values != values[0]
    )


def test_a_trial_that_a_living_process_is_at_stays_its_own(tmp_path: Path) -> None:
    study = Study(tmp_path, SPACE, TuneSettings(trials=2), 0)
    number = claimed(study)
    study.release()
    with lock_in_another_process(tmp_path / f"trials/{number}.lock") as other:
        assert claimed(study) == number + 1
        study.release()
        other.kill()
    again = study.claim()  # of the two that nobody is at any more, both are given out again
    assert again is not None and again.run_dir.name in ("0", "1")


def test_processes_draw_different_values_and_a_repeated_search_the_same(tmp_path: Path) -> None:
    def values(folder: Path) -> list[Any]:
        studies = [Study(folder, SPACE, TuneSettings(trials=4), 7) for _ in range(2)]
        found = []
        for number in range(4):
            study = studies[number % 2]
            claim = study.claim()
            assert claim is not None
            study.optuna.tell(claim.trial, 0.1 * number)
            study.release()
            found.append(claim.values)
        assert studies[0].claim() is None
        return found

    first = values(tmp_path / "a")
    assert len({json.dumps(value) for value in first}) == 4
    assert values(tmp_path / "b") == first
    assert all(value["method.router_loss"] in ("code", "paper") for value in first)
    shutil.rmtree(tmp_path / "a")
