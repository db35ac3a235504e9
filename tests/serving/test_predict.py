"""Loaded, a run classifies as its own evaluation did, without its data set."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from torch import Tensor

import smope
from smope.backbones.weights import EMBEDDED, file_sha256
from smope.cli.main import main
from smope.errors import UserError
from smope.methods.smope import SMoPE
from smope.serving import predict
from smope.serving.predict import Classifier
from smope.streams.pixels.decode import decode
from smope.training.trainer import Trainer
from tests.run.test_artefact import content_hash

from .conftest import SMALL


@pytest.fixture(scope="module")
def classifier(run_dir: Path) -> Classifier:
    return smope.load(run_dir)


def record(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "run.json").read_text(encoding="utf-8"))


def evaluated(run_dir: Path, pictures: Path) -> dict[Path, str]:
    """What the run's last evaluation took each test image for."""
    found = record(run_dir)
    names, tasks = found["class_names"], found["tasks"]
    labels = load_file(run_dir / "analysis" / f"task-{len(tasks):03d}.safetensors")["predicted"]
    files: list[Path] = []
    # a task's images are in the order of the source: of its classes, then of their names
    for task in tasks:
        for name in sorted(names[label] for label in task["classes"]):
            files += sorted((pictures / name).iterdir())
    return {file: names[label] for file, label in zip(files, labels, strict=True)}


def predicted(classifier: Classifier, pictures: Path) -> dict[Path, str]:
    files = sorted(pictures.rglob("*.png"))
    return {
        found.path: found.class_name
        for found in classifier.predict(files, batch_size=7)
        if found.path
    }


def test_predictions_are_those_of_the_run_s_evaluation(
    classifier: Classifier, run_dir: Path, pictures: Path
) -> None:
    found = predicted(classifier, pictures)
    assert found == evaluated(run_dir, pictures)
    assert len(set(found.values())) == 4
    for task, accuracy in zip(
        record(run_dir)["tasks"], record(run_dir)["accuracy_matrix"][-1], strict=True
    ):
        names = {record(run_dir)["class_names"][label] for label in task["classes"]}
        right = [
            path.parent.name == name for path, name in found.items() if path.parent.name in names
        ]
        assert sum(right) / len(right) == accuracy


@pytest.mark.parametrize(
    "overrides",
    [
        ["method=hide", "method.length=2", "trainer.precision=bfloat16"],
        ["method=full_finetune", "trainer.precision=float64"],
        [
            "method=smope_plus",
            "method.width=50",
            "stream.eval_crop=0.7",
            "backbone.pixel_statistics=none",
        ],
    ],
    ids=["hide", "full_finetune", "smope_plus"],
)
def test_so_it_is_for_other_methods_and_precisions(
    overrides: list[str], pictures: Path, tmp_path: Path
) -> None:
    words = [
        *SMALL[:-1],
        *overrides,
        f"stream.root={pictures.parent}",
        f"run_dir={tmp_path / 'run'}",
    ]
    assert main(["train", *words]) == 0
    found = predicted(smope.load(tmp_path / "run"), pictures)
    assert found == evaluated(tmp_path / "run", pictures)
    assert len(set(found.values())) > 1


def test_the_file_alone_is_enough(
    classifier: Classifier, run_dir: Path, pictures: Path, tmp_path: Path
) -> None:
    file = Path(shutil.copy(run_dir / "model.safetensors", tmp_path / "fish.safetensors"))
    assert predicted(smope.load(file), pictures) == predicted(classifier, pictures)


def test_a_run_without_the_file_is_read_from_its_checkpoint(
    classifier: Classifier, run_dir: Path, pictures: Path, tmp_path: Path
) -> None:
    old = Path(shutil.copytree(run_dir, tmp_path / "old"))
    (old / "model.safetensors").unlink()
    images = torch.rand(4, 3, 16, 16)
    assert torch.equal(smope.load(old)(images), classifier(images))
    assert not (old / "model.safetensors").exists()


