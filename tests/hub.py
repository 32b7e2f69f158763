"""A small stand-in of the Hugging Face hub: trees, and files by ranges, the large ones from another host."""

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LARGE = {".safetensors", ".parquet", ".wav"}  # Git LFS keeps these
Fault = Callable[["Handler", bytes], bytes | None]  # of the body that is to be sent; None: the answer has been given


class Hub(ThreadingHTTPServer):
    """Serves ``root``/{models,datasets}/owner/name/commit/..., and ``root``/raw/... as it is.

    `fault` spoils the next `faults` answers whose path has `where` in it.
    """

    daemon_threads = True

    def __init__(self, root: Path):
        self.root = root
        self.refs: dict[str, str] = {}  # commits by branch
        self.fault: Fault | None = None
        self.where, self.faults = "", 0
        self.bytes: Counter[str] = Counter()  # sent, by the file's name
        self.tokens: set[str] = set()  # hosts that were sent a token
        self.page, self.page_host = 1000, ""  # entries of a tree at once, and the host at which the next are said to be
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def spoil(self, fault: Fault, where: str = "/cdn/", times: int = 1) -> None:
        self.fault, self.where, self.faults = fault, where, times


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        hub, path = self.server, unquote(urlsplit(self.path).path)
        if self.headers["Authorization"]:
            hub.tokens.add(self.headers["Host"].split(":")[0])
        if tree := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/tree/([^/]+)/?(.*)", path):
            return self.tree(*tree.groups())
        if info := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/revision/(.+)", path):
            if not (hub.root / info[1] / info[2]).is_dir():
                return self.refuse(401, "RepoNotFound")
            commit = hub.refs.get(info[3])
            return self.send_object({"sha": commit}) if commit else self.refuse(404, "RevisionNotFound")
        if resolve := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            inside = f"{resolve[1] or 'models/'}{resolve[2]}/{resolve[3]}/{resolve[4]}"
            if not (hub.root / inside).is_file():
                return self.refuse(404, "EntryNotFound")
            if Path(path).suffix in LARGE:
                location = f"http://localhost:{hub.server_port}/cdn/{inside}"
                return self.answer(302, b"", {"Location": location})
            return self.send_file(hub.root / inside, path)
        inside = path.removeprefix("/cdn") if path.startswith("/cdn/") else path
        return self.send_file(hub.root / inside.lstrip("/"), path)

    def tree(self, kind: str, name: str, commit: str, folder: str) -> None:
        repository = self.server.root / kind / name
        if not repository.is_dir():
            return self.refuse(401, "RepoNotFound")
        if not (repository / commit).is_dir():
            return self.refuse(404, "RevisionNotFound")
        if not (repository / commit / folder).is_dir():
            return self.refuse(404, "EntryNotFound")
        recursive = "recursive=true" in self.path
        base, start = repository / commit, repository / commit / folder
        entries = [entry(base, path) for path in sorted(start.rglob("*") if recursive else start.iterdir())]
        first, _, rest = self.path.partition("&cursor=")
        begin, end = int(rest or 0), int(rest or 0) + self.server.page
        more = {"Link": f'<{self.server.page_host}{first}&cursor={end}>; rel="next"'} if end < len(entries) else {}
        return self.send_object(entries[begin:end], **more)

    def send_file(self, path: Path, name: str) -> None:
        if not path.is_file():
            return self.refuse(404, "")
        content, status, headers = path.read_bytes(), 200, {}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or ""):
            first, last = int(asked[1]), int(asked[2] or len(content) - 1)
            if first >= len(content):
                return self.refuse(416, "")
            status, headers = 206, {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
            content = content[first : last + 1]
        return self.answer(status, content, headers, name)

    def answer(self, status: int, body: bytes, headers: dict[str, str], name: str = "") -> None:
        hub = self.server
        if hub.fault and hub.faults and hub.where in self.path:
            hub.faults -= 1
            spoilt = hub.fault(self, body)
            if spoilt is None:
                return
            body = spoilt
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)
        hub.bytes[Path(name).name] += len(body)

    def send_object(self, value: object, **headers: str) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})

    def refuse(self, status: int, code: str, **headers: str) -> None:
        self.answer(status, b"", {"X-Error-Code": code, **headers} if code else headers)

    def log_message(self, *args: object) -> None:
        pass


def entry(base: Path, path: Path) -> dict[str, object]:
    name = path.relative_to(base).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
    content = path.read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    lfs = {"lfs": {"oid": hashlib.sha256(content).hexdigest(), "size": len(content)}} if path.suffix in LARGE else {}
    return {"type": "file", "path": name, "oid": blob, "size": len(content), **lfs}


def cut(handler: Handler, body: bytes) -> None:
    """The true length, half of the body, and the connection is gone."""
    handler.send_response(206 if handler.headers["Range"] else 200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[: len(body) // 2])
    handler.close_connection = True


def short(handler: Handler, body: bytes) -> bytes:
    """Half of the body, and that is said to be all."""
    return body[: len(body) // 2]


def flip(handler: Handler, body: bytes) -> bytes:
    """One byte is another."""
    return body[:-100] + bytes([body[-100] ^ 255]) + body[-99:] if len(body) > 100 else body


def status(code: int, **headers: str) -> Fault:
    def fault(handler: Handler, body: bytes) -> None:
        handler.send_response(code)
        for key, value in {**headers, "Content-Length": "0"}.items():
            handler.send_header(key.replace("_", "-"), value)
        handler.end_headers()

    return fault


def web_page(handler: Handler, body: bytes) -> bytes:
    return b"<!DOCTYPE html><html>please log in" + bytes(2000)


@contextmanager
def serve(root: Path) -> Iterator[Hub]:
    with Hub(root) as hub:
        threading.Thread(target=partial(hub.serve_forever, poll_interval=0.01), daemon=True).start()
        yield hub
        hub.shutdown()
