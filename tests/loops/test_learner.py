"""Methods in loops of other people: the numbers of `smope train`, and the contract of Learner."""

from __future__ import annotations

import copy
import inspect
import io
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor

import smope
from smope.config.conf_files import choices, conf_dir
from smope.config.schema import choice_targets
from smope.errors import UserError
from smope.loops.learner import Learner
from smope.loops.methods import MethodLearner
from smope.methods.finetune import Finetune
from smope.methods.ncm import NearestClassMean
from smope.seeding import stable_seed
from smope.streams.stream import Stream
from smope.training.trainer import Trainer
from tests.loops.plain_loop import in_order, train_plainly
from tests.tiny import frozen, tiny_backbone, tiny_settings, tiny_stream, tiny_vit

TARGETS = choice_targets("method", [conf_dir()])
NAMES = {method: target.rpartition(".")[2] for method, target in TARGETS.items()}
# small, for images of 17 tokens
SIZES = {
    "length": 4,
    "e_length": 4,
    "top_k": 2,
    "width": 64,
    "noise_width": 8,
    "transport_steps": 100,
}
# of few samples: enough for a classifier that was trained to wide margins
ALIGNMENT = {
    "alignment_epochs": 20,
    "alignment_samples_per_class": 8,
    "alignment_learning_rate": 1e-2,
}
every_method = pytest.mark.parametrize("name", sorted(NAMES.values()))


@pytest.fixture(scope="module")
def stream() -> Stream:
    return tiny_stream()


@pytest.fixture(scope="module")
def tasks(stream: Stream) -> list[tuple[Tensor, Tensor]]:
    """Half of the training images of each of two tasks."""
    return [in_order(task.train, 12)[0] for task in stream.tasks]


def make(name: str, **settings: Any) -> MethodLearner:
    kind = getattr(smope, name)
    wanted = inspect.signature(kind).parameters
    sizes = {key: value for key, value in SIZES.items() if key in wanted}
    if "total_tasks" in wanted:
        sizes["total_tasks"] = 2
    return kind(tiny_backbone(), 4, seed=0, **{**sizes, **settings})


def learn(learner: Learner, images: Tensor, labels: Tensor, classes: Any = None) -> None:
    """A task in three steps, with a batch of all images."""
    learner.begin_task(labels.unique() if classes is None else classes, [(images, labels)])
    for _ in learner.phases(epochs=2):
        optimizer = torch.optim.AdamW(learner.parameter_groups(lr=1e-2))
        for _ in learner.epochs():
            optimizer.zero_grad()
            learner.loss(images, labels).backward()
            optimizer.step()
    learner.end_task([(images, labels)], **ALIGNMENT)


@pytest.fixture(scope="module")
def trained(tasks: list[tuple[Tensor, Tensor]]) -> dict[str, MethodLearner]:
    """Every method after two tasks."""
    learners = {}
    for name in NAMES.values():
        learners[name] = learner = make(name)
        for images, labels in tasks:
            if learner.method.revisits and learner.classes_seen:
                images = torch.cat([tasks[0][0], images])
                learner.begin_task(labels.unique())
                learner.loss(images, torch.cat([tasks[0][1], labels])).backward()
                learner.end_task([(images[len(labels) :], labels)])
            else:
                learn(learner, images, labels)
    return learners


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("SMoPE", {"num_experts": 7, "blocks": [0, 1], "router": "adaptive_noise"}),
        ("SMoPE", {"num_experts": 7, "router": "centred", "expert_dropout": 0.2}),
        ("SMoPEPlus", {"num_experts": 7}),
        ("NearestClassMean", {}),
        ("Ridge", {}),
        ("HiDePrompt", {"identity_epochs": 1}),
        ("OVOR", {}),
        ("RSIAT", {"rank": 4, "blocks": [0, 1]}),
        ("TUNA", {"rank": 4, "blocks": [0, 1]}),
        ("MiN", {"blocks": [0, 1]}),
        ("InfLoRA", {"blocks": [0, 1]}),
    ],
    ids=lambda value: value if isinstance(value, str) else value.get("router", ""),
)
def test_a_plain_loop_has_the_numbers_of_smope_train(
    stream: Stream, name: str, settings: dict[str, Any]
) -> None:
    """To the bit: the accuracy matrix, and all that was learned."""
    learner, again = make(name, **settings), make(name, **settings)
    train = tiny_settings()
    trainer = Trainer(again.method, stream, train, seed=0, device=torch.device("cpu"))
    trainer.fit()
    assert train_plainly(learner, stream, train) == trainer.history.accuracy_matrix
    ours, theirs = learner.method.trained_state(), again.method.trained_state()
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


