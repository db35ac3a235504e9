"""`smope import authors CLASS_PTH --config FILE`: a model of the authors' code."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from smope.cli.parser import Parser
from smope.config.config import Config, validate
from smope.errors import UserError
from smope.run.quick_import import quick_imports

EPILOG = """\
CLASS_PTH is what the authors' code (github.com/Minhchuyentoancbn/SMoPE) writes after each task.
It holds experts, classifier and the frozen ViT, but neither names of classes nor settings.

FILE is a configuration: what `smope train ... --cfg job` prints, or the config.yaml of a run. It
says the architecture and pixel statistics of the backbone, the number of experts and of tasks.

DIR gets model.safetensors, backbone.safetensors and model_card.md. `smope export MODEL --format
authors` is the way back.

example:
  smope train benchmark=cifar100 stream.root=cifar100 --cfg job > cifar100.yaml
  smope import authors class.pth --config cifar100.yaml --classes names.txt --out authors
  smope predict authors/model.safetensors photo.jpg"""


def run(argv: Sequence[str]) -> int:
    """Read the file, and write a model."""
    options = _parser().parse_args(argv)
    config = _config(options.config)
    if not options.class_pth.is_file():
        raise UserError(f"CLASS_PTH={options.class_pth}: no such file; give a class.pth")
    names = _names(options)
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise UserError(f"--out={options.out}: exists; name a new folder, or an empty one")

    with quick_imports():
        from smope.serving.authors import import_authors, read_authors

    checkpoint = read_authors(options.class_pth)
    classes = len(checkpoint.classifier[1])
    if names is not None and len(names) > classes:
        raise UserError(f"--classes={options.classes}: {len(names)} names, and {classes} classes")
    artefact = import_authors(checkpoint, config, options.out, names, options.tasks)
    print(f"{options.out / 'model.safetensors'}: {len(artefact.class_names)} classes")
    if names is None:
        print("classes have numbers, in the order of learning: give their names with --classes")
    return 0


def _parser() -> Parser:
    parser = Parser("smope import", "Make a model of one that another program trained.", EPILOG)
    parser.add_argument("program", choices=["authors"], help="which program")
    parser.add_argument("class_pth", metavar="CLASS_PTH", type=Path, help="the class.pth of a task")
    parser.add_argument(
        "--config", metavar="FILE", type=Path, required=True, help="a configuration (YAML)"
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, required=True, help="a new folder for the model"
    )
    parser.add_argument(
        "--classes",
        metavar="FILE",
        type=Path,
        help="names of the classes learned so far, one a line, in the order of learning",
    )
    parser.add_argument("--tasks", metavar="N", type=int, help="tasks learned (default: all)")
    return parser


def _config(path: Path) -> Config:
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(
            f"--config={path}: cannot be read ({str(error).splitlines()[0]}); give what `smope "
            "train ... --cfg job` prints"
        ) from error
    if not isinstance(data, dict):
        raise UserError(f"--config={path}: holds no keys; give what `smope train --cfg job` prints")
    return validate(data)


def _names(options: Namespace) -> list[str] | None:
    if options.classes is None:
        return None
    try:
        names = options.classes.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--classes={options.classes}: cannot be read; give a text file") from error
    names = [name.strip() for name in names if name.strip()]
    if not names or len(set(names)) < len(names):
        raise UserError(f"--classes={options.classes}: must hold different names, one a line")
    return names
