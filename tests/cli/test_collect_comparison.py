"""`smope collect`: intervals, tests and their correction, every run in a line, what was planned
and is not there.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from smope.analysis.loading import read_finished
from smope.analysis.significance import compare, compare_rows, holm
from smope.analysis.tables import result_tables
from smope.cli.main import main
from smope.config.hydra import compose, with_sweep
from smope.config.overrides import read_overrides
from smope.errors import UserError
from smope.sweeps.expand import expand_jobs, write_manifests

Make = Callable[..., Path]
SMOPE, NCM = (0.70, 0.72, 0.75, 0.71, 0.74), (0.61, 0.66, 0.65, 0.62, 0.69)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Writes a run directory below runs/digits: make("method=ncm seed=1", 0.5, key=value)."""
    monkeypatch.chdir(tmp_path)

    def write(overrides: str, faa: float, path: Path | None = None, **fields: Any) -> Path:
        config = compose(read_overrides(overrides.split()))
        path = path or Path("runs/digits") / overrides.replace(" ", "-").replace("=", "")
        path.mkdir(parents=True)
        record = {
            "status": "finished",
            "config": config.as_dict(),
            "seed": config.seed,
            "config_hash": config.config_hash,
            "method": config.method["_target_"].split(".")[-2],
            "evaluated_on": "test",
            "stream": {"name": "digits", "content_hash": "c" * 64},
            "backbone": {"name": "glyph", "sha256": "b" * 64},
            "accuracy_matrix": [[1.0, None], [faa, faa]],
            "final_average_accuracy": faa,
            "cumulative_average_accuracy": faa,
            "forgetting": 1 - faa,
            **fields,
        }
        (path / "run.json").write_text(json.dumps(record))
        (path / "config.yaml").write_text(config.to_yaml())
        return path

    return write


@pytest.fixture
def two_methods(make: Make) -> None:
    for seed in range(5):
        make(f"seed={seed}", SMOPE[seed])
        make(f"method=ncm seed={seed}", NCM[seed])


def test_holm_is_stepped_down() -> None:
    """m = 4: 4 p(1), then the larger of it and 3 p(2), and so on; never above 1."""
    assert holm([0.04, 0.01, 0.03, 0.5]) == pytest.approx([0.09, 0.04, 0.09, 0.5])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_equals_the_definition_by_tests_in_turn() -> None:
    """Adjusted p is the smallest level at which the procedure of rejecting in turn rejects."""
    p_values = [0.011, 0.02, 0.022, 0.3]

    def rejected(level: float) -> set[int]:
        found: set[int] = set()
        for index in sorted(range(4), key=p_values.__getitem__):
            if p_values[index] > level / (4 - len(found)):
                break
            found.add(index)
        return found

    for index, p in enumerate(holm(p_values)):
        assert index in rejected(p + 1e-12)
        assert index not in rejected(p - 1e-12)


@pytest.mark.usefixtures("two_methods")
def test_rows_against_the_best() -> None:
    (table,) = result_tables(read_finished(sorted(Path("runs/digits").iterdir()))[0])
    found = compare_rows(table)
    assert found is not None and found.reference.label == "smope" and found.tests == 1
    reference, other = found.rows
    low, high = stats.t.interval(0.95, 4, 72.4, stats.sem([100 * value for value in SMOPE]))
    assert (reference.low, reference.high) == pytest.approx((low, high))
    assert reference.against is None
    expected = compare([100 * value for value in NCM], [100 * value for value in SMOPE])
    assert other.against == expected and other.holm == expected.p == pytest.approx(2 / 32)


@pytest.mark.usefixtures("two_methods")
def test_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["collect", "runs/digits"]) == 0
    text = capsys.readouterr().out
    head = r"^FAA +n +95 % interval +minus smope +95 % interval +pairs +p +p \(Holm\)$"
    assert re.search(head, text, re.MULTILINE)
    assert "-7.80" in text and "0.0625" in text
    assert "corrected by Holm for 1 test" in text
    assert "n = 2" not in text, "these rows have five seeds"
    assert "with 5 seeds no p below 0.0625 can come out" in text
    assert "the best by its mean, which makes differences look larger than they are" in text
    assert main(["collect", "runs/digits", "--against", "ncm"]) == 0
    text = capsys.readouterr().out
    assert "minus ncm" in text and "+7.80" in text and "look larger" not in text
    assert main(["collect", "runs/digits", "--format", "latex"]) == 0
    assert "minus smope" in capsys.readouterr().out
    assert main(["collect", "runs/digits", "--against", "l2p"]) == 2
    assert "--against l2p: no such row on digits, 2 tasks" in capsys.readouterr().err


@pytest.mark.usefixtures("two_methods")
def test_the_csv_has_the_tests(tmp_path: Path) -> None:
    assert main(["collect", "runs/digits", "--out", "table.csv"]) == 0
    best, other = rows("table.csv")
    assert (best["against"], other["against"], other["pairs"]) == ("", "smope", "5")
    assert (float(other["difference"]), float(other["p Holm"])) == (-7.8, 0.0625)
    assert float(best["FAA low"]) < 72.4 < float(best["FAA high"])


