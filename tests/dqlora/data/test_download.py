import hashlib
import io
import re
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dqlora.data import download
from dqlora.data.archives import extract_archive
from dqlora.data.download import RemoteFile, download_all, read_url_list
from dqlora.errors import UserError
from tests.conftest import ROOT

CONTENT = {f"/noise/{name}.wav": bytes([index]) * 700_000 for index, name in enumerate("abcde")}


class Server(ThreadingHTTPServer):
    """Serves CONTENT, with ranges; can cut a connection, answer 503, and hold each answer back."""

    def __init__(self) -> None:
        self.cut = self.busy = 0  # answers still to be spoilt
        self.retry_after = ""
        self.delay = 0.0  # s
        self.requests: Counter[str] = Counter()
        self.ranges: list[str | None] = []
        self.at_once = self.most_at_once = 0
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        server.requests[self.path] += 1
        server.ranges.append(self.headers["Range"])
        if self.path not in CONTENT:
            return self.send_error(404)
        if server.busy:
            server.busy -= 1
            self.send_response(503)
            if server.retry_after:
                self.send_header("Retry-After", server.retry_after)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        server.at_once += 1
        server.most_at_once = max(server.most_at_once, server.at_once)
        time.sleep(server.delay)
        content = CONTENT[self.path]
        first, _, last = (self.headers["Range"] or "bytes=0-")[6:].partition("-")
        start = int(first)
        content = content[: int(last) + 1] if last else content
        if start >= len(content):
            server.at_once -= 1
            return self.send_error(416)
        self.send_response(206 if self.headers["Range"] else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = start + 300_000 if server.cut else len(content)
        server.cut = max(server.cut - 1, 0)
        self.wfile.write(content[start:end])
        server.at_once -= 1

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "PAUSES", (0.01, 0.01))
    with Server() as server:
        threading.Thread(target=partial(server.serve_forever, poll_interval=0.01), daemon=True).start()
        yield server
        server.shutdown()


def files(server: Server, *names: str) -> list[RemoteFile]:
    return [RemoteFile(f"train/{name}.wav", f"{server.url}/noise/{name}.wav") for name in names]


def test_several_at_once_with_checksums(server: Server, tmp_path: Path) -> None:
    server.delay = 0.2
    paths = download_all(files(server, *"edcba"), tmp_path / "noise", tmp_path / "noise.sha256")
    assert paths == [tmp_path / "noise" / "train" / f"{name}.wav" for name in "edcba"]
    assert [path.read_bytes() for path in paths] == [CONTENT[f"/noise/{name}.wav"] for name in "edcba"]
    assert server.most_at_once == 4
    digests = [hashlib.sha256(CONTENT[f"/noise/{name}.wav"]).hexdigest() for name in "abcde"]
    lines = [f"{digest}  train/{name}.wav\n" for digest, name in zip(digests, "abcde", strict=True)]
    assert (tmp_path / "noise.sha256").read_text() == "".join(lines)


def test_what_is_there_is_only_verified(server: Server, tmp_path: Path) -> None:
    checksums = tmp_path / "noise.sha256"
    (path,) = download_all(files(server, "a"), tmp_path, checksums)
    before = checksums.read_bytes()
    download_all(files(server, "a"), tmp_path, checksums)
    assert server.requests.total() == 1
    assert checksums.read_bytes() == before
    path.write_bytes(b"other")
    expected = hashlib.sha256(CONTENT["/noise/a.wav"]).hexdigest()
    download_all(files(server, "a"), tmp_path, checksums)  # damaged: fetched again by itself
    assert hashlib.sha256(path.read_bytes()).hexdigest() == expected
    assert server.requests.total() == 2


def test_of_several_that_want_a_file_one_downloads_it(server: Server, tmp_path: Path) -> None:
    """And what each found out stands in the list of checksums. Locks hold between threads as between processes."""
    server.delay = 0.05
    wanted = ("abc", "bcd", "abcde", "a")
    with ThreadPoolExecutor(len(wanted)) as pool:
        tasks = [pool.submit(download_all, files(server, *names), tmp_path, tmp_path / "sums") for names in wanted]
        for task in tasks:
            task.result()
    assert set(server.requests.values()) == {1}
    assert {path.name for path in tmp_path.rglob("*")} == {"sums", "train", *(f"{name}.wav" for name in "abcde")}
    assert all((tmp_path / f"train/{name}.wav").read_bytes() == CONTENT[f"/noise/{name}.wav"] for name in "abcde")
    assert len((tmp_path / "sums").read_text().splitlines()) == 5


