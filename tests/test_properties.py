"""What holds for any input: class orders, partitions, scores of the matrix, checkpoints, routers;
and damaged files.
"""

from __future__ import annotations

import math
import os
import random
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from smope.errors import UserError
from smope.methods.finetune import Finetune
from smope.metrics import accuracy_matrix as metrics
from smope.routers.base import ExpertState
from smope.storage.run_directory import RunDirectory
from smope.streams.class_order import divide_classes, resolve_class_order
from smope.streams.partition import divide
from smope.streams.source import ImageSet, Source
from smope.streams.stream import Stream
from smope.training.checkpoint import Within, read_checkpoint, save_checkpoint
from tests.contracts.conftest import ROUTERS, make_router
from tests.tiny import tiny_backbone, tiny_stream

quick = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
names = st.lists(
    st.text("abcdefgh0123", min_size=1, max_size=4), min_size=1, max_size=30, unique=True
)
seeds = st.integers(0, 2**32 - 1)


@quick
@given(names, seeds, st.sampled_from(["paper", "pilot", "sorted"]))
def test_every_order_holds_each_class_once_and_repeats(
    classes: list[str], seed: int, order: str
) -> None:
    found = resolve_class_order(order, classes, seed)
    assert sorted(found) == list(range(len(classes)))
    assert found == resolve_class_order(order, classes, seed)


@quick
@given(names, st.randoms(use_true_random=False))
def test_an_order_by_name_is_the_order_by_number(classes: list[str], draw: random.Random) -> None:
    order = list(range(len(classes)))
    draw.shuffle(order)
    assert resolve_class_order([classes[index] for index in order], classes, 0) == tuple(order)
    if not any(name.isdigit() for name in classes):  # a number may be a name
        assert resolve_class_order(order, classes, 0) == tuple(order)


@quick
@given(names, st.lists(st.integers(-3, 35), max_size=35))
def test_numbers_and_their_texts_are_the_same_order(classes: list[str], order: list[int]) -> None:
    results = []
    for given_order in (order, [str(number) for number in order]):
        try:
            results.append(resolve_class_order(given_order, classes, 0))
        except UserError:
            results.append(None)
    assert results[0] == results[1]


@quick
@given(
    names,
    st.lists(
        st.one_of(st.integers(-3, 35), st.text("abz019", max_size=3), st.booleans()), max_size=35
    ),
)
def test_any_list_is_an_order_or_a_user_error(classes: list[str], order: list[Any]) -> None:
    try:
        found = resolve_class_order(order, classes, 0)
    except UserError:
        return
    assert sorted(found) == list(range(len(classes)))


@quick
@given(
    st.integers(1, 60),
    st.integers(-2, 70),
    st.one_of(st.none(), st.just("random"), st.lists(st.integers(-1, 20))),
    seeds,
)
def test_sizes_hold_every_class_or_are_a_user_error(
    classes: int, tasks: int, sizes: Any, seed: int
) -> None:
    try:
        found = divide_classes(classes, tasks, sizes, seed)
    except UserError:
        return
    assert sum(found) == classes
    assert min(found) >= 1
    assert found == (sizes if isinstance(sizes, list) else found)


@st.composite
def sources(draw: Any) -> Source:
    """Classes with at least one training and one test image each, in any order."""
    count = draw(st.integers(1, 8))
    sets = []
    for _ in range(2):
        extra = draw(st.lists(st.integers(0, count - 1), max_size=30))
        targets = draw(st.permutations([*range(count), *extra]))
        sets.append(ImageSet(targets, [b""] * len(targets)))
    return Source("any", tuple(f"class {index}" for index in range(count)), *sets)


@quick
@given(sources(), seeds, st.integers(1, 8), st.floats(0, 1), st.floats(0, 1))
def test_a_partition_holds_every_image_once(
    source: Source, seed: int, tasks: int, disjoint: float, blurry: float
) -> None:
    options: dict[str, Any] = {
        "seed": seed,
        "num_tasks": tasks,
        "classes_per_task": "random",
        "class_order": "paper",
    }
    options |= {"disjoint_classes": disjoint, "blurry_images": blurry}
    try:
        found = divide(source, **options)
    except UserError:
        assume(False)
    assert sorted(index for task in found.train for index in task) == list(range(len(source.train)))
    assert sorted(index for task in found.test for index in task) == list(range(len(source.test)))
    assert sorted(found.order) == list(range(len(source.class_names)))
    seen: set[int] = set()
    for train, test in zip(found.train, found.test, strict=True):
        assert train
        assert test
        seen |= {found.order.index(source.train.targets[index]) for index in train}
        assert seen == set(range(len(seen))), "labels are numbered as classes appear"
        tested = {found.order.index(source.test.targets[index]) for index in test}
        assert tested <= seen, "nothing is tested before it was learned"
    assert found == divide(source, **options)


@st.composite
def matrices(draw: Any) -> tuple[list[list[float | None]], list[int]]:
    """Accuracies as shares of a number of images, and these numbers."""
    tasks = draw(st.integers(1, 7))
    sizes = draw(st.lists(st.integers(1, 50), min_size=tasks, max_size=tasks))
    right = [[draw(st.integers(0, sizes[j])) for j in range(t + 1)] for t in range(tasks)]
    return [
        [right[t][j] / sizes[j] if j <= t else None for j in range(tasks)] for t in range(tasks)
    ], sizes


