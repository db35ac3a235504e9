"""Curves of training, command and environment, audit, classes, confusion and gallery."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image
from safetensors.numpy import save_file

from smope.analysis.loading import load_runs
from smope.cli.main import main
from smope.report.sections.audit import audit
from smope.report.sections.classes import classes, confused_classes
from smope.report.sections.gallery import MAX_PICTURE_BYTES, gallery
from smope.report.sections.launch import launch
from smope.report.sections.training import training
from tests.analysis.made_runs import expert_snapshots, usual_snapshots, write_run

LAUNCH = {
    "command": "smope train 'run_dir=a b'",
    "directory": "/home/me/project",
    "git": {"commit": "c0ffee", "branch": "trunk", "changed": True},
    "time": "2026-01-31T12:00:00+00:00",
    "host": "desk",
    "processor": "Abacus 3",
}
METRICS = """task,phase,epoch,step,loss,cross_entropy,learning_rate,images_per_second,router
0,dense,0,10,2.0,2.0,0.01,5,
0,dense,1,20,1.0,1.0,0.001,5,
0,sparse,0,30,0.5,0.4,0.01,5,0.1
1,sparse,0,40,1.5,1.4,0.01,5,0.1
"""


def page_size(folder: Path) -> int:
    assert main(["report", str(folder), "--out", str(folder / "page.html")]) == 0
    return (folder / "page.html").stat().st_size


def cells(grid: Any) -> dict[str, str]:
    return {row[0]: row[1] for row in grid}


def test_command_commit_and_environment(tmp_path: Path) -> None:
    again = {**LAUNCH, "command": "smope train 'resume=a b'"}
    versions = {"python": "3.11", "platform": "Linux-6", "smope": "9", "torch": "2"}
    run = write_run(tmp_path / "run", launches=[LAUNCH, again], versions=versions)
    (run / "config.yaml").write_text("method:\n  top_k: <5>\n", encoding="utf-8")
    section = launch(load_runs(tmp_path))
    shown = cells(section.tables[0].grid)
    assert shown["command"] == "smope train 'run_dir=a b'"
    assert shown["resumed by"] == "smope train 'resume=a b'"
    assert shown["git commit"] == "c0ffee on trunk, with changes that are not committed"
    assert shown["device"] == "cpu (Abacus 3), 1 thread"
    assert shown["platform"] == "Linux-6" and shown["host"] == "desk"
    assert shown["versions"] == "python 3.11, smope 9, torch 2"
    assert section.folded[0].text == "method:\n  top_k: <5>\n"
    page_size(tmp_path)
    assert "top_k: &lt;5&gt;" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_runs_of_older_versions_have_it_too(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "config.yaml").unlink()
    section = launch(load_runs(tmp_path))
    assert cells(section.tables[0].grid)["command"] == "not recorded"
    assert "has no config.yaml" in section.folded[0].text


def test_curves_by_epoch_and_how_to_get_steps(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "metrics.csv").write_text(METRICS, encoding="utf-8")
    section = training(load_runs(tmp_path))
    loss, rate = section.figures
    assert loss.text == "smope: loss 2.000 in the first epoch, 1.500 in the last."
    assert loss.grid[1] == ["smope", "1", "dense", "2", "20", "2.0000", "1.0000"]
    assert [row[1:3] for row in loss.grid[1:]] == [["1", "dense"], ["1", "sparse"], ["2", "sparse"]]
    assert rate.grid[1] == ["smope", "1", "dense", "0.01", "0.001"]
    axes = loss.drawing.axes[0]
    assert axes.get_ylim()[0] == 0
    assert [line.get_label() for line in axes.get_lines()] == ["loss", "cross_entropy", "router"]
    steps = axes.get_lines()[0].get_xdata()
    assert numpy.isnan(steps).tolist() == [False, False, True, False, True, False], "gaps"
    assert "Single steps were not logged for smope, seed 0; train with tracker=" in section.note


def test_a_training_that_diverged_has_a_page_too(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    text = METRICS.replace("2.0,2.0", "nan,nan").replace("1.0,1.0", "inf,inf")
    (run / "metrics.csv").write_text(text.splitlines()[0] + "\n", encoding="utf-8")
    assert training(load_runs(tmp_path)).figures == []
    for lines in (3, 5):
        (run / "metrics.csv").write_text("\n".join(text.splitlines()[:lines]), encoding="utf-8")
        page_size(tmp_path)


def test_long_training_has_thinned_curves(tmp_path: Path) -> None:
    head = METRICS.splitlines()[0]
    rows = [
        f"{task},sparse,{epoch},{1000 * task + epoch + 1},1.0,1.0,0.01,5,0.1"
        for task in range(20)
        for epoch in range(200)
    ]
    run = write_run(tmp_path / "run")
    (run / "metrics.csv").write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    (loss, _) = training(load_runs(tmp_path)).figures
    assert len(loss.drawing.axes[0].get_lines()[0].get_xdata()) < 400
    assert len(loss.grid) == 21


def test_where_steps_are_logged_and_where_there_are_none(tmp_path: Path) -> None:
    config = {"seed": 0, "name": "made", "method": {"_target_": "smope.methods.smope.SMoPE"}}
    tracker = {"_target_": "smope.trackers.wandb.WandbTracker", "steps": True}
    run = write_run(tmp_path / "a", config={**config, "tracker": tracker})
    (run / "metrics.csv").write_text(METRICS, encoding="utf-8")
    ncm = {**config, "method": {"_target_": "smope.methods.ncm.NearestClassMean"}}
    write_run(tmp_path / "b", method="ncm", config=ncm)
    section = training(load_runs(tmp_path))
    assert "in the tracker of smope, seed 0 (wandb)" in section.note
    assert "No training steps were logged for ncm" in section.lead


def test_an_audit_or_how_to_make_one(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a run")
    runs = load_runs(tmp_path)
    assert f"smope audit '{run}'" in audit(runs).lead
    content = {
        "passed": True,
        "tasks_done": 1,
        "verdicts": [
            {"check": "overlap", "passed": True, "text": "none"},
            {"check": "labels", "passed": None, "text": "no labels"},
        ],
    }
    (run / "audit.json").write_text(json.dumps(content), encoding="utf-8")
    section = audit(runs)
    assert section.lead == "The audit has passed: 1 of 2 checks passed, 1 could not be made."
    assert section.tables[0].grid[1:] == [
        ["overlap", "ok", "none"],
        ["labels", "not possible", "no labels"],
    ]
    assert "Tasks were learned after the audit of: smope, seed 0." in section.note
    (run / "audit.json").write_text("damaged", encoding="utf-8")
    assert "has not been audited" in audit(runs).lead


def test_every_class_and_task_is_named(tmp_path: Path) -> None:
    write_run(tmp_path / "run", snapshots=expert_snapshots())
    section = classes(load_runs(tmp_path))
    tasks, table = (table.grid for table in section.tables)
    assert tasks[1:] == [["1: task 0", "2", "4", "4", "a, b"], ["2: task 1", "2", "4", "4", "c, d"]]
    assert table == [
        ["class", "task", "test images", "accuracy, %"],
        ["a", "1", "2", "50.0"],
        ["b", "1", "2", "50.0"],
        ["c", "2", "2", "100.0"],
        ["d", "2", "2", "100.0"],
    ]


def test_confused_classes_are_counted(tmp_path: Path) -> None:
    write_run(tmp_path / "run", snapshots=expert_snapshots())
    section = confused_classes(load_runs(tmp_path))
    assert section is not None
    assert section.tables[0].grid[1:] == [
        ["a", "b", "1", "50.0", "0"],
        ["b", "c", "1", "50.0", "0"],
    ]
    assert "smope takes 2 test images for another class." in section.figures[0].text


def write_many(path: Path, number: int, each: int = 2) -> Path:
    """A run of `number` classes in ten tasks, half of the images taken for the next class."""
    labels = numpy.repeat(numpy.arange(number), each).astype(numpy.uint16)
    share = number // 10
    tasks = [
        {
            "name": f"task {task + 1}",
            "classes": list(range(task * share, (task + 1) * share)),
            "train": share,
            "test": share * each,
        }
        for task in range(10)
    ]
    row = [0.5] * 10
    matrix = [[*row[: t + 1], *[None] * (9 - t)] for t in range(10)]
    names = [f"class with a long name {label}" for label in range(number)]
    run = write_run(path, accuracy_matrix=matrix, tasks=tasks, class_names=names)
    folder, about = run / "analysis", {"format_version": "1"}
    folder.mkdir()
    images = {
        "labels": labels,
        "tasks": (labels // share).astype(numpy.uint16),
        "examples": numpy.zeros((1, 4, 4, 3), numpy.uint8),
        "example_of": numpy.array([0], numpy.uint32),
    }
    save_file(images, folder / "images.safetensors", about)
    predicted = numpy.where(numpy.arange(len(labels)) % each == 0, (labels + 1) % number, labels)
    for after in range(1, 11):
        count = after * share * each
        seen = numpy.minimum(predicted[:count], after * share - 1).astype(numpy.uint16)
        logits = numpy.zeros((count, after * share), numpy.float16)
        logits[numpy.arange(count), seen] = 5
        arrays = {"logits": logits, "predicted": seen}
        save_file(arrays, folder / f"task-{after:03d}.safetensors", about)
    return run


@pytest.mark.parametrize("number", [100, 1000])
def test_many_classes_stay_readable_and_small(number: int, tmp_path: Path) -> None:
    write_many(tmp_path / "run", number)
    runs = load_runs(tmp_path)
    section = confused_classes(runs)
    assert section is not None
    assert len(section.tables[0].grid) == 13
    (image,) = section.figures[0].drawing.axes[0].get_images()
    assert max(image.get_array().shape) <= 250
    table = classes(runs).folded[0].tables[0].grid
    assert len(table) == number + 1, "every class has its line"
    assert page_size(tmp_path) < 1_500_000


def give_pictures(run: Path, numbers: list[int], side: int = 8, noise: bool = False) -> None:
    """mistakes.safetensors as evaluation writes it."""
    draw = numpy.random.default_rng(0)
    files = []
    for _ in numbers:
        file = io.BytesIO()
        pixels = draw.integers(0, 255 if noise else 5, (side, side, 3), numpy.uint8)
        Image.fromarray(pixels).save(file, "JPEG", quality=95)
        files.append(file.getvalue())
    arrays = {
        "image_of": numpy.array(numbers, numpy.uint32),
        "jpeg": numpy.frombuffer(b"".join(files), numpy.uint8),
        "jpeg_end": numpy.cumsum([len(file) for file in files]).astype(numpy.uint32),
    }
    names = json.dumps([f"/data/<b>/{number}.jpg" for number in numbers])
    about = {"format_version": "1", "tasks_done": "2", "names": names}
    save_file(arrays, run / "analysis" / "mistakes.safetensors", about)


def test_worst_mistakes_are_shown_without_the_data(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", snapshots=usual_snapshots())
    give_pictures(run, [3, 1])
    section = gallery(load_runs(tmp_path))
    assert section is not None
    first, second = section.pictures
    assert first.media == "image/jpeg" and first.file[:2] == b"\xff\xd8"
    assert first.text.startswith("Test image of class b, taken for c with ")
    assert first.lines[0] == "b" and first.lines[2] == "3.jpg"
    assert second.lines[0] == "a"
    assert section.folded[0].tables[0].grid[1][4] == "/data/<b>/3.jpg"
    page_size(tmp_path)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "data:image/jpeg;base64," in text and "/data/&lt;b&gt;/3.jpg" in text


def test_pictures_are_bounded(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", snapshots=usual_snapshots())
    give_pictures(run, [3, 1], side=800, noise=True)
    assert (run / "analysis" / "mistakes.safetensors").stat().st_size > 2 * MAX_PICTURE_BYTES
    section = gallery(load_runs(tmp_path))
    assert section is not None and not section.pictures
    assert len(section.folded[0].tables[0].grid) == 3, "their files are named all the same"


def test_runs_of_older_versions_name_their_mistakes(tmp_path: Path) -> None:
    write_run(tmp_path / "run", snapshots=usual_snapshots())
    section = gallery(load_runs(tmp_path))
    assert section is not None and not section.pictures
    assert "kept no pictures" in section.note
    grid = section.folded[0].tables[0].grid
    assert [row[:2] for row in grid[1:]] == [["b", "c"], ["a", "b"]] or len(grid) == 3
    assert grid[1][4].startswith("test image ")


def test_no_mistakes_no_gallery(tmp_path: Path) -> None:
    snapshots = usual_snapshots()
    labels = numpy.array([0, 0, 1, 1, 2, 2, 3, 3], numpy.uint16)
    snapshots[2]["predicted"] = labels
    write_run(tmp_path / "run", snapshots=snapshots, accuracy_matrix=[[1.0, None], [1.0, 1.0]])
    assert gallery(load_runs(tmp_path)) is None