def test_a_seed_gives_the_first_weights_of_smope_train() -> None:
    torch.manual_seed(stable_seed(0, "initialisation"))
    method = Finetune(tiny_backbone(), 4)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    learner = smope.Finetune(tiny_backbone(), 4, seed=0)
    assert torch.equal(learner.method.classifier.weight, method.classifier.weight)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    other = smope.Finetune(tiny_backbone(), 4)
    torch.manual_seed(6)
    same = smope.Finetune(tiny_backbone(), 4)
    assert torch.equal(other.method.classifier.weight, same.method.classifier.weight)
    assert other.seed == same.seed
    assert not torch.equal(other.method.classifier.weight, method.classifier.weight)


@every_method
def test_every_method_of_conf_is_public(name: str) -> None:
    assert name in smope.__all__
    assert issubclass(getattr(smope, name), Learner)


@every_method
def test_arguments_are_those_of_the_method(name: str) -> None:
    kind = getattr(smope, name)
    parameters = inspect.signature(kind).parameters
    assert [*parameters][:2] == ["backbone", "num_classes"]
    method = kind.method_class
    given = {"backbone", "num_classes", "router", "seed"}
    own = inspect.signature(method).parameters
    for key, parameter in own.items():
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD and key not in given:
            assert parameters[key].default == parameter.default
    assert kind.__doc__.startswith(method.__doc__)


@every_method
def test_every_method_learns_in_one_loop(
    name: str, trained: dict[str, MethodLearner], tasks: list[tuple[Tensor, Tensor]]
) -> None:
    learner = trained[name]
    assert learner.classes_seen == (0, 1, 2, 3)
    assert not learner.training
    images = torch.cat([images for images, _ in tasks])
    logits = learner(images)
    assert logits.shape == (24, 4)
    assert torch.equal(logits.argmax(-1), learner.predict(images))
    assert torch.equal(learner.evaluated(images), logits)
    right = (learner.predict(tasks[0][0]) == tasks[0][1]).double().mean()
    assert right > 0.2, "some classes of the first task are still known"


@every_method
def test_a_state_dict_is_all_of_it(
    name: str, trained: dict[str, MethodLearner], tasks: list[tuple[Tensor, Tensor]]
) -> None:
    """Through a file of torch's without pickled objects, and through safetensors."""
    learner, images = trained[name], tasks[0][0]
    file = io.BytesIO()
    torch.save(learner.state_dict(), file)
    file.seek(0)
    fresh = make(name)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(fresh.predict(images), learner.predict(images))
    assert torch.equal(fresh.evaluated(images), learner.evaluated(images))
    assert fresh.classes_seen == learner.classes_seen
    state = {key: value.clone() for key, value in learner.state_dict().items()}
    fresh.load_state_dict(from_safetensors(to_safetensors(state)))
    with pytest.raises(UserError, match="no current task"):
        fresh.loss(images, tasks[0][1])