def test_logits_are_of_the_classes_seen(classifier: Classifier) -> None:
    logits = classifier(torch.rand(2, 3, 16, 16, dtype=torch.float64))
    assert logits.shape == (2, len(classifier.class_names)) == (2, 4)
    assert logits.dtype == torch.float32
    assert not logits.requires_grad
    assert classifier(torch.rand(0, 3, 16, 16)).shape == (0, 4)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            torch.rand(3, 16, 16),
            r"images must be \(B, 3, 16, 16\), got \(3, 16, 16\); or use predict",
        ),
        (torch.rand(1, 3, 8, 8), r"got \(1, 3, 8, 8\)"),
        (
            255 * torch.ones(1, 3, 16, 16),
            r"images must be numbers in \[0, 1\]; divide bytes by 255",
        ),
        (torch.ones(1, 3, 16, 16, dtype=torch.uint8), r"numbers in \[0, 1\]"),
        (torch.full((1, 3, 16, 16), float("nan")), r"numbers in \[0, 1\]"),
    ],
)
def test_other_tensors_are_refused(images: Tensor, message: str, classifier: Classifier) -> None:
    with pytest.raises(ValueError, match=message):
        classifier(images)


def test_probabilities_are_the_softmax_best_first(classifier: Classifier, pictures: Path) -> None:
    file = next(pictures.rglob("*.png"))
    (found,) = classifier.predict(str(file), top=4)
    assert found.path == file
    assert (found.class_name, found.probability) == found.top[0]
    assert {name for name, _ in found.top} == set(classifier.class_names)
    shares = [share for _, share in found.top]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1)


def test_pictures_are_read_as_their_files_are(
    classifier: Classifier, pictures: Path, tmp_path: Path
) -> None:
    """Turned by their EXIF orientation, transparency over white."""
    file = next(pictures.rglob("*.png"))
    picture = Image.open(file).convert("RGBA")
    picture.putalpha(120)
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.png", exif=exif)
    whole = Image.open(tmp_path / "turned.png")
    images = [tmp_path / "turned.png", whole, decode(tmp_path / "turned.png"), file]
    turned, *same, plain = classifier.predict(images, top=4, batch_size=1)
    assert [found.top for found in same] == 2 * [turned.top] != 2 * [plain.top]
    assert [found.path for found in (turned, *same)] == [tmp_path / "turned.png", None, None]


def as_tensor(array: numpy.ndarray) -> Tensor:
    return torch.from_numpy(array.copy()).movedim(-1, -3)


@pytest.mark.parametrize(
    "convert",
    [
        lambda array: array,
        lambda array: array.astype(numpy.float32) / 255,
        lambda array: array / 255,
        as_tensor,
        lambda array: as_tensor(array).float() / 255,
        lambda array: array[None],
        lambda array: as_tensor(array)[None],
        lambda array: [array, array],
        lambda array: numpy.stack([array, array]),
        lambda array: torch.stack([as_tensor(array)] * 2).double() / 255,
        lambda array: iter([Image.fromarray(array)]),
    ],
)
def test_arrays_and_tensors_are_read_as_files_are(
    convert: Callable[[numpy.ndarray], Any], classifier: Classifier, pictures: Path
) -> None:
    file = next(pictures.rglob("*.png"))
    array = numpy.asarray(Image.open(file).convert("RGB"))
    (of_file,) = classifier.predict(file, top=4)
    predictions = list(classifier.predict(convert(array), top=4, batch_size=1))
    assert predictions
    for prediction in predictions:
        assert (prediction.top, prediction.path) == (of_file.top, None)


def test_a_folder_is_its_images_and_bytes_are_a_file(
    classifier: Classifier, pictures: Path
) -> None:
    files = sorted(pictures.rglob("*.png"))
    for folder in (pictures, str(pictures), [pictures]):
        assert [found.path for found in classifier.predict(folder)] == files
    (of_bytes,) = classifier.predict(files[0].read_bytes(), top=4)
    (of_file,) = classifier.predict(files[0], top=4)
    assert (of_bytes.top, of_bytes.path) == (of_file.top, None)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (numpy.full((8, 8, 3), 255.0), r"got float64 of 255\.0 to 255\.0; divide bytes by 255"),
        (torch.full((3, 8, 8), 2.0), r"pixels must be uint8 in 0\.\.255 or floats in \[0, 1\]"),
        (torch.full((3, 8, 8), float("nan")), r"or floats in \[0, 1\], got float32 of nan"),
        (numpy.zeros((2, 8, 8, 3)) - [[[[1]]], [[[0]]]], r"got float64 of -1\.0 to 0\.0"),
        (numpy.zeros((8, 8, 3), int), r"got int64 of 0 to 0"),
        (numpy.zeros((3, 8, 8), numpy.uint8), r"arrays must be .* got \(3, 8, 8\); transpose"),
        (numpy.zeros((0, 8, 3), numpy.uint8), r"arrays must be .* got \(0, 8, 3\)"),
        (numpy.zeros(8, numpy.uint8), r"arrays must be .* got \(8,\)"),
        (torch.zeros(8, 8, 3), r"tensors must be \(3, H, W\) .* got \(8, 8, 3\); permute"),
        ([(torch.zeros(3, 8, 8), 1)], r"images must be paths, .* got tuple; give for example"),
        ([None], r"images must be paths, folders, .* got NoneType"),
    ],
)
def test_what_has_no_known_range_or_shape_is_refused(
    images: Any, message: str, classifier: Classifier
) -> None:
    with pytest.raises(UserError, match=message):
        list(classifier.predict(images))


