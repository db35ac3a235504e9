"""SMoPE: sparse mixture of prompt experts for continual learning with frozen vision transformers.

    import smope
    record = smope.train("stream=digits", "method=smope", "run_dir=first_run")
    record["final_average_accuracy"]

Importing this package imports no torch; the parts are in smope.methods, smope.routers, smope.streams and so on.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "train"]


def train(*overrides: str) -> dict[str, Any]:
    """Do what `smope train key=value ...` does, from Python; returns the content of the run's run.json.

    Scores are fractions. smope.errors.UserError, before anything is trained or written, for what cannot work.
    """
    from smope import session
    from smope.commands.train import plan
    from smope.compose import read_overrides

    config, run_dir, resume = plan(read_overrides(overrides))
    return session.train(config, run_dir, resume=resume)
