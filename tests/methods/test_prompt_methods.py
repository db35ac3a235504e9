"""What each method with prefix prompts promises beyond the contract: sizes, what is frozen when,
phases, streams.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from smope.backbones.vit import load_backbone
from smope.errors import UserError
from smope.methods.base import Method, Phase, TaskSpan
from smope.methods.coda import CODAPrompt
from smope.methods.dualprompt import DualPrompt
from smope.methods.finetune import Finetune
from smope.methods.hide import HiDePrompt
from smope.methods.norga import NoRGa
from smope.methods.ovor import OVOR
from smope.metrics.cost import count_parameters
from smope.storage.run_directory import RunDirectory
from smope.streams.stream import Stream
from smope.training.checkpoint import last_checkpoint
from smope.training.phase import RunningPhase
from smope.training.trainer import Trainer
from tests.contracts import conftest
from tests.contracts.conftest import make_method
from tests.tiny import frozen, shades, tiny_backbone, tiny_settings, tiny_source, tiny_stream

CPU = torch.device("cpu")
PUBLISHED = ("deep_l2p", "dualprompt", "coda", "ovor", "hide", "norga", "vq")
PROMPTED = ("l2p", *PUBLISHED)


def trainer_of(
    method: Method, stream: Stream, directory: RunDirectory | None = None, **changes: Any
) -> Trainer:
    return Trainer(
        method, stream, tiny_settings(**changes), seed=0, device=CPU, directory=directory
    )


@pytest.fixture(scope="module")
def stream() -> Stream:
    return tiny_stream()


@pytest.fixture
def full_size(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Method]]:
    """name -> the method as configured, on a ViT-B/16, for 10 tasks and 200 classes; nothing is
    computed.
    """
    monkeypatch.setattr(conftest, "TASKS", 10)
    monkeypatch.setattr(conftest, "SIZES", {})
    with torch.device("meta"):
        yield lambda name: make_method(
            name, frozen(timm.create_model("vit_base_patch16_224", num_classes=0)), 200
        )


@pytest.mark.parametrize("name", PUBLISHED)
def test_as_many_parameters_as_published(name: str, full_size: Callable[[str], Method]) -> None:
    method = full_size(name)
    published = method.reference.published_parameters
    assert published is not None
    assert sum(count_parameters(method).values()) / 1e6 == pytest.approx(published, rel=0.01)


def products(method: Method, training: bool) -> float:
    """GFLOPs of a forward pass for one image, in the convention that leaves attention's own
    products out.
    """
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        method.train(training).features(torch.rand(1, 3, 224, 224))
    counts = {
        str(operation): number for operation, number in counter.get_flop_counts()["Global"].items()
    }
    own = ("bmm", "scaled_dot_product")
    return (
        sum(number for name, number in counts.items() if not any(part in name for part in own))
        / 1e9
    )


@pytest.mark.parametrize("name", PROMPTED)
def test_one_or_two_forward_passes(name: str) -> None:
    """As published, but that training a DualPrompt takes the query as well, for its keys."""
    backbone = load_backbone("vit_tiny_patch16_224", "random", "none")
    one = products(Finetune(backbone, 10), False)
    assert one > 2
    passes = {"ovor": (1, 1), "hide": (1, 2), "norga": (1, 2)}.get(name, (2, 2))
    method = make_method(name, backbone, 10)
    for training, number in zip((True, False), passes, strict=True):
        assert products(method, training) == pytest.approx(number * one, rel=0.01)


def moved(
    method: Method, task: TaskSpan, names: list[str], steps: int = 2, decay: float = 0.1
) -> dict[str, torch.Tensor]:
    """What some steps on a task change, by name: True where an entry moved."""
    before = {name: method.get_parameter(name).detach().clone() for name in names}
    phase = RunningPhase(
        method,
        task,
        method.phases(task, 4)[-1],
        tiny_settings(weight_decay=decay),
        CPU,
        first=0,
        steps=steps,
    )
    draw = torch.Generator().manual_seed(1)
    for _ in range(steps):
        labels = torch.randint(task.start, task.stop, (8,), generator=draw)
        phase.step(torch.rand(8, 3, 32, 32, generator=draw), labels)
    return {name: method.get_parameter(name) != before[name] for name in names}


@pytest.mark.parametrize("task", [0, 1, 2])
def test_coda_trains_the_share_of_its_task(task: int) -> None:
    torch.manual_seed(0)
    method = CODAPrompt(tiny_backbone(), 6, 3, pool_size=12, length=2, ortho_weight=0.1).train()
    spans = [TaskSpan(number, 2 * number, 2 * number + 2) for number in range(3)]
    for span in spans[: task + 1]:
        method.begin_task(span)
    share = slice(4 * task, 4 * task + 4)
    for changed in moved(method, spans[task], ["prompts", "keys", "attentions"]).values():
        assert changed[:, share].flatten(2).any(-1).all()
        changed[:, share] = False
        assert not changed.any(), "with weight decay and all"


def test_coda_starts_each_share_orthogonal_to_the_earlier_ones() -> None:
    torch.manual_seed(0)
    method = CODAPrompt(tiny_backbone(), 6, 3, pool_size=12, length=2)
    method.begin_task(TaskSpan(0, 0, 2))
    earlier = torch.randn(5, 4, 32)
    with torch.no_grad():
        method.keys[:, :4] = earlier
    method.begin_task(TaskSpan(1, 2, 4))
    assert torch.equal(method.keys[:, :4], earlier)
    new = method.keys[:, 4:8]
    torch.testing.assert_close(new @ new.mT, torch.eye(4).expand(5, 4, 4), atol=1e-5, rtol=0)
    assert (new @ earlier.mT).abs().max() < 1e-4


@pytest.mark.parametrize("kind", [DualPrompt, HiDePrompt, NoRGa])
def test_a_task_trains_its_own_prompt(kind: Any) -> None:
    torch.manual_seed(0)
    method = kind(tiny_backbone(), 6, 3).train()
    name = "expert" if kind is DualPrompt else "prompts"
    spans = [TaskSpan(number, 2 * number, 2 * number + 2) for number in range(3)]
    for span in spans[:2]:
        method.begin_task(span)
    prompts = method.get_parameter(name)
    assert torch.equal(prompts[:, :, 1], prompts[:, :, 0]), "it starts as the one before it"
    names = [name, "keys"] if kind is DualPrompt else [name]
    found = moved(method, spans[1], names)
    assert found[name][:, :, 1].flatten(1).any(-1).all() and not found[name][:, :, [0, 2]].any()
    if kind is DualPrompt:
        assert found["keys"].any(-1).tolist() == [False, True, False]


def test_norga_learns_its_gates_in_the_first_task() -> None:
    torch.manual_seed(0)
    method = NoRGa(tiny_backbone(), 4, 2).train()
    for span, learned in ((TaskSpan(0, 0, 2), True), (TaskSpan(1, 2, 4), False)):
        method.begin_task(span)
        assert moved(method, span, ["gates"])["gates"].all() == learned


def test_hide_keeps_what_training_mixed_in() -> None:
    torch.manual_seed(0)
    method = HiDePrompt(tiny_backbone(), 6, 3, prompt_momentum=0.25)
    earlier = method.prompts[:, :, :2].detach().clone()
    for number in range(3):
        method.begin_task(TaskSpan(number, 2 * number, 2 * number + 2))
        with torch.no_grad():
            method.prompts[:, :, :2] = earlier
            method.prompts[:, :, 2] = 1
    method.end_task(TaskSpan(2, 4, 6), lambda kind: iter(()))
    expected = 0.75 + 0.25 * earlier.mean(2)
    torch.testing.assert_close(method.prompts[:, :, 2], expected)
    assert torch.equal(method.prompts[:, :, :2], earlier)


def test_ovor_ends_a_task_with_outliers_on_one_schedule() -> None:
    method = OVOR(tiny_backbone(), 4)
    assert method.phases(TaskSpan(0, 0, 2), 20) == [
        Phase("train", 16, 0, 20),
        Phase("outliers", 4, 16, 20),
    ]


@pytest.mark.parametrize(
    ("share", "epochs", "expected"),
    [
        (0.2, 2, [1, 1]),
        (0.01, 20, [19, 1]),
        (0.8, 2, [1, 1]),
        (0.99, 5, [1, 4]),
        (0.0, 20, [20]),
        (0.2, 1, [1]),
    ],
)
def test_each_of_ovors_phases_has_an_epoch(share: float, epochs: int, expected: list[int]) -> None:
    """But where there is one epoch alone, or no outliers are asked for."""
    phases = OVOR(tiny_backbone(), 4, outlier_share=share).phases(TaskSpan(0, 0, 2), epochs)
    assert [phase.epochs for phase in phases] == expected
    assert [phase.name for phase in phases] == ["train", "outliers"][: len(expected)]


@pytest.mark.parametrize("source", ["code", "paper"])
def test_outliers_train_the_classifier_alone(source: Any) -> None:
    torch.manual_seed(0)
    method = OVOR(tiny_backbone(), 4, outlier_source=source).train()
    task = TaskSpan(1, 2, 4)
    method.begin_task(task)
    method.begin_phase(method.phases(task, 20)[-1])
    found = moved(method, task, ["general", "expert", "classifier.weight"], decay=0.0)
    assert not found["general"].any() and not found["expert"].any()
    assert found["classifier.weight"].any(-1).tolist() == [False, False, True, True]
    losses = method.losses(torch.rand(8, 3, 32, 32), torch.tensor([2, 3] * 4), task)
    assert losses["outliers"] > 0


def test_outliers_of_the_paper_lie_round_the_features() -> None:
    torch.manual_seed(0)
    features = 10 + torch.randn(60, 32)
    for source, centre in (("code", 0.0), ("paper", 10.0)):
        made = OVOR(tiny_backbone(), 4, outlier_source=source)._make_outliers(features)
        assert made.shape == (40, 32) and abs(made.mean().item() - centre) < 0.5


def test_a_phase_may_be_a_stretch_of_a_longer_schedule() -> None:
    settings = tiny_settings(schedule="epoch_cosine", schedule_lag=False)
    rates = []
    for phase in (Phase("all", 5), Phase("first", 3, 0, 5), Phase("last", 2, 3, 5)):
        running = RunningPhase(
            Finetune(tiny_backbone(), 4), TaskSpan(0, 0, 2), phase, settings, CPU, first=0, steps=2
        )
        found = []
        for _ in range(running.total):
            running.step(torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 0, 1]))
            found.append(running.learning_rate)
        rates.append(found)
    assert rates[0] == rates[1] + rates[2] and len(set(rates[0])) == 5


@pytest.mark.parametrize("name", ["coda", "dualprompt", "hide", "ovor"])
def test_broken_off_in_the_second_task_it_goes_on(
    name: str, stream: Stream, tmp_path: Path
) -> None:
    """Its last quarter: the share, prompt or phase of that task must come back from the checkpoint
    alone.
    """
    whole = trainer_of(make_method(name, tiny_backbone(), 4), stream)
    whole.fit()
    directory = RunDirectory.create(tmp_path / "run", "seed: 0\n")
    first = trainer_of(make_method(name, tiny_backbone(), 4), stream, directory, checkpoint_steps=1)
    total = sum(first.steps(span) for span in first.spans)
    step, calls = RunningPhase.step, iter(range(total))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(
            RunningPhase, "step", lambda *a: stop() if next(calls) == total - 2 else step(*a)
        )
        with pytest.raises(KeyboardInterrupt):
            first.fit()
    second = trainer_of(make_method(name, tiny_backbone(), 4, seed=1), stream, directory)
    checkpoint = last_checkpoint(directory, lambda _, error: pytest.fail(str(error)))
    assert checkpoint is not None and checkpoint.within is not None and checkpoint.tasks_done == 1
    second.resume(checkpoint)
    second.fit()
    assert second.history.accuracy_matrix == whole.history.accuracy_matrix
    old, new = whole.method.trained_state(), second.method.trained_state()
    assert [key for key in old if not torch.equal(old[key], new[key])] == []


def stop() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["hide", "norga"])
def test_hide_cannot_tell_tasks_of_the_same_classes_apart(name: str) -> None:
    domains = tiny_stream(source=shades(tiny_source(classes=2)), num_tasks=None)
    with pytest.raises(
        UserError, match=r"(HiDePrompt|NoRGa) tells .* classes come again in task 2 .* such as coda"
    ):
        trainer_of(make_method(name, tiny_backbone(), 2), domains)


@pytest.mark.parametrize("name", ["dualprompt", "coda", "hide"])
def test_more_tasks_than_it_was_made_for(name: str) -> None:
    stream = tiny_stream(num_tasks=4)
    with pytest.raises(
        UserError, match=r"was made for 2 tasks \(total_tasks\), and the stream has 4"
    ):
        trainer_of(make_method(name, tiny_backbone(), 4), stream, batch_size=4)


def test_a_pool_too_small_for_the_tasks() -> None:
    with pytest.raises(
        UserError, match=r"method\.pool_size must be at least the number of tasks, 5, got 4"
    ):
        CODAPrompt(tiny_backbone(), 4, 5, pool_size=4)


def test_telling_tasks_is_aligned_even_where_the_classifier_is_not(stream: Stream) -> None:
    trainer = trainer_of(make_method("hide", tiny_backbone(), 4, align=False), stream)
    trainer.fit()
    method = trainer.method
    assert isinstance(method, HiDePrompt)
    assert method.identity.statistics.known.all()
    assert method.identity.task_of.tolist() == [0, 0, 1, 1]
    right = sum(
        int((method.identity(method.query(batch)) == task.index).sum())
        for task in stream.tasks
        for batch in [torch.stack([task.test[i][0] for i in range(10)])]
    )
    assert right > 12, "of 20 images of two tasks"


@pytest.mark.parametrize("name", ["hide", "norga"])
def test_without_alignment_the_contrastive_term_keeps_its_class_means(
    name: str, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else method.align=false would change two things at once."""
    retrained: list[Any] = []
    monkeypatch.setattr(
        "smope.training.task_end.align_classifier", lambda part, *_: retrained.append(part)
    )
    given: list[int] = []
    monkeypatch.setattr(
        "smope.methods.hide.apart", lambda features, means: given.append(len(means)) or means.sum()
    )
    method = make_method(name, tiny_backbone(), 4, align=False)
    trainer_of(method, stream).fit()
    assert isinstance(method, HiDePrompt)
    assert method.statistics.known.all() and (method.statistics.mean != 0).any(-1).all()
    assert set(given) == {0, 2} and given == sorted(given), (
        "those of the first task's classes, in the second"
    )
    assert retrained == [method.identity], "the classifier is left as it was trained"


def test_nothing_is_remembered_that_nothing_needs(stream: Stream) -> None:
    method = make_method("hide", tiny_backbone(), 4, align=False, contrastive_weight=0.0)
    trainer_of(method, stream).fit()
    assert not method.statistics.known.numel()
