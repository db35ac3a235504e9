"""Loading runs: which are found, how they are called, and the tables that follow from run.json
alone.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from smope.analysis import (
    accuracies,
    accuracy_matrix,
    class_confusion,
    costs,
    curves,
    differences,
    epochs,
    forgetting_by_task,
    load_runs,
    scores,
    split_errors,
    summarise,
)
from smope.analysis.labels import comparable
from smope.errors import UserError
from tests.analysis.made_runs import usual_run, write_run


def config(**method: object) -> dict[str, object]:
    return {
        "seed": 0,
        "name": "made",
        "method": {"_target_": "smope.methods.smope.SMoPE", **method},
    }


def test_scores_by_hand(tmp_path: Path) -> None:
    run = load_runs(write_run(tmp_path / "run"))
    (row,) = scores(run).to_dict("records")
    assert row == {
        "label": "smope",
        "seed": 0,
        "tasks": 2,
        "final_average_accuracy": 0.75,
        "cumulative_average_accuracy": 0.875,
        "average_incremental_accuracy": 0.875,
        "forgetting": 0.5,
        "backward_transfer": -0.5,
        "learning_accuracy": 1.0,
        "sample_weighted_accuracy": 0.75,
    }
    assert accuracies(run)["accuracy"].tolist() == [1.0, 0.5, 1.0]
    assert curves(run)["average_accuracy"].tolist() == [1.0, 0.75]
    (lost,) = forgetting_by_task(run).to_dict("records")
    assert (lost["task"], lost["learned"], lost["best"], lost["final"], lost["forgetting"]) == (
        1,
        1.0,
        1.0,
        0.5,
        0.5,
    )
    matrix = accuracy_matrix(run[0])
    assert (matrix.index.tolist(), matrix.columns.tolist()) == ([1, 2], [1, 2])
    assert matrix.fillna(-1).to_numpy().tolist() == [[1.0, -1], [0.5, 1.0]]
    assert costs(run)["seconds_align"].tolist() == [0.5]


def test_found_by_pattern_folder_and_path_each_once(tmp_path: Path) -> None:
    for seed in (1, 0):
        write_run(tmp_path / "runs" / f"s{seed}", seed=seed)
    for pattern in (tmp_path / "runs" / "*", tmp_path / "runs", tmp_path):
        assert [run.name for run in load_runs(pattern)] == ["smope, seed 0", "smope, seed 1"]
    assert len(load_runs(tmp_path, tmp_path / "runs" / "s1")) == 2


def test_labels_tell_configurations_apart(tmp_path: Path) -> None:
    write_run(tmp_path / "a", config=config(num_experts=4))
    write_run(tmp_path / "b", config=config(num_experts=8))
    write_run(
        tmp_path / "c",
        config={**config(), "method": {"_target_": "smope.methods.ncm.N"}},
        method="ncm",
    )
    runs = load_runs(tmp_path)
    assert [run.label for run in runs] == ["ncm", "smope (num_experts=4)", "smope (num_experts=8)"]
    table = differences(runs)
    assert table.loc["method"].tolist() == ["ncm", "smope", "smope"]
    assert table.loc["method.num_experts"].tolist() == ["", "4", "8"]
    assert differences(runs[:1]).empty


def test_choices_are_named_as_they_are_chosen_and_come_first(tmp_path: Path) -> None:
    for router, epsilon, stream in (
        ("adaptive_noise.AdaptiveNoise", 0.4, "digits"),
        ("topk.TopK", 0.1, "glyphs"),
    ):
        chosen = {
            **config(),
            "router": {"epsilon": epsilon, "_target_": f"smope.routers.{router}"},
            "stream": {"_target_": f"smope.streams.{stream}.load"},
        }
        write_run(tmp_path / stream, config=chosen)
    table = differences(load_runs(tmp_path))
    assert table.index.tolist() == [
        "router",
        "router.epsilon",
        "router.exclude_unused_experts",
        "stream",
    ]
    assert sorted(table.loc["router"]) == ["adaptive_noise", "topk"]
    assert sorted(table.loc["stream"]) == ["digits", "glyphs"]


def test_labels_name_the_stream_where_there_are_several(tmp_path: Path) -> None:
    for name in ("digits", "glyphs"):
        stream = {"name": name, "content_hash": name, "identity": name}
        write_run(tmp_path / name, stream=stream, config={**config(), "stream": {"name": name}})
    assert [run.label for run in load_runs(tmp_path)] == ["smope on digits", "smope on glyphs"]


def on_stream(
    path: Path, content: str = "c", target: str = "smope.streams.digits.load", **stream: object
) -> None:
    values = {"_target_": target, "name": "digits", **stream}
    described = {"name": values["name"], "content_hash": content, "identity": content}
    write_run(path, stream=described, config={**config(), "stream": values})


def test_labels_tell_settings_of_one_stream_apart(tmp_path: Path) -> None:
    on_stream(tmp_path / "five", num_tasks=5, class_order="random")
    on_stream(tmp_path / "ten", num_tasks=10, class_order="random")
    on_stream(tmp_path / "sorted", num_tasks=5, class_order="sorted")
    on_stream(tmp_path / "glyphs", num_tasks=7, name="glyphs", target="smope.streams.glyphs.load")
    assert {run.path.name: run.label for run in load_runs(tmp_path)} == {
        "five": "smope on digits (class_order=random, num_tasks=5)",
        "ten": "smope on digits (class_order=random, num_tasks=10)",
        "sorted": "smope on digits (class_order=sorted, num_tasks=5)",
        "glyphs": "smope on glyphs",
    }


def test_places_and_caches_make_no_label_and_other_images_do(tmp_path: Path) -> None:
    on_stream(tmp_path / "a", cache_gb=2.0, root="/data")
    on_stream(tmp_path / "b", cache_dir="/cache", root="/elsewhere")
    assert {run.label for run in load_runs(tmp_path)} == {"smope"}
    on_stream(tmp_path / "c", content="d")
    assert {run.label for run in load_runs(tmp_path)} == {
        "smope on digits (images=c)",
        "smope on digits (images=d)",
    }


def test_labels_tell_what_methods_were_judged_on(tmp_path: Path) -> None:
    on_stream(tmp_path / "a", validation_fraction=0.2)
    stream = {"name": "digits", "content_hash": "c", "identity": "other"}
    write_run(
        tmp_path / "b",
        stream=stream,
        method="ncm",
        config={
            "seed": 0,
            "name": "made",
            "method": {"_target_": "smope.methods.ncm.NearestClassMean"},
            "stream": {
                "_target_": "smope.streams.digits.load",
                "name": "digits",
                "validation_fraction": 0.0,
            },
        },
    )
    labels = [run.label for run in load_runs(tmp_path)]
    assert labels == [
        "ncm on digits (validation_fraction=0.0)",
        "smope on digits (validation_fraction=0.2)",
    ]


def test_trials_of_a_search_and_other_weights_are_not_repeats(tmp_path: Path) -> None:
    weights = {"name": "vit", "sha256": "a" * 64}
    write_run(tmp_path / "whole", backbone=weights, config=config())
    write_run(
        tmp_path / "moved",
        backbone=weights,
        seed=1,
        config={**config(), "backbone": {"weights": "/elsewhere"}},
    )
    write_run(
        tmp_path / "trial",
        backbone=weights,
        config=config(),
        part={"first_tasks": 1, "ranked_on": "validation"},
    )
    write_run(tmp_path / "other", backbone={"name": "vit", "sha256": "b" * 64}, config=config())
    assert {run.path.name: run.label for run in load_runs(tmp_path)} == {
        "whole": "smope on made (backbone.sha256=aaaaaaaaaaaa)",
        "moved": "smope on made (backbone.sha256=aaaaaaaaaaaa)",
        "trial": "smope on made (backbone.sha256=aaaaaaaaaaaa, part.first_tasks=1, "
        "part.ranked_on=validation)",
        "other": "smope on made (backbone.sha256=bbbbbbbbbbbb)",
    }


def test_a_key_that_an_older_run_lacks_is_at_its_default(tmp_path: Path) -> None:
    write_run(tmp_path / "old", config=config())
    write_run(tmp_path / "new", config=config(num_experts=25))
    assert {run.label for run in load_runs(tmp_path)} == {"smope"}


def test_mean_and_deviation_over_seeds(tmp_path: Path) -> None:
    write_run(tmp_path / "a", seed=0, accuracy_matrix=[[1.0, None], [0.5, 0.9]])
    write_run(tmp_path / "b", seed=1, accuracy_matrix=[[1.0, None], [0.7, 0.9]])
    table = summarise(scores(load_runs(tmp_path)))
    assert table.loc["smope", ("runs", "")] == 2
    assert table.loc["smope", ("final_average_accuracy", "mean")] == pytest.approx(0.75)
    assert table.loc["smope", ("final_average_accuracy", "std")] == pytest.approx(0.05)


def test_no_mean_over_runs_of_fewer_tasks_or_a_repeated_seed(tmp_path: Path) -> None:
    for name, seed, final in (("a", 0, 0.5), ("b", 1, 0.7), ("b-repeated", 1, 0.7)):
        write_run(tmp_path / name, seed=seed, accuracy_matrix=[[1.0, None], [final, 0.9]])
    write_run(tmp_path / "c", seed=2, status="running", accuracy_matrix=[[1.0, None], [None, None]])
    runs = load_runs(tmp_path)
    assert [run.path.name for run in comparable(runs)] == ["a", "b"]
    assert comparable(runs)[1].repeats == (tmp_path / "b-repeated",)
    table = summarise(scores(runs))
    assert (table.loc["smope", ("runs", "")], table.loc["smope", ("left out", "")]) == (2, 1)
    assert table.loc["smope", ("final_average_accuracy", "mean")] == pytest.approx(0.75)


def test_a_run_under_way_counts_as_far_as_it_is(tmp_path: Path) -> None:
    write_run(tmp_path / "run", status="running", accuracy_matrix=[[0.9, None], [None, None]])
    (run,) = load_runs(tmp_path)
    assert (run.tasks_done, run.num_tasks, run.finished, run.has_snapshots) == (1, 2, False, False)
    assert scores([run])["final_average_accuracy"].tolist() == [0.9]


def test_errors_name_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"RUN=.*nowhere: no such directory, .*are named runs/"):
        load_runs(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"RUN=.*: no run directory in it"):
        load_runs(tmp_path)
    write_run(tmp_path / "empty", accuracy_matrix=[[None, None], [None, None]])
    with pytest.raises(UserError, match="no task is finished yet"):
        load_runs(tmp_path)
    write_run(tmp_path / "old", format_version=0)
    with pytest.raises(UserError, match=r"old/run\.json: has format version 0"):
        load_runs(tmp_path)
    (tmp_path / "old" / "run.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="is damaged"):
        load_runs(tmp_path)


@pytest.mark.parametrize(
    "key", ["stream", "class_names", "evaluated_on", "trainable_parameters", "seconds"]
)
def test_a_missing_entry_of_run_json_is_named(key: str, tmp_path: Path) -> None:
    path = write_run(tmp_path / "run") / "run.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    del record[key]
    path.write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(
        UserError,
        match=rf"run\.json: has no {key}, so this smope cannot read it; leave the run out",
    ):
        load_runs(tmp_path)


def test_epochs_are_those_of_metrics_csv(tmp_path: Path) -> None:
    (run,) = load_runs(write_run(tmp_path / "run"))
    assert epochs(run).empty
    (tmp_path / "run" / "metrics.csv").write_text("task,loss\n0,0.5\n1,0.25\n", encoding="utf-8")
    assert epochs(run)["loss"].tolist() == [0.5, 0.25]


def test_a_missing_or_damaged_snapshot_is_named(tmp_path: Path) -> None:
    (run,) = load_runs(write_run(tmp_path / "run"))
    with pytest.raises(
        UserError, match=r"holds no analysis/task-002\.safetensors.*trainer\.record=seen"
    ):
        run.snapshots.after(2)
    damaged = usual_run(tmp_path / "damaged")
    (tmp_path / "damaged" / "analysis" / "task-001.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match=r"task-001\.safetensors: cannot be read"):
        damaged.snapshots.after(1)


def test_snapshots(tmp_path: Path) -> None:
    run = usual_run(tmp_path / "run")
    assert run.has_snapshots
    assert run.snapshots.recorded == [1, 2]
    snapshot = run.snapshots.last
    assert snapshot.correct.tolist() == [True, False, True, False, True, True, True, True]
    assert snapshot.probabilities[0] == pytest.approx([0.7112, 0.0963, 0.0963, 0.0963], abs=1e-4)
    assert snapshot.experts is None


def test_snapshots_of_tasks_that_run_json_lacks_are_ignored(tmp_path: Path) -> None:
    """Killed after the recorder wrote and before run.json was, or resumed from an older
    checkpoint.
    """
    run = usual_run(tmp_path / "run", status="running", accuracy_matrix=[[1.0, None], [None, None]])
    assert run.has_snapshots
    assert run.snapshots.recorded == [1]
    assert run.snapshots.last.tasks_done == 1
    assert split_errors(run)["after_task"].tolist() == [1]
    assert class_confusion(run).shape == (2, 2)


def test_a_missing_snapshot_is_noticed(tmp_path: Path) -> None:
    run = usual_run(tmp_path / "run")
    (tmp_path / "run" / "analysis" / "task-001.safetensors").unlink()
    assert not run.has_snapshots
    assert split_errors(run)["after_task"].tolist() == [2]
