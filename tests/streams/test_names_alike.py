"""One class does not become two without a word, in class folders, domains and tables."""

from __future__ import annotations

import logging
import re
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from smope.cli.main import main
from smope.streams import domains, folder, table
from smope.streams.source import Source
from tests.streams.class_trees import write

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def class_folders(root: Path, train: list[str], test: list[str]) -> Path:
    """Two images a class folder, all different."""
    for split, names in {"train": train, "test": test}.items():
        for label, name in enumerate(names):
            for number in (0, 1):
                write(root / split / name / f"{label}_{number}.jpg", label, number)
    return root


def from_folder(place: Path, train: list[str], test: list[str]) -> Source:
    return folder.load(str(class_folders(place / "photos", train, test)))


def from_domains(place: Path, train: list[str], test: list[str]) -> Source:
    class_folders(place / "domains" / "photo", train, test)
    shutil.copytree(place / "domains" / "photo", place / "domains" / "sketch")
    return domains.load(str(place / "domains"))


def from_table(place: Path, train: list[str], test: list[str]) -> Source:
    rows = ["path,label,split"]
    for split, names in {"train": train, "test": test}.items():
        for label, name in enumerate(names):
            write(place / f"{split}{label}.jpg", label, 0)
            rows.append(f'{split}{label}.jpg,"{name}",{split}')
    (place / "images.csv").write_text("\n".join(rows), encoding="utf-8")
    return table.load(str(place / "images.csv"))


every_stream = pytest.mark.parametrize("load", [from_folder, from_domains, from_table])
Load = Callable[[Path, list[str], list[str]], Source]


@every_stream
def test_both_forms_of_unicode_are_one_class(load: Load, tmp_path: Path) -> None:
    source = load(tmp_path, ["dog", DECOMPOSED], ["dog", COMPOSED])
    assert source.class_names == (COMPOSED, "dog")
    assert set(source.train.targets) == set(source.test.targets) == {0, 1}


@every_stream
def test_both_forms_in_one_split_are_one_class(load: Load, tmp_path: Path) -> None:
    source = load(tmp_path, [COMPOSED, DECOMPOSED, "dog"], [COMPOSED, "dog"])
    assert source.class_names == (COMPOSED, "dog")
    images = [
        image
        for image, target in zip(source.train.images, source.train.targets, strict=True)
        if not target
    ]
    assert len({Path(str(image)).name for image in images}) == len(images) // (
        1 + (load is from_domains)
    )


@every_stream
@pytest.mark.parametrize(
    "pair", [("a", "A"), ("0", "0.0"), ("1", "01"), ("c\u200bat", "cat"), ("red fox", "red\xa0fox")]
)
def test_pairs_are_named(load: Load, pair: tuple[str, str], tmp_path: Path, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        source = load(tmp_path, [*pair, "dog"], [*pair, "dog"])
    assert len(source.class_names) == 3
    (line,) = caplog.messages
    assert all(repr(name) in line for name in pair) and "dog" not in line
    assert line.startswith(("stream.root=", "stream.table="))


@pytest.mark.parametrize("load", [from_folder, from_domains])
def test_spaces_around_the_names_of_folders_are_named(load: Load, tmp_path: Path, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        load(tmp_path, ["cat", "cat "], ["cat", "cat "])
    assert "'cat' and 'cat '" in caplog.text


def test_spaces_around_labels_do_not_count(tmp_path: Path, caplog) -> None:
    names = ["cat", "cat ", " cat", "\xa0cat", "dog"]
    assert from_table(tmp_path, names, names).class_names == ("cat", "dog")
    assert not caplog.text


@every_stream
def test_different_names_give_no_warning(load: Load, tmp_path: Path, caplog) -> None:
    load(tmp_path, ["1", "10", "a", "b"], ["1", "10", "a", "b"])
    assert not caplog.text


def test_domains_in_both_forms_are_one(tmp_path: Path) -> None:
    for name in (DECOMPOSED, "art"):
        class_folders(tmp_path / name, ["cat", "dog"], ["cat", "dog"])
    assert domains.load(str(tmp_path), [COMPOSED]).task_names == (COMPOSED,)
    (tmp_path / COMPOSED / "train" / "cat").mkdir(parents=True)
    shutil.copytree(tmp_path / "art" / "test", tmp_path / COMPOSED / "test")
    source = domains.load(str(tmp_path))
    assert source.task_names == ("art", COMPOSED)
    assert len(source.test) == 4 + 8


def test_domains_and_tasks_that_look_alike_are_named(tmp_path: Path, caplog) -> None:
    for name in ("Photo", "photo"):
        class_folders(tmp_path / name, ["cat"], ["cat"])
    domains.load(str(tmp_path))
    rows = ["path,label,task,split"]
    rows += [
        f"Photo/{split}/cat/0_{n}.jpg,cat,{'Aa'[n]},{split}"
        for split in ("train", "test")
        for n in (0, 1)
    ]
    (tmp_path / "images.csv").write_text("\n".join(rows))
    table.load(str(tmp_path / "images.csv"))
    about_domains, about_tasks = caplog.messages
    assert "different domains: 'Photo' and 'photo'" in about_domains
    assert "different tasks: 'A' and 'a'" in about_tasks


def test_the_check_of_a_data_set_names_the_pairs(tmp_path: Path, capsys) -> None:
    class_folders(tmp_path, ["cat", "Cat"], ["cat", "Cat"])
    main(["data", "check", str(tmp_path)])
    assert re.search(
        r"^warning: .* different classes: 'Cat' and 'cat'", capsys.readouterr().out, re.M
    )