@quick
@given(matrices())
def test_scores_stay_in_their_range_and_hang_together(
    found: tuple[list[list[float | None]], list[int]],
) -> None:
    matrix, sizes = found
    last = [value for value in matrix[-1] if value is not None]
    final, forgotten = metrics.final_average_accuracy(matrix), metrics.forgetting(matrix)
    assert min(last) - 1e-12 <= final <= max(last) + 1e-12
    assert 0 <= metrics.cumulative_average_accuracy(matrix) <= 1
    assert -1 <= -metrics.backward_transfer(matrix) <= 1
    assert -metrics.backward_transfer(matrix) <= 1
    assert forgotten >= -metrics.backward_transfer(matrix) - 1e-12, (
        "the best accuracy is at least the first"
    )
    weighted = sum(
        Fraction(round(value * size)) for value, size in zip(last, sizes, strict=True)
    ) / sum(sizes)
    assert math.isclose(metrics.sample_weighted_accuracy(last, sizes), weighted, abs_tol=1e-12)


@quick
@given(matrices())
def test_a_run_that_forgets_nothing(found: tuple[list[list[float | None]], list[int]]) -> None:
    """Every task stays at what it was right after its training."""
    matrix = [
        [found[0][j][j] if j <= t else None for j in range(len(row))]
        for t, row in enumerate(found[0])
    ]
    assert metrics.forgetting(matrix) == metrics.backward_transfer(matrix) == 0


DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.uint8,
    torch.bool,
)


@st.composite
def tensors(draw: Any) -> Tensor:
    """Any bits in any form: NaN, infinities and -0 among them."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    count = math.prod(shape) * torch.empty((), dtype=dtype).element_size()
    raw = torch.frombuffer(
        bytearray(draw(st.binary(min_size=count, max_size=count)) or b"\0"), dtype=torch.uint8
    )
    if dtype == torch.bool:
        raw = raw % 2
    return raw[:count].clone().view(dtype).reshape(shape)


json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**53), 2**53),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def stream() -> Stream:
    return tiny_stream()


class Anything(Finetune):
    """Remembers whatever it is given."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__(tiny_backbone(depth=1), 4)
        self.state = state

    def trained_state(self) -> dict[str, Tensor]:
        return self.state


keys = st.text("abc.xyz_0", min_size=1, max_size=8)


@quick
@given(
    state=st.dictionaries(keys, tensors(), max_size=4),
    more=st.dictionaries(keys, tensors(), max_size=3),
    values=json_values,
    tasks=st.integers(0, 5),
    steps=st.integers(0, 9999),
)
def test_a_checkpoint_gives_back_every_bit(
    state: dict[str, Tensor],
    more: dict[str, Tensor],
    values: Any,
    tasks: int,
    steps: int,
    stream: Stream,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    directory = RunDirectory.create(tmp_path_factory.mktemp("round") / "run", "seed: 0\n")
    within = Within(steps, more, {"values": values}) if steps else None
    path = save_checkpoint(
        directory, Anything(state), stream, tasks, {"history": values}, within, {"context": values}
    )
    found = read_checkpoint(path)
    assert same(found.state, state)
    assert (found.tasks_done, found.history, found.context) == (
        tasks,
        {"history": values},
        {"context": values},
    )
    if within is None:
        assert found.within is None
    else:
        assert found.within is not None
        assert same(found.within.tensors, more)
        assert (found.within.steps, found.within.values) == (steps, {"values": values})


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        (value.dtype, value.shape) == (second[key].dtype, second[key].shape)
        and torch.equal(
            value.reshape(-1).view(torch.uint8), second[key].reshape(-1).view(torch.uint8)
        )
        for key, value in first.items()
    )


@quick
@given(
    st.sampled_from(ROUTERS),
    st.booleans(),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(1, 9),
    seeds,
    st.data(),
)
def test_a_router_chooses_distinct_experts_whatever_their_past(
    name: str, training: bool, batch: int, heads: int, experts: int, seed: int, data: st.DataObject
) -> None:
    top_k = data.draw(st.integers(1, experts))
    draw = torch.Generator().manual_seed(seed)
    router = make_router(name, top_k=top_k).train(training)
    router.build(heads, experts, 4)
    tokens = [3] if router.reads_tokens else []
    query, expert_keys = (
        torch.randn(batch, heads, *tokens, 4, generator=draw),
        torch.rand(heads, experts, 4, generator=draw),
    )
    counts = torch.randint(0, 3, (heads, experts), generator=draw)
    state = ExpertState(counts, torch.rand(heads, experts, generator=draw) < 0.5)
    found = router(query, expert_keys, state)
    assert found.expert_ids.shape == found.weights.shape
    chosen = found.expert_ids.shape[-1]
    if router.fixed_number:
        assert (found.chosen.sum(-1) == (top_k if router.sparse else experts)).all()
    assert all(
        len(set(ids)) == chosen and set(ids) <= set(range(experts))
        for ids in found.expert_ids.flatten(0, 1).tolist()
    )
    if router.plain_weights:
        plain = found.scores.gather(-1, found.expert_ids)
        left_out = found.weights == -torch.inf
        torch.testing.assert_close(found.weights, plain.masked_fill(left_out, -torch.inf))
    if not training:
        alone = torch.cat([router(image[None], expert_keys, state).expert_ids for image in query])
        assert torch.equal(alone, found.expert_ids)


