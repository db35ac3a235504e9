"""benchmarks/speed.py on ViTs so small that a step takes milliseconds: its rows, memory, goals and
plot.
"""

from __future__ import annotations

import importlib
import json
import random
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"
KEYS = {
    "backbone",
    "batch",
    "device",
    "dtype",
    "phase",
    "variant",
    "num_experts",
    "top_k",
    "task",
    "ratio_to_plain",
    "peak_memory_ratio",
}


@pytest.fixture(scope="module")
def speed() -> Any:
    return load("speed")


@pytest.fixture(scope="module")
def measuring() -> Any:
    return load("measuring")


def load(name: str) -> ModuleType:
    if not FOLDER.is_dir():
        pytest.skip("installed without the benchmarks")
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(FOLDER))


def tiny(speed: Any, **changes: Any) -> Any:
    return speed.Setting(**{"backbone": speed.TINY, "batch": 2, "image_size": 32, **changes})


def test_a_row_a_variant(speed: Any) -> None:
    variants = [speed.PLAIN, speed.DEFAULT, speed.SPARSE, speed.SECOND, speed.DENSE]
    rows = speed.measure(tiny(speed), variants, seconds=0)
    assert [row["variant"] for row in rows] == [
        "plain",
        "plain_torch_default",
        "smope",
        "smope",
        "dense",
    ]
    assert all(row.keys() >= KEYS and row["rounds"] == 3 and row["seconds"] > 0 for row in rows)
    assert [row["task"] for row in rows] == [None, None, 0, 1, 0]
    assert (
        rows[0]["ratio_to_plain"] == rows[0]["saved_bytes_ratio"] == rows[2]["ratio_to_smope"] == 1
    )
    json.dumps(rows)


def test_the_ratio_of_bytes_is_that_of_what_is_kept(speed: Any) -> None:
    """At full image size a plain ViT keeps more than one with experts, on any machine."""
    rows = speed.measure(speed.Setting(speed.TINY, 2), [speed.PLAIN, speed.SPARSE], seconds=0)
    assert 0.5 < rows[1]["saved_bytes_ratio"] < 0.9


def test_inference_keeps_nothing(speed: Any) -> None:
    rows = speed.measure(
        tiny(speed, phase="infer", dtype="bfloat16"), [speed.PLAIN, speed.SPARSE], seconds=0
    )
    assert [row["saved_bytes_ratio"] for row in rows] == [None, None]


def test_steps_train_and_leave_the_switch_alone(speed: Any, measuring: Any) -> None:
    setting = tiny(speed)
    run, method = measuring.build(setting, speed.SECOND)
    before = method.experts[0].keys.clone(), torch.get_num_threads()
    run()
    assert not torch.equal(method.experts[0].keys, before[0])
    assert method.experts[0].frequent.any() and not method.experts[0].frequent.all()
    switch: Any = getattr(torch.backends.mkldnn, "matmul", None)
    precision = getattr(switch, "fp32_precision", None)
    with measuring.torch_default_products():
        assert precision is None or switch.fp32_precision == "ieee"
    assert getattr(switch, "fp32_precision", None) == precision


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="read from /proc")
def test_resident_peak_of_a_fresh_process(speed: Any) -> None:
    rows = speed.measure(
        tiny(speed), [speed.PLAIN, speed.SPARSE, replace(speed.SPARSE, top_k=1)], seconds=0
    )
    speed.add_resident_peaks(rows, tiny(speed))
    assert rows[0]["peak_memory_ratio"] == 1
    assert rows[1]["peak_memory_ratio"] > 0
    assert rows[2]["peak_memory_ratio"] is None, "not measured"


def test_goals_of_rows(speed: Any) -> None:
    setting = speed.Setting(speed.BASE, 8)
    row = {
        **vars(setting),
        **vars(speed.SPARSE),
        "saved_bytes_ratio": 0.8,
        "peak_memory_ratio": 0.9,
    }
    rows = [
        {**row, "ratio_to_plain": 0.9, "ratio_to_smope": 1.0},
        {**row, "num_experts": 2500, "ratio_to_plain": 1.0, "ratio_to_smope": 1.1},
        {**row, "variant": "authors", "ratio_to_plain": 1.8, "ratio_to_smope": 2.0},
        {**row, "phase": "infer", "ratio_to_plain": 0.95},
        {
            "phase": "start_up",
            "variant": "smope --help",
            "seconds": 0.2,
            **dict.fromkeys(["backbone", "batch", "device", "dtype", "num_experts", "task"]),
        },
    ]
    found = {name.rpartition(": ")[2]: (value, limit) for name, value, limit in speed.goals(rows)}
    assert found == {
        "training step / plain": (0.9, 0.97),
        "bytes kept for backward / plain": (0.8, 1.05),
        "peak memory of a step / plain": (0.9, 1.05),
        "2,500 experts / 25": (1.1, 1.05),
        "task 0, step / authors' program": (0.5, 1 / 1.5),
        "inference / plain": (0.95, 0.97),
        "smope --help, seconds": (0.2, 1.0),
    }


def test_every_group_measures_plain_and_smope(speed: Any) -> None:
    groups = [*speed.goal_groups(["cpu", "cuda"], Path(".")), *speed.other_groups(["cpu", "cuda"])]
    assert all({speed.PLAIN, speed.SPARSE} <= set(variants) for _, variants in groups)
    assert {(s.backbone, s.batch, s.phase) for s, _ in groups} >= {
        (speed.BASE, 8, "infer"),
        (speed.TINY, 64, "train"),
    }
    assert {s.dtype for s, _ in groups} == {"float32", "bfloat16", "float16"}


