"""Our methods as an Avalanche strategy: the numbers of `smope train`, plugins, and benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, nc_benchmark, with_classes_timeline
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics, loss_metrics
from avalanche.logging import InteractiveLogger
from avalanche.training.plugins import (
    EarlyStoppingPlugin,
    EvaluationPlugin,
    ReplayPlugin,
    SupervisedPlugin,
)
from torch.utils.data import TensorDataset

import smope
from smope.avalanche import MethodStrategy
from smope.config.hydra import compose
from smope.config.overrides import read_overrides
from smope.errors import UserError
from smope.methods.ncm import NearestClassMean
from smope.run.build import build, make_backbone
from smope.streams.stream import Stream
from smope.training.device import prefer_onednn
from smope.training.settings import TrainerSettings
from smope.training.trainer import Trainer
from tests.loops.plain_loop import accuracy, in_order
from tests.tiny import shades, tiny_backbone, tiny_settings, tiny_source, tiny_stream

SMOPE = {"num_experts": 7, "blocks": [0, 1]}


@pytest.fixture(scope="module")
def stream() -> Stream:
    """Two tasks of two classes, with random crops."""
    return tiny_stream(crop_scale=[0.3, 1.0], flip=True)


def make(name: str, **settings: Any) -> smope.Learner:
    return getattr(smope, name)(tiny_backbone(depth=2), 4, seed=0, **settings)


def strategy_of(learner: Any, settings: TrainerSettings | None = None, **more: Any) -> Any:
    """A strategy that prints nothing unless it is asked to."""
    with pytest.warns(UserWarning, match="No loggers") if "evaluator" not in more else _nothing():
        more = {"evaluator": EvaluationPlugin(accuracy_metrics(experience=True)), **more}
    return MethodStrategy(learner, settings=settings or tiny_settings(), device="cpu", **more)


class _nothing:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: Any) -> None: ...


def fit(strategy: Any, benchmark: Any) -> Any:
    for experience in benchmark.train_stream:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)
    return strategy


def tensors(stream: Stream, split: str, shift: float = 0.0) -> list[tuple[Any, Any]]:
    """Images and class ids of each task of a stream."""
    tasks = [getattr(task, split) for task in stream.tasks]
    pairs = [in_order(images, len(images))[0] for images in tasks]
    return [((images - shift).clamp(0, 1), labels) for images, labels in pairs]


def dataset(images: Any, labels: Any) -> Any:
    """In memory, as a user would give it to Avalanche."""
    targets = DataAttribute(labels.tolist(), "targets", use_in_getitem=False)
    return AvalancheDataset([TensorDataset(images, labels)], data_attributes=[targets])


def in_memory(train: list[Any], test: list[Any]) -> Any:
    return with_classes_timeline(
        benchmark_from_datasets(
            train=[dataset(*pair) for pair in train], test=[dataset(*pair) for pair in test]
        )
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SMoPE", SMOPE),
        ("NearestClassMean", {}),
        ("Ridge", {"width": 64}),
        ("HiDePrompt", {"total_tasks": 2, "blocks": [0], "identity_epochs": 1}),
        ("Finetune", {"align": True}),
        ("InfLoRA", {"total_tasks": 2, "blocks": [0, 1]}),
        ("MiN", {"total_tasks": 2, "blocks": [0, 1], "noise_width": 8, "width": 64}),
    ],
)
def test_a_stream_of_ours_has_the_numbers_of_smope_train(
    stream: Stream, name: str, options: dict[str, Any]
) -> None:
    """To the bit: the accuracy matrix, the scores, and all that was learned."""
    prefer_onednn()  # as `smope train` and the strategy do on a CPU
    settings = tiny_settings(num_workers=0)
    again = make(name, **options)
    trainer = Trainer(again.method, stream, settings, seed=0, device=torch.device("cpu"))
    history = trainer.fit()
    strategy = fit(strategy_of(make(name, **options), settings), stream.benchmark)
    assert strategy.accuracy_matrix == history.accuracy_matrix
    assert strategy.scores() == history.scores()
    ours, theirs = strategy.model.method.trained_state(), again.method.trained_state()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


@pytest.mark.slow
def test_a_run_of_the_command_line_has_the_same_numbers(tmp_path: Path) -> None:
    """`smope train experiment=smoke`: the default stream and method in their smallest form."""
    words = ["experiment=smoke", "trainer.device=cpu", "trainer.reference=none", "seed=3"]
    record = smope.train(*words, f"run_dir={tmp_path / 'run'}")
    run = build(compose(read_overrides(words)))
    learner = smope.SMoPE(make_backbone(run.config.backbone), num_classes=10, seed=3)
    strategy = fit(strategy_of(learner, run.settings), run.stream.benchmark)
    assert strategy.accuracy_matrix == [
        row[: t + 1] for t, row in enumerate(record["accuracy_matrix"])
    ]
    assert strategy.scores()["forgetting"] == record["forgetting"]


class Order(SupervisedPlugin):
    """Writes down the callbacks, and what the strategy is at each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if not name.startswith(("before_", "after_")):
            return found

        def note(strategy: Any, **options: Any) -> None:
            self.calls.append(name)
            if name == "before_training_exp":
                assert strategy.model.trains, "the task has begun"
            if name == "after_training_exp":
                assert not strategy.model.training, "the task has ended"
            if name == "before_backward":
                assert strategy.loss.requires_grad
                assert strategy.mb_output.argmax(-1).max() < 4
                assert strategy.mb_output.requires_grad

        return note


