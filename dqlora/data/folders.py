"""What lies in a folder of the user's, and how splits are called there."""

import os
from collections.abc import Iterator
from pathlib import Path

from dqlora.data.audio import AUDIO_SUFFIXES
from dqlora.errors import UserError

# Names of folders, tables and values that stand for a split, alone or before -, _ or . (train-clean-100).
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "devel", "development"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("eval", "evaluation"), "eval"),  # validation beside a test split, else the test split
}
WHAM_SPLITS = {"tr": "train", "cv": "validation", "tt": "test"}  # where tr and tt are both: they are languages, too


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is left alone: hidden ones, and what a Mac adds to an archive."""
    return name.startswith(".") or name == "__MACOSX"


def is_audio(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in AUDIO_SUFFIXES


def as_text(name: str) -> str:
    """A file's name as it can be written and hashed: bytes that are not UTF-8 as Python's errors show them."""
    return name.encode(errors="backslashreplace").decode()


def files_below(folder: Path) -> list[str]:
    """The names of all files below a folder, relative to it: those of upper folders first, then in their order.

    Links are followed; one to nothing is among the files, to be named where it is read. What is hidden is not.

    Raises
    ------
    UserError
        if one of the folders cannot be read.
    """
    return sorted(_walk(str(folder)), key=lambda name: (name.count("/"), name))


def _walk(folder: str, inside: str = "", above: tuple[str, ...] = ()) -> Iterator[str]:
    real = os.path.realpath(folder)
    if real in above:  # a link back
        return
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}); allow it, or name another folder") from None
    for entry in entries:
        if is_hidden(entry.name):
            continue
        if os.path.isdir(entry.path):
            yield from _walk(entry.path, f"{inside}{entry.name}/", (*above, real))
        elif os.path.isfile(entry.path) or entry.is_symlink():
            yield inside + entry.name
