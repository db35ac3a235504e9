"""The file: what comes back from it, what it refuses to be, and that the files before it outlive a
failure.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import struct
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from smope.errors import UserError
from smope.methods.base import Method
from smope.methods.finetune import Finetune
from smope.methods.smope import SMoPE
from smope.routers.adaptive_noise import AdaptiveNoise
from smope.storage.run_directory import RunDirectory
from smope.streams.stream import Stream
from smope.training import checkpoint as module
from smope.training.checkpoint import (
    Checkpoint,
    OtherFormat,
    Within,
    last_checkpoint,
    list_checkpoints,
    read_checkpoint,
    restore,
    save_checkpoint,
)
from smope.training.history import History
from tests.tiny import tiny_backbone, tiny_stream

HISTORY = {"test_images": [10, 10], "accuracy_matrix": [[0.1 + 0.2]]}


class Remembering(Finetune):
    """With a buffer of every kind."""

    def __init__(self) -> None:
        super().__init__(tiny_backbone(depth=2), 4)
        draw = torch.Generator().manual_seed(3)
        for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.float32):
            self.register_buffer(
                str(dtype).replace("torch.", "in_"), torch.rand(3, 5, generator=draw).to(dtype)
            )
        self.register_buffer("flags", torch.tensor([True, False, True]))
        self.register_buffer("number", torch.tensor(2**40 + 1))
        self.register_buffer("nothing", torch.zeros(0, 7))
        self.register_buffer(
            "odd", torch.tensor([float("nan"), float("inf"), -0.0, 5e-324], dtype=torch.float64)
        )


@pytest.fixture(scope="module")
def stream() -> Stream:
    return tiny_stream()


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", "seed: 0\n")


def within(steps: int) -> Within:
    tensors = {"optimizer.0.step": torch.tensor(3.0), "random.cpu": torch.get_rng_state()}
    return Within(
        steps, tensors, {"scaler": {"scale": 65536.0}, "random": {"python": [3, [1, 2**31], None]}}
    )


def save(
    directory: RunDirectory,
    stream: Stream,
    tasks: int,
    steps: int = 0,
    method: Method | None = None,
) -> Path:
    place = within(steps) if steps else None
    return save_checkpoint(
        directory, method or Remembering(), stream, tasks, HISTORY, place, {"config": {"seed": 1}}
    )


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Bit by bit, so that NaN equals NaN and 0 is not -0."""
    return first.keys() == second.keys() and all(
        (value.dtype, value.shape) == (second[key].dtype, second[key].shape)
        and torch.equal(
            value.reshape(-1).view(torch.uint8), second[key].reshape(-1).view(torch.uint8)
        )
        for key, value in first.items()
    )


