"""Messages that name files without their folders; other words with a slash stay as they are.

Nothing here looks at the disk: names come from clients as well, who could ask what exists.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

SUFFIX = (
    r"\.(?:safetensors|pth?|pt2|bin|ckpt|np[yz]|onnx|jsonl?|ya?ml|csv|tsv|parquet|md|txt|log|html|py"
    r"|zip|tar|t?gz|lmdb|avifs?|bmp|dib|gif|hei[cf]s?|hif|jp2|jxl|jpe?g|jfif|png|apng|p[bgp]m|psd"
    r"|qoi|tga|tiff?|webp|dng|raw|svgz?)(?![\w/\\-])"
)
# how a path begins that says where a file is, on any system
DRIVE = r"(?<!\w)[a-z]:[/\\]"
ROOT = (
    rf"(?:file:/+(?:{DRIVE})?|{DRIVE}|\\\\(?:[?.]\\+(?:{DRIVE})?)?|~(?:[a-z_][\w.-]{{0,64}})?[/\\]"
    r"|(?<!\.)\.\.?[/\\]|(?<!https:)(?<!http:)(?<!hf:)//+(?=\S)|/(?=[^/\s]))"
)
IN_A_WORD = r"\w%)\]/\\"  # what stands before a slash that begins no path
# what a path has between two separators: blanks too, as folders have them
LETTER = (
    rf"(?!{SUFFIX})(?![\s,]['\"(\[<]?{ROOT})"
    r"(?:[^/\\:;'\"]|(?<=\w)'(?=\w)|[:;](?=\w))"
)
PLAIN = r"[^\s/\\:;,'\"()=<>[\]]"
FOLDERS = re.compile(
    rf"(?P<quote>['\"]){ROOT}(?:(?:(?!(?P=quote)).)*[/\\])?(?=[^/\\]*?(?P=quote))"
    rf"|(?<![{IN_A_WORD}]){ROOT}(?:(?:{LETTER})*[/\\])*"
    # a path that says only how to get to a file
    rf"|(?<![{IN_A_WORD}.-]){PLAIN}+(?:[/\\]{PLAIN}+)*[/\\](?={PLAIN}*{SUFFIX})",
    re.IGNORECASE,
)


def without_folders(text: str, known: Sequence[Path] = ()) -> str:
    """A message in which files have no folders: neither in absolute paths, nor in relative ones
    that end in a file's suffix or lead to a known file.

    What could be a path counts as one: up to the last separator of a path without such a suffix,
    blanks and words in it may be folders.

    Args:
        text: of one line.
        known: files and folders of this machine.
    """
    for path in known:
        if path.parent != Path():
            text = re.sub(rf"(?<![{IN_A_WORD}.-]){re.escape(str(path.parent))}[/\\]+", "", text)
    return FOLDERS.sub(lambda match: match["quote"] or "", text)
