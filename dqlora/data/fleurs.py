"""Speech corpora with FLEURS' columns in Parquet files, in a folder or on the hub, of which only what is read comes."""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from dqlora.data.download import NotFoundError, digest_of, download_all, forget
from dqlora.data.hub import HubFile, Repository, read_bytes
from dqlora.data.parquet import read_rows
from dqlora.data.storage import read_json, write_json
from dqlora.errors import UserError, first_line

MAGIC = b"PAR1"
FOOTER_END = 8  # bytes: the length of a Parquet file's footer, and MAGIC
UNREADABLE = (OSError, ValueError, IndexError, KeyError)  # what damage ends in
DATASET_FOLDERS = ("{config}", "parquet-data/{config}")  # on a conversion branch, and on FLEURS' main branch
AUDIO, AUDIO_PATH = "audio.bytes", "audio.path"
TRANSCRIPTS = ("raw_transcription", "transcription")  # FLEURS' own, and what it made of it
Recording = tuple[str, bytes, str]  # file name, file, transcript


class DamagedError(UserError):
    """A file that came in parts is not the hub's; its parts are gone, so that another run fetches them again."""


def hub_recordings(path: str, split: str, downloads: Path, checksums: Path) -> Iterator[Recording]:
    """The recordings of a split of a corpus with FLEURS' columns; row groups are downloaded when their turn comes.

    Parameters
    ----------
    path
        ``hf://datasets/owner/name@revision/config``
    downloads
        Where files go: row groups, each in a file of its own, as they lie in the hub's file one after another.
    checksums
        As for `download_all`. A file that has come as a whole is also held to the hub's SHA-256.

    Raises
    ------
    UserError
        If the corpus cannot be had or has other columns.
    """
    repository, config = _parse(path)
    commit = repository.commit()
    folder = downloads / commit / config
    files = [file for file in _dataset_files(repository, commit, config, folder) if _is_of_split(file.path, split)]
    if not files:
        raise UserError(f"speech.path: {path}: has no {split}/*.parquet and no {split}-*.parquet; name another config")
    for file in files:
        yield from _RemoteParquet(repository, commit, file, downloads, checksums).recordings()


def hub_commit(path: str) -> str:
    """The commit that a path on the hub is read at; raises as `hub_recordings`."""
    return _parse(path)[0].commit()


def _parse(path: str) -> tuple[Repository, str]:
    """The repository and the config that a path names."""
    match = re.fullmatch(r"hf://datasets/([\w.-]+/[\w.-]+)@(.+)/([^/]+)", path)
    if not match:
        raise UserError(f"speech.path: {path}: expected hf://datasets/owner/name@revision/config")
    return Repository("dataset", match[1], match[2], f"speech.path: {path}"), match[3]


def folder_recordings(folder: Path, split: str) -> Iterator[Recording]:
    """The recordings of a split in a folder with the hub's files of one config; raises as `hub_recordings`."""
    found = sorted([*folder.glob("*.parquet"), *folder.glob("*/*.parquet")])
    files = [file for file in found if _is_of_split(f"/{file.relative_to(folder).as_posix()}", split)]
    if not files:
        raise UserError(f"speech.path: {folder}: has no {split}/*.parquet and no {split}-*.parquet")
    for file in files:
        try:
            metadata = pq.read_metadata(file)
            for group in range(metadata.num_row_groups):
                yield from _recordings(file, metadata, group, str(file))
        except UNREADABLE as error:
            raise UserError(f"{file}: unreadable as Parquet ({first_line(error)}); copy or fetch it again") from None