def test_the_command_writes_its_rows(
    speed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    setting = tiny(speed, phase="infer")
    monkeypatch.setattr(
        speed, "goal_groups", lambda *_: [(setting, [speed.PLAIN, speed.SPARSE, speed.MANY])]
    )
    monkeypatch.setattr(speed, "LIMITS", {(speed.TINY, 2): 1e-9})
    monkeypatch.setattr(speed, "start_up", lambda _: [])
    monkeypatch.setattr(speed, "prefer_onednn", lambda: True)
    monkeypatch.setattr(
        speed,
        "other_groups",
        lambda *_: [(tiny(speed, batch=3), [speed.PLAIN, speed.SPARSE, speed.SECOND])],
    )
    files = ["--json", str(tmp_path / "rows.json"), "--plot", str(tmp_path / "plot.svg")]
    speed.main(["--threads", "1", "--seconds", "0", "--full", *files])
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["variant"] for row in rows] == [
        "plain",
        "smope",
        "smope",
        "plain",
        "smope",
        "smope",
    ]
    assert "ViT-Ti, batch 2, cpu float32: inference" in (tmp_path / "plot.svg").read_text(
        encoding="utf-8"
    )
    assert all(row.keys() >= KEYS | {"cpu", "gpu", "threads", "torch", "timm"} for row in rows)
    assert (
        "OVER vit_tiny_patch16_224, batch 2, cpu, float32: inference / plain"
        in capsys.readouterr().out
    )


def test_the_plot(speed: Any, tmp_path: Path) -> None:
    row = {
        **vars(speed.Setting(speed.TINY, 32)),
        **vars(speed.SPARSE),
        "ratio_to_plain": 0.9,
        "lowest_ratio": 0.8,
    }
    row["highest_ratio"] = 1.0
    rows = [
        row,
        {**row, "num_experts": 2500},
        {**row, "variant": "plain", "num_experts": None, "top_k": None},
        {**row, "phase": "infer"},
        {**row, "task": 1, "ratio_to_plain": 1.5},
        {**row, "task": 1, "num_experts": 250, "ratio_to_plain": 9.0},
    ]
    plot = sys.modules["speed_plot"]
    where = "ViT-Ti, batch 32, cpu float32: training"
    assert plot.curves(rows) == {
        where: [(25, 0.9, 0.8, 1.0), (2500, 0.9, 0.8, 1.0)],
        f"{where}, from task 2 on": [(25, 1.5, 0.8, 1.0), (250, 9.0, 0.8, 1.0)],
    }
    speed.draw(rows, tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert "2,500" in text and f"{where}, from task 2 on" in text and "the plain ViT" in text
    speed.draw(rows, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_the_second_task_beside_the_first(speed: Any) -> None:
    rows = speed.measure(tiny(speed), [speed.PLAIN, speed.SPARSE, speed.SECOND], seconds=0)
    assert rows[1]["ratio_to_smope"] == 1.0
    assert 0.2 < rows[2]["ratio_to_smope"] < 5
    assert all(
        row["ratio_to_plain"] == row["ratio_to_smope"] / rows[0]["ratio_to_smope"] for row in rows
    )
    assert rows[2]["ratio_error"] >= 0
    limits = {limit: name for name, _, limit in speed.goals(rows)}
    assert "step with the prototype loss / without" in limits[1.02]
    assert len(limits) == 1, "the first task's own row has no goal here"


def test_the_error_of_a_median(measuring: Any) -> None:
    assert measuring._error([1.0] * 9) == 0
    draw = random.Random(0)
    medians, errors = [], []
    for _ in range(400):
        ratios = [draw.gauss(1, 0.1) for _ in range(25)]
        medians.append(statistics.median(ratios))
        errors.append(measuring._error(ratios))
    assert statistics.fmean(errors) == pytest.approx(statistics.pstdev(medians), rel=0.15)


def test_the_authors_program_takes_a_step(tmp_path: Path, speed: Any, measuring: Any) -> None:
    """Against a stand-in of the same interface; the program itself is not in this repository."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").touch()
    (tmp_path / "models" / "vit.py").write_text(
        "import torch\nclass VisionTransformer(torch.nn.Module):\n"
        "    def __init__(self, **sizes):\n        super().__init__()\n        self.width = "
        "sizes['embed_dim']\n"
        "    def forward(self, x, prompt, train, task_id, topk, reduce_query):\n"
        "        loss = torch.zeros((1,), requires_grad=True).cuda()\n        loss += "
        "prompt.key.sum() * task_id\n"
        "        out = x.mean((1, 2, 3)).view(-1, 1, 1).expand(-1, 2, self.width)\n        return "
        "out, loss, out\n"
    )
    (tmp_path / "models" / "zoo.py").write_text(
        "import torch\nclass OnePrompt(torch.nn.Module):\n"
        "    def __init__(self, width, tasks, parameters, key_dim, num_heads):\n        "
        "super().__init__()\n"
        "        self.key = torch.nn.Parameter(torch.ones(parameters[0]))\n        "
        "self.e_freq_0_0_0 = 0\n"
        "    def process_task_count(self):\n        print('Saving')\n"
    )
    variant, cuda = replace(speed.AUTHORS, task=1), torch.Tensor.cuda
    run, program = measuring.build(speed.Setting(speed.TINY, 2, image_size=32), variant, tmp_path)
    run()
    assert (program.prompt.key.detach() < 1).all() and len(program.prompt.key) == 50
    measuring.build(speed.Setting(speed.TINY, 2, image_size=32, phase="infer"), variant, tmp_path)[
        0
    ]()
    assert torch.Tensor.cuda is cuda
    for name in ("models", "models.vit", "models.zoo"):
        sys.modules.pop(name)