def test_plugins_are_called_in_avalanche_s_order(stream: Stream) -> None:
    plugin = Order()
    strategy = strategy_of(make("SMoPE", **SMOPE), tiny_settings(epochs=2), plugins=[plugin])
    strategy.train(stream.benchmark.train_stream[0])
    step = [
        "before_training_iteration", "before_forward", "after_forward", "before_backward",
        "after_backward", "before_update", "after_update", "after_training_iteration",
    ]  # fmt: skip
    epoch = ["before_training_epoch", *step * 3, "after_training_epoch"]
    assert plugin.calls == [
        "before_training",
        "before_train_dataset_adaptation",
        "after_train_dataset_adaptation",
        "before_training_exp",
        *epoch * 3,  # one of the warm-up
        "after_training_exp",
        "after_training",
    ]


def test_metrics_and_loggers_of_avalanche(
    stream: Stream, capsys: pytest.CaptureFixture[str]
) -> None:
    """On tensors in memory; ours stand beside Avalanche's, and differ as the docstring says."""
    evaluator = EvaluationPlugin(
        accuracy_metrics(minibatch=True, epoch=True, experience=True, stream=True),
        loss_metrics(epoch=True, experience=True),
        forgetting_metrics(experience=True, stream=True),
        loggers=[InteractiveLogger()],
    )
    train, test = tensors(stream, "train_plain"), tensors(stream, "test")
    test[1] = (test[1][0][:4], test[1][1][:4])
    strategy = strategy_of(
        make("SMoPE", **SMOPE), train_mb_size=8, evaluator=evaluator, eval_every=0
    )
    benchmark = in_memory(train, test)
    for experience in benchmark.train_stream:
        strategy.train(experience, eval_streams=[benchmark.test_stream])
        last = strategy.eval(benchmark.test_stream)
    printed = capsys.readouterr().out
    assert "Top1_Acc_Epoch/train_phase/train_stream = " in printed
    assert "-- >> End of training phase << --" in printed
    matrix, scores = strategy.accuracy_matrix, strategy.scores()
    by_task = [last[f"Top1_Acc_Exp/eval_phase/test_stream/Exp00{j}"] for j in (0, 1)]
    assert by_task == pytest.approx(matrix[1])
    weighted = last["Top1_Acc_Stream/eval_phase/test_stream"]
    assert weighted == pytest.approx(scores["sample_weighted_accuracy"])
    assert weighted == pytest.approx((10 * matrix[1][0] + 4 * matrix[1][1]) / 14)
    forgotten = last["ExperienceForgetting/eval_phase/test_stream/Exp000"]
    assert forgotten == pytest.approx(matrix[0][0] - matrix[1][0])
    assert scores["forgetting"] == pytest.approx(forgotten), "the same in two tasks"
    assert matrix[0][0] > 0.9 and sum(matrix[1]) / 2 > 0.6


