"""Speech corpora: the hub's Parquet layout (FLEURS' schema), remote or in a folder, and folders with tables."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, starmap
from pathlib import Path

from dqlora.data.fleurs import folder_recordings, hub_commit, hub_recordings
from dqlora.data.hub import HUB
from dqlora.data.layouts import read_folder, unlisted
from dqlora.data.storage import existing_folder


@dataclass(frozen=True)
class Clip:
    """One recording as a corpus holds it, undecoded."""

    id: str
    audio: Path | bytes
    transcript: str
    problem: str = ""  # why it cannot be used, known before it is decoded
    seconds: float | None = None  # what its row means, of a recording that may be longer


def read_clips(path: str, split: str, seed: int, downloads: Path, checksums: Path) -> Iterator[Clip]:
    """The clips of one split, in the corpus' order, undecoded.

    Parameters
    ----------
    path
        `hf://datasets/owner/name@revision/config`, a folder of the same layout, or a folder in one of the
        layouts that `dqlora.data.layouts` knows: with tables, and recordings beside them.
    split
        train, validation or test.
    seed
        decides the splits of a corpus that has none of its own.
    downloads, checksums
        where files from the hub go, and the list of what they were at first.

    Raises
    ------
    UserError
        if the corpus cannot be reached or its layout is not one of these.
    """
    if path.startswith(HUB):
        return starmap(Clip, hub_recordings(path, split, downloads, checksums))
    folder = _folder(path)
    if _is_parquet(folder):
        return starmap(Clip, folder_recordings(folder, split))
    return _folder_clips(folder, split, seed)


def unlisted_recordings(path: str) -> list[str]:
    """The recordings in a corpus' folder that none of its tables names. Raises as `read_clips`."""
    return [] if path.startswith(HUB) or _is_parquet(_folder(path)) else unlisted(_folder(path))


def _folder(path: str) -> Path:
    return existing_folder(path, "speech.path", "give a folder of recordings or hf://datasets/...")


def _is_parquet(folder: Path) -> bool:
    return any(chain(folder.glob("*.parquet"), folder.glob("*/*.parquet")))


def commit_of(path: str) -> str | None:
    """The commit that a corpus on the hub is read at; None for a folder. Raises as `read_clips`."""
    return hub_commit(path) if path.startswith(HUB) else None


def _folder_clips(folder: Path, split: str, seed: int) -> Iterator[Clip]:
    for row, path in read_folder(folder, split, seed):
        yield Clip(row.id, path, row.transcript, row.problem, row.seconds)