def test_a_range_is_that_of_the_batch(classifier: Classifier) -> None:
    """A nearly black image of bytes as floats must not pass because it holds 0 and 1 alone."""
    dark, bright = numpy.ones((8, 8, 3)), numpy.full((8, 8, 3), 200.0)
    with pytest.raises(UserError, match=r"got float64 of 1\.0 to 200\.0"):
        list(classifier.predict(numpy.stack([dark, bright])))


def test_below_the_lowest_probability_an_image_is_unknown(
    classifier: Classifier, pictures: Path
) -> None:
    files = sorted(pictures.rglob("*.png"))
    plain = list(classifier.predict(files, top=2))
    assert not any(prediction.is_unknown for prediction in plain)
    limit = sorted(prediction.probability for prediction in plain)[len(plain) // 2]
    judged = list(classifier.predict(files, top=2, min_probability=limit))
    assert [prediction.top for prediction in judged] == [prediction.top for prediction in plain]
    for prediction in judged:
        assert prediction.is_unknown == (prediction.probability < limit)
        best = prediction.top[0].class_name
        assert prediction.class_name == ("unknown" if prediction.is_unknown else best)
    assert {prediction.is_unknown for prediction in judged} == {True, False}
    for wrong in (-0.1, 80, float("nan")):
        with pytest.raises(UserError, match=r"min_probability must be in 0\.\.1, got"):
            classifier.predict(files, min_probability=wrong)


def test_the_unknown_score_is_the_largest_logit_reversed(
    classifier: Classifier, pictures: Path
) -> None:
    files = sorted(pictures.rglob("*.png"))[:5]
    pixels = [classifier._prepare(file) for file in files]
    assert all(isinstance(image, Tensor) for image in pixels)
    expected = -classifier(torch.stack(pixels)).amax(-1)  # pyright: ignore
    scores = [prediction.unknown_score for prediction in classifier.predict(files)]
    assert scores == pytest.approx(expected.tolist(), abs=1e-5)


def test_the_run_may_be_named_by_its_folder(
    classifier: Classifier, run_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(smope.load(run_dir.parent)(images), classifier(images))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").symlink_to(run_dir.parent)
    assert torch.equal(smope.load("latest")(images), classifier(images))


def test_a_broken_image_ends_it_or_is_left_out(
    classifier: Classifier, pictures: Path, tmp_path: Path
) -> None:
    good, bad = sorted(pictures.rglob("*.png"))[:2], tmp_path / "bad.png"
    bad.write_text("no image")
    with pytest.raises(UserError, match=r"cannot read image .*bad\.png: not a known image format"):
        list(classifier.predict([good[0], bad, good[1]]))
    told: list[UserError] = []
    found = classifier.predict(
        [good[0], bad, good[1], tmp_path / "gone.png"], batch_size=1, on_broken=told.append
    )
    assert [prediction.path for prediction in found] == good
    assert [str(error).partition(": ")[0] for error in told] == [
        f"cannot read image {bad}", f"cannot read image {tmp_path / 'gone.png'}"
    ]  # fmt: skip


def test_how_many_guesses_there_can_be(classifier: Classifier) -> None:
    for top in (0, 5):
        with pytest.raises(
            UserError,
            match=rf"top must be in 1\.\.4, for as many classes have been seen, got {top}",
        ):
            classifier.predict([], top=top)
    with pytest.raises(UserError, match="batch_size must be at least 1, got 0"):
        classifier.predict([], batch_size=0)
    assert list(classifier.predict([])) == []


def test_loading_draws_no_random_number_and_changes_none(run_dir: Path) -> None:
    torch.manual_seed(5)
    numpy.random.seed(5)
    expected = torch.rand(3), numpy.random.rand(3)
    torch.manual_seed(5)
    numpy.random.seed(5)
    smope.load(run_dir)
    assert torch.equal(torch.rand(3), expected[0])
    assert numpy.array_equal(numpy.random.rand(3), expected[1])


@pytest.fixture(scope="module")
def stopped(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run stopped in its second task."""
    path = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        end_task: Callable[..., None] = SMoPE.end_task

        def stop(self: SMoPE, task: Any, batches: Any) -> None:
            if task.index == 1:
                raise KeyboardInterrupt
            end_task(self, task, batches)

        patch.setattr(SMoPE, "end_task", stop)
        assert main(["train", *SMALL, f"stream.root={pictures.parent}", f"run_dir={path}"]) == 130
    return path


def test_classes_to_come_are_never_told(stopped: Path, pictures: Path) -> None:
    """Their rows of the classifier have the highest logits, and nobody learns of it."""
    found = smope.load(stopped)
    seen = [
        record(stopped)["class_names"][label] for label in record(stopped)["tasks"][0]["classes"]
    ]
    assert list(found.class_names) == seen
    with torch.no_grad():
        found.method.classifier.bias[2:] = 1e6
    assert set(predicted(found, pictures).values()) <= set(seen)


def test_resumed_at_a_boundary_the_file_is_there_again(stopped: Path, tmp_path: Path) -> None:
    """After a kill between checkpoint and file the run continues from the checkpoint, and writes
    it first.
    """
    again = Path(shutil.copytree(stopped, tmp_path / "run"))
    for path in (again / "checkpoints").iterdir():
        if not path.stem.endswith("-00000000"):
            path.unlink()
    expected = content_hash(again / "model.safetensors")
    (again / "model.safetensors").write_bytes(b"of an earlier task")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_learn", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(["train", f"resume={again}"]) == 130
    assert content_hash(again / "model.safetensors") == expected


def test_weights_may_be_elsewhere_and_must_be_the_same(
    classifier: Classifier, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = Path(shutil.copy(EMBEDDED, tmp_path / "vit.safetensors"))
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(smope.load(run_dir, weights=moved)(images), classifier(images))
    content = bytearray(moved.read_bytes())
    content[-1] ^= 1
    moved.write_bytes(content)
    wanted, found = file_sha256(EMBEDDED)[:12], file_sha256(moved)[:12]
    with pytest.raises(
        UserError,
        match=rf"weights={moved}: is not what the model was trained on \(sha256 {found}, wanted "
        rf"{wanted}\); give the "
        "file of vit_tiny_patch16_224 that the run read from embedded",
    ):
        smope.load(run_dir, weights=str(moved))
    with pytest.raises(UserError, match=r"^weights=nowhere: no such file or folder"):
        smope.load(run_dir, weights="nowhere")


def test_weights_that_are_gone_can_be_named(pictures: Path, tmp_path: Path) -> None:
    file = Path(shutil.copy(EMBEDDED, tmp_path / "vit.safetensors"))
    words = [
        *SMALL,
        f"stream.root={pictures.parent}",
        f"run_dir={tmp_path / 'run'}",
        f"backbone.weights={file}",
    ]
    assert main(["train", *words]) == 0
    file.rename(tmp_path / "moved.safetensors")
    with pytest.raises(
        UserError,
        match=r"backbone\.weights=.*vit\.safetensors: no such.*with weights=FILE \(--weights",
    ):
        smope.load(tmp_path / "run")
    assert smope.load(tmp_path / "run", weights=str(tmp_path / "moved.safetensors")).class_names


def test_weights_that_were_drawn_are_in_no_file(pictures: Path, tmp_path: Path) -> None:
    words = [
        *SMALL,
        f"stream.root={pictures.parent}",
        f"run_dir={tmp_path / 'run'}",
        "backbone.weights=random",
    ]
    assert main(["train", *words]) == 0
    with pytest.raises(
        UserError,
        match="weights=random: these were drawn for the run and are in no file; train on ot",
    ):
        smope.load(tmp_path / "run")


def test_devices(run_dir: Path) -> None:
    with pytest.raises(
        UserError,
        match="device must be auto, cpu, cuda, cuda:N or mps, got gpu; leave it out for au",
    ):
        smope.load(run_dir, device="gpu")
    missing = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(
        UserError,
        match=f"device={missing}: this machine has no such device; use device=auto or cpu",
    ):
        smope.load(run_dir, device=missing)


def test_float16_is_for_cuda(classifier: Classifier) -> None:
    artefact = predict.Artefact(**{**vars(classifier.artefact), "precision": "float16"})
    assert predict._precision(artefact, torch.device("cpu")) == "float32"
    assert predict._precision(artefact, torch.device("cuda")) == "float16"