def test_nothing_is_right_before_the_first_task(stream: Stream) -> None:
    strategy = strategy_of(make("Ridge", width=64), eval_every=0)
    benchmark = stream.benchmark
    first = strategy.eval(benchmark.test_stream)
    assert set(first.values()) == {0.0}
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    with pytest.raises(UserError, match=r"not evaluated after task 1; call strategy\.eval"):
        strategy.scores()


@pytest.mark.parametrize("name", ["SMoPE", "NearestClassMean"])
def test_domains(name: str) -> None:
    """The same classes in each experience."""
    domains = tiny_stream(source=shades(tiny_source()), num_tasks=None)
    train, test = tensors(domains, "train_plain"), tensors(domains, "test")
    learner = make(name, **(SMOPE if name == "SMoPE" else {}))
    strategy = fit(strategy_of(learner, train_mb_size=8), in_memory(train, test))
    assert sum(strategy.accuracy_matrix[-1]) / 2 > 0.5, "four classes: chance is 0.25"
    hide = make("HiDePrompt", total_tasks=2, blocks=[0], identity_epochs=0)
    with pytest.raises(UserError, match=r"classes come again in task 2"):
        fit(strategy_of(hide, train_mb_size=8), in_memory(train, test))


def split(stream: Stream, **options: Any) -> Any:
    """A benchmark that Avalanche divides into two experiences, in an order of its own."""
    parts = [
        tuple(torch.cat(parts) for parts in zip(*tensors(stream, name), strict=True))
        for name in ("train_plain", "test")
    ]
    sets = [TensorDataset(*part) for part in parts]
    for item, (_, labels) in zip(sets, parts, strict=True):
        item.targets = labels.tolist()
    order = {"fixed_class_order": [2, 0, 3, 1]}
    return nc_benchmark(*sets, n_experiences=2, shuffle=False, **order, **options)


def test_task_labels_and_an_order_of_classes(stream: Stream) -> None:
    benchmark = split(stream, task_labels=True)
    assert [exp.task_labels for exp in benchmark.train_stream] == [[0], [1]]
    strategy = fit(strategy_of(make("Ridge", width=64)), benchmark)
    assert strategy.model.classes_seen == (0, 1, 2, 3)
    assert sum(strategy.accuracy_matrix[-1]) / 2 > 0.8
    again = split(stream, task_labels=True, class_ids_from_zero_in_each_exp=True)
    with pytest.raises(UserError, match=r"class id 0 comes again with task label 1 instead of 0"):
        fit(strategy_of(make("Ridge", width=64)), again)


@pytest.mark.parametrize("own", [True, False], ids=["stream of ours", "in memory"])
def test_replay(stream: Stream, own: bool) -> None:
    """Batches hold earlier classes, and those compete: less is forgotten."""
    memory = in_memory(tensors(stream, "train_plain"), tensors(stream, "test"))
    final = []
    for plugins in ([], [ReplayPlugin(mem_size=24)]):
        strategy = strategy_of(make("Finetune"), train_mb_size=8, plugins=plugins)
        fit(strategy, stream.benchmark if own else memory)
        final.append(strategy.accuracy_matrix[-1][0])
    assert final[1] > final[0]


def test_early_stopping_ends_the_task(stream: Stream) -> None:
    evaluator = EvaluationPlugin(
        accuracy_metrics(stream=True, epoch=True), loggers=[], strict_checks=False
    )
    stop = EarlyStoppingPlugin(patience=1, val_stream_name="test_stream")
    strategy = strategy_of(
        make("Finetune"), train_epochs=20, plugins=[stop], evaluator=evaluator, eval_every=1
    )
    benchmark = stream.benchmark
    with pytest.warns(UserWarning, match="not computed yet"):
        strategy.train(benchmark.train_stream[0], eval_streams=[benchmark.test_stream])
    assert 0 < strategy.clock.train_exp_epochs < 20
    assert strategy.model.classes_seen == (0, 1)
    strategy.train(benchmark.train_stream[1], eval_streams=[benchmark.test_stream])
    assert strategy.model.classes_seen == (0, 1, 2, 3)


def test_an_evaluation_within_a_task_is_in_no_row(stream: Stream) -> None:
    strategy, benchmark = strategy_of(make("Finetune"), eval_every=1), stream.benchmark
    strategy.train(benchmark.train_stream[0])
    strategy.eval(benchmark.test_stream)
    [after_first] = strategy.accuracy_matrix
    strategy.train(benchmark.train_stream[1], eval_streams=[benchmark.test_stream])
    strategy.eval(benchmark.test_stream)
    assert strategy.accuracy_matrix[0] == after_first


