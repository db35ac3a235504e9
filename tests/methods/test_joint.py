"""Joint training and full fine-tuning: which images they see, which weights they change, what they
save.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from smope.methods.full_finetune import FullFinetune
from smope.methods.joint import Joint
from smope.storage.run_directory import RunDirectory
from smope.training.checkpoint import last_checkpoint
from smope.training.trainer import Trainer
from tests.tiny import tiny_backbone, tiny_settings, tiny_stream

CPU = torch.device("cpu")


class Watching(Joint):
    """Notes the labels of every batch, by task."""

    def losses(self, images, labels, task):
        self.__dict__.setdefault("batches", []).append((task.index, labels.tolist()))
        return super().losses(images, labels, task)


def trainer_of(method: Any, directory: RunDirectory | None = None, **changes: Any) -> Trainer:
    return Trainer(
        method, tiny_stream(), tiny_settings(**changes), seed=0, device=CPU, directory=directory
    )


def make(kind: Any = Joint, **options: Any) -> Any:
    torch.manual_seed(0)
    return kind(tiny_backbone(depth=2), 4, **options)


def test_joint_training_draws_from_all_tasks_so_far_in_as_many_steps():
    method = make(Watching, trained="classifier")
    trainer = trainer_of(method)
    trainer.fit()
    labels = {
        task: [label for index, batch in method.batches for label in batch if index == task]
        for task in (0, 1)
    }
    assert set(labels[0]) == {0, 1} and set(labels[1]) == {0, 1, 2, 3}
    assert trainer.history.steps == len(method.batches) == 2 * 4 * 3
    assert min(map(labels[1].count, range(4))) >= 12, (
        "of 96 images drawn, about as many of each class"
    )


def test_an_epoch_of_joint_training_draws_no_image_twice():
    trainer = trainer_of(make())
    trainer.loader.epoch = 3
    images = trainer.training_images(trainer.spans[1])
    assert len(images) == 48 and list(images.targets).count(0) == 12
    batches = [labels for _, labels in trainer.loader.shuffled(images, 1, last=6)]
    assert sorted(torch.cat(batches).tolist()) == sorted(images.targets)
    assert len(list(trainer.loader.shuffled(images, 1, last=3))) == 3


def test_images_of_several_tasks_together_are_the_same_images():
    tasks = tiny_stream(crop_scale=[0.3, 1.0], flip=True).tasks
    both = tasks[0].train.join([task.train for task in tasks[1:]])
    both.set_epoch(2)
    tasks[1].train.set_epoch(2)
    image, label = both[len(tasks[0].train) + 5]
    expected, its_label = tasks[1].train[5]
    assert torch.equal(image, expected) and label == its_label
    assert not torch.equal(both[0][0], tasks[0].train[0][0]), "another epoch, another crop"


@pytest.mark.parametrize(("method", "groups"), [(Joint, 2), (FullFinetune, 2)])
def test_the_backbone_learns_at_a_lower_rate(method, groups):
    found = make(method, backbone_rate_factor=0.1).parameter_groups(2.0)
    assert [group["lr"] for group in found] == [pytest.approx(0.2), 2.0]
    assert len(found) == groups


def test_joint_training_of_the_classifier_leaves_the_backbone_frozen():
    method = make(trained="classifier")
    assert method.backbone.frozen and not list(method.prompt_parameters())
    assert [group["lr"] for group in method.parameter_groups(1.0)] == [1.0]
    assert not any(key.startswith("backbone.") for key in method.trained_state())


@pytest.mark.parametrize("kind", [Joint, FullFinetune])
def test_broken_off_in_the_second_task_it_ends_the_same(kind, tmp_path: Path):
    whole = make(kind)
    expected = trainer_of(whole).fit().accuracy_matrix
    directory = RunDirectory.create(tmp_path / "run", "")
    first = trainer_of(make(kind), directory, checkpoint_steps=5)
    stop = iter(range(100))
    step = first.method.losses

    def losses(*arguments):
        if next(stop) == 19:
            raise KeyboardInterrupt
        return step(*arguments)

    first.method.losses = losses
    with pytest.raises(KeyboardInterrupt):
        first.fit()
    checkpoint = last_checkpoint(directory, lambda _, error: pytest.fail(str(error)))
    assert checkpoint is not None and checkpoint.within is not None
    assert (checkpoint.tasks_done, checkpoint.within.steps) == (1, 5)
    second = trainer_of(make(kind))
    second.resume(checkpoint)
    assert second.fit().accuracy_matrix == expected
    state = second.method.trained_state()
    assert any(key.startswith("backbone.vit.") for key in state)
    assert all(torch.equal(value, state[key]) for key, value in whole.trained_state().items())
