"""Names that operating systems, network storage, synchronisation and notebooks give to their own
files and folders, which lie beside a user's images and are none of them.
"""

from __future__ import annotations

# Compared in any case. No word that a user may have called a class.
SERVICE_NAMES = frozenset(
    {
        # network storage (Synology, QNAP, NetApp)
        "@eadir", "@tmp", "@recycle", "@recently-snapshot", "@sharebin", "@transcode",
        "#recycle", "#snapshot", "~snapshot",
        # Windows
        "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "$recycle.bin",
        "system volume information", "picasa.ini", "zbthumbnail.info", "pspbrwse.jbf",
        # macOS; further names begin with a dot
        "__macosx", "icon\r", "network trash folder", "temporary items",
        "thevolumesettingsfolder",
        # Linux, Python and Node
        "lost+found", "__pycache__", "node_modules",
    }
)  # fmt: skip
SERVICE_PREFIXES = ("~$", "@syno")
SERVICE_SUFFIXES = ("@synoeastream", "@synoresource", ".lrdata")


def service_name(name: str) -> str:
    """What a file or folder of this name is counted as: its name, `._*` for the files that macOS
    puts beside others; "" where it may be the user's.
    """
    if name.startswith("._"):
        return "._*"
    lower_case = name.lower()
    is_service = (
        name.startswith(".")
        or lower_case in SERVICE_NAMES
        or lower_case.startswith(SERVICE_PREFIXES)
        or lower_case.endswith(SERVICE_SUFFIXES)
    )
    return name if is_service else ""
