"""What every method of conf/method must do; a new one is found by its file."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from smope.errors import UserError
from smope.experts.inject import detach
from smope.methods._shared.drift_corrected import DriftCorrected
from smope.methods._shared.routed_method import RoutedMethod, experts_of, routings_of
from smope.methods.base import Method, Reference
from smope.storage.run_directory import RunDirectory
from smope.streams.stream import Stream
from smope.training.checkpoint import read_checkpoint, restore, save_checkpoint
from smope.training.spans import task_spans
from smope.training.trainer import Trainer
from tests.tiny import (
    PassedImages,
    shades,
    tiny_backbone,
    tiny_settings,
    tiny_source,
    tiny_stream,
    tiny_vit,
)

from .conftest import ALIGNED, ALIGNMENT, every_method, make_method, trainer_of


@pytest.fixture(scope="module")
def images(stream: Stream) -> Tensor:
    """Eight test images of all classes."""
    return torch.stack([task.test[index][0] for task in stream.tasks for index in range(4)])


def frozen_weights(method: Method) -> list[Tensor]:
    """The backbone's own weights: all parameters that the method does not declare as its."""
    own = {
        id(parameter)
        for parameter in (*method.prompt_parameters(), *method.classifier.parameters())
    }
    return [parameter for parameter in method.parameters() if id(parameter) not in own]


@every_method
def test_the_backbone_stays_as_it_was_unless_it_is_said_to_be_trained(method: Method) -> None:
    before = tiny_vit().state_dict()
    detach(backbone := copy.deepcopy(method).backbone.vit)
    after = backbone.state_dict()
    assert after.keys() == before.keys()
    same = [torch.equal(after[key], value) for key, value in before.items()]
    assert all(same) if method.backbone.frozen else not any(same)


@every_method
def test_frozen_weights_have_no_gradient(method: Method) -> None:
    weights = frozen_weights(method)
    assert len(weights) == (len(list(tiny_vit().parameters())) if method.backbone.frozen else 0)
    assert all(weight.grad is None and not weight.requires_grad for weight in weights)


@every_method
def test_no_graph_is_built_through_the_backbone_without_prompts(
    method: Method, images: Tensor
) -> None:
    """Nothing in front of the classifier learns without prompts: then features cost a forward pass
    and no memory.
    """
    features = copy.deepcopy(method).train().features(images.clone().requires_grad_())
    assert features.requires_grad == bool(list(method.prompt_parameters()))


@every_method
def test_trains_what_it_declares_and_nothing_else(name: str, method: Method) -> None:
    fresh = make_method(name, tiny_backbone(), 4)
    grouped = {id(p) for group in method.parameter_groups(0.1) for p in group["params"]}
    assert grouped == {id(p) for p in method.parameters() if p.requires_grad}
    before, after = fresh.state_dict(), method.state_dict()
    changed = {key for key in after if not torch.equal(before[key], after[key])}
    remembered = {value.data_ptr() for value in method.trained_state().values()}
    assert changed
    assert all(after[key].data_ptr() in remembered for key in changed)
    declared = {id(p) for p in (*method.prompt_parameters(), *method.classifier.parameters())}
    assert grouped <= declared
    for key, parameter in method.named_parameters():
        assert key not in changed or id(parameter) in declared


@every_method
def test_every_declared_parameter_learns(name: str, method: Method) -> None:
    fresh = make_method(name, tiny_backbone(), 4)
    pairs = zip(method.prompt_parameters(), fresh.prompt_parameters(), strict=True)
    assert not any(torch.equal(now, then) for now, then in pairs)
    assert not torch.equal(method.classifier.weight, fresh.classifier.weight)


@every_method
def test_plans_count_the_passes_that_a_method_takes_by_itself(
    name: str, method: Method, stream: Stream, own_passes: dict[str, list[int]]
) -> None:
    """In each task; a pass is one of task_features, which may go through the network repeatedly."""
    method = copy.deepcopy(method)
    passed, counts = PassedImages(method), list[int]()
    for span, task, ended in zip(
        task_spans(stream), stream.tasks, own_passes[f"{name} end_task"], strict=True
    ):
        prepared = own_passes[f"{name} prepare_task"]
        images = ended + (prepared[span.index] if prepared else 0)
        method.assume_learned(span.index + 1)
        passed.during(method.task_features, counts)(torch.zeros(1, 3, 32, 32), span)
        assert images == method.own_passes(span) * len(task.train) * counts[-1]


