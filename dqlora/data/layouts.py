"""How folders of speech are laid out: where their tables and recordings lie, and which split a row belongs to."""

import codecs
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import chain
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from dqlora.data.audio import AUDIO_SUFFIXES
from dqlora.data.folders import SPLIT_NAMES, WHAM_SPLITS, as_text, files_below, is_audio
from dqlora.data.splitting import HASH_RATIOS, VALIDATION_RATIOS, split_by_sentence
from dqlora.data.tables import Row, read_kaldi, read_librispeech, read_table
from dqlora.errors import UserError

SPLITS = ("test", "validation", "train")
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl")
JSON = (".json",)  # NeMo's manifests; read where no other table is, since it may be anything
BESIDE_TABLE = (".", "clips", "wavs", "wav", "audio")  # where recordings lie: Common Voice, LJSpeech
# Names of files that hold no transcripts, whatever their text; what ends in a suffix of DOCUMENTS may hold some.
NO_TRANSCRIPTS = re.compile(
    r"(readme|licen[cs]e|copying|copyright|notice|authors|citation|credits|change(s|log)|version)(?![a-z]).*"
    r"|.*(md5|sha-?\d|checksum).*|.*\.(sfv|py|sh|bat|ipynb|html?|log|ini|dvc|m3u8?)"
    r"|(speakers?|spkr?)[-_ ]?(info|list)?(\.\w+)?|(spk|utt)2\w+"
)
DOCUMENTS = (".xlsx", ".xls", ".ods", ".numbers", ".docx", ".doc", ".odt", ".pdf", ".parquet", ".arrow", ".sqlite")


@dataclass(frozen=True)
class Table:
    """One table of a corpus. `split` is None where its rows say which is theirs, or nothing does."""

    path: Path
    read: Callable[[Path], Iterator[Row]]
    split: str | None
    folders: tuple[Path, ...]  # that names of files are relative to, the first that has such a file


@dataclass(frozen=True)
class _Corpus:
    """A folder and all files below it, in linked folders too; not what is hidden, nor what a Mac puts into archives."""

    folder: Path
    files: list[str]  # relative to the folder, those of upper folders first
    anywhere: bool = False  # tables are looked for; else no deeper than people put them

    @classmethod
    def of(cls, folder: Path) -> "_Corpus":
        return cls(folder, files_below(folder))

    @cached_property
    def recordings(self) -> list[str]:
        return sorted(filter(is_audio, self.files))

    @cached_property
    def _short_names(self) -> dict[str, str]:
        folders = set(chain(*(folder.lower().split("/") for folder in set(map(os.path.dirname, self.files)))))
        return WHAM_SPLITS if {"tr", "tt"} <= folders else {}

    def split_of(self, folder: PurePath) -> str | None:
        """The split that a folder's name stands for, or that of one above it; its path is relative to the corpus'."""
        names = chain(map(split_named, folder.parts), (self._short_names.get(part.lower()) for part in folder.parts))
        return next(filter(None, names), None)

    def table_split(self, table: Path) -> str | None:
        """The split that its folders name."""
        return self.split_of(table.parent.relative_to(self.folder))

    def tables(self, ends: tuple[str, ...], depth: int = 100) -> list[Path]:
        """The files whose names end so, in small letters, at most `depth` folders down unless `anywhere`."""
        files = (name for name in self.files if name.lower().endswith(ends))
        return [self.folder / name for name in files if self.anywhere or name.count("/") <= depth]

    def check_tables_are_read(self, tables: list[Table]) -> None:
        """Raise UserError if a file that is not read may hold the transcripts of recordings that have no table."""
        suffixes = TABLE_SUFFIXES + JSON
        read, with_table = {table.path for table in tables}, {table.split for table in tables} - {None}
        others = [
            file
            for file in (self.folder / name for name in self.files if not is_audio(name))
            if file not in read
            and self.table_split(file) not in with_table
            and (self.recordings or file.suffix.lower() in suffixes)
            and _may_hold_transcripts(file)
        ]
        if not others:
            return
        split = self.table_split(others[0]) if with_table else None
        file, more = others[0], f", nor are {len(others) - 1} more" if len(others) > 1 else ""
        way_out = "write it so if it has them"
        if file.suffix.lower() in suffixes:
            suffix = ".jsonl" if file.suffix.lower() in JSON else file.suffix.lower()
            way_out = f"rename it metadata{suffix} if it is such a table"
            if _split_of_table(file) and file.parent != self.folder:
                way_out = f"name {file.parent} instead if that is the corpus"
        raise UserError(
            f"speech.path: {self.folder}: no transcripts{f' in {split}' if split else ''}; put a metadata.csv "
            f"(file_name,transcription) beside the recordings ({file.relative_to(self.folder)} is not read{more}: "
            f"{way_out}, or move it away to have the recordings transcribed)"
        )

    def check_no_split_is_left_out(self, tables: list[Table], own: set[str]) -> None:
        """Raise UserError if a file is the list of a split by its name, and others would be split to have one."""
        folders, read = {self.folder, *(table.path.parent for table in tables)}, {table.path for table in tables}
        for file in (self.folder / name for name in self.files if not is_audio(name)):
            new = _split_of_table(file) not in {None, "train", *own} and file not in read
            if new and file.parent in folders and _may_hold_transcripts(file):
                raise UserError(
                    f"speech.path: {file}: not read, and by its name a split of yours; put a column split (train, "
                    f"validation, test) into {tables[0].path.name}, or move the file away"
                )


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
    corpus = _Corpus.of(folder)
    tables = _find_tables(corpus)
    rows = list(_rows(corpus, tables))
    own = {row.split for row, _ in rows if row.split} | {table.split for table in tables if table.split}
    if "eval" in own:
        meaning = "validation" if "test" in own else "test"
        rows = [(replace(row, split=meaning) if row.split == "eval" else row, table) for row, table in rows]
        own = own - {"eval"} | {meaning}
    if own <= {"train"}:
        corpus.check_no_split_is_left_out(tables, own)
        rows = split_by_sentence(folder, rows, HASH_RATIOS, seed)
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
            corpus.check_no_split_is_left_out(tables, own)
            rows = split_by_sentence(folder, rows, VALIDATION_RATIOS, seed)
    find = _Finder(folder)
    for row, table in rows:
        if (row.split or "train") == split:
            path = find(table, row.file)
            if not row.problem and os.path.exists(path) and not os.path.isfile(path):
                row = replace(row, problem="not a file")
            yield row, path


