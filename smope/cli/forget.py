"""`smope forget MODEL CLASS ...`: withdraw classes from a model, or undo its last lesson."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from smope.cli.chosen_run import check_folder, check_out, chosen_model
from smope.cli.learn import print_other_versions, written_line
from smope.cli.parser import Parser
from smope.errors import UserError
from smope.run.quick_import import quick_imports
from smope.storage.files import check_new_file
from smope.storage.run_directory import model_file
from smope.training.device_presence import refuse_absent_device

EPILOG = """\
The classes are predicted no more: their logits, rows and statistics are removed, and their names
from the record of what was learned. With --images, those that they were learned from, a method with
sums that all classes share (such as ridge, slda, ranpac and smope_plus) is afterwards as if it had
never seen them. What remains otherwise is printed.

MODEL is not changed: the new model is written to a file of its own, by default the next version
beside it. MODEL itself still knows the classes: delete it where they must be forgotten.

--undo writes the model before the last `smope learn` again. It is read from its own file, which has
to be there: beside MODEL, or where --parent says; its hash is checked.

examples:
  smope forget model-v2.safetensors otter                     otter is predicted no more
  smope forget latest ann bob --images photos                 and their images leave the sums
  smope forget model-v2.safetensors --undo                    as before the last smope learn"""


def run(argv: Sequence[str]) -> int:
    options = _parser().parse_intermixed_args(argv)
    _check(options)
    refuse_absent_device(options.device, "--device")
    check_out(options.out, options.model)
    if options.out is not None:
        check_new_file(options.out, "--out")
    source = chosen_model(options.model)
    check_folder(source, options.out)
    return _undo(source, options) if options.undo else _forget(source, options)


def _forget(source: Path, options: Namespace) -> int:
    from smope.serving.class_folders import class_folders

    images = None
    if options.images is not None:
        images = class_folders(options.images, "--images")
    with quick_imports():
        from smope.run.artefact import read_model
        from smope.serving.forgetting import forget
        from smope.serving.versions import write_version
        from smope.serving.weights_beside import weights_now
        from smope.training.device import resolve_device

    artefact = read_model(source)
    device = resolve_device(options.device, "--device")
    weights = weights_now(source, artefact.backbone.get("weights"), options.weights)
    smaller, notes = forget(artefact, options.classes, device, weights, images)
    written = write_version(smaller, model_file(source), options.out)
    print("\n".join([f"forgotten: {', '.join(dict.fromkeys(options.classes))}", *notes]))
    print(written_line(written))
    print(f"{model_file(source)} still knows them: delete it where they must be forgotten")
    if options.out is None:
        print_other_versions(model_file(source), written)
    return 0


def _undo(source: Path, options: Namespace) -> int:
    with quick_imports():
        from smope.run.artefact import read_model
        from smope.serving.lineage import before_last_lesson
        from smope.serving.versions import write_version

    artefact = read_model(source)
    parent = before_last_lesson(artefact, options.parent)
    lesson = artefact.lineage[-1]["classes"]
    written = write_version(parent, model_file(source), options.out)
    print(f"undone: the lesson of {', '.join(lesson)}")
    print(written_line(written))
    return 0


def _parser() -> Parser:
    parser = Parser(
        "smope forget", "Withdraw classes from a trained model, or undo its last lesson.", EPILOG
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a model.safetensors, a run directory, latest, or hf://OWNER/NAME",
    )
    parser.add_argument("classes", metavar="CLASS", nargs="*", help="what is forgotten")
    parser.add_argument(
        "--images",
        metavar="DIR",
        type=Path,
        help="the images that the classes were learned from, in class folders",
    )
    parser.add_argument("--out", metavar="FILE", type=Path, help="the file to write; a new one")
    parser.add_argument("--undo", action="store_true", help="undo the last smope learn")
    parser.add_argument(
        "--parent", metavar="FILE", type=Path, help="the model before, for --undo (default: beside)"
    )
    parser.add_device()
    parser.add_weights()
    return parser


def _check(options: Namespace) -> None:
    """UserError for options that do not go together."""
    if options.undo and (options.classes or options.images):
        raise UserError(
            "--undo takes back the last smope learn as a whole; name no CLASS, no --images"
        )
    if options.parent and not options.undo:
        raise UserError("--parent is for --undo; leave it out")
    if not options.undo and not options.classes:
        raise UserError("CLASS: name the classes to forget, or write --undo")
