"""What only ImageNet-A has; the rest is in test_imagenet_variants.py."""

from __future__ import annotations

from smope.streams import imagenet_a
from smope.streams.stream import build_stream
from tests.streams.imagenet_trees import content, wnids, write_classes

NAME = (
    "0.003001_balloon _ balloon_0.4695473.jpg"  # as in the archive: scores and guesses of a model
)


def test_classes_of_different_sizes(tmp_path):
    names = wnids(imagenet_a.VARIANT)
    write_classes(tmp_path / "imagenet-a", names, [0, 1])
    for number in range(8):
        (tmp_path / "imagenet-a" / names[4] / f"{number}_{NAME}").write_bytes(
            content(4, number % 5) + bytes([number])
        )
    source = imagenet_a.load(str(tmp_path))
    assert (len(source.train), len(source.test)) == (199 + 8, 199 + 2)
    assert [source.test.targets.count(class_id) for class_id in (3, 4, 5)] == [1, 2, 1]


def test_split_lists_are_image_net_rs_alone(tmp_path):
    write_classes(tmp_path, wnids(imagenet_a.VARIANT), [0, 1])
    (tmp_path / "imagenet-r_train.yaml").write_text("no list")
    assert imagenet_a.load(str(tmp_path)).facts["split"] == "drawn"


def test_pilots_order_is_over_the_sorted_wnids(tmp_path):
    """numpy's legacy permutation of 200 with seed 1993 starts 168, 136, 51, 9, 183."""
    names = wnids(imagenet_a.VARIANT)
    write_classes(tmp_path / "train", names, [0])
    write_classes(tmp_path / "test", names, [1])
    source = imagenet_a.load(str(tmp_path))
    stream = build_stream(source, image_size=8, seed=0, num_tasks=10, class_order="pilot")
    assert stream.class_names[:5] == tuple(names[i] for i in (168, 136, 51, 9, 183))
