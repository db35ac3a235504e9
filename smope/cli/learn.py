"""`smope learn MODEL NEW_CLASSES_DIR`: teach a trained model more classes."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smope.cli.chosen_run import check_folder, check_out, chosen_model
from smope.cli.parser import Parser
from smope.run.quick_import import quick_imports
from smope.storage.files import check_new_file
from smope.storage.run_directory import model_file
from smope.training.device_presence import refuse_absent_device

if TYPE_CHECKING:
    from smope.run.artefact import Artefact
    from smope.serving.learning import Pupil
    from smope.serving.lessons import Lesson

EPILOG = """\
The model has to be learnable: train with trainer.keep=learnable, or see `smope pack --help`. The
images of before are not needed. The new ones are learned as the next task of the run that made the
model; a method in closed form (such as ncm and ridge, and ranpac and smope_plus after their first
task) takes one pass over them and no training step.

NEW_CLASSES_DIR holds a folder of images for each class, or is itself the folder of one class. Five
images of a class can do. What the old classes lose is measured on the images of --validate, or else
on what the model remembers of its classes.

MODEL is not changed: the new model is written to a file of its own, by default model-v2.safetensors
beside it, and names the model that it came from.

examples:
  smope learn latest new_animals                        the latest run's model, and what it lacks
  smope learn runs/pets/model.safetensors new_animals --validate test --out pets.safetensors
  smope learn model.safetensors photos/otter --dry-run  what would change
  smope learn model.safetensors photos --more-images    also images of classes that it knows"""


def run(argv: Sequence[str]) -> int:
    options = _parser().parse_intermixed_args(argv)
    refuse_absent_device(options.device, "--device")
    if not options.dry_run:
        check_out(options.out, options.model)
    if options.out is not None:
        check_new_file(options.out, "--out")
    source = chosen_model(options.model)
    if not options.dry_run:
        check_folder(source, options.out)
    return _learn(source, options)


def _learn(source: Path, options: Namespace) -> int:
    """Teach the model, unless it is a dry run."""
    from smope.serving.class_folders import class_folders

    folders = class_folders(options.folder, "NEW_CLASSES_DIR")
    validation = None
    if options.validate is not None:
        validation = class_folders(options.validate, "--validate")

    with quick_imports():
        from smope.serving.learning import Pupil
        from smope.serving.lessons import prepare_lesson
        from smope.serving.packing import learnable_model
        from smope.serving.versions import write_version
        from smope.serving.weights_beside import weights_now
        from smope.training.device import resolve_device

    artefact = learnable_model(source)
    lesson = prepare_lesson(
        artefact,
        folders,
        validation,
        more_images=options.more_images,
        broken_images="skip" if options.skip_broken else "error",
    )
    device = resolve_device(options.device, "--device")
    weights = weights_now(source, artefact.backbone.get("weights"), options.weights)
    pupil = Pupil(artefact, lesson, device, weights, quiet=False)
    print("\n".join(_plan_lines(source, artefact, lesson, pupil)))
    if options.dry_run:
        print("nothing was learned or written (--dry-run)")
        return 0
    learned = _learned(pupil)
    written = write_version(learned, model_file(source), options.out)
    print("\n".join(_result_lines(learned.lineage[-1]["accuracy"])))
    print(written_line(written))
    if options.out is None:
        print_other_versions(model_file(source), written)
    return 0


def _learned(pupil: Pupil) -> Artefact:
    try:
        return pupil.learn()
    except KeyboardInterrupt:
        print("nothing was written", file=sys.stderr)
        raise


def _parser() -> Parser:
    parser = Parser(
        "smope learn", "Teach a trained model more classes, without the images of before.", EPILOG
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a model.safetensors, a run directory, latest, or hf://OWNER/NAME",
    )
    parser.add_argument(
        "folder", metavar="NEW_CLASSES_DIR", type=Path, help="a folder of images for each class"
    )
    parser.add_argument("--out", metavar="FILE", type=Path, help="the file to write; a new one")
    parser.add_argument(
        "--validate",
        metavar="DIR",
        type=Path,
        help="images of old and new classes in class folders, to measure what is lost and won",
    )
    parser.add_argument(
        "--more-images",
        action="store_true",
        help="also learn images of classes that the model knows already",
    )
    parser.add_argument(
        "--skip-broken", action="store_true", help="leave out images that cannot be read"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would change")
    parser.add_device()
    parser.add_weights()
    return parser


def written_line(artefact: Artefact) -> str:
    """What was written where."""
    assert artefact.file is not None
    size = artefact.file.path.stat().st_size / 1e6
    return f"{artefact.file.path}: {len(artefact.class_names)} classes, {size:.1f} MB"


def print_other_versions(parent: Path, written: Artefact) -> None:
    """Say which versions of a model are beside the new one and not part of it.

    Args:
        parent: The model that the new one was made of.
        written: The new one.
    """
    from smope.serving.versions import versions_before

    assert written.file is not None
    others = [path.name for path in versions_before(parent, written.file.path)]
    if others:
        print(
            f"it was made of {parent.name} and has nothing of {', '.join(others)}: to add to the "
            "latest, give that as MODEL"
        )


def _plan_lines(source: Path, artefact: Artefact, lesson: Lesson, pupil: Pupil) -> list[str]:
    from smope.serving.class_folders import FEW_IMAGES

    method = type(pupil.trainer.method).__name__
    known = len(artefact.class_names)
    lines = [f"{source}: {method}, {known} classes in {artefact.tasks_done} tasks"]
    counts = lesson.counts
    for title, names in (("new", lesson.new), ("more images of", lesson.known)):
        if names:
            lines.append(f"{title}: {', '.join(f'{name} ({counts[name]})' for name in names)}")
    few = [name for name in lesson.new if counts[name] < FEW_IMAGES]
    if few:
        lines.append(
            f"fewer than {FEW_IMAGES} images, which is often too few to recognise a class: "
            f"{', '.join(few)}"
        )
    how = f"{pupil.steps} training steps" if pupil.steps else "one pass, no training steps"
    images = len(lesson.images)
    lines.append(f"{images} image{'s' if images != 1 else ''}, {how}")
    return [*lines, *pupil.notes]


def _result_lines(accuracy: dict[str, Any]) -> list[str]:
    if not accuracy["measured_on"]:
        return ["what the old classes lose is not known: give images with --validate"]
    lines = []
    if accuracy["old_before"] is not None:
        before, after = (100 * accuracy[key] for key in ("old_before", "old_after"))
        lines.append(f"old classes: {before:.1f} % right before, {after:.1f} % now")
    if accuracy["new"] is not None:
        lines.append(f"new classes: {100 * accuracy['new']:.1f} % right")
    return [*lines, f"measured on {accuracy['measured_on']}"]