def test_one_that_waits_goes_on_when_the_other_is_killed(server: Server, tmp_path: Path) -> None:
    lines = f"""
import os, sys, threading
from pathlib import Path
from dqlora.data import download
with download._alone_at(Path({str(tmp_path / "train/a.wav")!r}), threading.Event()):
    print("locked", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", lines], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"locked\n"
        with ThreadPoolExecutor(1) as pool:
            task = pool.submit(download_all, files(server, "a"), tmp_path)
            time.sleep(0.3)
            assert not task.done() and not server.requests
            other.kill()
            assert task.result()[0].read_bytes() == CONTENT["/noise/a.wav"]


def test_goes_on_where_the_connection_broke(server: Server, tmp_path: Path) -> None:
    server.cut = 2
    (path,) = download_all(files(server, "b"), tmp_path, tmp_path / "sums")
    assert path.read_bytes() == CONTENT["/noise/b.wav"]
    starts = [int(value[6:-1]) for value in server.ranges if value]
    assert [(300_000 - starts[0]) // download.CHUNK, (starts[0] + 300_000 - starts[1]) // download.CHUNK] == [0, 0]


def test_goes_on_from_an_earlier_call(server: Server, tmp_path: Path) -> None:
    part = tmp_path / "train" / "b.wav.part"
    part.parent.mkdir()
    part.write_bytes(CONTENT["/noise/b.wav"][:400_000])
    (path,) = download_all(files(server, "b"), tmp_path, tmp_path / "sums")
    assert path.read_bytes() == CONTENT["/noise/b.wav"]
    assert server.ranges == ["bytes=400000-"]
    assert not part.exists()


def test_a_part_longer_than_the_file_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "b.wav.part").write_bytes(bytes(800_000))
    (path,) = download_all(files(server, "b"), tmp_path, tmp_path / "sums")
    assert path.read_bytes() == CONTENT["/noise/b.wav"]


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.busy = 2
    download_all(files(server, "a"), tmp_path, tmp_path / "sums")
    assert server.requests.total() == 3


@pytest.mark.parametrize(("asked", "ends"), [("0", True), ("1", True), ("300", False)])
def test_a_server_says_how_long_to_wait(server: Server, tmp_path: Path, asked: str, ends: bool) -> None:
    server.busy, server.retry_after = 2, asked
    if ends:
        start = time.monotonic()
        download_all(files(server, "a"), tmp_path, tmp_path / "sums")
        assert time.monotonic() - start >= 2 * float(asked)
    else:
        with pytest.raises(UserError, match=r"503 .*it asks to wait 300 s"):
            download_all(files(server, "a"), tmp_path, tmp_path / "sums")


def test_a_date_to_wait_until() -> None:
    soon = formatdate(time.time() + 60, usegmt=True)
    assert 55 < download._wait(soon) < 65
    assert download._wait(formatdate(0, usegmt=True)) == 0
    assert download._wait("soon") is None


def test_a_web_page_is_never_kept(server: Server, tmp_path: Path) -> None:
    CONTENT["/noise/page.wav"] = b"\n<!DOCTYPE HTML><html>please log in</html>"
    with pytest.raises(UserError, match=r"page\.wav: a web page came instead of the file"):
        download_all(files(server, "page"), tmp_path, tmp_path / "sums")
    assert not (tmp_path / "sums").exists()
    assert not (tmp_path / "train/page.wav").exists()


def test_what_is_not_whole_is_never_pinned(server: Server, tmp_path: Path) -> None:
    def check(path: Path) -> None:
        raise ValueError("truncated file")

    with pytest.raises(UserError, match=r"a\.wav: a\.wav came damaged twice \(truncated file\)"):
        download_all(files(server, "a"), tmp_path, tmp_path / "sums", check)
    assert not (tmp_path / "sums").exists()
    assert list((tmp_path / "train").iterdir()) == []
    assert server.requests.total() == 2


@pytest.mark.parametrize("first", [0, 1000, 699_000])
def test_a_part_of_a_file(server: Server, tmp_path: Path, first: int) -> None:
    [whole] = files(server, "c")
    part = RemoteFile("c.part2", whole.url, first=first, size=500)
    [path] = download_all([part], tmp_path)
    assert path.read_bytes() == CONTENT["/noise/c.wav"][first : first + 500]


def test_a_changed_file_is_refused_and_not_kept(server: Server, tmp_path: Path) -> None:
    checksums = tmp_path / "sums"
    checksums.write_text(f"{'0' * 64}  train/a.wav\n")
    with pytest.raises(UserError, match=rf"a\.wav.*expected {'0' * 64}.*delete its line in"):
        download_all(files(server, "a"), tmp_path, checksums)
    assert list((tmp_path / "train").iterdir()) == []
    assert checksums.read_text() == f"{'0' * 64}  train/a.wav\n"


def test_a_wrong_address_is_named_and_the_rest_is_written_down(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{server.url}/noise/zz\.wav: 404"):
        download_all(files(server, "a", "zz"), tmp_path, tmp_path / "sums", workers=1)
    assert (tmp_path / "sums").read_text().endswith("  train/a.wav\n")


@pytest.mark.parametrize("url", ["ftp://example.com/a.wav", "a.wav"])
def test_no_address_is_named(tmp_path: Path, url: str) -> None:
    with pytest.raises(UserError, match="write an http or https address"):
        download_all([RemoteFile("a.wav", url)], tmp_path, tmp_path / "sums")


def test_no_server(tmp_path: Path) -> None:
    server = Server()
    server.server_close()
    start = time.monotonic()
    with pytest.raises(UserError, match=rf"^{server.url}/noise/[ab]\.wav: cannot be downloaded \(127.*local folder"):
        download_all(files(server, "a", "b"), tmp_path, tmp_path / "sums")
    assert time.monotonic() - start < 20
    assert not (tmp_path / "sums").exists()


def test_spoilt_checksums_are_named(tmp_path: Path) -> None:
    (tmp_path / "sums").write_text("abc a.wav\n")
    with pytest.raises(UserError, match="sums, line 1"):
        download_all([], tmp_path, tmp_path / "sums")


def test_url_lists(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("path,commit\nnoise_test/Babble_1.wav,abc\n")
    assert read_url_list(path) == [
        RemoteFile(
            "noise_test/Babble_1.wav", "https://raw.githubusercontent.com/microsoft/MS-SNSD/abc/noise_test/Babble_1.wav"
        )
    ]
    path.write_text("split,url\ntrain,http://h/x/a%20b.wav?c=1\ntest,http://h/x/a%20b.wav\n")
    assert [file.name for file in read_url_list(path)] == ["train/a b.wav", "test/a b.wav"]
    path.write_text("url\nhttp://h/a.wav\n")
    assert read_url_list(path) == [RemoteFile("a.wav", "http://h/a.wav")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no file"),
        ("url\n", "lists no file"),
        ("address\nhttp://h/a.wav\n", "line 2: needs `url`"),
        ("url\nhttp://h/a.wav\nhttp://g/a.wav\n", r"line 3: a second file named a\.wav"),
        ("url\nhttp://h/\n", "line 2: .*names no file"),
    ],
)
def test_bad_url_lists(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_url_list(tmp_path / "list.csv")


def test_missing_url_list(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"list\.csv: no such file"):
        read_url_list(tmp_path / "list.csv")


def test_the_fleurs_presets_noise_has_no_recording_twice() -> None:
    names = [file.name for file in read_url_list(ROOT / "presets" / "fleurs" / "noise.csv")]
    splits = {split: {Path(name).name for name in names if name.startswith(split)} for split in ("train/", "test/")}
    assert (len(splits["train/"]), len(splits["test/"])) == (40, 20)
    assert not splits["train/"] & splits["test/"]
    assert len({re.sub(r"_\d+\.wav", "", name) for name in splits["test/"]}) >= 9


def write_tar(path: Path, *names: str, link: str = "") -> None:
    with tarfile.open(path, "w:bz2") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 4
            tar.addfile(member, io.BytesIO(b"RIFF"))
        if link:
            member = tarfile.TarInfo(link)
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(member)


def test_only_audio_leaves_an_archive(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar.bz2", "n/b.wav", "n/A.WAV", "n/._b.wav", "n/readme.txt", link="n/c.wav")
    paths = extract_archive(tmp_path / "a.tar.bz2", tmp_path / "out")
    assert paths == [tmp_path / "out" / "n" / "A.WAV", tmp_path / "out" / "n" / "b.wav"]
    assert sorted((tmp_path / "out").rglob("*.*")) == paths


def test_an_archive_stays_in_its_folder(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar.bz2", "../b.wav")
    with pytest.raises(UserError, match=r"a\.tar\.bz2: unsafe"):
        extract_archive(tmp_path / "a.tar.bz2", tmp_path / "out")
    assert not (tmp_path / "b.wav").exists()


@pytest.mark.parametrize("size", [None, 0, 60])
def test_a_broken_archive_is_named(tmp_path: Path, size: int | None) -> None:
    archive = tmp_path / "a.tar.bz2"
    if size is not None:
        write_tar(archive, *(f"{index}.wav" for index in range(50)))
        archive.write_bytes(archive.read_bytes()[:size])
    with pytest.raises(UserError, match=r"a\.tar\.bz2"):
        extract_archive(archive, tmp_path / "out")


def test_an_archive_without_audio(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar.bz2", "readme.txt")
    with pytest.raises(UserError, match="holds no audio"):
        extract_archive(tmp_path / "a.tar.bz2", tmp_path / "out")
