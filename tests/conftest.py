"""Shared by all tests: one thread, no services, and the folder of real data where there is one."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from smope.cli.main import main
from smope.streams import digits

# Before torch is first imported, here and in the processes that tests start.
os.environ.update(
    {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "WANDB_MODE": "disabled",
        "HF_HUB_OFFLINE": "1",
    }
)
os.environ.pop("SMOPE_FULL_ERROR", None)
# A shell ignores Ctrl-C in what it starts in the background, and processes that tests start would
# inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def no_cache_of_the_user() -> Iterator[None]:
    """Images that tests decode are cached in a folder of their own, processes that they start
    included.
    """
    before = os.environ.get("XDG_CACHE_HOME")
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", folder)
        yield
    assert os.environ.get("XDG_CACHE_HOME") == before


@pytest.fixture(autouse=True)
def products_of_before() -> Iterator[None]:
    """A command that runs in this process chooses how float32 products are computed, which moves
    the numbers of other tests by rounding.
    """
    import torch

    switch = getattr(torch.backends.mkldnn, "matmul", None)  # since torch 2.9
    before = getattr(switch, "fp32_precision", None)
    yield
    if switch is not None and switch.fp32_precision != before:
        switch.fp32_precision = before


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder named by SMOPE_DATA; tests on real data skip without it."""
    root = os.environ.get("SMOPE_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("SMOPE_DATA names no folder with data")
    return Path(root)


@pytest.fixture(scope="module")
def few_digits() -> Iterator[None]:
    """A quarter of the digits, for modules with many runs on them: in this process alone."""
    read_table = digits.read_table
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "read_table", lambda: read_table()[:450])
        yield


@pytest.fixture
def mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Words of a command line that is a mistake -> the one line that it is answered with; nothing
    is left behind.
    """
    monkeypatch.chdir(tmp_path)

    def answer(*words: str) -> str:
        assert main(words) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert not os.listdir()
        return line

    return answer


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Reports hold text that can be sent to another process: names of files may not be UTF-8."""
    report = yield
    report.sections = [
        (title, text.encode("utf-8", "backslashreplace").decode("utf-8"))
        for title, text in report.sections
    ]
    return report
