"""class.pth of the authors' code: imported it gives that code's logits, and back its tensors.

The numbers come from the program itself: smope_vectors.safetensors.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from torch import Tensor

import smope
from smope.cli.main import main
from smope.config.hydra import compose
from smope.config.overrides import read_overrides

PHASE = "sparse_task0"  # no expert is flagged or counted yet, as after loading class.pth


@pytest.fixture(scope="module")
def reference(data_root: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    path = data_root.parent / "reference" / "smope_vectors.safetensors"
    if not path.is_file():
        pytest.skip("needs the reference numbers")
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return json.loads(file.metadata()["config"]), tensors


def class_pth(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The file as the program writes it: one tensor for each expert of each head."""
    state = {f"last.{name}": tensors[f"head.{name}"] for name in ("weight", "bias")}
    state |= {f"feat.{n[4:]}": t for n, t in tensors.items() if n.startswith("vit.")}
    for short, name in (("k", "key"), ("v", "value")):
        for block, heads in enumerate(tensors[f"{PHASE}.experts.{name}"]):
            for head, experts in enumerate(heads):
                for expert, row in enumerate(experts):
                    state[f"prompt.e_p{short}_{block}_{expert}_{head}"] = row[None].clone()
    return state


@pytest.fixture
def files(reference: Any, tmp_path: Path) -> tuple[Path, Path]:
    """class.pth, and a configuration for it."""
    sizes, tensors = reference
    options = {key: sizes[key] for key in ("patch_size", "embed_dim", "depth", "num_heads")}
    config = compose(
        read_overrides(["method=smope", "trainer.precision=float64", "stream.num_tasks=2"])
    ).as_dict()
    config["backbone"] |= {
        "image_size": sizes["img_size"],
        "options": options,
        "pixel_statistics": "none",
    }
    config["method"] |= {"num_experts": sizes["num_experts"], "blocks": sizes["blocks"]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    torch.save(class_pth(tensors), tmp_path / "class.pth")
    return tmp_path / "class.pth", tmp_path / "config.yaml"


def test_imported_it_gives_the_programs_logits_and_back_its_tensors(
    files: tuple[Path, Path],
    reference: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint, config = files
    tensors = reference[1]
    out = tmp_path / "authors"
    words = ["import", "authors", str(checkpoint), "--config", str(config), "--out", str(out)]
    capsys.readouterr()
    assert main(words) == 0
    assert "classes have numbers, in the order of learning" in capsys.readouterr().out
    model = out / "model.safetensors"
    images, expected = tensors["x"], tensors[f"{PHASE}.logits"]
    classifier = smope.load(model, "cpu")
    with torch.no_grad():  # the program's images are not within [0, 1]
        logits = classifier.method(images)
    assert (logits - expected).abs().max() <= 1e-6 * expected.abs().max()
    back = tmp_path / "back.pth"
    assert main(["export", str(model), "--format", "authors", "--out", str(back)]) == 0
    again, before = torch.load(back, weights_only=True), torch.load(checkpoint, weights_only=True)
    assert again.keys() == before.keys()
    assert all(torch.equal(again[name].float(), before[name].float()) for name in before)


def test_an_earlier_task_with_names_and_a_file_of_several_gpus(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    """torch's DataParallel puts `module.` before all names."""
    checkpoint, config = files
    state = torch.load(checkpoint, weights_only=True)
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, checkpoint)
    (tmp_path / "names.txt").write_text("".join(f"bird {n}\n" for n in range(10)))
    out = tmp_path / "authors"
    words = ["import", "authors", str(checkpoint), "--config", str(config), "--out", str(out)]
    assert main([*words, "--classes", str(tmp_path / "names.txt"), "--tasks", "1"]) == 0
    artefact = smope.load(out / "model.safetensors").artefact
    assert artefact.class_names == [f"bird {n}" for n in range(10)]
    assert (artefact.tasks_done, artefact.total_tasks, artefact.num_classes) == (1, 2, 20)
    assert "10 classes" in (out / "model_card.md").read_text()


def test_what_does_not_fit_is_one_line(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, config = files
    whole = torch.load(checkpoint, weights_only=True)
    words = ["import", "authors", str(checkpoint), "--config", str(config)]
    broken = {
        r"has no last\.bias; give": {n: t for n, t in whole.items() if n != "last.bias"},
        r"has no prompt\.e_pk_0_0_0": {n: t for n, t in whole.items() if "prompt" not in n},
        r"tensors of experts are missing": {
            n: t for n, t in whole.items() if "e_pk_3_7_1" not in n
        },
        r"holds no named tensors": [1, 2],
        r"its experts are \(1, 4, 25, 16\)": {
            n: t for n, t in whole.items() if not re.match(r"prompt\.e_p._[1-5]_", n)
        },
    }
    for number, (message, state) in enumerate(broken.items()):
        torch.save(state, checkpoint)
        capsys.readouterr()
        assert main([*words, "--out", str(tmp_path / f"out{number}")]) == 2
        assert re.search(message, capsys.readouterr().err), message
        assert not list((tmp_path / f"out{number}").glob("*"))
    checkpoint.write_bytes(b"no pickle")
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    assert "cannot be read as tensors alone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.pth", "--config", "no.yaml", "--out", "x"], r"--config=no\.yaml: cannot be read"),
        (["a.pth", "--out", "x"], r"required: --config"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], message: str, mistake: Any) -> None:
    assert re.search(message, mistake("import", "authors", *words))


def test_other_methods_have_no_class_pth(run_dir: Path, tmp_path: Path, mistake: Any) -> None:
    """The run has experts in blocks 0 and 3 alone, which the program cannot have."""
    message = mistake(
        "export", str(run_dir), "--format", "authors", "--out", str(tmp_path / "a.pth")
    )
    assert "method.blocks=[0, 3]: the authors' code has experts in the first 6" in message
