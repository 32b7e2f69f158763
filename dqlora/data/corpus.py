"""Speech corpora: the hub's Parquet layout (FLEURS' schema), remote or in a folder, and audiofolders."""

import csv
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dqlora.data.hub import TIMEOUT, hub_reachable
from dqlora.data.storage import existing_folder
from dqlora.errors import UserError, first_line

HUB = "hf://"
SPLITS = ("test", "validation", "train")
# Cumulative ratios of a seeded hash of the sentence, where a corpus has no splits of its own.
HASH_RATIOS = (("test", 0.15), ("validation", 0.25), ("train", 1.0))


@dataclass(frozen=True)
class Clip:
    """One recording as a corpus holds it, undecoded."""

    id: str
    audio: Path | bytes
    transcript: str


def read_clips(path: str, split: str, seed: int) -> Iterator[Clip]:
    """The clips of one split, in the corpus' order, undecoded.

    Parameters
    ----------
    path
        `hf://datasets/owner/name@revision/config` (streamed), a folder of the same layout, or a folder with
        metadata.csv (`file_name,transcription`), in it or in train/, validation/ and test/.
    split
        train, validation or test.
    seed
        decides the splits of a corpus that has none of its own.

    Raises
    ------
    UserError
        if the corpus cannot be reached or its layout is not one of these.
    """
    if path.startswith(HUB):
        check_hub(path)
        return _parquet_clips(f"{path}/{split}/*.parquet")
    folder = existing_folder(path, "speech.path", "give a folder of recordings or hf://datasets/...")
    if next(folder.glob("*/*.parquet"), None):
        if not next(folder.glob(f"{split}/*.parquet"), None):
            raise UserError(f"speech.path: {folder / split}: no Parquet files; FLEURS' layout is <split>/<n>.parquet")
        return _parquet_clips(str(folder / split / "*.parquet"))
    return _audiofolder_clips(folder, split, seed)


def check_hub(path: str) -> None:
    """Ask the hub once, so that a machine without network hears so in seconds; raises UserError."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    match = re.fullmatch(r"hf://datasets/([^@]+)@(.+)/([^/]+)", path)
    if not match:
        raise UserError(f"speech.path: {path}: expected hf://datasets/owner/name@revision/config")
    if not hub_reachable():
        raise UserError(
            f"speech.path: {path}: the hub could not be reached; connect to the network, set speech.path to a local "
            "copy of the folder, or run with -S preset=mini"
        )
    try:
        HfApi().dataset_info(match[1], revision=match[2], timeout=TIMEOUT)
    except (HfHubHTTPError, HFValidationError) as error:
        raise UserError(
            f"speech.path: {path}: the hub refused it ({first_line(error)}); check name and revision"
        ) from None


def _parquet_clips(pattern: str) -> Iterator[Clip]:
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    from datasets import Audio, load_dataset

    try:
        rows = load_dataset("parquet", data_files={"split": pattern}, split="split", streaming=True)
        for row in rows.cast_column("audio", Audio(decode=False)):
            audio = row.get("audio")
            name = row.get("path") or (audio or {}).get("path")
            if audio is None or name is None or "transcription" not in row:
                raise UserError(f"{pattern}: not FLEURS' schema; needs columns path, audio and transcription")
            yield Clip(
                Path(name).name, audio["bytes"] or b"", row.get("raw_transcription") or row["transcription"] or ""
            )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{pattern}: unreadable as Parquet in FLEURS' schema ({first_line(error)})") from None


def _audiofolder_clips(folder: Path, split: str, seed: int) -> Iterator[Clip]:
    own_splits = {name for name in SPLITS if (folder / name / "metadata.csv").exists()}
    if not own_splits:
        clips = _metadata_clips(folder)
        return (clip for clip in clips if _hashed_split(clip.transcript, seed) == split)
    if not {"train", "test"} <= own_splits:
        raise UserError(f"speech.path: {folder}: has {', '.join(sorted(own_splits))} but not both train and test")
    if "validation" in own_splits or split == "test":
        return _metadata_clips(folder / split)
    clips = _metadata_clips(folder / "train")  # validation out of train, by sentence
    return (clip for clip in clips if (_hashed_ratio(clip.transcript, seed) < 0.1) == (split == "validation"))


def _metadata_clips(folder: Path) -> Iterator[Clip]:
    path = folder / "metadata.csv"
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            rows = list(csv.DictReader(lines))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; needs columns file_name,transcription") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a UTF-8 CSV file ({error})") from None
    if not rows or "file_name" not in rows[0] or "transcription" not in rows[0]:
        raise UserError(f"{path}: needs a header file_name,transcription and a line a recording")
    for row in rows:
        name = row["file_name"] or ""
        yield Clip(name, folder / name, row["transcription"] or "")


def _hashed_ratio(transcript: str, seed: int) -> float:
    """A number in [0, 1) that depends on the seed and the sentence's words alone."""
    sentence = " ".join("".join(char if char.isalnum() else " " for char in transcript.lower()).split())
    return int(hashlib.sha256(f"{seed}:{sentence}".encode()).hexdigest()[:12], 16) / 16**12


def _hashed_split(transcript: str, seed: int) -> str:
    ratio = _hashed_ratio(transcript, seed)
    return next(split for split, below in HASH_RATIOS if ratio < below)
