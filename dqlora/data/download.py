"""Files by URL: several at once, resumed where they broke off, and each held to a digest."""

import csv
import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import requests
from filelock import FileLock, Timeout

from dqlora.errors import UserError
from dqlora.progress import ProgressBar

MS_SNSD = "https://raw.githubusercontent.com/microsoft/MS-SNSD/{commit}/{path}"
TIMEOUT = (3.0, 10.0)  # s, to connect to each address of a host, and between two bytes
PAUSES = (1.0, 2.0, 4.0, 8.0)  # s, before the tries after the first
PATIENCE = 25.0  # s without a byte, after which there is no other try; with TIMEOUT, an error comes within a minute
UNREACHABLE_TRIES = 3  # of a host that does not answer at all
CHUNK = 1 << 16  # bytes; what a broken connection loses at most
GIT_DIGITS = 40  # of the name of a git blob
WEB_PAGE = (b"<!doctype html", b"<html")


@dataclass(frozen=True)
class RemoteFile:
    """A file to download, or a part of one."""

    name: str  # path, with forward slashes, below the folder that it goes to
    url: str
    digest: str | None = None  # SHA-256, or SHA-1 of the git blob, in hexadecimal digits
    size: int | None = None  # bytes, where known
    first: int | None = None  # byte of the server's file at which it begins, where it is a part of that
    headers: Mapping[str, str] = field(default_factory=dict)  # for the URL's host alone
    source: str = ""  # how the user named it; else the URL


class UnreachableError(UserError):
    """A server that does not answer, or not as it should, for as long as one waits."""


class NotFoundError(UserError):
    """A server that has no such thing."""


class WholeFileError(UserError):
    """A server, or a proxy before it, that sends no part of a file."""

    def __init__(self, source: str):
        super().__init__(f"{source}: the server sends whole files only; download it to a folder")


class _TransientError(Exception):
    """Worth another try, after `wait` seconds if the server said so."""

    def __init__(self, message: str, wait: float | None = None):
        super().__init__(message)
        self.wait = wait


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
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8; save it as such") from None
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


def download_all(
    files: list[RemoteFile],
    folder: Path,
    checksums: Path | None = None,
    check: Callable[[Path], object] = lambda path: None,
    workers: int = 4,
) -> list[Path]:
    """Download what `folder` lacks or holds damaged, and check everything.

    An unfinished download stays beside its place as ``<name>.part`` and is taken up again by the next call. Of several
    processes that want a file, one downloads it, and the others wait.

    Parameters
    ----------
    files
        What to download; their names differ.
    folder
        Where the files go.
    checksums
        A list as `sha256sum` writes it, of files without a digest of their own. It gains a line for each file that it
        lacks; a line that it has is binding.
    check
        Raises ValueError if a file that has just come is not what it should be.
    workers
        Downloads at once.

    Returns
    -------
    list of Path
        In the order of `files`.

    Raises
    ------
    UserError
        If a file cannot be had, or is not the one whose digest is known.
    """
    known = _read_checksums(checksums) if checksums else {}
    found: dict[str, str] = {}
    stop = threading.Event()
    with (
        ProgressBar(desc="download", unit="B", unit_scale=True, total=0, leave=False, delay=1) as bar,
        ThreadPoolExecutor(workers) as pool,
    ):
        tasks = {
            pool.submit(_obtain, file, folder / file.name, known.get(file.name), checksums, check, bar, stop): file
            for file in files
        }
        try:
            for task in as_completed(tasks):
                with suppress(_StoppedError):
                    digest = task.result()
                    if tasks[task].digest is None:
                        found[tasks[task].name] = digest
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
            if checksums and found.keys() - known.keys():
                _edit_checksums(checksums, lambda listed: found | listed)
    return [folder / file.name for file in files]


def get(url: str, source: str, headers: Mapping[str, str], size: int | None = None) -> requests.Response:
    """A small answer, of `size` bytes if given, with the patience and the errors of `download_all`."""
    patience = _Patience()
    while True:
        try:
            with _request(url, source, headers) as response:
                if "Range" in headers and response.status_code == requests.codes.ok:
                    raise WholeFileError(source)
                came = len(response.content)
                _check_content(response.content, source)
                if size not in (None, came):
                    raise _TransientError(f"{came} of {size} bytes came")
                return response
        except requests.RequestException as error:
            time.sleep(patience.pause(_TransientError(type(error).__name__), source))
        except _TransientError as error:
            time.sleep(patience.pause(error, source))


