"""Artifacts on disk: atomic files and folders, JSON, and ragged arrays (arrays of different lengths in one file)."""

import glob
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np

from dqlora.errors import UserError, first_line

LETTERS_OF_NAME = 40  # of an output's, in that of what is not whole yet: a name of 255 bytes has no room for more


@contextmanager
def atomic_directory(output: Path) -> Iterator[Path]:
    """A temporary folder beside `output` that takes its place when the block ends without an error.

    What a killed process left beside `output` is removed first. The files have the permissions that new files get,
    whatever the library that wrote them gave them (safetensors: 0600).
    """
    temporary = _temporary(output)
    temporary.mkdir()
    try:
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                path.chmod(temporary.stat().st_mode & 0o666)  # of a folder that was just made: 0777 less the umask
        if output.exists():
            shutil.rmtree(output)
        temporary.rename(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def atomic_write(path: Path, text: str) -> None:
    """Write a text file that is never seen half written."""
    temporary = _temporary(path)
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    atomic_write(path, json.dumps(value, indent=2) + "\n")


def existing_folder(path: str | Path, parameter: str, way_out: str) -> Path:
    """The folder that a parameter names.

    Raises
    ------
    UserError
        if there is none; in one of DVC's temporary workspaces also where it was left behind.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    project, in_copy, _ = str(Path.cwd()).partition(f"{os.sep}.dvc{os.sep}tmp{os.sep}exps{os.sep}")
    if in_copy and (Path(project) / folder).is_dir():
        way_out = (
            "an experiment with --temp or --queue runs in a copy of what git tracks; give the absolute path, "
            f"{Path(project) / folder}"
        )
    problem = "a file, and no folder" if folder.exists() else "no such folder"
    raise UserError(f"{parameter}: {path}: {problem}; {way_out}")


def rerun(stage: str) -> str:
    """The way out where something that a stage writes is missing or damaged."""
    return f"run `dvc repro {stage}`"


def read_json(path: Path, way_out: str, needs: Sequence[str] = ()) -> Any:
    """Raises UserError, which names the way out, if the file is missing, damaged or lacks a key that it `needs`."""
    value = _read(path, way_out, json.loads)
    if needs and not (isinstance(value, dict) and value.keys() >= set(needs)):
        raise UserError(f"{path}: has no {' and '.join(needs)}; {way_out}")
    return value


def read_jsonl(path: Path, way_out: str) -> list[dict[str, Any]]:
    """One value a line; raises as `read_json` does."""
    return _read(path, way_out, lambda text: [json.loads(line) for line in text.split("\n") if line])


def _read(path: Path, way_out: str, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {way_out}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({first_line(error)}); {way_out}") from None


def fingerprint(*parts: object) -> str:
    """SHA-256, 16 digits, over values and over the contents of files and folders (given as Path)."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            for file in sorted(part.rglob("*")) if part.is_dir() else [part]:
                if file.is_file():
                    with file.open("rb") as content:
                        digest.update(hashlib.file_digest(content, "sha256").digest())
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()[:16]


def loaded_sources() -> list[Path]:
    """The files of this project's modules that this process has imported."""
    root = Path(__file__).parents[2]
    files = {Path(file) for module in sys.modules.values() if (file := getattr(module, "__file__", None))}
    return sorted(file for file in files if {root / "dqlora", root / "stages"} & set(file.parents))


def _temporary(output: Path) -> Path:
    """A name beside `output` that is this process' own; what killed processes left under theirs is removed."""
    output.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{output.name[:LETTERS_OF_NAME]}.tmp-"
    for left in output.parent.glob(f"{glob.escape(prefix)}*"):
        if not _is_alive(int(left.name.removeprefix(prefix))):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    return output.parent / f"{prefix}{os.getpid()}"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class RaggedArrayWriter:
    """Writes arrays of different lengths one after another into `values.npy`, with `index.jsonl` beside it.

    Every array is [length] or [length, width]. A line of the index is the item's own fields and its `start` and
    `length` along the first axis.
    """

    def __init__(self, folder: Path, dtype: str, width: int | None = None):
        folder.mkdir(parents=True, exist_ok=True)
        self._dtype = np.dtype(dtype)
        self._tail = () if width is None else (width,)
        self._length = 0
        self._values = (folder / "values.npy").open("wb")
        self._index = (folder / "index.jsonl").open("w", encoding="utf-8")
        self._write_header()

    def append(self, values: np.ndarray, **fields: Any) -> None:
        assert values.shape[1:] == self._tail, (values.shape, self._tail)
        self._values.write(np.ascontiguousarray(values, self._dtype).data)
        item = {**fields, "start": self._length, "length": len(values)}
        self._index.write(json.dumps(item, ensure_ascii=False) + "\n")
        self._length += len(values)

    def _write_header(self) -> None:
        # numpy leaves room in the header for the first axis to grow, so that it can be rewritten in place
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._length, *self._tail)}
        self._values.seek(0)
        np.lib.format.write_array_header_1_0(self._values, header)

    def __enter__(self) -> "RaggedArrayWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._write_header()
        self._values.close()
        self._index.close()


class RaggedArray:
    """Reads what `RaggedArrayWriter` wrote: `items` (the index), and the array of each item out of a memory map."""

    def __init__(self, folder: Path):
        try:
            with (folder / "index.jsonl").open(encoding="utf-8") as lines:
                self.items: list[dict[str, Any]] = [json.loads(line) for line in lines]
            values = folder / "values.npy"
            self.values = np.load(values, mmap_mode="r") if self.items else np.load(values)
            self._by_id = {item["id"]: item for item in self.items}
            if sum(item["length"] for item in self.items) != len(self.values):
                raise ValueError("values.npy and index.jsonl are not of one writing")
        except (OSError, ValueError, EOFError, KeyError) as error:
            raise UserError(f"{folder}: unreadable ({error}); run `dvc repro` to make it again") from None

    def with_items(self, items: list[dict[str, Any]]) -> "RaggedArray":
        """The same values under another index, of some of the items or with other fields."""
        other = copy(self)
        other.items, other._by_id = items, {item["id"]: item for item in items}
        return other

    def __len__(self) -> int:
        return len(self.items)

    def __contains__(self, item_id: str) -> bool:
        return item_id in self._by_id

    def item(self, item_id: str) -> dict[str, Any]:
        return self._by_id[item_id]

    def __getitem__(self, item_id: str) -> np.ndarray:
        """The array of one item, [length] or [length, width], in the dtype on disk."""
        item = self._by_id[item_id]
        return self.values[item["start"] : item["start"] + item["length"]]
