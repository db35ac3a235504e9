"""SMoPE: sparse mixture of prompt experts for continual learning with frozen vision transformers.

    import smope
    record = smope.train("stream=digits", "method=smope", "run_dir=first_run")
    record["final_average_accuracy"]
    classifier = smope.load("first_run")
    learner = smope.SMoPE(backbone="vit_base_patch16_224.augreg_in21k", num_classes=100)

`train` does what the command does, `load` classifies with what it has learned. The methods, such as
`SMoPE`, are modules for a training loop of your own: see `smope.Learner`. In Avalanche, use
`smope.avalanche.MethodStrategy`.

Importing this package imports no torch. Its parts are in smope.methods, smope.routers,
smope.streams and so on.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smope.version import __version__

if TYPE_CHECKING:
    from smope.loops.learner import Learner
    from smope.loops.methods import (
        EASE,
        L2P,
        OVOR,
        RSIAT,
        SLCA,
        SLDC,
        TUNA,
        AnaCP,
        CODAPrompt,
        DeepL2P,
        DualPrompt,
        FeCAM,
        Finetune,
        FullFinetune,
        HiDePrompt,
        InfLoRA,
        Joint,
        KernelLDA,
        LayUP,
        LinearProbe,
        MiN,
        NearestClassMean,
        NoRGa,
        RanPAC,
        RegularisedGDA,
        Ridge,
        SMoPE,
        SMoPEPlus,
        StreamingLDA,
        VQPrompt,
    )
    from smope.serving.predict import Classifier
    from smope.training.settings import TrainerSettings

__all__ = [
    "EASE",
    "L2P",
    "OVOR",
    "RSIAT",
    "SLCA",
    "SLDC",
    "TUNA",
    "AnaCP",
    "CODAPrompt",
    "DeepL2P",
    "DualPrompt",
    "FeCAM",
    "Finetune",
    "FullFinetune",
    "HiDePrompt",
    "InfLoRA",
    "Joint",
    "KernelLDA",
    "LayUP",
    "Learner",
    "LinearProbe",
    "MiN",
    "NearestClassMean",
    "NoRGa",
    "RanPAC",
    "RegularisedGDA",
    "Ridge",
    "SMoPE",
    "SMoPEPlus",
    "StreamingLDA",
    "TrainerSettings",
    "VQPrompt",
    "__version__",
    "load",
    "train",
]

_MODULES = {"Learner": "smope.loops.learner", "TrainerSettings": "smope.training.settings"}


def __getattr__(name: str) -> Any:
    """What imports torch or Avalanche is imported when it is used first."""
    if name == "avalanche":
        return import_module("smope.avalanche")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES.get(name, "smope.loops.methods")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def train(*overrides: str) -> dict[str, Any]:
    """Do what `smope train key=value ...` does.

    Returns the content of the run's run.json; scores are fractions. Raises smope.errors.UserError
    for a wrong key, value or combination, before anything is trained or written.
    """
    from smope.config.overrides import read_overrides
    from smope.run.plan import plan
    from smope.run.train import train as run
    from smope.storage.launch import launched_by

    config, run_dir, resume = plan(read_overrides(overrides))
    with launched_by(f"smope.train({', '.join(map(repr, overrides))})"):
        return run(config, run_dir, resume=resume)


def load(path: Path | str, device: str = "auto", weights: Path | str | None = None) -> Classifier:
    """Load a trained model that classifies images. The data set of the run is not needed.

    Args:
        path: the run directory, its model.safetensors, or hf://OWNER/NAME on the Hugging Face Hub.
            Of a folder with several runs, the latest finished one is loaded, and `latest` is that
            of runs/.
        device: auto, cpu, cuda, cuda:N or mps.
        weights: the file of the backbone's weights, or its folder; None: where the run found them.
            Their sha256 is checked.

    Returns:
        The classifier.

    Raises:
        UserError: a file is missing or does not fit; it is a ValueError, from smope.errors.
    """
    from smope.serving import predict

    return predict.load(path, device, weights)
