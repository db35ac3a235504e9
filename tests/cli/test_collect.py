"""`smope collect`: what is averaged, what is told apart, what is said to be missing."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smope.analysis.loading import find_runs, read_finished
from smope.analysis.rendering import render
from smope.analysis.run import Run
from smope.analysis.tables import ResultTable, result_tables
from smope.cli.main import main
from smope.config.hydra import compose
from smope.config.overrides import read_overrides
from smope.console.markup import csv_grid, latex, markdown_grid
from smope.errors import UserError

Make = Callable[..., Path]


def matrix(faa: float) -> list[list[float | None]]:
    return [[1.0, None], [faa - 0.1, faa + 0.1]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes a run directory: make("name", "method=ncm seed=1", faa=0.5, field=value, ...)."""

    def write(
        name: str, overrides: str = "", faa: float = 0.5, drop: str = "", **fields: Any
    ) -> Path:
        path = tmp_path / "runs" / name
        (path / "checkpoints").mkdir(parents=True)
        config = compose(read_overrides(overrides.split()))
        record = {
            "status": "finished",
            "config": config.as_dict(),
            "seed": config.seed,
            "evaluated_on": "test",
            "method": config.method["_target_"].split(".")[-2],
            "stream": {"name": config.stream["name"], "content_hash": "c" * 64},
            "backbone": {"name": "glyph", "sha256": "b" * 64, "mean": [0.5], "std": [0.5]},
            "accuracy_matrix": matrix(faa),
            "final_average_accuracy": faa,
            "cumulative_average_accuracy": faa + 0.2,
            "forgetting": 1.1 - faa,
            "trainable_parameters": {"prompt": 1000, "classifier": 290},
            "seconds": {
                "train": 60.0,
                "align": 1.0,
                "eval": 2.0,
                "wait": 50.0,
                "per_task": [30.0, 33.0],
            },
            **fields,
        }
        for key in drop.split():
            del record[key]
        (path / "run.json").write_text(json.dumps(record))
        (path / "config.yaml").write_text(config.to_yaml())
        return path

    return write


def collected(folder: Path) -> tuple[list[ResultTable], list[str]]:
    runs, left_out = read_finished(find_runs([str(folder)]))
    return result_tables(runs), left_out


def shown(folder: Path, form: str = "text", ddof: int = 0) -> str:
    runs, left_out = read_finished(find_runs([str(folder)]))
    return render(result_tables(runs, ddof), left_out, form, ddof)


def test_methods_by_scores_over_seeds(make: Make, tmp_path: Path) -> None:
    for seed, faa in enumerate((0.5, 0.6, 0.7)):
        make(f"ncm{seed}", f"method=ncm seed={seed}", faa)
        make(f"smope{seed}", f"seed={seed}", faa + 0.1)
    lines = shown(tmp_path / "runs").splitlines()
    assert lines[0] == "digits, 2 tasks, test images; glyph, pixel mean [0.5] std [0.5]"
    assert lines[2].split() == [
        "method",
        "seeds",
        "FAA",
        "CAA",
        "forgetting",
        "parameters",
        "seconds",
    ]
    assert lines[3].split("  ")[0] == "smope"
    assert re.split(r"\s{2,}", lines[4]) == [
        "ncm",
        "0-2",
        "60.00 ± 8.16",
        "80.00 ± 8.16",
        "50.00 ± 8.16",
        "1,290",
        "63",
    ]
    assert re.split(r"\s{2,}", lines[3])[2:5] == [
        "70.00 ± 8.16 *",
        "90.00 ± 8.16 *",
        "40.00 ± 8.16 *",
    ]


def test_ddof_is_chosen_and_said(make: Make, tmp_path: Path) -> None:
    for seed, faa in enumerate((0.5, 0.7)):
        make(f"ncm{seed}", f"method=ncm seed={seed}", faa)
    assert "60.00 ± 10.00" in shown(tmp_path / "runs") and "ddof 0" in shown(tmp_path / "runs")
    assert "60.00 ± 14.14" in shown(tmp_path / "runs", ddof=1) and "ddof 1" in shown(
        tmp_path / "runs", ddof=1
    )


def test_a_single_seed_has_no_deviation(make: Make, tmp_path: Path) -> None:
    make("ncm", "method=ncm")
    assert "±" not in shown(tmp_path / "runs").splitlines()[3]
    assert "*" not in shown(tmp_path / "runs"), "nothing to be better than"


def test_a_seed_that_one_method_lacks_is_told(make: Make, tmp_path: Path) -> None:
    for seed in (0, 1):
        make(f"smope{seed}", f"seed={seed}")
    make("ncm1", "method=ncm seed=1", 0.9)
    text = shown(tmp_path / "runs")
    assert "ncm: no finished run with seed 0; its mean is over seed 1" in text
    assert re.search(r"^ncm +1 +90.00", text, re.MULTILINE)


