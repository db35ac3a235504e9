"""A stream needs few of Avalanche's parts; whoever asks for more gets Avalanche as it always is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import smope

STREAM = """
import sys
import numpy, torch
from smope.streams.source import ImageSet, Source
from smope.streams.stream import build_stream

images = ImageSet([0, 1], [numpy.zeros((2, 2, 3), numpy.uint8)] * 2)
state = torch.random.get_rng_state()
stream = build_stream(Source("numbers", ("a", "b"), images, images), image_size=32, seed=0,
                      num_tasks=2, crop_scale=None, flip=False, eval_crop=1.0)
"""
FEW = """
unneeded = {"avalanche.training", "avalanche.evaluation", "avalanche.models", "torchmetrics",
            "scipy", "matplotlib", "gdown", "wandb", "tensorboard", "sklearn", "pandas"}
assert not unneeded & set(sys.modules), unneeded & set(sys.modules)
assert "avalanche.benchmarks.scenarios" in sys.modules
"""
WHOLE = """
import avalanche, avalanche.benchmarks, avalanche.training, torch.utils.data
assert type(avalanche) is type(avalanche.benchmarks) is type(sys)
assert avalanche.__version__ and avalanche.benchmarks.SplitMNIST and avalanche.evaluation
assert torch.utils.data.Dataset.__add__ is avalanche._avdataset_radd
assert avalanche.training is sys.modules["avalanche.training"]
assert avalanche.training.__spec__.loader.get_filename() == avalanche.training.__file__
from avalanche.benchmarks import CLScenario
assert type(stream.benchmark) is CLScenario
assert torch.equal(torch.random.get_rng_state(), state)
"""
TRAIN = """
from avalanche.training.supervised import Naive
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 2))
state = None
strategy = Naive(model=model, optimizer=torch.optim.SGD(model.parameters(), 0.1),
                 criterion=torch.nn.CrossEntropyLoss(), evaluator=None)
for experience in stream.benchmark.train_stream:
    strategy.train(experience)
"""


def run(program: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(smope.__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    quiet = not program.startswith("import avalanche")
    assert not (quiet and "QP solver" in done.stdout + done.stderr)


def test_a_stream_imports_few_parts() -> None:
    run(STREAM + FEW)


@pytest.mark.parametrize(
    "ask",
    [
        "from avalanche.training.supervised import Naive",
        "from avalanche.benchmarks import *; SplitMNIST",
        *(
            pytest.param(ask, marks=pytest.mark.slow)
            for ask in (
                "import avalanche.training",
                "from avalanche.benchmarks import SplitMNIST",
                "import avalanche; avalanche.__version__",
                "from avalanche import evaluation",
            )
        ),
    ],
)
def test_the_rest_comes_when_it_is_wanted(ask: str) -> None:
    run(f"{STREAM}\n{FEW}\n{ask}\n{WHOLE}")


def test_a_strategy_trains_on_the_stream() -> None:
    run(STREAM + TRAIN)


def test_avalanche_may_be_imported_first() -> None:
    run(f"import avalanche\n{STREAM}\n{WHOLE}")