class Pickled:
    def __reduce__(self) -> Any:
        return os.mkdir, ("code-was-run",)


def mutated(content: bytes, draw: random.Random) -> bytes:
    """A file as it may come out of a crash, a bad disk, a wrong copy or a hostile hand."""
    kind = draw.randrange(8)
    place, header = draw.randrange(len(content)), struct.unpack("<Q", content[:8])[0]
    if kind == 0:
        return content[:place]
    if kind == 1:
        return (
            content[:place]
            + bytes(draw.randrange(256) for _ in range(draw.randrange(1, 9)))
            + content[place:]
        )
    if kind == 2:
        return (
            struct.pack("<Q", draw.choice([0, 1, header - 1, header + 1, 2**31, 2**63, 2**64 - 1]))
            + content[8:]
        )
    if kind == 3:
        text = content[8 : 8 + header].decode()
        old = draw.choice(
            [
                '"F32"',
                '"data_offsets"',
                '"shape"',
                "__metadata__",
                ":[0,",
                "tasks_done",
                "2",
                '"method.',
                ",",
            ]
        )
        new = draw.choice(
            ['"F64"', '"x"', "", "__", ":[9,", '"', "-1", "\\u0000", "1e400", "[" * 200]
        )
        changed = text.replace(old, new, draw.choice([1, -1])).encode()
        return struct.pack("<Q", len(changed)) + changed + content[8 + header :]
    if kind == 4:
        return content[:place] + bytes(min(512, len(content) - place)) + content[place + 512 :]
    if kind == 5:
        end = draw.randrange(place, len(content))
        return content[:place] + content[end:] + content[place:end]
    if kind == 6:
        return b"".join([content, content][: draw.randrange(1, 3)]) + b"\0" * draw.randrange(1, 99)
    flipped = bytearray(content)
    for _ in range(draw.randrange(1, 20)):
        flipped[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return bytes(flipped)


def fuzz(times: int, seed: int, stream: Stream, folder: Path) -> dict[str, int]:
    """Read so many mutated checkpoints; how many were refused, and how many were what was saved
    after all.
    """
    directory = RunDirectory.create(folder / "run", "seed: 0\n")
    method, draw = Finetune(tiny_backbone(depth=1), 4), random.Random(seed)
    within = Within(
        7, {"optimizer.0.step": torch.tensor(3.0)}, {"scaler": {}, "random": {"numpy": ["x", [1]]}}
    )
    path = save_checkpoint(
        directory, method, stream, 1, {"accuracy_matrix": [[0.5]]}, within, {"config": {"seed": 0}}
    )
    whole, counts, said = path.read_bytes(), {"refused": 0, "unharmed": 0}, set[str]()
    for _ in range(times):
        path.write_bytes(mutated(whole, draw))
        try:
            found = read_checkpoint(path)
        except UserError as error:
            said.add(str(error))
            counts["refused"] += 1
            continue
        assert same(found.state, method.trained_state()), (
            "a damaged state was taken for a whole one"
        )
        assert found.history == {"accuracy_matrix": [[0.5]]}
        counts["unharmed"] += 1
    assert all(text.startswith(f"checkpoint {path}: ") and "\n" not in text for text in said)
    return counts


def test_mutated_checkpoints_are_refused(stream: Stream, tmp_path: Path) -> None:
    counts = fuzz(400, 0, stream, tmp_path)
    assert counts["refused"] > 300
    assert not Path("code-was-run").exists()


@pytest.mark.slow
def test_ten_thousand_mutated_checkpoints_are_refused(stream: Stream, tmp_path: Path) -> None:
    counts = fuzz(10_000, 1, stream, tmp_path)
    assert counts["refused"] > 8_000


@pytest.mark.parametrize(
    "facts", ["", "null", "[]", "{}", '{"tasks_done": "one"}', "{" * 100, '"' + "\\ud800" + '"']
)
def test_a_checkpoint_whose_record_makes_no_sense(facts: str, tmp_path: Path) -> None:
    """Signed with the right hash, as a stranger could: still a clear error."""
    from smope.storage.hashed_safetensors import _digest
    from smope.training.checkpoint import CHECKPOINT_FORMAT_VERSION

    state = {"method.weight": torch.zeros(2)}
    path = tmp_path / "001-00000000.safetensors"
    metadata = {
        "format_version": str(CHECKPOINT_FORMAT_VERSION),
        "facts": facts,
        "sha256": _digest(facts, state),
    }
    path.write_bytes(save(state, metadata))
    with pytest.raises(UserError, match=r"checkpoint .*001-00000000\.safetensors: "):
        read_checkpoint(path)
