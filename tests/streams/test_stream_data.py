"""The streams on real images; they need SMOPE_DATA."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

from smope.errors import UserError
from smope.streams import cifar100, domains, folder, table
from smope.streams.pixels.preload import preload_images
from smope.streams.source import Source
from smope.streams.stream import Stream, build_stream


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


@pytest.mark.parametrize(
    ("name", "train", "test"), [("cifar100_subset", 5000, 2000), ("cifar100_20k", 20000, 10000)]
)
def test_cifar100(data_root, name, train, test):
    source = cifar100.load(str(data_root / name))
    assert source.class_names == cifar100.CLASS_NAMES
    assert (len(source.train.targets), len(source.test.targets)) == (train, test)
    stream = stream_of(source, 32, 1.0)
    assert stream.class_order[:5] == (23, 8, 11, 7, 48)
    assert stream.class_names[:2] == ("cloud", "bicycle")
    assert [len(task.train) for task in stream.tasks] == [train // 10] * 10
    image, label = stream.tasks[2].test[0]
    picture = source.test.pixels(stream.tasks[2].test.source_index[0])
    expected = torch.tensor(picture).permute(2, 0, 1)
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
    with pytest.raises(
        UserError, match=r"100 class folders in train, without apple, .*stream=folder takes any"
    ):
        cifar100.load(str(data_root / "caltech100"))
    with pytest.raises(UserError, match=r"cifar100_20k or .*cifar100_subset looks right"):
        cifar100.load(str(data_root))


def test_domains_of_pictures(data_root):
    source = domains.load(str(data_root / "pacs"))
    assert source.class_names == (
        "dog",
        "elephant",
        "giraffe",
        "guitar",
        "horse",
        "house",
        "person",
    )
    stream = build_stream(source, image_size=64, seed=0, num_tasks=None)
    assert [task.name for task in stream.tasks] == ["art_painting", "cartoon", "photo", "sketch"]
    assert [(len(task.train), len(task.test)) for task in stream.tasks] == [(140, 70)] * 4
    assert all(task.classes == tuple(range(7)) for task in stream.tasks)
    chosen = domains.load(str(data_root / "pacs"), ["photo", "sketch"])
    assert build_stream(chosen, image_size=64, seed=0, num_tasks=None).tasks[0].name == "photo"


def test_other_directories_are_not_domains(data_root):
    root = data_root / "pacs"
    for place in (
        root / "sketch",
        root / "sketch" / "train",
        root / "sketch" / "train" / "dog",
        data_root,
    ):
        with pytest.raises(UserError, match=rf"stream\.root={root} looks right$"):
            domains.load(str(place))
    with pytest.raises(
        UserError,
        match=rf"stream\.root={root}/art_painting or .*; stream=domains takes all of them",
    ):
        folder.load(str(root))


def test_a_table_of_the_same_domains(data_root, tmp_path):
    """A table that lists what stream domains finds is the same stream."""
    root = data_root / "pacs"
    rows = [
        f"{path.relative_to(root)},{path.parent.name},{path.relative_to(root).parts[0]},{split}"
        for split in ("train", "test")
        for path in sorted(root.glob(f"*/{split}/*/*"))
    ]
    (tmp_path / "pacs.csv").write_text("\r\n".join(["path,label,task,split", *rows]))
    listed, found = table.load(str(tmp_path / "pacs.csv"), str(root)), domains.load(str(root))
    assert listed.task_names == found.task_names and listed.class_names == found.class_names
    assert preload_images(listed).content_hash == preload_images(found).content_hash
