"""`smope serve MODEL`: a trained model as a web page and a JSON endpoint."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from smope.cli.chosen_run import check_folder, chosen_model
from smope.cli.parser import Parser, check_min_probability
from smope.errors import UserError
from smope.run.quick_import import quick_imports
from smope.serving.hub import is_hub_reference
from smope.training.device_presence import refuse_absent_device

if TYPE_CHECKING:
    from smope.server.session import Session

PACKAGES = {"starlette": "starlette", "uvicorn": "uvicorn", "python_multipart": "python-multipart"}
DEFAULT_HOST = "127.0.0.1"
DEFAULT_MEGABYTES = 32
EPILOG = """\
The page classifies images that are dropped on it, and shows the experts that each image used (of a
method with experts) and the nearest learned classes (of a learnable model: trainer.keep=learnable
or `smope pack --learnable`). With --learn it also teaches the model a class from a few pictures,
shows what has changed on the same images, and takes the last lesson back. MODEL itself is never
changed: each lesson writes the next version beside it, or into --out, as `smope learn` does.

The server listens to this machine alone, unless --host says otherwise. It has no password: whoever
reaches it can use it. Requests from other web pages are refused. A request may hold 100 images of
50 megapixels each and of --max-upload together; all are decoded as images for training are.

endpoints, described in /openapi.json:
  POST /predict   files `images` -> class, probabilities, experts, nearest classes (?top=K)
  GET  /model     method, classes, versions
  POST /learn     files `images`, `class_name`, `more_images=true` for a class that it knows
  POST /undo      takes the last lesson back

examples:
  smope serve latest                               the latest run's model, at the printed address
  smope serve pets/model.safetensors --learn --out taught
  curl -F images=@photo.jpg http://127.0.0.1:8000/predict"""


def run(argv: Sequence[str]) -> int:
    """Serve until Ctrl-C."""
    options = _parser().parse_intermixed_args(argv)
    _check(options)
    refuse_absent_device(options.device, "--device")
    model = chosen_model(options.model)
    if options.learn:
        check_folder(model, options.out, "--out DIR")
    from smope.server.listen import (
        DEFAULT_PORT,
        address_of,
        is_loopback,
        names_of,
        open_socket,
        serve,
    )

    with open_socket(options.host, options.port) as listening:
        if options.port is None and listening.getsockname()[1] != DEFAULT_PORT:
            print(f"port {DEFAULT_PORT} is in use; another one is taken", file=sys.stderr)
        with quick_imports():
            from smope.server.application import web_application

        session = _session(options, model)
        application = web_application(session, [*names_of(options.host), *options.name])
        if not is_loopback(options.host):
            print(
                f"--host={options.host}: other machines can use the model"
                f"{' and teach it' if options.learn else ''}; there is no password",
                file=sys.stderr,
            )
        line = f"{address_of(listening)} serves {_title(session)}; Ctrl-C stops it"
        with suppress(KeyboardInterrupt):
            serve(application, listening, lambda: print(line, flush=True), session.stop)
        print("stopped", flush=True)
    return 0


def _session(options: Namespace, model: Path) -> Session:
    """The model, loaded."""
    from smope.run.artefact import read_model
    from smope.server.limits import MEGABYTE, Limits
    from smope.server.session import Session
    from smope.serving.packing import learnable_model
    from smope.serving.predict import classifier_of

    artefact = learnable_model(model) if options.learn else read_model(model)
    classifier = classifier_of(artefact, model, options.device, options.weights, remembers=True)
    return Session(
        classifier,
        model,
        Limits(round(options.max_upload * MEGABYTE)),
        teaches=options.learn,
        folder=options.out,
        min_probability=options.min_probability,
    )


def _title(session: Session) -> str:
    """What is served, in a few words."""
    served = session.served
    classes = len(served.artefact.class_names)
    learning = "on" if session.teaches else "off"
    version = served.versions[-1].file
    return f"{version} ({served.method_name}, {classes} classes, learning {learning})"


def _parser() -> Parser:
    parser = Parser("smope serve", "Serve a trained model as a web page and as JSON.", EPILOG)
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a run directory, its model.safetensors, a folder with runs, latest, or "
        "hf://OWNER/NAME",
    )
    parser.add_argument(
        "--host", default=DEFAULT_HOST, help="listen to this address (default: 127.0.0.1)"
    )
    parser.add_argument(
        "--port", metavar="N", type=int, help="default: 8000, or a free one if that is in use"
    )
    parser.add_argument(
        "--name",
        metavar="NAME",
        action="append",
        default=[],
        help="a host name by which browsers reach it, such as that of a proxy in front of it that "
        "passes on the Host header; may be repeated",
    )
    parser.add_argument("--learn", action="store_true", help="let clients teach it classes")
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="where new versions are written (default: beside)"
    )
    parser.add_min_probability()
    parser.add_argument(
        "--max-upload",
        metavar="MB",
        type=float,
        default=DEFAULT_MEGABYTES,
        help=f"megabytes that a request may hold (default: {DEFAULT_MEGABYTES})",
    )
    parser.add_device()
    parser.add_weights()
    return parser


def _check(options: Namespace) -> None:
    """UserError for wrong options, before anything heavy is imported."""
    absent = [name for module, name in PACKAGES.items() if not importlib.util.find_spec(module)]
    if absent:
        raise UserError(
            f'smope serve needs {absent[0]}, which is not installed; pip install "smope[serve]"'
        )
    if options.port is not None and not 0 <= options.port <= 65535:
        raise UserError(f"--port={options.port}: must be in 0..65535; leave it out for 8000")
    for name in options.name:
        if not re.fullmatch(r"[\w.-]+", name):
            raise UserError(
                f"--name={name}: must be a host name alone; write for example --name models.lab"
            )
    check_min_probability(options.min_probability)
    if not 0 < options.max_upload <= 10_000:
        raise UserError(
            f"--max-upload={options.max_upload:g}: must be above 0 and at most 10000 megabytes; "
            f"leave it out for {DEFAULT_MEGABYTES}"
        )
    _check_folder(options)


def _check_folder(options: Namespace) -> None:
    if options.out is not None and not options.learn:
        raise UserError("--out is for what --learn writes; leave it out, or add --learn")
    if options.out is not None and not options.out.is_dir():
        raise UserError(f"--out={options.out}: is not a folder; make it, or name another")
    if options.out is not None and not os.access(options.out, os.W_OK):
        raise UserError(f"--out={options.out}: cannot be written to; name another folder")
    if options.learn and options.out is None and is_hub_reference(options.model):
        raise UserError(
            f"MODEL={options.model}: new versions of a model from the Hub need a folder of yours; "
            "add --out DIR"
        )
