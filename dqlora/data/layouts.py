"""How folders of speech are laid out: where their tables and recordings lie, and which split a row belongs to."""

import hashlib
import os
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from pathlib import Path, PurePath, PurePosixPath

from dqlora.data.audio import AUDIO_SUFFIXES
from dqlora.data.tables import Row, read_kaldi, read_librispeech, read_table
from dqlora.errors import UserError

SPLITS = ("test", "validation", "train")
# Names of folders, tables and values that stand for a split, alone or before -, _ or . (train-clean-100).
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "devel", "development"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("eval", "evaluation"), "eval"),  # validation beside a test split, else the test split
}
# Cumulative ratios of a seeded hash of the sentence, where a corpus has no splits of its own.
HASH_RATIOS = (("test", 0.15), ("validation", 0.25), ("train", 1.0))
VALIDATION_RATIOS = (("validation", 0.1), ("train", 1.0))  # where it has all but a validation split
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl")
BESIDE_TABLE = (".", "clips", "wavs", "wav", "audio")  # where recordings lie: Common Voice, LJSpeech


@dataclass(frozen=True)
class Table:
    """One table of a corpus. `split` is None where its rows say which is theirs, or nothing does."""

    path: Path
    read: Callable[[Path], Iterator[Row]]
    split: str | None
    folders: tuple[Path, ...]  # that names of files are relative to, the first that has such a file


def read_folder(folder: Path, split: str, seed: int) -> Iterator[tuple[Row, Path]]:
    """The rows of one split with their recordings' paths, in the tables' order.

    Parameters
    ----------
    folder
        In one of the layouts below: Hugging Face's audiofolder, Common Voice, LJSpeech, Kaldi, LibriSpeech.
    split
        train, validation or test.
    seed
        decides the splits of a corpus that has none of its own.

    Raises
    ------
    UserError
        if there is no such layout, a table cannot be read, only some splits are there, or there are too few sentences
        for each split to have one.
    """
    tables = _find_tables(folder)
    rows = list(_rows(folder, tables))
    own = {row.split for row, _ in rows if row.split} | {table.split for table in tables if table.split}
    if "eval" in own:
        meaning = "validation" if "test" in own else "test"
        rows = [(replace(row, split=meaning) if row.split == "eval" else row, table) for row, table in rows]
        own = own - {"eval"} | {meaning}
    if own <= {"train"}:
        rows = _split_by_sentence(folder, rows, HASH_RATIOS, seed)
    elif own == {split} == {"test"}:
        pass
    elif not {"train", "test"} <= own:
        raise UserError(
            f"speech.path: {folder}: has {', '.join(sorted(own))} but not both train and test; name the missing one "
            "so, or put all clips into one folder without splits"
        )
    else:
        outside = "belongs to no split, and others do"
        rows = [(row if row.split else replace(row, problem=row.problem or outside), table) for row, table in rows]
        if "validation" not in own:
            rows = _split_by_sentence(folder, rows, VALIDATION_RATIOS, seed)
    find = _Finder(folder)
    for row, table in rows:
        if (row.split or "train") == split:
            path = find(table, row.file)
            if not row.problem and os.path.exists(path) and not os.path.isfile(path):
                row = replace(row, problem="not a file")
            yield row, path


def _rows(folder: Path, tables: list[Table]) -> Iterator[tuple[Row, Table]]:
    """Each row with its table; `split` is its split's name, empty where neither column, table nor folder gives one.

    The id of a file is its name in the table, behind the table's folder where its split has several tables.
    """
    for table in tables:
        alone = table.read != read_table or [other.split for other in tables].count(table.split) == 1
        prefix = PurePosixPath() if alone else PurePosixPath(table.path.parent.relative_to(folder).as_posix())
        rows = [replace(row, file=_with_slashes(row.file)) for row in table.read(table.path)]
        has_column = any(split_named(row.split) for row in rows)
        parents = [PurePosixPath(row.file).parent for row in rows]
        shared = os.path.commonpath([str(path) for path in parents if path.is_absolute()] or ["/"])
        for row, parent in zip(rows, parents, strict=True):
            if parent.is_absolute():
                parent = parent.relative_to(shared)
            split = (has_column and split_named(row.split)) or table.split or _split_of(parent)
            name = unicodedata.normalize("NFC", row.id if row.problem else _with_slashes(row.id))
            yield replace(row, id=str(prefix / name), split=split or ""), table


