"""How folders of speech are laid out: where their tables and recordings lie, and which split a row belongs to."""

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
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
        In one of the layouts below: Hugging Face's audiofolder, Common Voice, LJSpeech, Kaldi, LibriSpeech; or bare
        recordings, whose transcripts are empty. A split's folder without a table is bare beside others with one.
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
            return _checked([*tables, *_bare_splits(folder, tables)])
        found.append(tables)
    if tables := next(filter(None, found), []):
        return _checked([*tables, *_bare_splits(folder, tables)])
    if others := _files(folder, *(pattern + suffix for pattern in ("*", "*/*") for suffix in TABLE_SUFFIXES)):
        raise UserError(
            f"speech.path: {folder}: no transcripts; put a metadata.csv (file_name,transcription) beside the "
            f"recordings ({others[0].name} is not read: rename it, or move it away to have them transcribed)"
        )
    if not _recordings(folder, folder):
        raise UserError(
            f"speech.path: {folder}: no recordings in it; name a folder of recordings, with a metadata.csv "
            "(file_name,transcription) beside them or, for the teacher to transcribe, without"
        )
    return [Table(folder, partial(_read_bare, folder), None, (folder,))]


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


def _bare_splits(folder: Path, tables: list[Table]) -> Iterator[Table]:
    """The splits that have a folder of recordings and no table, beside others that have one."""
    with_table = {table.split for table in tables}
    if None in with_table:
        return
    for path in sorted(folder.iterdir()):
        split = split_named(path.name) if path.is_dir() else None
        if split and split not in with_table and _recordings(folder, path):
            yield Table(path, partial(_read_bare, folder), split, (folder,))


def _read_bare(corpus: Path, folder: Path) -> Iterator[Row]:
    """The recordings in and below a folder, without transcripts; named from the corpus' folder."""
    for name in _recordings(corpus, folder):
        yield Row(name, name, "")


def _recordings(corpus: Path, folder: Path) -> list[str]:
    files = (file for file in folder.rglob("*") if file.suffix.lower() in AUDIO_SUFFIXES and file.is_file())
    return sorted(file.relative_to(corpus).as_posix() for file in files if not file.name.startswith("."))


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

    Where the sentences are too few for that, rows without a transcript are split by a hash of their names, and what
    sentences there are go to test. What cannot be used stays in train, which rejects it.
    """
    own = [row.split in ("", "train") and not row.problem for row, _ in rows]
    sentences = [_sentence(row) if ours else "" for (row, _), ours in zip(rows, own, strict=True)]
    names = [row.id if ours and not row.transcript.strip() else "" for (row, _), ours in zip(rows, own, strict=True)]
    known, bare = ({key for key in keys if key} for keys in (sentences, names))
    keys, to_split, left, splits = sentences, known, ratios, {"": ""}
    if len(known) < len(ratios):
        keys, to_split = [sentence or name for sentence, name in zip(sentences, names, strict=True)], bare
        if known and ratios == HASH_RATIOS:
            left, splits = VALIDATION_RATIOS, splits | dict.fromkeys(known, "test")
    if len(to_split) < len(left):
        without = f", and {len(bare)} without a transcript," if bare else ""
        problems = Counter(row.problem for row, _ in rows if row.problem)
        most = f" ({problems.total()} are not usable; the first: {next(iter(problems))})" if problems else ""
        raise UserError(
            f"speech.path: {folder}: {sum(map(bool, sentences))} usable rows with {len(known)} different sentences"
            f"{without}{most} are too few to split into {', '.join(name for name, _ in ratios)}; add recordings of "
            "other sentences, or put them into train/, validation/ and test/"
        )
    hashes = {key: hash_ratio(key, seed) for key in to_split}
    ordered = sorted(hashes, key=lambda key: hashes[key])
    start = 0
    for number, (name, below) in enumerate(left):
        to_come = len(left) - number - 1
        end = sum(ratio < below for ratio in hashes.values())
        end = min(max(end, start + 1), len(ordered) - to_come)
        splits |= dict.fromkeys(ordered[start:end], name)
        start = end
    return [
        (replace(row, split=splits.get(key, "") or row.split), table)
        for (row, table), key in zip(rows, keys, strict=True)
    ]


def _sentence(row: Row) -> str:
    """Its words alone; nothing of a row with a problem."""
    letters = "".join(char if char.isalnum() else " " for char in row.transcript.lower())
    return "" if row.problem else " ".join(letters.split())


def hash_ratio(sentence: str, seed: int) -> float:
    """A number in [0, 1) that depends on the seed and the sentence alone."""
    return int(hashlib.sha256(f"{seed}:{sentence}".encode()).hexdigest()[:12], 16) / 16**12
