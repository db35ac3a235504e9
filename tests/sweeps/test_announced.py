"""Signals by which a cluster announces the end of a job: kept until the run is saved, then
answered.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from smope.sweeps import task
from smope.sweeps.task import Announced


@pytest.fixture
def answered() -> Iterator[list[int]]:
    """What a launcher's own handler was given, as submitit's is there before a job begins."""
    numbers: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda number, _: numbers.append(number))
    yield numbers
    for number, handler in before.items():
        signal.signal(number, handler)


def test_queueing_again_waits_for_the_run(answered: list[int]) -> None:
    with Announced(active=True) as announced:
        assert announced.number is None
        signal.raise_signal(signal.SIGUSR2)
        signal.raise_signal(signal.SIGTERM)  # Slurm sends it soon after
        assert announced.number == signal.SIGUSR2 and not answered
        announced.answer()
    assert answered == [signal.SIGUSR2]


def test_termination_alone_queues_nothing(
    answered: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with Announced(active=True) as announced:
        signal.raise_signal(signal.SIGTERM)
        announced.answer()
    assert announced.number == signal.SIGTERM and not answered


def test_on_slurm_it_waits_for_what_comes(
    answered: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Termination, the run saved, and then the order to queue again: answered."""
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            signal.raise_signal(signal.SIGUSR2)

    monkeypatch.setattr(task.time, "sleep", sleep)
    with Announced(active=True) as announced:
        signal.raise_signal(signal.SIGTERM)
        announced.answer()
    assert len(waited) == 3 and answered == [signal.SIGUSR2]


def test_elsewhere_signals_are_nobodys_business(answered: list[int]) -> None:
    with Announced(active=False) as announced:
        signal.raise_signal(signal.SIGUSR2)
        announced.answer()
    assert announced.number is None and answered == [signal.SIGUSR2]