def _with_slashes(name: str) -> str:
    return re.sub(r"[/\\]+", "/", name)


@cache
def split_named(name: str) -> str | None:
    """The split that a folder's, table's or column's name stands for: dev is validation, train-clean-100 is train."""
    return SPLIT_NAMES.get(re.split(r"[-_. \d]", name.strip().lower())[0])


def _split_of(folder: PurePath) -> str | None:
    return next(filter(None, map(split_named, folder.parts)), None)


# Layouts


def _find_tables(folder: Path) -> list[Table]:
    """Those of the first layout that has train and test, else of the first that is there."""
    found = []
    for layout in (_audiofolder, _split_tables, _kaldi, _librispeech):
        tables = list(layout(folder))
        if {"train", "test"} <= {table.split for table in tables}:
            return _checked(tables)
        found.append(tables)
    if tables := next(filter(None, found), []):
        return _checked(tables)
    others = [file.name for suffix in TABLE_SUFFIXES for file in sorted(folder.glob(f"*{suffix}"))]
    raise UserError(
        f"speech.path: {folder}: no transcripts; put a metadata.csv (file_name,transcription) beside the recordings"
        + (f" ({others[0]} is not read: rename it)" if others else "; other layouts stand in docs/data.md")
    )


def _checked(tables: list[Table]) -> list[Table]:
    whole = [table for table in tables if table.split is None]
    if whole and len(whole) < len(tables):
        other = next(table for table in tables if table.split)
        raise UserError(
            f"speech.path: {whole[0].path}: belongs to no split, but {other.path} to {other.split}; remove one of the "
            "two, or put it into a split's folder"
        )
    by_folder: dict[Path, Path] = {}
    for table in tables:
        other_path = by_folder.setdefault(table.path.with_suffix(""), table.path)
        if other_path != table.path:
            raise UserError(f"speech.path: {table.path}: {other_path.name} is there too; keep one of the two")
    return tables


def _audiofolder(folder: Path) -> Iterator[Table]:
    """Hugging Face: metadata.csv or .jsonl, in the folders of the splits or above them; also LJSpeech."""
    for pattern in ("metadata", "*/metadata", "*/*/metadata"):
        for path in _files(folder, *(pattern + suffix for suffix in TABLE_SUFFIXES)):
            yield Table(path, read_table, _split_of(path.parent.relative_to(folder)), _beside(path))


def _split_tables(folder: Path) -> Iterator[Table]:
    """Common Voice: train.tsv, dev.tsv and test.tsv, recordings in clips/; a manifest is train_manifest.jsonl."""
    for path in _files(folder, *(f"*{suffix}" for suffix in TABLE_SUFFIXES)):
        if split := SPLIT_NAMES.get(re.sub(r"[-_]manifest$", "", path.stem.lower())):
            yield Table(path, read_table, split, _beside(path))


def _kaldi(folder: Path) -> Iterator[Table]:
    """Kaldi: text and wav.scp, in data/{train,dev,test}; names of files are relative to the folder of data/."""
    for path in _files(folder, "wav.scp", "*/wav.scp", "*/*/wav.scp"):
        text = path.with_name("text")
        if not text.exists():
            raise UserError(
                f"{text}: no such file; it holds the transcripts of {path.name}, `<id> <transcript>` a line"
            )
        folders = (folder, path.parent, folder.parent)
        yield Table(text, read_kaldi, _split_of(path.parent.relative_to(folder)), folders)


def _librispeech(folder: Path) -> Iterator[Table]:
    """LibriSpeech: */*/*/<speaker>-<chapter>.trans.txt beside its FLAC files, in train-*, dev-* and test-*."""
    for path in _files(folder, "**/*.trans.txt"):
        yield Table(path, read_librispeech, _split_of(path.parent.relative_to(folder)), (path.parent,))


