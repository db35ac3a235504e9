"""Signals: answered between steps, at once elsewhere, once; and every handler is put back."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from smope.training.interruption import SIGNALS, Interrupted, Interruption


@pytest.fixture(autouse=True)
def quiet_handlers() -> Iterator[None]:
    """Handlers that a test may meet with, and the old ones afterwards."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


def watched(during: Callable[[Interruption], object]) -> None:
    interruption = Interruption()
    with interruption.watching():
        during(interruption)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_raised_at_once_outside_a_step(number: int, code: int) -> None:
    with pytest.raises(Interrupted) as caught:
        watched(lambda _: [signal.raise_signal(number), pytest.fail("went on")])
    assert caught.value.exit_code == code
    assert isinstance(caught.value, KeyboardInterrupt)


def test_raised_after_the_step(capfd: pytest.CaptureFixture[str]) -> None:
    done = []

    def train(interruption: Interruption) -> None:
        for step in range(5):
            with interruption.held():
                if step == 2:
                    signal.raise_signal(signal.SIGTERM)
                done.append(step)

    with pytest.raises(Interrupted):
        watched(train)
    assert done == [0, 1, 2]
    assert (
        capfd.readouterr().err.strip() == "stopping after this step; a second signal stops at once"
    )


def test_raised_once() -> None:
    """What is saved afterwards is saved whole."""
    done = []

    def train(interruption: Interruption) -> None:
        with pytest.raises(Interrupted), interruption.held():
            signal.raise_signal(signal.SIGINT)
        with interruption.held():
            done.append("saved")

    watched(train)
    assert done == ["saved"]


def test_the_second_one_is_answered_as_ever() -> None:
    before = signal.getsignal(signal.SIGINT)

    def train(interruption: Interruption) -> None:
        with interruption.held():
            signal.raise_signal(signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) == before
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        watched(train)
    assert not isinstance(caught.value, Interrupted)


def test_an_error_in_a_step_comes_first() -> None:
    def train(interruption: Interruption) -> None:
        with interruption.held():
            signal.raise_signal(signal.SIGTERM)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        watched(train)


def test_what_is_ignored_stays_ignored() -> None:
    """As under nohup, or in the background of a script."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruption().watching():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_the_main_thread_nothing_is_touched() -> None:
    handlers = []

    def watch() -> None:
        with Interruption().watching():
            handlers.extend(signal.getsignal(number) for number in SIGNALS)

    thread = threading.Thread(target=watch)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(number) for number in SIGNALS]