def test_trials_of_a_search_stay_among_their_like(make: Make, tmp_path: Path) -> None:
    """Their settings are those of full runs, and the images' hash is that of the whole stream."""
    for number, (first_tasks, ranked_on) in enumerate(
        [(2, "validation"), (3, "validation"), (3, "test")]
    ):
        make(
            f"trial{number}",
            f"seed={number}",
            part={"first_tasks": first_tasks, "ranked_on": ranked_on},
        )
    make("full", "seed=4")
    found, _ = collected(tmp_path / "runs")
    assert [[*row.runs] for table in found for row in table.rows] == [[4], [0], [1], [2]]
    text = shown(tmp_path / "runs")
    assert "part.first_tasks: not there | 2 | 3 | 3" in text
    assert text.count(", trials of a search; ") == 2
    assert text.count(", trials of a search RANKED ON TEST IMAGES; ") == 1


def test_common_seeds_alone(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("smope0", "seed=0", 0.1)
    make("smope1", "seed=1", 0.5)
    make("ncm1", "method=ncm seed=1", 0.9)
    assert main(["collect", str(tmp_path / "runs"), "--common-seeds"]) == 0
    text = capsys.readouterr().out
    assert "no finished run" not in text and re.search(r"^smope +1 +50.00", text, re.MULTILINE)
    make("slda2", "method=slda seed=2")
    assert main(["collect", str(tmp_path / "runs"), "--common-seeds"]) == 2
    assert "no method shares a seed with all others on digits" in capsys.readouterr().err


def test_runs_that_are_not_finished_are_listed(make: Make, tmp_path: Path) -> None:
    make("ncm", "method=ncm")
    broken = make(
        "broken",
        "method=ncm seed=1",
        status="interrupted",
        accuracy_matrix=[[0.5, None], [None, None]],
    )
    damaged = make("damaged", "method=ncm seed=2")
    (damaged / "run.json").write_text("{")
    empty = make("empty", "method=ncm seed=3")
    (empty / "run.json").unlink()
    text = shown(tmp_path / "runs")
    assert "left out, 3 in all:" in text
    assert (
        f"{broken}: interrupted after 1 of 2 tasks; continue with: smope train resume={broken}"
        in text
    )
    assert f"{empty}: has no run.json yet" in text
    assert "run.json: is damaged" in text
    assert re.search(r"^ncm +0 ", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("fields", "difference"),
    [
        ({"overrides": "stream.class_order=sorted"}, "stream.class_order: paper | sorted"),
        ({"overrides": "stream.num_tasks=2"}, "stream.num_tasks: 5 | 2"),
        ({"evaluated_on": "validation"}, "evaluated on: test | validation"),
        (
            {"stream": {"name": "digits", "content_hash": "d" * 64}},
            "images: cccccccccccc | dddddddddddd",
        ),
        (
            {"backbone": {"name": "glyph", "sha256": "b" * 64, "mean": [0.0], "std": [1.0]}},
            "backbone.mean: [0.5] | [0.0]",
        ),
    ],
)
def test_what_cannot_be_compared_gets_a_table_of_its_own(
    make: Make, tmp_path: Path, fields: dict[str, Any], difference: str
) -> None:
    make("first", "seed=0", 0.5)
    make("other", f"seed=1 {fields.pop('overrides', '')}", 0.8, **fields)
    found, _ = collected(tmp_path / "runs")
    assert [len(table.rows) for table in found] == [1, 1]
    text = shown(tmp_path / "runs")
    assert "2 tables, for their runs cannot be compared; they differ in" in text
    assert difference in text
    assert "65.00" not in text, "the mean of both"


@pytest.mark.parametrize(
    "harmless",
    [
        "trainer.num_workers=2",
        "trainer.device=cpu",
        "trainer.checkpoint_minutes=1.0",
        "name=other",
        "tracker=none",
        "trainer.record=nothing",
        "stream.cache_gb=1.0",
        "stream.cache_dir=elsewhere",
    ],
)
def test_how_a_run_was_fed_or_kept_makes_no_row_of_its_own(
    make: Make, tmp_path: Path, harmless: str
) -> None:
    make("first", "seed=0", 0.5)
    make("second", f"seed=1 {harmless}", 0.7)
    (table,), _ = collected(tmp_path / "runs")
    assert [sorted(row.runs) for row in table.rows] == [[0, 1]]


def test_other_settings_make_another_row(make: Make, tmp_path: Path) -> None:
    make("five", "seed=0")
    make("three", "seed=0 router.top_k=3 method.num_experts=10")
    (table,), _ = collected(tmp_path / "runs")
    assert {row.label for row in table.rows} == {
        "smope (num_experts=25, router.top_k=5)",
        "smope (num_experts=10, router.top_k=3)",
    }


def test_a_router_that_a_method_does_not_use_makes_no_row(make: Make, tmp_path: Path) -> None:
    make("a", "method=ncm seed=0")
    make("b", "method=ncm seed=1 router.top_k=3")
    (table,), _ = collected(tmp_path / "runs")
    assert [row.label for row in table.rows] == ["ncm"]


def test_methods_trained_otherwise_are_told(make: Make, tmp_path: Path) -> None:
    make("a", "trainer.epochs=3")
    make("b", "method=finetune trainer.epochs=9")
    assert "not alike: trainer.epochs is 3 (smope), 9 (finetune)" in shown(tmp_path / "runs")


def test_a_repeat_counts_once_and_a_contradiction_is_an_error(make: Make, tmp_path: Path) -> None:
    make("a", "method=ncm", 0.5)
    make("b", "method=ncm", 0.5)
    assert "with the same numbers; counted once" in shown(tmp_path / "runs")
    make("c", "method=ncm", 0.6)
    with pytest.raises(
        UserError,
        match=r"ncm, seed 0: .* have the same settings and other numbers, .* leave one of",
    ):
        shown(tmp_path / "runs")


def test_what_older_runs_did_not_record(make: Make, tmp_path: Path) -> None:
    old = make("old", "method=ncm seed=0", drop="seconds evaluated_on method trainable_parameters")
    record = json.loads((old / "run.json").read_text())
    del record["config"]["stream"]["broken_images"], record["config"]["trainer"]["schedule_lag"]
    (old / "run.json").write_text(json.dumps(record))
    make("new", "method=ncm seed=1", cost={"gflops_per_image": {"train_gflops": {"torch": 1.5}}})
    (table,), _ = collected(tmp_path / "runs")
    assert [sorted(row.runs) for row in table.rows] == [[0, 1]]
    assert "ncm: seconds not recorded for seed 0; mean of the others" in table.notes
    assert "train GFLOPs" in shown(tmp_path / "runs") and "GPU MiB" not in shown(tmp_path / "runs")
    alone = make("alone", "method=slda", drop="seconds backbone stream forgetting")
    text = shown(alone)
    assert "seconds" not in text and "forgetting" not in text and "unknown" not in text


def test_the_upper_bound_is_never_the_best(make: Make, tmp_path: Path) -> None:
    for name, faa in (("ncm", 0.5), ("slda", 0.6), ("joint", 0.9)):
        make(name, f"method={name}", faa)
    text = shown(tmp_path / "runs")
    assert "joint apart, which see earlier images again" in text
    starred = [line.split()[0] for line in text.splitlines()[3:6] if "*" in line]
    assert starred == ["slda"]


def test_csv_is_read_back(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("a", "method=ncm seed=0", 0.5)
    make("b", "method=ncm seed=1", 0.7)
    make("c", "method=slda seed=1", 0.6)
    out = tmp_path / "table.csv"
    assert main(["collect", str(tmp_path / "runs"), "--out", str(out)]) == 0
    told = capsys.readouterr()
    assert "3 runs, 2 rows" in told.out and "slda: no finished run with seed 0" in told.err
    rows = list(csv.DictReader(out.open(newline="")))
    assert [row["method"] for row in rows] == ["ncm", "slda"]
    assert (rows[0]["seeds"], float(rows[0]["FAA"]), float(rows[0]["FAA std"])) == (
        "0 1",
        60.0,
        10.0,
    )
    assert rows[1]["FAA std"] == "" and rows[0]["best"] == "FAA CAA forgetting"


def test_markdown_and_latex(make: Make, tmp_path: Path) -> None:
    make("a", "method=ncm", 0.5)
    make("b", "method=slda", 0.7)
    assert "| slda | 0 | **70.00** |" in shown(tmp_path / "runs", "markdown")
    text = shown(tmp_path / "runs", "latex")
    assert r"slda & 0 & \textbf{70.00} &" in text
    assert all(
        line.startswith(("%", "\\", "method", "slda", "ncm")) for line in text.splitlines() if line
    )


def test_cells_are_escaped() -> None:
    assert latex("a_b & 50 % ± 1") == r"a\_b \& 50 \% $\pm$ 1"
    assert markdown_grid([["a|b"], ["c"]]).splitlines()[0] == r"| a\|b |"
    assert csv_grid([["a,b", 'say "x"']]) == '"a,b","say ""x"""'


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (
            ["nowhere"],
            r"RUN=nowhere: no such directory, and no match as a glob; run directories are named",
        ),
        (["."], r"RUN=\.: no run directory in it"),
        (
            ["run", "--out", "table.xls"],
            r"--out table\.xls: no format has the suffix '\.xls'; use one of \.txt, \.md,",
        ),
        (
            ["run", "--formt", "csv"],
            r"smope collect: unrecognized arguments: --formt csv; did you mean --format\?",
        ),
        ([], r"smope collect: the following arguments are required: RUN"),
    ],
)
def test_mistakes(arguments: list[str], error: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["collect", *arguments]) == 2
    assert re.search(error, capsys.readouterr().err)


def test_nothing_finished_is_an_error(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make("a", status="running")
    assert main(["collect", str(path)]) == 2
    assert "none of 1 runs can be used: " in capsys.readouterr().err


def test_runs_are_found_once_and_not_looked_into(make: Make, tmp_path: Path) -> None:
    path = make("a")
    make("a/wandb/inner")
    found = find_runs(
        [str(path), str(tmp_path / "runs"), str(tmp_path / "r*" / "*"), str(path / "run.json")]
    )
    assert found == [path]
    assert isinstance(read_finished(found)[0][0], Run)
