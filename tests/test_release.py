"""A release: the version is the same everywhere, and `make release` stops early where it is not."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from smope.version import __version__

ROOT = Path(__file__).parents[1]
NEEDED = (".ci/release", "smope/version.py", "CHANGELOG.md", "CITATION.cff")
SECTIONS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
OF_ONE_VERSION = "Defaults that decide numbers"

in_a_checkout = pytest.mark.skipif(
    shutil.which("git") is None or not (ROOT / ".ci").is_dir(), reason="git and a checkout"
)


def git(folder: Path, *words: str) -> None:
    """Call git as somebody whom no machine knows."""
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with the files that the first checks read. It has no Makefile to go on with."""
    for name in NEEDED:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    git(tmp_path, "init", "--quiet")
    commit(tmp_path)
    return tmp_path


def commit(folder: Path) -> None:
    """Store all files as they are."""
    git(folder, "add", "--all", "--force")
    git(folder, "commit", "--quiet", "--message", "x")


def replace(path: Path, old: str, new: str) -> None:
    """Replace a text that is in the file once or more."""
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def answer(folder: Path) -> str:
    """What the release stops with."""
    done = subprocess.run(
        ["bash", ".ci/release"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    return done.stderr


def test_the_changelog_is_by_version_and_the_newest_is_this_one() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    first, *versions = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert first == "Unreleased"
    assert all(re.fullmatch(r"\d+\.\d+\.\d+ - \d{4}-\d\d-\d\d", line) for line in versions)
    assert versions[0].startswith(f"{__version__} - ")
    numbers = [tuple(map(int, line.split(" - ")[0].split("."))) for line in versions]
    assert numbers == sorted(numbers, reverse=True)
    assert set(re.findall(r"^### (.*)$", text, re.MULTILINE)) <= SECTIONS | {OF_ONE_VERSION}


def test_no_line_of_the_changelog_stands_twice() -> None:
    """Branches are merged line by line, which may bring a moved line back."""
    for part in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split("\n## ")[1:]:
        lines = Counter(line for line in part.splitlines() if line.startswith(("- ", "  ")))
        assert [line for line, count in lines.items() if count > 1] == []


@in_a_checkout
def test_a_release_needs_a_clean_tree(checkout: Path) -> None:
    (checkout / "notes").touch()
    assert answer(checkout) == (
        "make release: there are changes that are not committed: ?? notes\n"
    )


@in_a_checkout
@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("smope/version.py", __version__, "9.9.9", "smope/version.py has 9.9.9, the newest"),
        ("CITATION.cff", f"version: {__version__}", "version: 9.9.9", "CITATION.cff has 9.9.9"),
        ("CHANGELOG.md", f"## {__version__} - 20", f"## {__version__} - in 20", "has no date"),
        ("CHANGELOG.md", "## Unreleased\n", "## Unreleased\n\n- New.\n", "under Unreleased"),
    ],
)
def test_a_release_has_one_version(
    checkout: Path, name: str, old: str, new: str, message: str
) -> None:
    replace(checkout / name, old, new)
    commit(checkout)
    assert message in answer(checkout)


@in_a_checkout
def test_a_version_is_released_once(checkout: Path) -> None:
    git(checkout, "tag", f"v{__version__}")
    assert f"the tag v{__version__} exists" in answer(checkout)


@in_a_checkout
def test_the_tests_come_after_the_checks(checkout: Path) -> None:
    assert "No rule to make target 'test'" in answer(checkout)