class _RemoteParquet:
    """A Parquet file on the hub, as parts: the footer, and what lies up to the end of each row group."""

    def __init__(self, repository: Repository, commit: str, file: HubFile, downloads: Path, checksums: Path):
        self.repository, self.commit, self.file = repository, commit, file
        self.downloads, self.checksums = downloads, checksums
        self.name = f"{repository.source}: {file.path}"

    def recordings(self) -> Iterator[Recording]:
        metadata = self._footer()
        ends = [_end_of(metadata, group) for group in range(metadata.num_row_groups)]
        if not ends:
            return
        starts = [0, *ends[:-1]]
        ends[-1] = self.file.size
        parts: list[Path] = []
        for group, (start, end) in enumerate(zip(starts, ends, strict=True)):
            parts.append(self._part(str(group), start, end - start))
            if end == self.file.size and digest_of(*parts) != self.file.digest:
                self._discard(parts, "its SHA-256 is not the hub's")
            try:
                yield from _recordings(parts[-1], metadata, group, self.name, start)
            except UNREADABLE as error:
                self._discard(parts[-1:], first_line(error))

    def _footer(self) -> pq.FileMetaData:
        if self.file.size < FOOTER_END:
            raise UserError(f"{self.name}: no Parquet file, of {self.file.size} bytes; name another config or revision")
        kept = self.downloads / self.commit / f"{self.file.path}.footer"
        end = kept.read_bytes()[-FOOTER_END:] if kept.exists() else b""
        if not end.endswith(MAGIC):
            whole = self.repository.remote(self.commit, self.file)
            end = read_bytes(whole, self.file.size - FOOTER_END, FOOTER_END)
        length = int.from_bytes(end[:4], "little") + FOOTER_END
        footer = self._part("footer", max(0, self.file.size - length), min(length, self.file.size))
        try:
            return pq.read_metadata(pa.BufferReader(footer.read_bytes()))
        except UNREADABLE as error:
            self._discard([footer], first_line(error))

    def _part(self, name: str, first: int, size: int) -> Path:
        whole = self.file.digest if size == self.file.size else None
        name = f"{self.commit}/{self.file.path}.{name}"
        remote = self.repository.remote(self.commit, self.file)
        part = replace(remote, name=name, digest=whole, first=first, size=size)
        return download_all([part], self.downloads, self.checksums)[0]

    def _discard(self, parts: list[Path], reason: str) -> NoReturn:
        for part in parts:
            part.unlink()
        forget([part.relative_to(self.downloads).as_posix() for part in parts], self.checksums)
        raise DamagedError(f"{self.name} came damaged ({reason}); run it again")


def _dataset_files(repository: Repository, commit: str, config: str, folder: Path) -> list[HubFile]:
    """The files of a config, listed once."""
    listing = folder / "files.json"
    if not listing.exists():
        for pattern in DATASET_FOLDERS:
            with suppress(NotFoundError):
                files = repository.files(commit, pattern.format(config=config))
                folder.mkdir(parents=True, exist_ok=True)
                write_json(listing, [asdict(file) for file in files])
                break
        else:
            known = repository.folders(commit)
            with suppress(NotFoundError):
                known += [Path(name).name for name in repository.folders(commit, "parquet-data")]
            near = ", ".join(get_close_matches(config, known, cutoff=0.4) or sorted(known)[:5])
            raise UserError(f"{repository.source}: has no config {config}; there are {near or 'none'}")
    return [HubFile(**file) for file in read_json(listing, f"delete {folder}")]


def _is_of_split(path: str, split: str) -> bool:
    return bool(re.search(rf"/{split}(/|-)[^/]*\.parquet$", path))


def _end_of(metadata: pq.FileMetaData, group: int) -> int:
    """The offset at which a row group ends."""
    ends = []
    for index in range(metadata.num_columns):
        chunk = metadata.row_group(group).column(index)
        first = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
        ends.append(first + chunk.total_compressed_size)
    return max(ends)


def _recordings(path: Path, metadata: pq.FileMetaData, group: int, name: str, start: int = 0) -> Iterator[Recording]:
    leaves = [metadata.schema.column(index).path for index in range(metadata.num_columns)]
    transcripts = [column for column in TRANSCRIPTS if column in leaves]
    names = [column for column in ("path", AUDIO_PATH) if column in leaves]
    if not transcripts or not names or AUDIO not in leaves:
        raise UserError(f"{name}: not FLEURS' columns; needs path, audio and transcription")
    for row in read_rows(path, metadata, group, [*names, *transcripts, AUDIO], AUDIO, start):
        file = next((row[column] for column in names if row[column]), "")
        transcript = next((row[column] for column in transcripts if row[column]), "")
        yield Path(file).name, row[AUDIO] or b"", transcript