def _obtain(
    file: RemoteFile,
    path: Path,
    pinned: str | None,
    checksums: Path | None,
    check: Callable[[Path], object],
    bar: ProgressBar,
    stop: threading.Event,
) -> str:
    """Return the digest of `file`, which lies at `path` afterwards and is what it should be."""
    expected = file.digest or pinned
    if there := _digest_if_there(path, expected):
        return there
    with _alone_at(path, stop):
        if there := _digest_if_there(path, expected):  # another process' work meanwhile
            return there
        part = path.with_name(path.name + ".part")
        for last in (False, True):
            _download(file, part, bar, stop)
            digest = digest_of(part, like=expected)
            try:
                if expected not in (None, digest):
                    raise ValueError(f"its digest is {digest}, expected {expected}")
                check(part)
            except ValueError as error:
                part.unlink()
                if last:
                    way_out = "try again later, or drop it"
                    if pinned:
                        way_out = f"if it has changed on purpose, delete its line in {checksums}"
                    raise UserError(
                        f"{file.source or file.url}: {path.name} came damaged twice ({error}); {way_out}"
                    ) from None
            else:
                break
        part.replace(path)
    return digest


def _digest_if_there(path: Path, expected: str | None) -> str | None:
    """The digest of a file, None if there is none or another one than expected."""
    if not path.exists():
        return None
    digest = digest_of(path, like=expected)
    return digest if expected in (None, digest) else None


@contextmanager
def _alone_at(path: Path, stop: threading.Event | None = None) -> Iterator[None]:
    """Wait until no other process is at a file; one that is killed is no longer at it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    while not lock.is_locked:
        if stop is not None and stop.is_set():
            raise _StoppedError
        with suppress(Timeout):
            lock.acquire(timeout=1)  # s
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)  # who waits for it sees that it has gone, and makes a new one
        lock.release()


class _Patience:
    """How long a download that does not get on is tried again."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        self.tries, self.since = 0, time.monotonic()

    def pause(self, error: _TransientError, source: str) -> float:
        """Seconds to wait before the next try; raises UserError if there is none."""
        pause = PAUSES[min(self.tries, len(PAUSES) - 1)] if error.wait is None else error.wait
        self.tries += 1
        unreachable = isinstance(error.__cause__, requests.ConnectionError) and self.tries == UNREACHABLE_TRIES
        if unreachable or time.monotonic() + pause - self.since > PATIENCE:
            asked = f"; it asks to wait {error.wait:.0f} s" if error.wait else ""
            raise UnreachableError(
                f"{source}: cannot be downloaded ({error}{asked}); run it again later, what has come is kept; without "
                "a network, name a local folder with the files in the preset"
            ) from None
        return pause


def _download(file: RemoteFile, part: Path, bar: ProgressBar, stop: threading.Event) -> None:
    """Fill `part`; whenever bytes came, patience begins anew."""
    patience = _Patience()
    while not stop.is_set():
        size = part.stat().st_size if part.exists() else 0
        if file.size is not None and size > file.size:
            part.unlink()
            size = 0
        if size == file.size:
            return None
        try:
            return _continue(file, part, size, bar, stop)
        except _TransientError as error:
            if part.exists() and part.stat().st_size > size:
                patience.renew()
                continue
            try:
                pause = patience.pause(error, file.source or file.url)
            except UserError:
                stop.set()
                raise
            stop.wait(pause)
    raise _StoppedError


def _continue(file: RemoteFile, part: Path, size: int, bar: ProgressBar, stop: threading.Event) -> None:
    """Append to the `size` bytes of `part` what the server still has."""
    headers = {**file.headers, "Accept-Encoding": "identity"}
    if size or file.first is not None:
        first = file.first or 0
        headers["Range"] = f"bytes={first + size}-{'' if file.size is None else first + file.size - 1}"
    with _request(file.url, file.source or file.url, headers) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            part.unlink(missing_ok=True)
            raise _TransientError("the unfinished file was not the server's")
        resumed = response.status_code == requests.codes.partial_content
        if file.first is not None and not resumed:
            raise WholeFileError(file.source or file.url)
        size *= resumed
        missing = int(response.headers.get("Content-Length", 0))
        bar.total = (bar.total or 0) + missing
        try:
            with part.open("ab" if resumed else "wb") as output:
                for chunk in response.iter_content(CHUNK):
                    if size == 0:
                        _check_content(chunk, file.source or file.url)
                    bar.update(output.write(chunk))
                    missing -= len(chunk)
                    size += len(chunk)
                    if stop.is_set():
                        raise _StoppedError
        except requests.RequestException as error:
            raise _TransientError(type(error).__name__) from None
        finally:
            bar.total -= missing  # the next try counts it again
    if file.size is not None and size < file.size:
        raise _TransientError(f"{size} of {file.size} bytes came")


