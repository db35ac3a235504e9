"""`smope verify` on reference files of other sizes, written by the slow loops, and what it says of
bad files.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from smope.cli.main import main
from smope.reproduction.reference_numbers import compare_quantity, verify
from tests.tiny import tiny_vit

from . import slow_smope
from .slow_smope import SlowExperts, SlowPass, SlowViT

CONFIG: dict[str, Any] = {
    "img_size": 16,
    "patch_size": 8,
    "embed_dim": 12,
    "depth": 4,
    "num_heads": 2,
    "num_experts": 7,
    "top_k": 3,
    "router_weight": 0.03,
    "prototype_weight": 0.05,
    "epsilon": 0.7,
    "batch": 3,
    "num_classes": 6,
    "blocks": [1, 2],
}
LABELS = (torch.tensor([0, 2, 1]), torch.tensor([5, 3, 4]))
PHASES = ("dense_task0", "sparse_task0", "sparse_task1")
OF_PHASE = (
    "features",
    "logits",
    "cross_entropy",
    "auxiliary_loss",
    "grad.key",
    "grad.value",
    "grad.head.weight",
)
QUANTITIES = (
    *(f"{phase}.{name}" for phase in PHASES for name in OF_PHASE),
    *(f"{phase}_train.{name}" for phase in PHASES[1:] for name in ("proxy_scores", "selected")),
    "usage.counts",
    "usage.frequent",
    *(f"eval_task1.{name}" for name in ("features", "logits", "proxy_scores", "selected")),
)


class Writer:
    """The tensors of a reference file, computed by the slow loops."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        sizes = {
            key: config[key]
            for key in ("img_size", "patch_size", "embed_dim", "depth", "num_heads")
        }
        self.draw = torch.Generator().manual_seed(8)
        vit = {
            name: value.double() for name, value in tiny_vit(seed=9, **sizes).state_dict().items()
        }
        self.weight = self.random(config["num_classes"], config["embed_dim"])
        self.bias = self.random(config["num_classes"])
        self.images = self.random(config["batch"], 3, config["img_size"], config["img_size"])
        self.usage_images = self.random(6, 3, config["img_size"], config["img_size"])
        nothing = torch.empty(config["num_heads"], config["num_experts"], 0)
        experts = {block: SlowExperts.fresh(nothing, nothing) for block in config["blocks"]}
        self.slow = SlowViT(vit, config["num_heads"], experts, config["top_k"], config["epsilon"])
        self.tensors: dict[str, Tensor] = {
            **{f"vit.{name}": value for name, value in vit.items()},
            "head.weight": self.weight,
            "head.bias": self.bias,
            "x": self.images,
            "x_usage": self.usage_images,
            "y_task0": LABELS[0],
            "y_task1": LABELS[1],
        }

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.draw, dtype=torch.float64)

    def all(self) -> dict[str, Tensor]:
        self.training("dense_task0", "dense", 0)
        self.routing("sparse_task0_train", self.training("sparse_task0", "train", 0))
        slow_smope.usage_pass(self.slow, [self.usage_images])
        slow_smope.begin_second_task(self.slow)
        experts = list(self.slow.experts.values())
        self.tensors["usage.counts"] = torch.tensor([e.counts for e in experts])
        self.tensors["usage.frequent"] = torch.tensor([e.frequent for e in experts])
        self.routing("sparse_task1_train", self.training("sparse_task1", "train", 1))
        with torch.no_grad():
            result = self.slow.forward(self.images, "eval")
            features = torch.stack(result.features)
        self.tensors["eval_task1.features"] = features
        self.tensors["eval_task1.logits"] = features @ self.weight.T + self.bias
        self.routing("eval_task1", result)
        return {name: value.detach().contiguous() for name, value in self.tensors.items()}

    def training(self, phase: str, mode: slow_smope.Mode, task: int) -> SlowPass:
        config, experts = self.config, list(self.slow.experts.values())
        shape = (
            config["num_heads"],
            config["num_experts"],
            config["embed_dim"] // config["num_heads"],
        )
        for item in experts:
            item.keys, item.values = (
                self.random(*shape).requires_grad_(),
                self.random(*shape).requires_grad_(),
            )
        head = self.weight.clone().requires_grad_()
        result = self.slow.forward(self.images, mode)
        features = torch.stack(result.features)
        logits = features @ head.T + self.bias
        half = config["num_classes"] // 2
        span = (0, half) if task == 0 else (half, config["num_classes"])
        cross_entropy = slow_smope.task_cross_entropy(logits, LABELS[task], *span)
        auxiliary = torch.zeros((), dtype=torch.float64)
        if mode == "train":
            auxiliary = config["router_weight"] * slow_smope.router_loss(result, config["epsilon"])
        if task == 1:
            new, old, flags = zip(*((e.keys, e.old_keys, e.frequent) for e in experts), strict=True)
            prototype = slow_smope.prototype_loss(new, old, list(flags), config["top_k"])
            auxiliary = auxiliary + config["prototype_weight"] * prototype
        (cross_entropy + auxiliary).backward()
        found = {
            "experts.key": torch.stack([e.keys for e in experts]),
            "experts.value": torch.stack([e.values for e in experts]),
            "features": features, "logits": logits,
            "cross_entropy": cross_entropy.reshape(1), "auxiliary_loss": auxiliary.reshape(1),
            "grad.key": torch.stack([e.keys.grad for e in experts]),
            "grad.value": torch.stack([e.values.grad for e in experts]),
            "grad.head.weight": head.grad,
        }  # fmt: skip
        self.tensors |= {f"{phase}.{name}": value for name, value in found.items()}
        return result

    def routing(self, phase: str, result: SlowPass) -> None:
        """proxy_scores and sorted choices, (B, blocks, H, ...)."""
        scores = [torch.stack([torch.stack(heads) for heads in image]) for image in result.scores]
        self.tensors[f"{phase}.proxy_scores"] = torch.stack(scores)
        self.tensors[f"{phase}.selected"] = torch.tensor(result.chosen).sort(-1).values