def _files(folder: Path, *patterns: str) -> list[Path]:
    return sorted(path for pattern in patterns for path in folder.glob(pattern) if path.is_file())


def _beside(table: Path) -> tuple[Path, ...]:
    return tuple(table.parent / name for name in BESIDE_TABLE)


class _Finder:
    """Finds a recording by the name that a table has for it.

    A name may be absolute or lead out of the folder: a table is its owner's, and what it names is only decoded as
    audio. It may lack its suffix, and its letters may be composed otherwise than the file's (NFC, NFD).
    """

    def __init__(self, corpus: Path):
        self._corpus = corpus
        self._listings: dict[Path, dict[str, str]] = {}

    def __call__(self, table: Table, file: str) -> Path:
        """Its path; where there is no such file, the path that the name alone gives."""
        has_folder = len(Path(file).parts) > 1
        folders = (*table.folders, self._corpus) if has_folder else table.folders
        paths = chain((folder / file for folder in folders), (self._same_letters(folder, file) for folder in folders))
        return next((path for path in paths if path and os.path.isfile(path)), folders[0] / file)

    def _same_letters(self, folder: Path, file: str) -> Path | None:
        *parents, name = Path(file).parts or ("",)
        for parent in parents:
            folder /= self._listing(folder).get(unicodedata.normalize("NFC", parent), parent)
        names = self._listing(folder)
        name = unicodedata.normalize("NFC", name)
        found = next((names[name + suffix] for suffix in ("", *sorted(AUDIO_SUFFIXES)) if name + suffix in names), None)
        return folder / found if found else None

    def _listing(self, folder: Path) -> dict[str, str]:
        """The names in a folder by their composed form."""
        if folder not in self._listings:
            try:
                names = sorted(os.listdir(folder), reverse=True)
            except (OSError, ValueError):
                names = []
            self._listings[folder] = {unicodedata.normalize("NFC", name): name for name in names}
        return self._listings[folder]


# Splits by sentence


def _split_by_sentence(
    folder: Path, rows: list[tuple[Row, Table]], ratios: tuple[tuple[str, float], ...], seed: int
) -> list[tuple[Row, Table]]:
    """Rows that are to train on, split by a hash of their sentence so that each split has one sentence at least.

    What says nothing, or cannot be used, stays in train, which rejects it.
    """
    sentences = [_sentence(row) if row.split in ("", "train") else "" for row, _ in rows]
    hashes = {sentence: hash_ratio(sentence, seed) for sentence in sentences if sentence}
    if len(hashes) < len(ratios):
        names = ", ".join(name for name, _ in ratios)
        usable = sum(map(bool, sentences))
        raise UserError(
            f"speech.path: {folder}: {usable} usable rows with {len(hashes)} different sentences are too few to "
            f"split into {names}; add recordings of other sentences, or put them into train/, validation/ and test/"
        )
    ordered = sorted(hashes, key=lambda sentence: hashes[sentence])
    splits = {"": ""}
    start = 0
    for number, (name, below) in enumerate(ratios):
        to_come = len(ratios) - number - 1
        end = sum(ratio < below for ratio in hashes.values())
        end = min(max(end, start + 1), len(ordered) - to_come)
        splits |= dict.fromkeys(ordered[start:end], name)
        start = end
    return [
        (replace(row, split=splits[sentence] or row.split), table)
        for (row, table), sentence in zip(rows, sentences, strict=True)
    ]


def _sentence(row: Row) -> str:
    """Its words alone; nothing of a row with a problem."""
    letters = "".join(char if char.isalnum() else " " for char in row.transcript.lower())
    return "" if row.problem else " ".join(letters.split())


def hash_ratio(sentence: str, seed: int) -> float:
    """A number in [0, 1) that depends on the seed and the sentence alone."""
    return int(hashlib.sha256(f"{seed}:{sentence}".encode()).hexdigest()[:12], 16) / 16**12