def unlisted(folder: Path) -> list[str]:
    """The recordings below a folder that no row names, by their names in it; raises as `read_folder`."""
    corpus = _Corpus.of(folder)
    tables = _find_tables(corpus)
    find, real_folder = _Finder(folder), cache(os.path.realpath)

    def real(path: Path) -> tuple[str, str]:
        return real_folder(path.parent), path.name

    named = {real(find(table, row.file)) for row, table in _rows(corpus, tables) if row.file}
    return [name for name in corpus.recordings if real(folder / name) not in named]


def _rows(corpus: _Corpus, tables: list[Table]) -> Iterator[tuple[Row, Table]]:
    """Each row with its table; `split` is its split's name, empty where neither column, table nor folder gives one.

    The id of a file is its name in the table, behind the table's folder where its split has several tables.
    """
    for table in tables:
        alone = table.read != read_table or [other.split for other in tables].count(table.split) == 1
        prefix = PurePosixPath() if alone else PurePosixPath(table.path.parent.relative_to(corpus.folder).as_posix())
        rows = [replace(row, file=_with_slashes(row.file)) for row in table.read(table.path)]
        has_column = any(split_named(row.split) for row in rows)
        parents = [PurePosixPath(row.file).parent for row in rows]
        shared = os.path.commonpath([str(path) for path in parents if path.is_absolute()] or ["/"])
        for row, parent in zip(rows, parents, strict=True):
            if parent.is_absolute():
                parent = parent.relative_to(shared)
            split = (has_column and split_named(row.split)) or table.split or corpus.split_of(parent)
            name = unicodedata.normalize("NFC", row.id if row.problem else _with_slashes(row.id))
            yield replace(row, id=as_text(str(prefix / name)), split=split or ""), table


def _with_slashes(name: str) -> str:
    return re.sub(r"[/\\]+", "/", name)


@cache
def split_named(name: str) -> str | None:
    """The split that a folder's, table's or column's name stands for: dev is validation, train-clean-100 is train."""
    return SPLIT_NAMES.get(re.split(r"[-_. \d]", name.strip().lower())[0])


# Layouts


def _find_tables(corpus: _Corpus) -> list[Table]:
    """Those of the first layout that has train and test, else of the first that is there; else all is bare."""
    for where in (corpus, replace(corpus, anywhere=True)):
        found = [list(layout(where)) for layout in (_audiofolder, _split_tables, _kaldi, _librispeech)]
        whole = (tables for tables in found if {"train", "test"} <= {table.split for table in tables})
        if tables := next(whole, next(filter(None, found), [])):
            return _checked([*tables, *_bare_splits(corpus, tables)])
    corpus.check_tables_are_read([])
    if not corpus.recordings:
        raise UserError(
            f"speech.path: {corpus.folder}: no recordings in it; name a folder of recordings, with a metadata.csv "
            "(file_name,transcription) beside them or, for the teacher to transcribe, without"
        )
    return [Table(corpus.folder, _bare(corpus.recordings), None, (corpus.folder,))]