@pytest.mark.parametrize("name", ["SMoPE", "HiDePrompt", "CODAPrompt", "SLDC", "TUNA"])
def test_a_state_dict_within_a_task(name: str, tasks: list[tuple[Tensor, Tensor]]) -> None:
    """As part of a larger module, too: its names have a prefix then."""
    learner = make(name)
    learn(learner, *tasks[0])
    learner.begin_task((2, 3))
    next(learner.phases(epochs=4, dense_epochs=0))
    outer = torch.nn.ModuleDict({"inner": make(name)})
    outer.load_state_dict({f"inner.{k}": v for k, v in learner.state_dict().items()})
    fresh = outer["inner"]
    for one in (learner, fresh):
        torch.manual_seed(0)
        one.losses(*tasks[1])
    torch.manual_seed(0)
    expected = learner.loss(*tasks[1])
    torch.manual_seed(0)
    assert torch.equal(fresh.loss(*tasks[1]), expected)
    assert fresh.training
    fresh.end_task([tasks[1]], alignment_epochs=0)
    assert fresh.classes_seen == (0, 1, 2, 3)


@pytest.mark.parametrize("way", ["copied", "assigned"])
def test_steps_of_a_copy_are_noticed(way: str, tasks: list[tuple[Tensor, Tensor]]) -> None:
    """Its parameters are other objects than those that the task began with."""
    learner = make("SMoPE", num_experts=7, router="aux_free")
    learner.begin_task((0, 1))
    next(learner.phases(epochs=4, dense_epochs=0))
    if way == "copied":
        other = copy.deepcopy(learner)
    else:
        other = make("SMoPE", num_experts=7, router="aux_free")
        replaced = list(other.parameters())  # held, so that no new one has the id of an old one
        other.load_state_dict(copy.deepcopy(learner.state_dict()), assign=True)
        assert replaced[0] is not next(other.parameters())
    optimizer = torch.optim.SGD(other.parameter_groups(lr=0.1))
    other.loss(*tasks[0]).backward()
    optimizer.step()
    biases = [value for name, value in other.named_buffers() if name.endswith("router.bias")]
    assert biases and all(bias.any() for bias in biases), "each router has seen the step"


@every_method
def test_nothing_that_is_trained_appears_with_a_task(
    name: str, trained: dict[str, MethodLearner]
) -> None:
    """An optimizer that was made before the first task trains everything in the last."""

    def shapes(learner: Learner) -> dict[str, torch.Size]:
        return {key: value.shape for key, value in learner.named_parameters()}

    assert shapes(make(name)) == shapes(trained[name])


def test_a_method_that_looks_at_images_first_says_so(tasks: list[tuple[Tensor, Tensor]]) -> None:
    """A task that could not begin has not begun: no class was added, and it may begin again."""
    learner, (images, labels) = make("MiN"), tasks[0]
    with pytest.raises(UserError, match=r"MiN looks at the images of a task before it trains"):
        learner.begin_task((0, 1))
    wrong = [([], "gave no images"), (iter([]), "several times"), ([(images, labels + 2)], "class")]
    for loader, message in wrong:
        with pytest.raises(UserError, match=message):
            learner.begin_task((0, 1), loader)
        assert not learner.is_learning and learner.classes_seen == ()
    learn(learner, images, labels)
    expected = make("MiN")
    learn(expected, images, labels)
    assert torch.equal(learner.evaluated(images), expected.evaluated(images))


def test_class_ids_come_in_any_order_and_again(tasks: list[tuple[Tensor, Tensor]]) -> None:
    ids = torch.tensor([9, 2, 5, 0])
    learner = smope.Ridge(tiny_backbone(), 10, width=None)
    plain = smope.Ridge(tiny_backbone(), 4, width=None)
    for images, labels in tasks:
        learn(learner, images, ids[labels], {*ids[labels].tolist()})
        learn(plain, images, labels)
    images = torch.cat([images for images, _ in tasks])
    assert torch.equal(learner.predict(images), ids[plain.predict(images)])
    logits = learner(images)
    torch.testing.assert_close(logits[:, ids], plain(images))
    assert (logits[:, [1, 3, 4, 6, 7, 8]] == -torch.inf).all()
    assert learner.classes_seen == (0, 2, 5, 9)
    learn(learner, tasks[0][0], ids[tasks[0][1]])
    assert learner.classes_seen == (0, 2, 5, 9), "the first two came again"


