"""The streams on real images; they need SMOPE_DATA."""

from __future__ import annotations

import time

import pytest
import torch
from torch.utils.data import DataLoader

from smope.errors import UserError
from smope.streams import cifar100, folder
from smope.streams.base import Source, Stream, build_stream


def stream_of(source: Source, size: int = 224, eval_crop: float = 0.875) -> Stream:
    return build_stream(
        source,
        image_size=size,
        seed=0,
        num_tasks=10,
        classes_per_task=None,
        class_order="paper",
        crop_scale=[0.08, 1.0],
        flip=True,
        eval_crop=eval_crop,
    )


@pytest.mark.parametrize(("name", "train", "test"), [("cifar100_subset", 5000, 2000), ("cifar100_20k", 20000, 10000)])
def test_cifar100(data_root, name, train, test):
    source = cifar100.load(str(data_root / name))
    assert source.class_names == cifar100.CLASS_NAMES
    assert (len(source.train.targets), len(source.test.targets)) == (train, test)
    stream = stream_of(source, 32, 1.0)
    assert stream.class_order[:5] == (23, 8, 11, 7, 48)
    assert stream.class_names[:2] == ("cloud", "bicycle")
    assert [len(task.train) for task in stream.tasks] == [train // 10] * 10
    image, label = stream.tasks[2].test[0]
    picture = source.test.load(stream.tasks[2].test.source_index[0])
    expected = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(32, 32, 3).permute(2, 0, 1)
    assert torch.equal((image * 255).round().to(torch.uint8), expected) and 20 <= label < 30


def test_class_folders_of_photographs(data_root):
    source = folder.load(str(data_root / "caltech100"))
    assert len(source.class_names) == 100
    stream = stream_of(source)
    task = stream.tasks[0]
    task.train.set_epoch(1)
    items = range(0, len(task.train), 10)
    alone = torch.stack([task.train[i][0] for i in items])
    loader = DataLoader(task.train, batch_size=7, sampler=items, num_workers=2)
    assert torch.equal(torch.cat([batch[0] for batch in loader]), alone)
    assert alone.shape[1:] == (3, 224, 224) and alone.min() >= 0 and alone.max() <= 1


def test_other_hundred_classes_are_not_cifar(data_root):
    with pytest.raises(UserError, match=r"100 class folders in train, without apple, .*stream=folder takes any"):
        cifar100.load(str(data_root / "caltech100"))
    with pytest.raises(UserError, match=r"cifar100_20k or .*cifar100_subset looks right"):
        cifar100.load(str(data_root))


def test_an_item_costs_little_more_than_its_transform(data_root):
    source = cifar100.load(str(data_root / "cifar100_subset"))
    images = (
        build_stream(
            source,
            image_size=32,
            seed=0,
            num_tasks=10,
            classes_per_task=None,
            class_order="sorted",
            crop_scale=None,
            flip=False,
            eval_crop=1.0,
        )
        .tasks[5]
        .train
    )
    from smope.streams.transforms import evaluation_transform

    whole = evaluation_transform(32, 1.0)

    def seconds(item) -> float:
        best = float("inf")
        for _ in range(5):
            start = time.perf_counter()
            for i in range(100):
                item(i)
            best = min(best, time.perf_counter() - start)
        return best / 100

    overhead = seconds(images.__getitem__) - seconds(lambda i: whole(source.train.load(images.source_index[i])))
    assert overhead < 1e-3  # 0.1 ms on an idle machine
