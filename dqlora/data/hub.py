"""The Hugging Face hub: what a revision holds, models in the hub's cache, and corpora by their row groups.

Its own client gives up after minutes, checks sizes and not digests, and starts interrupted files again; so files come
through `download_all`, into the layout of the hub's cache (huggingface_hub's guide "Understand caching"), which other
programs read as well.
"""

import json
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import HFValidationError, build_hf_headers, validate_repo_id

from dqlora.data.download import (
    RemoteFile,
    UnreachableError,
    WholeFileError,
    digest_of,
    download_all,
    get,
)
from dqlora.data.storage import atomic_write
from dqlora.errors import UserError, is_of_full_disk

HUB = "hf://"
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubFile:
    path: str
    size: int  # bytes
    digest: str  # SHA-256 of a large file (Git LFS), SHA-1 of the git blob of others


@dataclass(frozen=True)
class Repository:
    """A repository at a revision, and the parameter's value that names it."""

    kind: str  # model | dataset
    name: str
    revision: str
    source: str

    def commit(self) -> str:
        """The commit that the revision is at the moment."""
        if COMMIT.fullmatch(self.revision):
            return self.revision
        answer = self._api(f"revision/{quote(self.revision, safe='')}")
        with self._as_the_hub():
            return str(answer.json()["sha"])

    def files(self, commit: str, folder: str = "") -> list[HubFile]:
        """All files of a commit, or of a folder of it and the folders in there; raises UserError if it is not there."""
        with self._as_the_hub():
            return [
                HubFile(entry["path"], entry["size"], entry.get("lfs", {}).get("oid") or entry["oid"])
                for entry in self._tree(commit, folder, recursive=True)
                if entry["type"] == "file"
            ]

    def folders(self, commit: str, folder: str = "") -> list[str]:
        """The paths of the folders in a folder of a commit."""
        with self._as_the_hub():
            entries = self._tree(commit, folder, recursive=False)
            return [entry["path"] for entry in entries if entry["type"] == "directory"]

    def remote(self, commit: str, file: HubFile) -> RemoteFile:
        """`file` as it is downloaded, named by its digest."""
        kind = "datasets/" if self.kind == "dataset" else ""
        url = f"{constants.ENDPOINT}/{kind}{self.name}/resolve/{commit}/{quote(file.path)}"
        return RemoteFile(file.digest, url, file.digest, file.size, headers=build_hf_headers(), source=self.source)

    def _tree(self, commit: str, folder: str, recursive: bool) -> list[dict[str, Any]]:
        response = self._api(f"tree/{commit}/{quote(folder)}?recursive={str(recursive).lower()}")
        entries: list[dict[str, Any]] = response.json()
        while following := response.links.get("next", {}).get("url"):
            # of whatever host it names: a mirror may pass on the links of the hub that it stands for
            response = self._api(f"tree/{commit}/{quote(folder)}?{urlsplit(following).query}")
            entries += response.json()
        return entries

    def _api(self, path: str) -> Any:
        if constants.is_offline_mode():
            raise UnreachableError(f"{self.source}: HF_HUB_OFFLINE is set, and it is not in the cache; unset it once")
        response = get(f"{constants.ENDPOINT}/api/{self.kind}s/{self.name}/{path}", self.source, build_hf_headers())
        with self._as_the_hub():
            if not response.headers.get("Content-Type", "").startswith("application/json"):
                raise ValueError
        return response

    @contextmanager
    def _as_the_hub(self) -> Iterator[None]:
        """Raise UserError where an answer is not of the form that the hub's have."""
        try:
            yield
        except (ValueError, TypeError, KeyError, AttributeError):
            raise UserError(
                f"{self.source}: {constants.ENDPOINT} does not answer as the hub does; check HF_ENDPOINT"
            ) from None