def save(path: Path, tensors: dict[str, Tensor], config: dict[str, Any] | None = None) -> Path:
    save_file(tensors, path, {"config": json.dumps(CONFIG if config is None else config)})
    return path


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("reference") / "small.safetensors", Writer(CONFIG).all())


@pytest.fixture
def tensors(reference: Path) -> dict[str, Tensor]:
    return load_file(reference)


def test_passes_on_a_file_of_other_sizes(
    reference: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(reference)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == [
        name for group in ("dense_task0", "sparse_task0", "usage", "sparse_task1", "eval_task1")
        for name in QUANTITIES if name.startswith(group)
    ]  # fmt: skip
    assert lines[-1] == f"{len(QUANTITIES)} of {len(QUANTITIES)} quantities within 1e-06 in float64"
    assert max(row.error for row in verify(reference)) < 1e-12


def test_the_file_holds_every_case(tensors: dict[str, Tensor]) -> None:
    """What the file compares is not all zero, or all the same."""
    assert {*QUANTITIES} <= {*tensors}
    assert 0 < tensors["usage.frequent"].sum() < tensors["usage.frequent"].numel()
    assert (tensors["usage.counts"] == 0).any()
    assert tensors["sparse_task1.auxiliary_loss"] > 0 == tensors["dense_task0.auxiliary_loss"]
    assert not torch.equal(tensors["eval_task1.selected"], tensors["sparse_task1_train.selected"])


def test_float32_passes_at_its_own_tolerance_only(
    reference: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(reference), "--dtype", "float32"]) == 0
    assert main(["verify", str(reference), "--dtype", "float32", "--tolerance", "1e-4"]) == 0
    assert "within 0.0001 in float32" in capsys.readouterr().out
    assert main(["verify", str(reference), "--dtype", "float32", "--tolerance", "1e-12"]) == 1