def _check_content(beginning: bytes, source: str) -> None:
    if beginning[:64].lstrip().lower().startswith(WEB_PAGE):
        raise UserError(
            f"{source}: a web page came instead of the file, as where one has to log in; correct its address"
        )


def _request(url: str, source: str, headers: Mapping[str, str]) -> requests.Response:
    """The answer to a GET, its body unread; `headers` are kept from other hosts that it leads to."""
    try:
        response = requests.get(url, headers=headers, stream=True, timeout=TIMEOUT)
    except ValueError as error:  # what requests makes of an address that is none
        raise UserError(f"{source}: {error}; write an http or https address") from None
    except requests.RequestException as error:
        raise _TransientError(f"{urlsplit(url).hostname}: {type(error).__name__}") from error
    status = response.status_code
    if response.ok or status == requests.codes.requested_range_not_satisfiable:
        return response
    response.close()
    reason = f"{status} {response.reason}"
    if status in (requests.codes.request_timeout, requests.codes.too_many_requests) or status >= 500:
        raise _TransientError(reason, _wait(response.headers.get("Retry-After")))
    kind = NotFoundError if status == requests.codes.not_found else UserError
    code = response.headers.get("X-Error-Code", str(status))
    if response.headers.get("X-Error-Message", "").startswith("Invalid credentials"):
        code = "InvalidToken"
    raise kind(f"{source}: {_REFUSALS.get(code, f'{reason}; correct it')}")


_REFUSALS = {  # by the hub's X-Error-Code, or by status
    "401": "401, no such repository, or it is private; correct its name, or run `hf auth login`",
    "403": "403, access is refused; ask for it on its page, then run `hf auth login`",
    "404": "404, not found; correct its name or drop its line",
    "InvalidToken": "the hub does not know your token; unset HF_TOKEN if it is set, then run `hf auth login`",
    "GatedRepo": "access must be granted; ask for it on its page, then run `hf auth login`",
    "RepoNotFound": "no public repository of that name; correct it, or run `hf auth login` if it is private",
    "RevisionNotFound": "the repository has no such revision; correct what stands behind the @",
    "EntryNotFound": "the repository has no such file or folder; correct its name",
}


def _wait(retry_after: str | None) -> float | None:
    """Seconds, from a number of them or from a date (RFC 9110, 10.2.3)."""
    if retry_after is None:
        return None
    if retry_after.strip().isdecimal():
        return float(retry_after)
    with suppress(ValueError):
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    return None


def digest_of(*parts: Path, like: str | None = None) -> str:
    """SHA-256 of a file, or of its parts one after another; SHA-1 of it as a git blob if `like` is one."""
    digest = hashlib.sha256()
    if like is not None and len(like) == GIT_DIGITS:
        digest = hashlib.sha1(b"blob %d\0" % sum(part.stat().st_size for part in parts), usedforsecurity=False)
    for part in parts:
        with part.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def forget(names: list[str], checksums: Path) -> None:
    """Drop files from a list that `download_all` keeps."""
    _edit_checksums(checksums, lambda listed: {name: listed[name] for name in listed if name not in names})


def _read_checksums(path: Path) -> dict[str, str]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    checksums = {}
    for number, line in enumerate(lines, start=1):
        digest, _, name = line.partition("  ")
        if len(digest) != hashlib.sha256().digest_size * 2 or not name:
            raise UserError(f"{path}, line {number}: not as sha256sum writes it; delete the line")
        checksums[name] = digest
    return checksums


def _edit_checksums(path: Path, change: Callable[[dict[str, str]], dict[str, str]]) -> None:
    with _alone_at(path):
        checksums = change(_read_checksums(path))
        draft = path.with_name(path.name + ".part")
        draft.write_text("".join(f"{checksums[name]}  {name}\n" for name in sorted(checksums)), encoding="utf-8")
        draft.replace(path)
