"""`smope pack RUN`: write the model of a run to a file, for classifying or for learning more."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from smope.cli.chosen_run import chosen_model
from smope.cli.parser import Parser
from smope.run.quick_import import quick_imports
from smope.storage.files import check_new_file

EPILOG = """\
Without --learnable the file holds what classifying images needs and no more. With it, it also holds
what learning more classes needs (class statistics, sums, old keys and the settings of training):
`smope learn` and `smope forget` take such a file. Both sizes are printed.

A learnable file can be made of a run whose last checkpoint is there, or of a learnable model.

examples:
  smope pack latest --learnable --out model-learnable.safetensors   of a run trained without
                                                     trainer.keep=learnable
  smope pack model-v2.safetensors --out small.safetensors           for a device that only
                                                     classifies"""


def run(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    out = options.out
    check_new_file(out, "--out")
    source = chosen_model(options.run, "RUN")

    with quick_imports():
        from smope.run.artefact import read_model, write_artefact
        from smope.serving.packing import for_inference, learnable_model, size

    if options.learnable:
        artefact = learnable_model(source)
        other = f"to classify alone it needs {size(for_inference(artefact))}"
    else:
        whole = read_model(source)
        artefact = for_inference(whole)
        other = f"was {size(whole)}"
    write_artefact(artefact, out)
    print(f"{out}: {size(artefact)}, {other}")
    return 0


def _parser() -> Parser:
    parser = Parser("smope pack", "Write the model of a run to a file of its own.", EPILOG)
    parser.add_argument(
        "run",
        metavar="RUN",
        help="a run directory, a model.safetensors, latest, or hf://OWNER/NAME",
    )
    parser.add_argument(
        "--learnable", action="store_true", help="with what learning more classes needs"
    )
    parser.add_argument(
        "--out", metavar="FILE", type=Path, required=True, help="the file to write; a new one"
    )
    return parser
