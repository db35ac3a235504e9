"""`smope push MODEL OWNER/NAME`: put a trained model on the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from smope.cli.chosen_run import chosen_model
from smope.cli.parser import Parser
from smope.run.quick_import import quick_imports
from smope.serving.hub import CARD, SCHEME, check_token, repository_id, upload

EPILOG = """\
The repository gets model.safetensors and README.md, the model card: method, backbone and its
licence, classes, scores, how they were measured, and limits. A run directory has the same card as
model_card.md. Nothing else of a run is uploaded: no image, no configuration, no log.

Weights of a frozen backbone are not part of a model. Those from the Hub or from this package are
read from there again; those from a file of yours are uploaded with --with-backbone.

It needs a token of the Hub: `hf auth login`, or HF_TOKEN.

examples:
  smope push latest me/birds --dry-run         what would be uploaded
  smope push latest me/birds --private
  smope predict hf://me/birds photo.jpg        on any machine; in Python smope.load("hf://me/birds")"""


def run(argv: Sequence[str]) -> int:
    """Upload the model, or with --dry-run print what would be uploaded."""
    options = _parser().parse_args(argv)
    repository = repository_id(options.repository, "OWNER/NAME")
    if not options.dry_run:
        check_token()
    model = chosen_model(options.model)

    with quick_imports():
        from smope.run.artefact import read_model
        from smope.serving.push import needs_weights, repository_files

    artefact = read_model(model)
    files = repository_files(
        model, artefact, repository, with_backbone=options.with_backbone, weights=options.weights
    )
    for name, content in files.items():
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        print(f"{name}: {size / 1e6:.2f} MB")
    if not options.with_backbone and needs_weights(artefact):
        print(
            "the backbone's weights are from a file of yours and are not uploaded: add "
            "--with-backbone, or others need that file"
        )
    if options.dry_run:
        card = files[CARD]
        assert isinstance(card, bytes)
        print(f"\n{card.decode()}\nnothing was uploaded (--dry-run)")
        return 0
    print(upload(repository, files, private=options.private))
    print(f'to load it: smope.load("{SCHEME}{repository}")')
    return 0


def _parser() -> Parser:
    parser = Parser("smope push", "Put a trained model on the Hugging Face Hub.", EPILOG)
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a run directory, its model.safetensors, a folder with runs, or latest",
    )
    parser.add_argument("repository", metavar="OWNER/NAME", help="made if it does not exist")
    parser.add_argument("--private", action="store_true", help="a new repository is private")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the files and the card; upload nothing"
    )
    parser.add_argument(
        "--with-backbone",
        action="store_true",
        help="upload weights of the backbone that are from a file of yours; mind their licence",
    )
    parser.add_weights()
    return parser