@pytest.fixture
def refused(directory: RunDirectory, stream: Stream) -> Any:
    """The message with which a file of this content is refused, and nothing else may happen."""
    path = save(directory, stream, 1)

    def read(content: bytes) -> str:
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"checkpoint .*001-00000000\.safetensors: ") as caught:
            read_checkpoint(path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return read


def test_everything_comes_back_bit_by_bit(directory: RunDirectory, stream: Stream) -> None:
    method = Remembering()
    found = read_checkpoint(save(directory, stream, 1, 12, method))
    assert isinstance(found, Checkpoint)
    assert equal(found.state, method.trained_state())
    assert (found.tasks_done, found.history, found.context) == (1, HISTORY, {"config": {"seed": 1}})
    assert found.within is not None
    assert found.within.steps == 12
    assert equal(found.within.tensors, within(12).tensors)
    assert found.within.values == within(12).values
    fresh = Remembering()
    with torch.no_grad():
        for value in fresh.trained_state().values():
            value.zero_()
    restore(fresh, stream, found)
    assert equal(fresh.trained_state(), method.trained_state())


def test_at_a_task_boundary_there_is_no_phase(directory: RunDirectory, stream: Stream) -> None:
    assert read_checkpoint(save(directory, stream, 2)).within is None


def test_names_sort_by_place_and_the_last_two_and_the_last_boundary_are_kept(
    directory: RunDirectory, stream: Stream
) -> None:
    seen = []
    for place in ((0, 7), (0, 30), (1, 0), (1, 9), (1, 10), (1, 100), (2, 0), (2, 5), (2, 50)):
        save(directory, stream, *place)
        seen.append([path.stem for path in list_checkpoints(directory)])
    assert seen[2] == ["000-00000030", "001-00000000"]
    assert seen[5] == ["001-00000000", "001-00000010", "001-00000100"]
    assert seen[6] == ["001-00000100", "002-00000000"]
    assert seen[8] == ["002-00000000", "002-00000005", "002-00000050"]


def test_other_files_are_left_alone(directory: RunDirectory, stream: Stream) -> None:
    others = [
        directory.checkpoints / name
        for name in ("best.safetensors", "001-00000009.unreadable", "notes.txt")
    ]
    for path in others:
        path.touch()
    for tasks in (1, 2, 3):
        save(directory, stream, tasks)
    assert all(path.exists() for path in others)
    assert [path.stem for path in list_checkpoints(directory)] == ["002-00000000", "003-00000000"]


def test_zero_bytes_and_garbage(refused: Any) -> None:
    for content in (b"", b"\0", b"garbage", b"\xff" * 100, struct.pack("<Q", 2**63) + b"{}"):
        assert "cannot be read" in refused(content)


@pytest.mark.parametrize("part", [0.01, 0.3, 0.5, 0.9, 0.999])
def test_truncated(part: float, directory: RunDirectory, stream: Stream) -> None:
    path = save(directory, stream, 1, 5)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(UserError, match="cannot be read"):
        read_checkpoint(path)


def test_a_changed_byte_is_never_taken_for_what_was_saved(
    directory: RunDirectory, stream: Stream
) -> None:
    """Anywhere in the file: the hash covers tensors, their names and kinds, and the record."""
    method = Remembering()
    path = save(directory, stream, 1, 5, method)
    whole, draw = path.read_bytes(), random.Random(0)
    header = struct.unpack("<Q", whole[:8])[0]
    places = [draw.randrange(8 + header) for _ in range(150)] + [
        draw.randrange(8 + header, len(whole)) for _ in range(50)
    ]
    unharmed = 0
    for place in places:
        content = bytearray(whole)
        content[place] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        try:
            found = read_checkpoint(path)
        except UserError:
            continue
        unharmed += 1
        assert equal(found.state, method.trained_state())
        assert (found.tasks_done, found.history) == (1, HISTORY)
    assert unharmed < 10, "only blanks that pad the header may change"


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_pickle_runs_no_code(kind: str, refused: Any, tmp_path: Path) -> None:
    bomb, file = Bomb(tmp_path / "exploded"), tmp_path / "bomb"
    if kind == "torch":
        torch.save({"state": bomb}, file)
    else:
        file.write_bytes(pickle.dumps(bomb))
    assert "cannot be read" in refused(file.read_bytes())
    assert not bomb.path.exists()


def test_another_format(
    directory: RunDirectory, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHECKPOINT_FORMAT_VERSION", 3)
    path = save(directory, stream, 1)
    monkeypatch.undo()
    with pytest.raises(
        OtherFormat,
        match=r"has format version 3, this smope reads 2; use the version of smope in run",
    ):
        read_checkpoint(path)


def test_tensors_of_somebody_else(directory: RunDirectory) -> None:
    path = directory.checkpoints / "001-00000000.safetensors"
    save_file({"classifier.weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="has format version None"):
        read_checkpoint(path)
    save_file(
        {"weight": torch.zeros(3)}, path, {"format_version": "2", "facts": "{}", "sha256": "0"}
    )
    with pytest.raises(UserError, match="is damaged: its content does not match its sha256"):
        read_checkpoint(path)


def test_the_one_before_is_used_and_the_others_are_told(
    directory: RunDirectory, stream: Stream
) -> None:
    for steps in (4, 8):
        save(directory, stream, 1, steps)
    told: dict[Path, UserError] = {}
    list_checkpoints(directory)[-1].write_bytes(b"")
    found = last_checkpoint(directory, told.__setitem__)
    assert found is not None
    assert found.path.stem == "001-00000004"
    assert [(path.stem, "cannot be read" in str(error)) for path, error in told.items()] == [
        ("001-00000008", True)
    ]
    found.path.write_bytes(b"")
    assert last_checkpoint(directory, told.__setitem__) is None
    assert len(told) == 2


def test_a_run_of_another_version_is_not_started_over(
    directory: RunDirectory, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHECKPOINT_FORMAT_VERSION", 3)
    save(directory, stream, 1, 4)
    monkeypatch.undo()
    save(directory, stream, 1, 8).write_bytes(b"")
    with pytest.raises(OtherFormat, match="has format version 3"):
        last_checkpoint(directory, lambda *_: None)
    save(directory, stream, 1, 6)
    found = last_checkpoint(directory, lambda *_: None)
    assert found is not None
    assert found.path.stem == "001-00000006"


def test_the_last_task_boundary(directory: RunDirectory, stream: Stream) -> None:
    assert last_checkpoint(directory, lambda *_: None, boundary=True) is None
    for place in ((1, 0), (1, 4), (1, 8)):
        save(directory, stream, *place)
    found = last_checkpoint(directory, lambda *_: None, boundary=True)
    assert found is not None
    assert found.path.stem == "001-00000000"


def test_another_backbone_is_refused(directory: RunDirectory, stream: Stream) -> None:
    checkpoint = read_checkpoint(save(directory, stream, 1))
    method = Remembering()
    object.__setattr__(method.backbone.identity, "sha256", "f" * 64)
    with pytest.raises(
        UserError, match=r"another backbone \(sha256 000000000000, here f{12}\).*backbone\.weights"
    ):
        restore(method, stream, checkpoint)


def test_another_stream_is_refused(directory: RunDirectory, stream: Stream) -> None:
    checkpoint = read_checkpoint(save(directory, stream, 1))
    with pytest.raises(
        UserError, match=r"trained on another stream \(sha256 \w{12}, here \w{12}\).*stream\.root"
    ):
        restore(Remembering(), tiny_stream(num_tasks=4), checkpoint)


def test_a_state_of_another_kind_or_size_is_refused(
    directory: RunDirectory, stream: Stream
) -> None:
    checkpoint = read_checkpoint(save(directory, stream, 1))
    with pytest.raises(UserError, match=r"does not fit Finetune \(flags differs, 8 in all\)"):
        restore(Finetune(tiny_backbone(depth=2), 4), stream, checkpoint)
    with pytest.raises(UserError, match=r"does not fit Remembering \(classifier\.bias differs"):
        restore(Remembering().double(), stream, checkpoint)


def full(*_: Any) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["os.fsync", "pathlib.Path.replace"])
def test_a_full_disk_harms_nothing(
    where: str, directory: RunDirectory, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    method = SMoPE(tiny_backbone(depth=2), 4, AdaptiveNoise(3), num_experts=7, blocks=[0, 1])
    for steps in (4, 8):
        save(directory, stream, 1, steps, method)
    before = {path: path.read_bytes() for path in directory.path.rglob("*") if path.is_file()}
    monkeypatch.setattr(where, full)
    with pytest.raises(
        OSError, match=r"001-00000012\.safetensors: cannot be written \(No space left on device\)"
    ):
        save(directory, stream, 1, 12, method)
    assert before == {
        path: path.read_bytes() for path in directory.path.rglob("*") if path.is_file()
    }


def test_no_backbone_is_in_the_file(directory: RunDirectory, stream: Stream) -> None:
    path = save(directory, stream, 1, 4)
    content = path.read_bytes()
    names = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    assert not [name for name in names if "backbone" in name]
    assert {name.partition(".")[0] for name in names} == {"__metadata__", "method", "within"}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"accuracy_matrix": 3}, "accuracy_matrix"),
        ({"accuracy_matrix": [[0.5, 0.5]]}, "accuracy_matrix"),
        ({"accuracy_matrix": [0.5]}, "accuracy_matrix"),
        ({"accuracy_matrix": [["a"]]}, "accuracy_matrix"),
        ({"seconds_per_task": [[1.0]]}, "seconds_per_task"),
        ({"moon_phase": 1}, "moon_phase"),
        ({"seconds": {"train": 1.0}}, "seconds"),
        ({"peak_memory": {"process_resident": "much"}}, "peak_memory"),
        ({"steps": None}, "steps"),
        ({"test_images": None}, "test_images"),
    ],
)
def test_a_history_that_makes_no_sense_is_refused(
    changes: dict[str, Any], named: str, tmp_path: Path
) -> None:
    with pytest.raises(
        UserError,
        match=rf"checkpoint .*1.safetensors: its record of the run makes no .*\({named}\)",
    ):
        History.read({**HISTORY, **changes}, tmp_path / "1.safetensors")


def test_a_history_comes_back() -> None:
    history = History(
        [3, 4], accuracy_matrix=[[0.5], [0.5, 1.0]], peak_memory={"process_resident": 7}
    )
    assert History.read(json.loads(json.dumps(history.as_dict())), Path("1.safetensors")) == history