class Snapshot:
    """A model's revision in the hub's cache, downloaded as far as asked for; without a network, as far as it is there.

    Raises
    ------
    UserError
        If there is no such revision, or it is neither reachable nor in the cache.
    """

    def __init__(self, source: str):
        name, _, revision = source.removeprefix(HUB).partition("@")
        if not revision:
            raise UserError(
                f"{source}: names no revision, so that its weights could change unseen; write "
                f"{source.rstrip('@')}@<commit>"
            )
        try:
            validate_repo_id(name)
        except HFValidationError:
            raise UserError(f"{source}: no name of a repository; write hf://owner/name@<commit>") from None
        self.repository = Repository("model", name, revision, source)
        self.root = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")
        try:
            self.commit = self.repository.commit()
            self.files: dict[str, HubFile] | None = {file.path: file for file in self.repository.files(self.commit)}
            if self.commit != revision:
                reference = self.root / "refs" / revision
                if not reference.is_file() or reference.read_text() != self.commit:
                    with self._writing():
                        atomic_write(reference, self.commit)
        except UnreachableError as error:
            self._unreachable = error
            ref = self.root / "refs" / revision
            self.commit = ref.read_text().strip() if ref.is_file() else revision
            self.files = None
            if not self.folder.is_dir():
                raise

    @property
    def folder(self) -> Path:
        return self.root / "snapshots" / self.commit

    def fetch(self, patterns: list[str]) -> Path:
        """The snapshot's folder, with all files at its top whose names match and whose digests are right."""
        if self.files is None:
            found = [path for path in self.folder.iterdir() if any(fnmatch(path.name, each) for each in patterns)]
            if not found:
                raise self._unreachable
            for path in found:
                digest = path.resolve().name
                if path.is_symlink() and (not path.exists() or digest_of(path, like=digest) != digest):
                    raise UserError(f"{self.repository.source}: {path} is damaged; run it again with a network")
            return self.folder
        wanted = [file for file in self.files.values() if any(fnmatch(file.path, pattern) for pattern in patterns)]
        blobs = self.root / "blobs"
        with self._writing():
            download_all([self.repository.remote(self.commit, file) for file in wanted], blobs)
            self.folder.mkdir(parents=True, exist_ok=True)
            for file in wanted:
                link, target = self.folder / file.path, os.path.relpath(blobs / file.digest, self.folder)
                if not link.is_symlink() or os.readlink(link) != target:
                    draft = link.with_name(f".{link.name}.{os.getpid()}")  # another process may be at the same
                    draft.unlink(missing_ok=True)
                    draft.symlink_to(target)
                    draft.replace(link)
        return self.folder

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Raise UserError where the cache cannot be written to; a full disk is its own error."""
        try:
            yield
        except OSError as error:
            if is_of_full_disk(error):
                raise
            raise UserError(
                f"{self.repository.source}: {error.filename}: {error.strerror}; set HF_HUB_CACHE to a folder that can "
                "be written to"
            ) from None

    def tensor_shapes(self, patterns: list[str]) -> dict[str, list[int]] | None:
        """Shapes of the tensors in safetensors files by name, from their headers alone; None if those cannot be had."""
        if self.files is None:
            return None
        shapes: dict[str, list[int]] = {}
        for file in self.files.values():
            if any(fnmatch(file.path, pattern) for pattern in patterns):
                remote = self.repository.remote(self.commit, file)
                try:
                    length = struct.unpack("<Q", read_bytes(remote, 0, 8))[0]
                    header = json.loads(read_bytes(remote, 8, min(length, file.size - 8)))
                    shapes |= {name: tensor["shape"] for name, tensor in header.items() if name != "__metadata__"}
                except (WholeFileError, ValueError, TypeError, KeyError, AttributeError):
                    return None
        return shapes


def read_bytes(file: RemoteFile, first: int, size: int) -> bytes:
    """A few bytes of a file on the hub."""
    headers = {**file.headers, "Accept-Encoding": "identity", "Range": f"bytes={first}-{first + size - 1}"}
    return get(file.url, file.source, headers, size).content
