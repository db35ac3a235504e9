"""trainer.compile: when auto compiles, what graphs needs, what happens where compiling fails."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_compiler
from torch._dynamo.backends.common import aot_autograd

from smope.config.config import validate
from smope.config.hydra import compose
from smope.config.overrides import read_overrides
from smope.errors import UserError
from smope.methods.finetune import Finetune
from smope.methods.smope import SMoPE
from smope.routers.aux_free import AuxFree
from smope.routers.topk import TopK
from smope.training import compiling
from smope.training.trainer import Trainer
from tests.tiny import tiny_backbone, tiny_settings, tiny_stream

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def smope() -> SMoPE:
    torch.manual_seed(0)
    return SMoPE(tiny_backbone(), 4, TopK(2), num_experts=4)


def setting(*overrides: str) -> Any:
    return compose(read_overrides([*overrides, "backbone=glyph_vit", "stream=digits"]))


@pytest.mark.parametrize(("word", "value"), [("off", False), ("on", True), ("true", True)])
def test_on_and_off_are_what_true_and_false_were(word: str, value: bool) -> None:
    old = setting(f"trainer.compile={str(value).lower()}")
    new = setting(f"trainer.compile={word}")
    assert new.trainer["compile"] is value
    assert new.config_hash == old.config_hash
    stored = old.as_dict()
    assert validate(stored).trainer["compile"] is value


def test_other_words_are_refused() -> None:
    with pytest.raises(UserError, match=r"trainer\.compile must be true or false or one of auto"):
        setting("trainer.compile=fast")
    assert setting("trainer.deterministic=on").trainer["deterministic"] is True
    assert setting("name=off").name == "off"


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "_missing_compiler", lambda device: None)


LONG = {"compile": "auto", "precision": "bfloat16", "batch_size": 128}


@pytest.mark.usefixtures("triton")
def test_auto_compiles_what_was_measured_to_win_and_pays_it_back() -> None:
    decision = compiling.decide(smope(), tiny_settings(**LONG), CUDA, 20_000)
    assert decision.compiled and not decision.graphs
    assert decision.note == "trainer.compile=auto: compiled, since 20,000 steps pay it back"


@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize(
    ("changes", "device", "steps", "reason"),
    [
        ({}, CPU, 20_000, "on cpu"),
        ({}, CUDA, 19_999, "19,999 steps do not pay it back"),
        ({"precision": "float32"}, CUDA, 20_000, "in bfloat16 alone"),
        ({"batch_size": 64}, CUDA, 20_000, "from 128 images"),
    ],
)
def test_auto_leaves_everything_else_as_it_is(
    changes: dict[str, Any], device: torch.device, steps: int, reason: str
) -> None:
    decision = compiling.decide(smope(), tiny_settings(**{**LONG, **changes}), device, steps)
    assert not decision.compiled and reason in str(decision.note)
    other = compiling.decide(Finetune(tiny_backbone(), 4), tiny_settings(**LONG), CUDA, 20_000)
    assert not other.compiled


def test_auto_needs_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: None)
    decision = compiling.decide(smope(), tiny_settings(**LONG), CUDA, 20_000)
    assert not decision.compiled and "no compiler is installed" in str(decision.note)


@pytest.mark.usefixtures("triton")
def test_graphs_need_a_cuda_device() -> None:
    settings = tiny_settings(compile="graphs")
    with pytest.raises(UserError, match=r"trainer\.compile=graphs needs a CUDA device.*is cpu"):
        compiling.decide(smope(), settings, CPU, 1)
    assert compiling.decide(smope(), settings, CUDA, 1) == (True, True, None)


def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    with pytest.raises(
        UserError, match=r"trainer\.compile=true needs a C\+\+ compiler.*set it to false"
    ):
        compiling.decide(smope(), tiny_settings(compile=True), CPU, 1)
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"trainer\.compile=true needs triton.*pip install triton"):
        compiling.decide(smope(), tiny_settings(compile=True), CUDA, 1)


def broken(*_: Any) -> Any:
    raise RuntimeError("no such instruction")


def test_where_compiling_fails_the_run_continues_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.compiler.reset()
    monkeypatch.setattr(compiling, "COMPILER", broken)
    warnings: list[str] = []
    monkeypatch.setattr(
        compiling._log, "warning", lambda text, *values: warnings.append(text % values)
    )
    stream, states = tiny_stream(num_tasks=2), []
    for on in (False, True):
        torch.manual_seed(0)
        method = Finetune(tiny_backbone(), 4)
        settings = tiny_settings(compile=on, epochs=1)
        Trainer(method, stream, settings, seed=0, device=CPU).fit()
        states.append(method.trained_state())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert warnings == [
        "trainer.compile: compiling failed (RuntimeError: no such instruction); the run is not "
        "compiled"
    ]


def broken_backward(times: list[int]) -> Any:
    """A compiler whose backward graphs fail; `times` counts the attempts."""

    def fail(*_: Any) -> Any:
        times.append(1)
        raise RuntimeError("no such instruction")

    return aot_autograd(fw_compiler=make_boxed_compiler(lambda graph, _: graph), bw_compiler=fail)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_whose_backward_pass_cannot_be_compiled_begins_again(
    parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The router draws noise and collects the load, and experts drop out: a step that was taken
    twice, or with other random numbers, would end elsewhere.
    """
    torch.compiler.reset()
    warnings, times, states = list[str](), list[int](), []
    monkeypatch.setattr(compiling, "COMPILER", broken_backward(times))
    monkeypatch.setattr(
        compiling._log, "warning", lambda text, *values: warnings.append(text % values)
    )
    stream = tiny_stream(num_tasks=2)
    for on in (False, True):
        torch.manual_seed(0)
        router = AuxFree(2, bias_rate=0.1)
        backbone = tiny_backbone(depth=3)
        method = SMoPE(backbone, 4, router, num_experts=6, blocks=[0, 1], expert_dropout=0.3)
        settings = tiny_settings(
            compile=on, epochs=1, dense_epochs=0, gradient_accumulation_steps=parts
        )
        trainer = Trainer(method, stream, settings, seed=0, device=CPU)
        trainer.fit()
        states.append({**method.trained_state(), "steps": torch.tensor(trainer.history.steps)})
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert len(times) == 1
    assert warnings == [
        "trainer.compile: compiling failed (RuntimeError: no such instruction); the run is not "
        "compiled"
    ]


def test_an_error_of_the_method_itself_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes again in the step that is not compiled."""

    def losses(*_: Any) -> Any:
        raise ValueError("labels of another task")

    monkeypatch.setattr(compiling, "COMPILER", "eager")
    method = Finetune(tiny_backbone(), 4)
    monkeypatch.setattr(method, "losses", losses)
    settings = tiny_settings(compile=True, epochs=1)
    trainer = Trainer(method, tiny_stream(), settings, seed=0, device=CPU)
    with pytest.raises(ValueError, match="labels of another task"):
        trainer.fit()