def test_columns_follow_the_order_of_learning(stream: Stream) -> None:
    """Experience 1 is learned first, so row 0 has the accuracy on its images, and no other."""
    strategy, benchmark = strategy_of(make("NearestClassMean")), stream.benchmark
    for number in (1, 0):
        strategy.train(benchmark.train_stream[number])
        strategy.eval(benchmark.test_stream)
        newest = accuracy(strategy.model, stream.tasks[number])
        assert strategy.accuracy_matrix[-1][-1] == newest
    [_, row] = strategy.accuracy_matrix
    assert row == [accuracy(strategy.model, stream.tasks[number]) for number in (1, 0)]


def test_the_optimizer_is_new_in_each_phase_and_has_no_frozen_weight(stream: Stream) -> None:
    made = []

    def sgd(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        made.append(torch.optim.SGD(groups, momentum=0.9))
        return made[-1]

    strategy = strategy_of(make("SMoPE", **SMOPE), train_mb_size=8, optimizer=sgd)
    strategy.train(stream.benchmark.train_stream)
    assert len(made) == 5, "two phases and one, and one before each task"
    for optimizer in made:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        assert all(parameter.requires_grad for parameter in parameters)
    assert made[-1].state and made[-1].param_groups[0]["lr"] != made[-1].param_groups[1]["lr"]


def test_a_bare_method_and_the_defaults(stream: Stream) -> None:
    """Rates and frozen steps follow from the number of steps."""
    method = NearestClassMean(tiny_backbone(depth=2), 4)
    with pytest.warns(UserWarning, match="No loggers"):
        quiet = EvaluationPlugin()
    strategy = MethodStrategy(method, device="cpu", evaluator=quiet)
    assert fit(strategy, stream.benchmark).scores()["final_average_accuracy"] > 0.8
    assert (strategy.train_mb_size, strategy.train_epochs) == (128, 20)
    with pytest.warns(UserWarning, match="No loggers"):
        quiet = EvaluationPlugin()
    trained = MethodStrategy(
        make("Finetune"), train_mb_size=8, train_epochs=1, device="cpu", evaluator=quiet
    )
    trained.train(stream.benchmark.train_stream[0])


def test_what_cannot_run_is_refused_in_one_line(stream: Stream) -> None:
    benchmark = stream.benchmark
    with pytest.raises(UserError, match=r"Joint trains on the images of all tasks so far, and an"):
        strategy_of(make("Joint"))
    begun = make("Finetune")
    begun.begin_task([0])
    with pytest.raises(UserError, match=r"this Finetune has begun to learn already, .* make a new"):
        strategy_of(begun)
    with pytest.raises(UserError, match=r"settings: compile=True has no effect"):
        strategy_of(make("Finetune"), tiny_settings(compile=True))
    with pytest.raises(UserError, match=r"precision=float16 needs scaled gradients"):
        strategy_of(make("Finetune"), tiny_settings(precision="float16"))
    with pytest.raises(UserError, match=r"^epochs must be at least 1, got 0"):
        strategy_of(make("Finetune"), train_epochs=0)
    with pytest.raises(UserError, match=r"batch_size=auto follows from a stream"):
        strategy_of(make("Finetune"), tiny_settings(batch_size="auto"))
    with pytest.raises(TypeError, match="eval_evry"):
        strategy_of(make("Finetune"), eval_evry=1)
    two = smope.Ridge(tiny_backbone(depth=2), 2, width=64)
    with pytest.raises(UserError, match=r"experience 1: has class id 3, .* num_classes=4 or more"):
        strategy_of(two).eval(benchmark.test_stream)
    with pytest.raises(UserError, match=r"train_mb_size=50 is larger than the number of training"):
        strategy_of(make("Finetune"), train_mb_size=50).train(benchmark.train_stream[0])
    memory = in_memory(tensors(stream, "train_plain"), tensors(stream, "test"))
    online = split_online_stream(memory.train_stream, experience_size=8)
    with pytest.raises(UserError, match="is a part of an online stream"):
        strategy_of(make("Finetune")).train(next(iter(online)))