def _may_hold_transcripts(file: Path) -> bool:
    """Whether a file that is no recording is a text or a document, and no name of NO_TRANSCRIPTS says of what else."""
    if NO_TRANSCRIPTS.fullmatch(file.name.lower()):
        return False
    try:
        with file.open("rb") as opened:
            start = opened.read(1024)
    except OSError:
        return True
    is_text = start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) or not re.search(rb"[\0-\x08\x0e-\x1f]", start)
    return file.suffix.lower() in DOCUMENTS or (is_text and bool(start.strip()))


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


def _audiofolder(corpus: _Corpus) -> Iterator[Table]:
    """Hugging Face: metadata.csv or .jsonl, in the folders of the splits or above them; also LJSpeech."""
    for path in _columned(corpus, lambda path: path.stem.lower() == "metadata", depth=2):
        yield Table(path, read_table, corpus.table_split(path), _beside(path))


def _split_tables(corpus: _Corpus) -> Iterator[Table]:
    """Common Voice: train.tsv, dev.tsv and test.tsv, recordings in clips/; a manifest is train_manifest.json.

    None where a split has several: those of several languages.
    """
    tables = [
        Table(path, read_table, _split_of_table(path), _beside(path)) for path in _columned(corpus, _split_of_table)
    ]
    if len({table.path.parent for table in tables}) == 1 or len({table.split for table in tables}) == len(tables):
        yield from tables


def _split_of_table(path: Path) -> str | None:
    return SPLIT_NAMES.get(re.sub(r"^manifest[-_]|[-_]manifest$", "", path.stem.lower()))


def _columned(corpus: _Corpus, matches: Callable[[Path], Any], depth: int = 0) -> list[Path]:
    """Tables with columns that match; JSON where there is no other."""
    tables = (filter(matches, corpus.tables(ends, depth)) for ends in (TABLE_SUFFIXES, JSON))
    return next(filter(None, map(list, tables)), [])


def _kaldi(corpus: _Corpus) -> Iterator[Table]:
    """Kaldi: text and wav.scp, in data/{train,dev,test}; names of files are relative to the folder of data/."""
    for path in corpus.tables(("wav.scp",), depth=2):
        if path.name != "wav.scp":
            continue
        text = path.with_name("text")
        if not text.exists():
            raise UserError(
                f"{text}: no such file; it holds the transcripts of {path.name}, `<id> <transcript>` a line"
            )
        folders = (corpus.folder, path.parent, corpus.folder.parent)
        yield Table(text, read_kaldi, corpus.table_split(path), folders)


def _librispeech(corpus: _Corpus) -> Iterator[Table]:
    """LibriSpeech: */*/*/<speaker>-<chapter>.trans.txt beside its FLAC files, in train-*, dev-* and test-*."""
    for path in corpus.tables((".trans.txt",)):
        yield Table(path, read_librispeech, corpus.table_split(path), (path.parent,))


def _bare_splits(corpus: _Corpus, tables: list[Table]) -> Iterator[Table]:
    """The splits that have a folder of recordings and no table, beside folders of others that have one."""
    with_table = {table.split for table in tables}
    if None in with_table:
        return
    beside = {corpus.folder, *chain(*(table.path.parents for table in tables))}

    @cache
    def split_folder(folder: str) -> tuple[Path, str] | None:
        """The uppermost folder, of this one and those above it in the corpus, that a split has its name from."""
        if not folder:
            return None
        above, _, name = folder.rpartition("/")
        split = corpus.split_of(PurePath(name))
        return split_folder(above) or ((corpus.folder / folder, split) if split else None)

    bare: dict[tuple[Path, str], list[str]] = defaultdict(list)
    for name in corpus.recordings:
        found = split_folder(os.path.dirname(name))
        if found and found[1] not in with_table and found[0].parent in beside:
            bare[found].append(name)
    if bare:
        corpus.check_tables_are_read(tables)
    for (folder, split), names in bare.items():
        yield Table(folder, _bare(names), split, (corpus.folder,))


def _bare(names: list[str]) -> Callable[[Path], Iterator[Row]]:
    """Rows of recordings without transcripts, by their names in the corpus' folder."""
    return lambda _: (Row(name, name, "") for name in names)


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
