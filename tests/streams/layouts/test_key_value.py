from __future__ import annotations

import pytest

from smope.errors import UserError
from smope.streams.layouts import key_value


@pytest.mark.parametrize(
    "text",
    [
        "1 a b\n\n22\tc \n",
        "1 a b\r\n\r\n22\tc\r\n\r\n",
        "\ufeff1  a b\r   \r22 c",
        "1\ta b\n\n22 c\n\n\n",
    ],
)
def test_keys_and_values(tmp_path, text):
    path = tmp_path / "list.txt"
    path.write_text(text, encoding="utf-8", newline="")
    assert key_value.read(path, UserError) == {
        "1": key_value.Value("a b", 1),
        "22": key_value.Value("c", 3),
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"1 a\r\nb\r\n", r"line 2 of .*list\.txt has 'b' alone instead of a key and a value"),
        (b"1 a\n\n1 b\n", r"lines 1 and 3 of .*list\.txt are both of 1"),
        (b"1 a\n2 \xff\n", r"cannot read .*list\.txt as UTF-8 text \(.*0xff in position 6"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, content, message):
    path = tmp_path / "list.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        key_value.read(path, UserError)


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"list\.txt is missing"):
        key_value.read(tmp_path / "list.txt", UserError)