def test_several_rows_of_a_method_are_named_in_full(make: Make) -> None:
    for seed in (0, 1):
        for top_k in (3, 5):
            make(f"seed={seed} router.top_k={top_k}", 0.5 + seed / 10)
    (table,) = result_tables(read_finished(sorted(Path("runs/digits").iterdir()))[0])
    with pytest.raises(
        UserError, match=r"--against smope: 2 rows have this method; write one of .*top_k=3"
    ):
        compare_rows(table, "smope")
    found = compare_rows(table, "smope (router.top_k=3)")
    assert found is not None and found.tests == 1


def test_a_single_shared_seed_is_not_tested_and_intervals_stay(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    make("seed=0", 0.5)
    make("seed=1", 0.6)
    make("method=ncm seed=1", 0.5)
    (table,) = result_tables(read_finished(sorted(Path("runs/digits").iterdir()))[0])
    found = compare_rows(table)
    assert found is not None and found.tests == 0
    low, high = stats.t.interval(0.95, 1, 55, stats.sem([50, 60]))
    assert low < 0 and high > 100, "two seeds give an interval that no accuracy can fill"
    assert (found.rows[0].low, found.rows[0].high, found.rows[0].seeds) == (0, 100, 2)
    assert main(["collect", "runs/digits"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^smope +2 +0\.00 to 100\.00$", text, re.MULTILINE)
    assert "n = 2: two seeds say next to nothing of the spread" in text
    assert "no differences: no other row shares two seeds with smope" in text and "Holm" not in text
    assert main(["collect", "runs/digits", "--format", "csv"]) == 0
    (line, _) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (float(line["FAA low"]), float(line["FAA high"])) == (0, 100)


def test_without_two_seeds_there_is_no_interval(make: Make) -> None:
    make("seed=0", 0.5)
    make("method=ncm seed=0", 0.5)
    (table,) = result_tables(read_finished(sorted(Path("runs/digits").iterdir()))[0])
    assert compare_rows(table) is None


@pytest.mark.usefixtures("two_methods")
def test_a_table_that_lacks_the_row_is_shown_without_differences(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(2):
        make(f"seed={seed} stream.num_tasks=2", SMOPE[seed])
    assert main(["collect", "runs/digits", "--against", "ncm"]) == 0
    text = capsys.readouterr().out
    assert text.count("minus ncm") == 1
    assert text.count("no differences: this table has no row to compare with") == 1
    assert main(["collect", "runs/digits", "--against", "l2p"]) == 2
    assert re.search(
        r"--against l2p: no such row on digits.*; nor on digits.*choose one of",
        capsys.readouterr().err,
    )


def rows(path: str) -> list[dict[str, Any]]:
    if path.endswith(".csv"):
        with Path(path).open(newline="") as file:
            return list(csv.DictReader(file))
    return pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()


@pytest.mark.parametrize("path", ["runs.csv", "runs.parquet"])
def test_every_run_has_a_line(path: str, make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    make("seed=0", 0.5)
    make("seed=1 router.top_k=3", 0.6, cost={"peak_memory_bytes": {"process_resident": 2**30}})
    make("seed=2", 0.7, status="running", accuracy_matrix=[[0.7, None], [None, None]])
    damaged = make("seed=3", 0.7)
    (damaged / "run.json").write_text("{")
    assert main(["collect", "runs/digits", "--runs", path]) == 0
    assert f"{path}: 4 runs, 2 of them finished" in capsys.readouterr().err
    found = rows(path)
    assert [row["status"] for row in found] == ["finished", "finished", "killed", "damaged"]
    assert [str(row["router.top_k"] or "") for row in found] == ["5", "3", "5", ""]
    assert [str(row["final_average_accuracy"] or "") for row in found] == ["0.5", "0.6", "", ""], (
        "a part is no score"
    )
    assert [str(row["process_mib"] or "") for row in found][1] == "1024.0"
    assert "seed" in found[0] and "trainer.epochs" not in found[0], (
        "what is alike in all has no column"
    )


def test_what_was_planned_and_is_not_there_is_named(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs, _ = expand_jobs(with_sweep(read_overrides(["seed=0,1,2", "method=ncm"], multirun=True)))
    write_manifests(jobs, ["smope", "train", "-m", "seed=0,1,2", "method=ncm"])
    make("seed=0 method=ncm", 0.5, jobs[0].path)
    jobs[1].log.parent.mkdir()
    jobs[1].log.write_text("Traceback\n\nsmope: error: no memory\n")
    assert main(["collect", "runs/digits", "--runs", "runs.csv"]) == 0
    text = capsys.readouterr().out
    assert "left out, 2 in all:" in text
    assert (
        f"{jobs[1].path}: failed: no memory; log: {jobs[1].log}; continue with: smope train -m "
        f"seed=0,1,2" in text
    )
    assert f"{jobs[2].path}: not begun; continue with: smope train -m seed=0,1,2 method=ncm" in text
    lines = [(row["seed"], row["method"], row["status"]) for row in rows("runs.csv")]
    assert lines == [("0", "ncm", "finished"), ("1", "ncm", "failed"), ("2", "ncm", "not begun")]
    assert main(["collect", str(jobs[0].path)]) == 0
    assert "not begun" in capsys.readouterr().out, "the folder's plan is known to each of its runs"


def test_runs_wants_a_suffix(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["collect", "runs", "--runs", "runs.xls"]) == 2
    assert (
        "--runs runs.xls: no format has the suffix '.xls'; use one of .csv, .parquet"
        in capsys.readouterr().err
    )