def test_a_simple_loop_has_one_phase(tasks: list[tuple[Tensor, Tensor]]) -> None:
    images, labels = tasks[0]
    learner = make("SMoPE", num_experts=7)
    learner.begin_task([0, 1])
    assert not learner.method.dense
    parts = learner.losses(images, labels)
    assert parts.keys() == {"cross_entropy", "router"}
    total = learner.loss(images, labels)
    assert total.item() == pytest.approx(sum(value.item() for value in parts.values()))
    identity = make("HiDePrompt")
    identity.begin_task([0, 1])
    with pytest.raises(UserError, match=r"learns a task in phases, identity and then prompts; "):
        identity.loss(images, labels)


def test_batches_with_images_of_earlier_tasks(tasks: list[tuple[Tensor, Tensor]]) -> None:
    """As from a replay buffer: then all classes so far compete."""
    learner = make("Finetune")
    learn(learner, *tasks[0])
    learner.begin_task([2, 3])
    images, labels = (torch.cat(pair) for pair in zip(*tasks, strict=True))
    with pytest.raises(UserError, match=r"class 0 is not of the current task; .*competing='seen'"):
        learner.loss(images, labels)
    loss = learner.loss(images, labels, competing="seen")
    expected = torch.nn.functional.cross_entropy(learner(images), labels)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("fused", [True, False])
def test_steps_are_noticed(tasks: list[tuple[Tensor, Tensor]], fused: bool) -> None:
    """Of an optimizer that trains the learner, once a step and not once a batch; not of others,
    and not after the task.
    """
    images, labels = tasks[0]
    learner, other = make("SMoPE", router="centred", num_experts=7), torch.nn.Linear(2, 2)
    steps = []
    learner.method.end_step = lambda: steps.append(1)
    learner.begin_task([0, 1])
    optimizer = torch.optim.AdamW(learner.parameters(), fused=fused)
    unrelated = torch.optim.SGD(other.parameters())
    for _ in range(2):
        learner.loss(images, labels).backward()
    optimizer.step()
    other(torch.rand(1, 2)).sum().backward()
    unrelated.step()
    assert len(steps) == 1
    learner.end_task([(images, labels)])
    optimizer.step()
    assert len(steps) == 1


def test_predict_leaves_the_mode_alone(tasks: list[tuple[Tensor, Tensor]]) -> None:
    learner = make("HiDePrompt")
    learner.begin_task([0, 1])
    assert learner.training
    assert set(learner.predict(tasks[0][0]).tolist()) <= {0, 1}
    assert learner.training and learner.method.training
    assert not learner.predict(tasks[0][0]).requires_grad


def test_precision_is_that_of_the_caller_s_autocast(tasks: list[tuple[Tensor, Tensor]]) -> None:
    learner = make("SMoPE", num_experts=7)
    with torch.autocast("cpu", torch.bfloat16):
        learn(learner, *tasks[0])
        rounded = learner.evaluated(tasks[0][0])
    assert rounded.dtype == torch.float32
    exact = learner.evaluated(tasks[0][0])[:, :2]
    assert 0 < (rounded[:, :2] - exact).abs().max() < 0.1
    state = learner.method.trained_state().values()
    assert all(value.dtype != torch.bfloat16 for value in state)
    double = copy.deepcopy(learner).double()
    assert double.evaluated(tasks[0][0].double()).dtype == torch.float64