@pytest.mark.parametrize("name", QUANTITIES)
def test_a_wrong_number_is_named(
    name: str, tensors: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tensors[name].flatten()
    place = wrong.double().abs().argmax()
    wrong[place] = (
        wrong[place] + 1e-5 * wrong[place].abs().clamp(min=1)
        if wrong.is_floating_point()
        else ~wrong[place]
    )
    path = save(tmp_path / "wrong.safetensors", tensors)
    assert main(["verify", str(path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.endswith("FAILED")] == [name]
    assert lines[-1].startswith(f"{len(QUANTITIES) - 1} of {len(QUANTITIES)} ")


def test_another_shape_or_a_nan_never_passes(
    tensors: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors["sparse_task0.logits"] = tensors["sparse_task0.logits"][:, :-1].contiguous()
    tensors["eval_task1.logits"][0, 0] = torch.nan
    path = save(tmp_path / "odd.safetensors", tensors)
    assert main(["verify", str(path), "--tolerance", "1e9"]) == 1
    failed = [
        line.split()[0] for line in capsys.readouterr().out.splitlines() if line.endswith("FAILED")
    ]
    assert failed == ["sparse_task0.logits", "eval_task1.logits"]


def test_the_measure() -> None:
    expected = torch.tensor([1.0, -4.0])
    assert compare_quantity("a", torch.tensor([1.0, -3.0]), expected).error == pytest.approx(0.25)
    assert compare_quantity(
        "zero", torch.tensor([0.0, 0.5]), torch.zeros(2)
    ).error == pytest.approx(0.5)
    assert compare_quantity("whole", torch.tensor([1, 3]), torch.tensor([1, 2])).error == 1
    assert not compare_quantity("whole", torch.tensor([1, 3]), torch.tensor([1, 2])).passes(10.0)
    assert compare_quantity("flags", torch.tensor([True]), torch.tensor([True])).passes(0.0)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"nothing\.safetensors: no such file; give a reference file"),
        (b"", r"not a reference file"),
        (b"some text, no tensors", r"not a reference file"),
    ],
)
def test_a_file_that_is_none(
    content: bytes | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "nothing.safetensors"
    if content is not None:
        path.write_bytes(content)
    assert main(["verify", str(path)]) == 2
    assert re.search(message, one_line(capsys))


def test_weights_are_no_reference_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"cls_token": torch.zeros(1, 1, 4)}, path, {"mean": "[0.5]"})
    assert main(["verify", str(path)]) == 2
    assert re.search(r"weights\.safetensors: not a reference file", one_line(capsys))


def test_a_config_without_a_size_is_named(
    tensors: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {key: value for key, value in CONFIG.items() if key not in ("top_k", "epsilon")}
    assert main(["verify", str(save(tmp_path / "a.safetensors", tensors, config))]) == 2
    assert "its config lacks top_k, epsilon" in one_line(capsys)


@pytest.mark.parametrize(
    "name",
    [
        "x",
        "y_task1",
        "head.bias",
        "vit.blocks.2.attn.qkv.weight",
        "sparse_task1.experts.key",
        "usage.frequent",
    ],
)
def test_a_missing_tensor_is_named(
    name: str, tensors: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del tensors[name]
    assert main(["verify", str(save(tmp_path / "a.safetensors", tensors))]) == 2
    assert name.removeprefix("vit.") in one_line(capsys)


def test_a_config_that_does_not_fit_the_tensors(
    tensors: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path / "a.safetensors", tensors, {**CONFIG, "num_experts": 9})
    assert main(["verify", str(path)]) == 2
    assert "its tensors do not fit its config" in one_line(capsys)
    path = save(tmp_path / "b.safetensors", tensors, {**CONFIG, "blocks": [1, 9]})
    assert main(["verify", str(path)]) == 2
    assert "9" in one_line(capsys)


@pytest.mark.parametrize(
    "arguments", [[], ["--dtype", "float32", "--tolerance", "1e-4"]], ids=["float64", "float32"]
)
def test_the_authors_numbers(
    arguments: list[str], data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = data_root.parent / "reference" / "smope_vectors.safetensors"
    if not path.is_file():
        pytest.skip("no reference numbers beside the data")
    assert main(["verify", str(path), *arguments]) == 0
    assert "FAILED" not in capsys.readouterr().out
