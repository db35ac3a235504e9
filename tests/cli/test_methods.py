"""`smope methods`: a row for every file of conf/method, counted on the real objects."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import smope
from smope.cli.main import main
from smope.config.conf_files import choice_values, choices, conf_dir
from smope.planning import method_table
from smope.planning.method_costs import method_rows

WITH_PACKAGE = {**os.environ, "PYTHONPATH": str(Path(smope.__file__).parent.parent)}
METHODS = choices("method", [conf_dir()])
HEAD = 200 * 768 + 200
WRITE_TABLE = "write it anew: smope methods --count --json > smope/planning/method_table.json"
KEYS = {
    "name",
    "source",
    "note",
    "trainable_parameters",
    "published_parameters",
    "published_gflops",
    "train_gflops",
    "infer_gflops",
    "placements",
}


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, Any]]:
    """The rows of the table that comes with the package; the next tests hold it to the objects."""
    return method_table.stored_rows(METHODS)


def test_every_method_has_a_row(rows: dict[str, dict[str, Any]]) -> None:
    assert [*rows] == METHODS, WRITE_TABLE
    assert json.loads(method_table.TABLE.read_text(encoding="utf-8")) == [*rows.values()]


def test_the_table_holds_what_is_counted(rows: dict[str, dict[str, Any]]) -> None:
    counted = {row["name"]: row for row in method_rows(METHODS)}
    for name, row in counted.items():
        assert flat(row) == pytest.approx(flat(rows[name])), WRITE_TABLE


def flat(value: Any, key: str = "") -> dict[str, Any]:
    """Nested values by dotted key."""
    if not isinstance(value, dict | list):
        return {key: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {
        inner: leaf for name, part in items for inner, leaf in flat(part, f"{key}.{name}").items()
    }


@pytest.mark.parametrize("name", METHODS)
def test_a_row_says_what_a_method_is_and_costs(name: str, rows: dict[str, dict[str, Any]]) -> None:
    row = rows[name]
    assert row.keys() >= KEYS and row["source"]
    counts = row["trainable_parameters"]
    assert counts["total"] == counts["prompt"] + counts["classifier"] >= 0
    for kind in ("torch", "paper_convention"):
        assert row["infer_gflops"][kind] > 31, "a ViT-B/16 at least"
        assert row["train_gflops"][kind] == 0 or row["train_gflops"][kind] > 31


@pytest.mark.parametrize("name", METHODS)
def test_parameters_are_those_that_were_published_or_the_note_says_why_not(
    name: str, rows: dict[str, dict[str, Any]]
) -> None:
    row = rows[name]
    published, own = row["published_parameters"], row["trainable_parameters"]["total"]
    assert published is None or abs(own - published) <= 0.01 * published or row["note"]


@pytest.mark.parametrize("name", METHODS)
def test_operations_are_those_that_were_published_or_the_note_says_why_not(
    name: str, rows: dict[str, dict[str, Any]]
) -> None:
    row = rows[name]
    own = [row[phase]["paper_convention"] for phase in ("train_gflops", "infer_gflops")]
    for counted, published in zip(own, row["published_gflops"] or own, strict=True):
        assert counted == pytest.approx(published, rel=0.01) or "published count" in row["note"]


def test_counts_of_what_is_known(rows: dict[str, dict[str, Any]]) -> None:
    assert rows["smope"]["trainable_parameters"] == {
        "prompt": 230_400,
        "classifier": HEAD,
        "total": 384_200,
    }
    assert rows["finetune"]["trainable_parameters"] == {
        "prompt": 0,
        "classifier": HEAD,
        "total": HEAD,
    }
    assert rows["full_finetune"]["trainable_parameters"]["prompt"] == 85_798_656
    assert (
        rows["ncm"]["trainable_parameters"]["total"]
        == rows["ridge"]["trainable_parameters"]["total"]
        == 0
    )
    assert rows["ncm"]["train_gflops"] == {"torch": 0.0, "paper_convention": 0.0}
    assert rows["smope"]["infer_gflops"]["paper_convention"] == pytest.approx(33.72, rel=1e-3)
    assert rows["smope"]["cls_saving"]["infer_gflops"]["paper_convention"] > 2
    assert (
        rows["full_finetune"]["train_gflops"]["torch"]
        > 2.9 * rows["full_finetune"]["infer_gflops"]["torch"]
    )


def test_the_table_on_the_screen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "ncm", "smope"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.split(r"\s{2,}", lines[0])[:3] == ["method", "parameters (M)", "train GFLOPs"]
    assert lines[1].startswith("ncm ") and "arXiv 2303.07338" in lines[1]
    assert re.search(r"^smope +0\.384 / 0\.384 ", lines[2])
    assert any(line.startswith("ncm: one pass over frozen features") for line in lines)


def test_places_of_experts_are_listed(
    rows: dict[str, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of every method that has the key; the first is the default, which is counted."""
    for name, row in rows.items():
        values = choice_values("method", name, [conf_dir()])
        assert row["placements"][:1] == ([values["placement"]] if "placement" in values else [])
    assert main(["methods"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "smope and smope_plus are counted with method.placement=prefix" in text
    assert "elsewhere: method.placement=mlp or method.placement=lora." in text
    assert main(["methods", "ncm"]) == 0
    assert "placement" not in capsys.readouterr().out


def test_it_needs_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom smope.cli.main import main\nassert main(['methods']) == 0\n"
        "assert not {'torch', 'timm', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=WITH_PACKAGE, cwd=tmp_path)


@pytest.mark.parametrize("replaced", [False, True])
def test_settings_of_your_own_are_counted(replaced: bool, tmp_path: Path) -> None:
    """A new method, or a file in the place of one of conf/."""
    name = "ncm" if replaced else "nearest"
    (tmp_path / "method").mkdir()
    shutil.copy(conf_dir() / "method" / "ncm.yaml", tmp_path / "method" / f"{name}.yaml")
    assert not method_table.stored_rows([name], str(tmp_path))
    assert (not method_table.stored_rows(["ridge"], str(tmp_path))) == replaced


def test_a_changed_file_of_conf_is_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table = json.loads(method_table.TABLE.read_text(encoding="utf-8"))
    changed = [row | {"settings": "0"} if row["name"] == "smope" else row for row in table]
    (tmp_path / "table.json").write_text(json.dumps(changed), encoding="utf-8")
    monkeypatch.setattr(method_table, "TABLE", tmp_path / "table.json")
    assert [*method_table.stored_rows(["smope", "ncm"])] == ["ncm"]


def test_json_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "ncm", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["name"] == "ncm" and row["published_parameters"] is None


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["rigde"], r"METHOD=rigde: no such method; did you mean ridge\?"),
        (["--jsn"], r"smope methods: unrecognized arguments: --jsn; did you mean --json\?"),
        (
            ["--config-dir", "nowhere"],
            r"--config-dir nowhere: no such folder; name one laid out like conf/",
        ),
    ],
)
def test_mistakes(arguments: list[str], error: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", *arguments]) == 2
    assert re.search(error, capsys.readouterr().err)


def test_two_methods_do_not_share_weights(rows: dict[str, dict[str, Any]]) -> None:
    """Fine-tuning unfreezes its backbone; whoever comes next finds a frozen one."""
    again = {row["name"]: row for row in method_rows(["full_finetune", "finetune"])}
    assert again["finetune"]["trainable_parameters"] == rows["finetune"]["trainable_parameters"]
    assert again["finetune"]["train_gflops"] == rows["finetune"]["train_gflops"]