def test_backbones() -> None:
    """A ViT that timm has made, with its pixel statistics; a name of conf; what load_backbone
    gives.
    """
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    vit = timm.create_model("vit_tiny_patch16_224.augreg_in21k", pretrained=False, **sizes)
    learner = smope.NearestClassMean(vit, 4)
    assert learner.method.backbone.vit is vit
    assert learner.method.backbone.mean.flatten().tolist() == [0.5, 0.5, 0.5]
    assert not any(parameter.requires_grad for parameter in vit.parameters())
    images = torch.rand(2, 3, 32, 32)
    features = frozen(vit)(images)
    torch.testing.assert_close(features, learner.method.features(images))
    bare = smope.NearestClassMean(tiny_vit(), 4).method.backbone
    assert (bare.mean.max(), bare.std.min()) == (0, 1), "no statistics are known"
    named = smope.NearestClassMean("glyph_vit", 4).method.backbone
    assert (named.image_size, named.identity.source) == (32, "embedded")


def test_other_methods_are_wrapped(tasks: list[tuple[Tensor, Tensor]]) -> None:
    learner = Learner(NearestClassMean(tiny_backbone(), 4))
    learn(learner, *tasks[0])
    assert (learner.predict(tasks[0][0]) == tasks[0][1]).double().mean() > 0.9


@pytest.mark.parametrize(
    ("name", "settings", "text"),
    [
        ("SMoPE", {"num_expert": 3}, "unknown key num_expert=3; did you mean num_experts?"),
        ("SMoPE", {"num_experts": 0}, r"^num_experts must be at least 1 .*, got 0"),
        ("SMoPE", {"num_experts": 3}, r"^router\.top_k must be in 1\.\.num_experts=3, got 5"),
        ("SMoPE", {"router": "topp"}, "router=topp is no choice; did you mean router=topk?"),
        ("SMoPE", {"router": 3}, "router must be a name or a router, got a int"),
        ("CODAPrompt", {"total_tasks": None}, "total_tasks must be a whole number"),
        ("Ridge", {"router": "topk"}, "unknown key router=topk"),
    ],
)
def test_wrong_arguments_are_refused(name: str, settings: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text.replace("?", r"\?")):
        make(name, **settings)


@pytest.mark.parametrize(
    ("backbone", "num_classes", "text"),
    [
        ("vit_tiny_patch16", 4, r"^backbone=vit_tiny_patch16: timm has no such model; close: "),
        ("timm", 4, r"^backbone=timm: timm has no such model"),
        (torch.nn.Linear(2, 2), 4, r"^backbone: got a Linear; prompt experts need"),
        (3, 4, r"^backbone must be a name or a ViT of timm, got a int"),
        (tiny_vit(global_pool="avg"), 4, r"no norm before .*global_pool='token'"),
        (tiny_vit(), 0, r"^num_classes must be a whole number from 1 on, got 0"),
    ],
    ids=["name", "group", "module", "number", "pool", "classes"],
)
def test_wrong_backbones_are_refused(backbone: Any, num_classes: Any, text: str) -> None:
    with pytest.raises(UserError, match=text):
        smope.Finetune(backbone, num_classes)


