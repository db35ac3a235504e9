"""What clients read of a message: no folder of the server, and every other word."""

from __future__ import annotations

from pathlib import Path

import pytest

from smope.server.hidden_folders import without_folders

WORDS = [
    "class_name=AC/DC: labels and/or images, w/ or w/o names (n/a)",
    "must be image/png or multipart/form-data, not image/jpeg.",
    "1/2 of 3/4, ~1/3, 50%/100%, f(x)/2, 12 km/h, a / b / c",
    "see https://example.com/a/b.png, hf://owner/name/model.safetensors",
    "nothing of the kind",
]


@pytest.mark.parametrize("text", WORDS)
def test_words_with_a_slash_stay(text: str) -> None:
    assert without_folders(text) == text
    assert without_folders(f"/home/jane/x.png: {text}") == f"x.png: {text}"
    assert without_folders(f"cannot read /home/jane/x.png, {text}") == f"cannot read x.png, {text}"


@pytest.mark.parametrize(
    "path",
    [
        "/secret/x",
        "/home/secret dir/more/x",
        "/home/secret o'brien/x",
        "//nas/secret/x",
        "~/secret/x",
        "~secret/x",
        "./secret/x",
        "../secret/x",
        "/home/a:b/secret/x",
        "/home/secret.png/x",
        r"C:\Users\secret dir\x",
        "c:/Users/secret/x",
        r"\\server\secret\x",
        r"\\?\C:\Users\secret\x",
        r"C:\\Users\\secret\\x",
        "file:///home/secret/x",
        "file://host/secret/x",
        "FILE:///C:/Users/secret/x",
    ],
)
@pytest.mark.parametrize(
    "message",
    ["{}", "--out={}: full", "see ({})", "of {}, {} and image/png", "key:{}", "[{}]", "<{}>"],
)
def test_folders_of_absolute_paths_do_not_leak(path: str, message: str) -> None:
    shown = without_folders(message.format(path, path))
    assert not any(folder in shown for folder in ("secret", "home", "Users", "nas", "host", "~"))
    assert "\\" not in shown
    assert not shown.replace("image/png", "").count("/")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("weights=/home/Jane Doe/my w/a b.pt: is not", "weights=a b.pt: is not"),
        ("model pets/model.safetensors: cannot", "model model.safetensors: cannot"),
        ("--out=../x/y (No such file)", "--out=y (No such file)"),
        ("needs /a/b.pt, or '~/c/d.pt' and/or e", "needs b.pt, or 'd.pt' and/or e"),
        ("'/home/it is/o; p/q' and/or x", "'q' and/or x"),
        ("(/a/b), [/c/d] /e/f", "(b), [d] f"),
        ("class 'folder/a.PNG' is", "class 'a.PNG' is"),
    ],
)
def test_the_name_of_the_file_stays(text: str, shown: str) -> None:
    assert without_folders(text) == shown


def test_folders_that_the_server_knows() -> None:
    known = [Path("my pets/birds"), Path("model")]
    assert without_folders("model my pets/birds: is and/or", known) == "model birds: is and/or"
    assert without_folders("model/or", known) == "model/or"