@every_method
def test_saved_and_restored_it_is_the_same(
    name: str, method: Method, stream: Stream, images: Tensor, tmp_path: Path
) -> None:
    directory = RunDirectory.create(tmp_path / "run", "seed: 0\n")
    path = save_checkpoint(directory, method, stream, 2, {"accuracy_matrix": [[1.0]]})
    fresh = make_method(name, tiny_backbone(), 4, seed=1)
    with torch.no_grad():
        assert not torch.equal(fresh.eval()(images), method(images))
        checkpoint = read_checkpoint(path)
        restore(fresh, stream, checkpoint)
        assert torch.equal(fresh.eval()(images), method(images))
    assert (checkpoint.tasks_done, checkpoint.history) == (2, {"accuracy_matrix": [[1.0]]})
    old, new = method.state_dict(), fresh.state_dict()
    assert old.keys() == new.keys()
    assert all(torch.equal(old[key], new[key]) for key in old)


@every_method
def test_a_frozen_backbone_is_not_saved_and_a_trained_one_is(method: Method) -> None:
    saved = {value.data_ptr() for value in method.trained_state().values()}
    assert not saved & {weight.data_ptr() for weight in frozen_weights(method)}
    assert method.classifier.weight.data_ptr() in saved
    assert all(parameter.data_ptr() in saved for parameter in method.prompt_parameters())


@every_method
def test_what_is_remembered_has_its_size_before_the_first_image(name: str, method: Method) -> None:
    """Checkpoints do not grow with tasks or images. Only a module that has `adopt_state` may grow,
    and the next test shows that it has a bound.
    """
    growing = tuple(
        f"{prefix}." for prefix, module in method.named_modules() if hasattr(module, "adopt_state")
    )
    fresh = make_method(name, tiny_backbone(), 4).trained_state()
    sizes, before = (
        {k: (v.shape, v.dtype) for k, v in state.items() if not k.startswith(growing)}
        for state in (method.trained_state(), fresh)
    )
    assert sizes == before


@pytest.mark.parametrize("name", ALIGNED)
def test_no_room_is_taken_for_statistics_that_are_never_recorded(name: str) -> None:
    """Without alignment only those remain that a method reads itself. A state of earlier versions,
    which had room for all, is read.
    """
    aligned, method = (make_method(name, tiny_backbone(), 4, align=on) for on in (True, False))
    records_itself = isinstance(method, DriftCorrected)
    assert bool(method.statistics.variance.numel()) == (bool(method.recorded()) or records_itself)
    method.load_trained_state(aligned.trained_state())
    assert method.recollect(2) is None
    assert method.class_cosines(torch.zeros(1, 32)) is None


@every_method
def test_nothing_else_grows_with_the_number_of_images(name: str) -> None:
    """All tensors that the method holds, remembered or not: no image or feature stays behind."""
    held = []
    for images in (16, 32):
        longer = tiny_stream(source=tiny_source(train=images))
        settings = tiny_settings(epochs=1, alignment_epochs=1)
        trainer = Trainer(
            make_method(name, tiny_backbone(), 4),
            longer,
            settings,
            seed=0,
            device=torch.device("cpu"),
        )
        trainer.fit()
        held.append(tensors_in(trainer.method, set()))
    assert held[0] == held[1] > 0


def tensors_in(thing: Any, seen: set[int]) -> int:
    """Numbers in all tensors that can be reached from `thing`, each tensor once."""
    if id(thing) in seen or isinstance(thing, type | ModuleType | FunctionType):
        return 0
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        return thing.numel()
    if isinstance(thing, Mapping):
        inner = [*thing.values()]
    elif isinstance(thing, list | tuple | set | frozenset | deque):
        inner = [*thing]
    else:
        inner = [*getattr(thing, "__dict__", {}).values()]
    return sum(tensors_in(item, seen) for item in inner)


@every_method
def test_a_state_that_does_not_fit_is_refused(name: str, method: Method) -> None:
    state = method.trained_state()
    removed = next(iter(state))
    with pytest.raises(ValueError, match=rf"state does not fit \w+: {removed} on one side only"):
        make_method(name, tiny_backbone(), 4).load_trained_state(
            {k: v for k, v in state.items() if k != removed}
        )