def test_wrong_calls_are_refused(tasks: list[tuple[Tensor, Tensor]]) -> None:
    """Each in one line that says what to do."""
    (images, labels), later = tasks
    learner, ridge = make("Finetune"), make("Ridge")
    for use in (learner, learner.predict):
        with pytest.raises(UserError, match=r"no classes yet; call begin_task\(classes\)"):
            use(images)
    for name, ids in (
        ("in 0..3, got 4", [1, 4]),
        ("whole numbers", ["a"]),
        ("no class", []),
        ("got 3;", 3),
    ):
        with pytest.raises(UserError, match=name):
            learner.begin_task(ids)
    with pytest.raises(UserError, match=r"end_task: there is no current task"):
        learner.end_task([(images, labels)])
    learner.begin_task([0, 1])
    with pytest.raises(UserError, match=r"^epochs must be at least 1, got 0"):
        next(learner.phases(epochs=0))
    with pytest.raises(UserError, match=r"task 1 has not ended; call end_task"):
        learner.begin_task([2, 3])
    with pytest.raises(UserError, match=r"images must be \(B, 3, 32, 32\), got \(12, 3, 16, 16\)"):
        learner.loss(images[..., ::2, ::2], labels)
    with pytest.raises(UserError, match=r"divide bytes by 255"):
        learner.loss((images * 255).byte(), labels)
    with pytest.raises(UserError, match=r"class 2 is not .*; name all classes of a task"):
        learner.loss(*later)
    with pytest.raises(UserError, match=r"labels must be class ids \(B,\)"):
        learner.loss(images, torch.nn.functional.one_hot(labels).float())
    with pytest.raises(UserError, match=r"iterated over several times, .* got a generator"):
        learner.end_task(pair for pair in [(images, labels)])
    with pytest.raises(UserError, match=r"alignment_epoch is no|unknown key alignment_epoch"):
        learner.end_task([(images, labels)], alignment_epoch=3)
    with pytest.raises(UserError, match=r"end_task: epochs is no argument; there are alignment"):
        learner.end_task([(images, labels)], epochs=3)
    ridge.begin_task([0, 1])
    assert not ridge.trains and list(ridge.phases(epochs=3)) == []
    for use in (lambda: ridge.loss(images, labels), lambda: ridge.parameter_groups(0.1)):
        with pytest.raises(UserError, match=r"Ridge takes no training steps in this task"):
            use()
    before = copy.deepcopy(ridge.state_dict())
    with pytest.raises(UserError, match=r"a batch must hold images and class ids, got a Tensor"):
        ridge.end_task([images])
    ridge.load_state_dict(before)
    with pytest.raises(UserError, match=r"loader: gave no images"):
        ridge.end_task([])


def test_classes_without_images_are_refused(tasks: list[tuple[Tensor, Tensor]]) -> None:
    """Their class statistics would be no numbers."""
    learner = make("SMoPE", num_experts=7)
    learner.begin_task([0, 1, 2])
    with pytest.raises(UserError, match=r"no image of 1 of the task's 3 classes"):
        learner.end_task([tasks[0]])


def test_methods_say_what_tasks_they_cannot_learn(tasks: list[tuple[Tensor, Tensor]]) -> None:
    learner = make("HiDePrompt")
    learn(learner, *tasks[0])
    with pytest.raises(UserError, match=r"classes come again in task 2"):
        learner.begin_task([0, 1])
    learner = smope.CODAPrompt(tiny_backbone(), 4, total_tasks=1, pool_size=4)
    learn(learner, *tasks[0])
    with pytest.raises(UserError, match=r"made for 1 tasks \(total_tasks\), and .* has 2"):
        learner.begin_task([2, 3])


def test_names_of_conf() -> None:
    assert set(choices("method", [conf_dir()])) == set(NAMES)
    with pytest.raises(AttributeError, match="has no attribute 'SMoPPE'"):
        _ = smope.SMoPPE
    assert set(smope.__all__) <= set(dir(smope))


def test_a_task_is_not_ended_again_after_an_error(tasks: list[tuple[Tensor, Tensor]]) -> None:
    """The passes before the error may have counted already; a state from before undoes them."""
    learner, (images, labels) = make("SMoPE", num_experts=7, blocks=[0]), tasks[0]
    learner.begin_task(labels.unique())
    before = copy.deepcopy(learner.state_dict())
    one = labels == labels[0]
    with pytest.raises(UserError):
        learner.end_task([(images[one], labels[one])])
    with pytest.raises(UserError, match=r"an earlier end_task stopped with an error .* load the"):
        learner.end_task([(images, labels)])
    learner.load_state_dict(before)
    learner.end_task([(images, labels)], alignment_epochs=1)
    assert set(learner.classes_seen) == set(labels.tolist())
