"""Files by URL: several at once, resumed where they broke off, and held to the SHA-256 of their first download."""

import csv
import hashlib
import os
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import requests
from tqdm import tqdm

from dqlora.data.audio import AUDIO_SUFFIXES
from dqlora.errors import UserError

MS_SNSD = "https://raw.githubusercontent.com/microsoft/MS-SNSD/{commit}/{path}"
TIMEOUT = (3.0, 10.0)  # s, to connect to each address of a host, and between two bytes
PAUSES = (1.0, 2.0)  # s, before the second and third try
PATIENCE = 12.0  # s without a byte, after which there is no other try
CHUNK = 1 << 16  # bytes; what a broken connection loses at most


@dataclass(frozen=True)
class RemoteFile:
    """A file to download; `name` is its path, with forward slashes, below the folder that it goes to."""

    name: str
    url: str


class _TransientError(Exception):
    """Worth another try."""


class _StoppedError(Exception):
    """Another file failed meanwhile."""


def read_url_list(path: Path) -> list[RemoteFile]:
    """Read a CSV that lists files by `url`, or recordings of microsoft/MS-SNSD by `path` and `commit`.

    A file is named after the last part of its URL, under its `split` if the list has such a column; a recording of
    MS-SNSD keeps its path.

    Raises
    ------
    UserError
        If the list is missing or empty, lacks the columns, or gives two files one name.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; name a CSV with a column `url`") from None
    files: dict[str, RemoteFile] = {}
    for number, row in enumerate(rows, start=2):
        if row.get("url"):
            name = PurePosixPath(unquote(urlsplit(row["url"]).path)).name
            if not name:
                raise UserError(f"{path}, line {number}: {row['url']} names no file; complete it")
            remote = RemoteFile(str(PurePosixPath(row.get("split") or "", name)), row["url"])
        elif row.get("path") and row.get("commit"):
            remote = RemoteFile(row["path"], MS_SNSD.format(**row))
        else:
            raise UserError(f"{path}, line {number}: needs `url`, or `path` and `commit`")
        if remote.name in files:
            raise UserError(f"{path}, line {number}: a second file named {remote.name}; drop one or set its `split`")
        files[remote.name] = remote
    if not files:
        raise UserError(f"{path}: lists no file; add lines below `url`")
    return list(files.values())


def download_all(files: list[RemoteFile], folder: Path, checksums: Path, workers: int = 4) -> list[Path]:
    """Download what `folder` lacks, and check everything.

    An unfinished download stays beside its place as ``<name>.part`` and is taken up again by the next call.

    Parameters
    ----------
    files
        What to download; their names differ.
    folder
        Where the files go.
    checksums
        A list as `sha256sum` writes it. It gains a line for each file that it lacks; a line that it has is binding.
    workers
        Downloads at once.

    Returns
    -------
    list of Path
        In the order of `files`.

    Raises
    ------
    UserError
        If a file cannot be had, or is not the one whose SHA-256 was written down.
    """
    known = _read_checksums(checksums)
    found: dict[str, str] = {}
    stop = threading.Event()
    with (
        tqdm(desc="download", unit="B", unit_scale=True, total=0) as bar,
        ThreadPoolExecutor(workers) as pool,
    ):
        tasks = {
            pool.submit(_obtain, file, folder / file.name, known.get(file.name), checksums, bar, stop): file
            for file in files
        }
        try:
            for task in as_completed(tasks):
                with suppress(_StoppedError):
                    found[tasks[task].name] = task.result()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
            if found.keys() - known.keys():
                _write_checksums(checksums, found | known)
    return [folder / file.name for file in files]


def extract_archive(archive: Path, folder: Path) -> list[Path]:
    """Unpack the audio files of a tar archive, packed in any way; no links, no hidden files, nothing outside `folder`.

    Raises
    ------
    UserError
        If the archive is missing, damaged, reaches outside `folder`, or holds no audio.
    """
    paths = []
    try:
        with tarfile.open(archive) as tar:
            for member in tqdm(tar, desc=f"extract {archive.name}", unit="file"):
                name = PurePosixPath(member.name)
                if member.isfile() and name.suffix.lower() in AUDIO_SUFFIXES and not name.name.startswith("."):
                    tar.extract(member, folder, filter="data")
                    paths.append(folder / name)
    except FileNotFoundError:
        raise UserError(f"{archive}: no such file; download it first") from None
    except tarfile.FilterError as error:
        raise UserError(f"{archive}: unsafe, not unpacked ({error}); take another archive") from None
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{archive}: cut short or no tar archive ({error}); delete it to fetch it again") from None
    if not paths:
        raise UserError(f"{archive}: holds no audio ({', '.join(sorted(AUDIO_SUFFIXES))}); name another archive")
    return sorted(paths)


def _obtain(
    file: RemoteFile, path: Path, expected: str | None, checksums: Path, bar: "tqdm[Any]", stop: threading.Event
) -> str:
    """Return the SHA-256 of `file`, which lies at `path` afterwards and is what `expected` says."""
    if path.exists():
        _check(path, digest := _sha256(path), expected, f"delete it to fetch it again, or its line in {checksums}")
        return digest
    part = path.with_name(path.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    _download(file, part, bar, stop)
    digest = _sha256(part)
    try:
        _check(path, digest, expected, f"{file.url} has changed; if on purpose, delete the line in {checksums}")
    except UserError:
        part.unlink()
        raise
    part.rename(path)
    return digest


def _check(path: Path, found: str, expected: str | None, way_out: str) -> None:
    if expected not in (None, found):
        raise UserError(f"{path}: SHA-256 is {found}, expected {expected}; {way_out}")


def _download(file: RemoteFile, part: Path, bar: "tqdm[Any]", stop: threading.Event) -> None:
    """Fill `part`; whenever bytes came, the tries are counted anew."""
    tries, since = 0, time.monotonic()
    while not stop.is_set():
        size = part.stat().st_size if part.exists() else 0
        try:
            return _continue(file, part, size, bar, stop)
        except _TransientError as error:
            if part.exists() and part.stat().st_size > size:
                tries, since = 0, time.monotonic()
            if tries == len(PAUSES) or time.monotonic() - since > PATIENCE:
                stop.set()
                raise UserError(
                    f"{urlsplit(file.url).hostname}: {file.url} cannot be downloaded ({error}); try again with a "
                    "network, or point the preset's line at a folder with the files"
                ) from None
            stop.wait(PAUSES[tries])
            tries += 1
    raise _StoppedError


def _continue(file: RemoteFile, part: Path, size: int, bar: "tqdm[Any]", stop: threading.Event) -> None:
    """Append to the `size` bytes of `part` what the server still has."""
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={size}-"} if size else {})
    try:
        with requests.get(file.url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            if response.status_code == requests.codes.requested_range_not_satisfiable:
                part.unlink()
                raise _TransientError("the unfinished file was not the server's")
            if response.status_code == requests.codes.too_many_requests or response.status_code >= 500:
                raise _TransientError(f"{response.status_code} {response.reason}")
            if not response.ok:
                raise UserError(f"{file.url}: {response.status_code} {response.reason}; correct or drop its line")
            resumed = response.status_code == requests.codes.partial_content
            missing = int(response.headers.get("Content-Length", 0))
            bar.total = (bar.total or 0) + missing
            try:
                with part.open("ab" if resumed else "wb") as output:
                    for chunk in response.iter_content(CHUNK):
                        bar.update(output.write(chunk))
                        missing -= len(chunk)
                        if stop.is_set():
                            raise _StoppedError
            finally:
                bar.total -= missing  # the next try counts it again
    except ValueError as error:  # what requests makes of an address that is none
        raise UserError(f"{file.url}: {error}; write an http or https address") from None
    except requests.RequestException as error:
        raise _TransientError(type(error).__name__) from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_checksums(path: Path) -> dict[str, str]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    checksums = {}
    for number, line in enumerate(lines, start=1):
        digest, _, name = line.partition("  ")
        if len(digest) != hashlib.sha256().digest_size * 2 or not name:
            raise UserError(f"{path}, line {number}: not as sha256sum writes it; delete the line")
        checksums[name] = digest
    return checksums


def _write_checksums(path: Path, checksums: dict[str, str]) -> None:
    draft = path.with_name(path.name + ".part")
    draft.parent.mkdir(parents=True, exist_ok=True)
    draft.write_text("".join(f"{checksums[name]}  {name}\n" for name in sorted(checksums)), encoding="utf-8")
    os.replace(draft, path)