@every_method
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_logits_do_not_depend_on_the_batch(method: Method, training: bool, images: Tensor) -> None:
    method = copy.deepcopy(method).double().train(training)
    order = torch.tensor([6, 1, 7, 0, 3, 2, 5, 4])
    with torch.no_grad():
        together = method(images.double())
        alone = torch.cat([method(image.unsqueeze(0)) for image in images.double()])
        shuffled = method(images.double()[order])
    assert together.std(0).max() > 1e-3, "the images must differ"
    torch.testing.assert_close(alone, together, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(shuffled, together[order], rtol=1e-10, atol=1e-10)


@every_method
def test_detached_it_leaves_the_plain_vit(method: Method, images: Tensor) -> None:
    plain, vit = tiny_backbone(), copy.deepcopy(method).backbone
    detach(vit.vit)
    with torch.no_grad():
        assert torch.equal(vit(images), plain(images)) == method.backbone.frozen


@every_method
def test_training_repeats_exactly(
    name: str, stream: Stream, trained: Callable[[str], Trainer]
) -> None:
    first = trained(name)
    torch.manual_seed(99)
    again = trainer_of(make_method(name, tiny_backbone(), 4), stream)
    torch.manual_seed(100)
    again.fit()
    assert again.history.accuracy_matrix == first.history.accuracy_matrix
    old, new = first.method.trained_state(), again.method.trained_state()
    assert not [key for key in old if not torch.equal(old[key], new[key])]


@every_method
def test_learns_a_stream_of_two_tasks(name: str, trained: Callable[[str], Trainer]) -> None:
    (first,), final = trained(name).history.accuracy_matrix
    assert first > 0.9, "two classes: chance is 0.5"
    assert sum(final) / 2 > 0.6, "four classes: chance is 0.25"


@every_method
def test_losses_are_named_scalars(
    name: str, stream: Stream, trained: Callable[[str], Trainer]
) -> None:
    trainer = trained(name)
    task, method = trainer.spans[1], copy.deepcopy(trainer.method).train()
    if not method.parameter_groups(0.1):
        assert not trainer.phases(task), "a phase needs something to train"
        return
    images, labels = zip(*(stream.tasks[1].train[index] for index in range(4)), strict=True)
    losses = method.losses(torch.stack(images), torch.tensor(labels), task)
    assert all(value.shape == () and torch.isfinite(value) for value in losses.values())
    method.zero_grad()
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in method.classifier.parameters())


@every_method
def test_experts_are_known_by_a_protocol(name: str, method: Method) -> None:
    """The contract of all methods knows no experts; SMoPE and SMoPE+ have them."""
    assert not {"experts", "routings", "dense_epochs"} & set(dir(Method))
    assert isinstance(method, RoutedMethod) == name.startswith("smope")
    with torch.no_grad():
        method(torch.rand(2, 3, 32, 32))
    assert len(routings_of(method)) == len(experts_of(method))


@every_method
def test_says_where_it_is_from(method: Method) -> None:
    assert isinstance(method.reference, Reference)
    assert method.reference.source


@every_method
@pytest.mark.parametrize("which", ["domains", "blurry"])
def test_learns_where_classes_come_again(name: str, which: str) -> None:
    """All classes in each of two domains, or spread over two tasks; two methods say that they
    cannot.
    """
    stream = (
        tiny_stream(source=shades(tiny_source()), num_tasks=None)
        if which == "domains"
        else tiny_stream(disjoint_classes=0.25, blurry_images=0.5)
    )
    method = make_method(name, tiny_backbone(), 4)
    if name in ("hide", "norga"):
        with pytest.raises(UserError, match="classes come again in task 2"):
            trainer_of(method, stream)
        return
    first, final = trainer_of(method, stream).fit().accuracy_matrix
    assert (len(first), len(final)) == (1, 2)
    assert sum(final) / 2 > 0.5, "four classes: chance is 0.25"


@every_method
def test_learns_in_bfloat16(name: str, stream: Stream) -> None:
    method = make_method(name, tiny_backbone(), 4)
    settings = tiny_settings(precision="bfloat16", **ALIGNMENT)
    trainer = Trainer(method, stream, settings, seed=0, device=torch.device("cpu"))
    final = trainer.fit().accuracy_matrix[-1]
    assert sum(final) / 2 > 0.6, "four classes: chance is 0.25"
    state = method.trained_state().values()
    assert all(value.isfinite().all() and value.dtype != torch.bfloat16 for value in state)


@every_method
def test_features_that_are_not_finite_are_not_learned_from(name: str, stream: Stream) -> None:
    """Methods that learn in closed form would store them, and predict one class for ever."""
    method = make_method(name, tiny_backbone(), 4)
    with torch.no_grad():
        method.backbone.vit.cls_token.fill_(float("nan"))
    with pytest.raises(UserError, match=r"became nan|not finite numbers"):
        trainer_of(method, stream).fit()
