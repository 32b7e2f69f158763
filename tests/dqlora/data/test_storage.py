import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from dqlora.data.storage import (
    RaggedArray,
    RaggedArrayWriter,
    atomic_directory,
    atomic_write,
    existing_folder,
    fingerprint,
    read_json,
    read_jsonl,
    rerun,
)
from dqlora.errors import UserError
from tests.closure import closure
from tests.conftest import ROOT


@pytest.mark.parametrize("width", [None, 3])
def test_arrays_come_back_as_they_were(tmp_path: Path, width: int | None) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(n,) if width is None else (n, width)).astype(np.float16) for n in (5, 0, 1200, 7)]
    with RaggedArrayWriter(tmp_path, "float16", width) as out:
        for number, values in enumerate(arrays):
            out.append(values, id=str(number), text="ä\n")
    read = RaggedArray(tmp_path)
    assert [item["id"] for item in read.items] == ["0", "1", "2", "3"]
    for number, values in enumerate(arrays):
        assert np.array_equal(read[str(number)], values)
    assert np.load(tmp_path / "values.npy").shape[0] == 1212  # any program that reads .npy reads it


def test_no_arrays(tmp_path: Path) -> None:
    with RaggedArrayWriter(tmp_path, "int16"):
        pass
    assert len(RaggedArray(tmp_path)) == 0


@pytest.mark.parametrize("spoil", ["missing", "truncated"])
def test_unreadable_arrays_are_named(tmp_path: Path, spoil: str) -> None:
    with RaggedArrayWriter(tmp_path, "int16") as out:
        out.append(np.arange(1000), id="a")
    values = tmp_path / "values.npy"
    values.unlink() if spoil == "missing" else values.write_bytes(values.read_bytes()[:500])
    with pytest.raises(UserError, match=r"unreadable .* run `dvc repro`"):
        RaggedArray(tmp_path)


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.raises(RuntimeError), atomic_directory(output) as folder:
        (folder / "half").touch()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    for content in ("old", "new"):
        with atomic_directory(output) as folder:
            (folder / "file").write_text(content)
            assert not output.exists() or (output / "file").read_text() == "old"
    assert (output / "file").read_text() == "new"
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002, 0o027])
def test_files_have_the_permissions_of_new_files(umask: int, tmp_path: Path) -> None:
    """Also those that a library made as temporary files, which nobody else may read."""
    before = os.umask(umask)
    try:
        with atomic_directory(tmp_path / "out") as folder:
            (folder / "new").touch()
            (folder / "deep").mkdir()
            save_file({"weight": np.zeros(3)}, folder / "deep/model.safetensors")
            (folder / "secret").touch(0o600)
            os.link(folder / "secret", folder / "link")
        atomic_write(tmp_path / "text", "of one file")
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 5
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~umask}


def test_what_a_killed_process_left_is_removed_and_a_living_ones_is_not(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    dead, alive = tmp_path / f".out.tmp-{int(ended.stdout)}", tmp_path / f".out.tmp-{os.getppid()}"
    dead.mkdir()
    alive.mkdir()
    with atomic_directory(tmp_path / "out"):
        assert not dead.exists()
        assert alive.exists()


def test_a_text_file_is_never_half_written(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a.json", "1")
    with pytest.raises(UnicodeEncodeError):
        atomic_write(tmp_path / "a.json", "\ud800")
    assert (tmp_path / "a.json").read_text() == "1"
    assert list(tmp_path.iterdir()) == [tmp_path / "a.json"]


@pytest.mark.parametrize("name", ["ä" * 125 + ".txt", "日" * 83 + ".json", "a[1].txt", "*.txt", "what?.txt", "ä b.txt"])
def test_a_file_may_have_any_name_that_the_disk_takes(name: str, tmp_path: Path) -> None:
    """As those of downloaded videos; what was left of another name is not this one's."""
    (tmp_path / ".a1.txt.tmp-99999999").touch()
    atomic_write(tmp_path / name, "said")
    assert (tmp_path / name).read_text() == "said" and len([*tmp_path.iterdir()]) == 2


def test_lines_of_json_hold_any_text(tmp_path: Path) -> None:
    texts = ["plain", "two\nlines", "a separator\u2028in it", ""]
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    assert [line["text"] for line in read_jsonl(path, rerun("mix"))] == texts


@pytest.mark.parametrize("read", [read_json, read_jsonl])
def test_missing_and_damaged_json_is_named_with_the_way_out(tmp_path: Path, read: Callable[..., Any]) -> None:
    path = tmp_path / "some.json"
    with pytest.raises(UserError, match=r"some\.json: no such file; run `dvc repro mix`"):
        read(path, rerun("mix"))
    for damaged in (b'{"wer": ', b"\x80\x81"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"some\.json: cannot be read as JSON .*; run `dvc repro mix`"):
            read(path, rerun("mix"))


def test_a_fingerprint_is_of_values_and_of_what_files_hold(tmp_path: Path) -> None:
    for name, content in (("one", "text"), ("same", "text"), ("other", "changed")):
        (tmp_path / name / "inner").mkdir(parents=True)
        (tmp_path / name / "inner" / "file").write_text(content)
    for path in (".", "inner", "inner/file"):
        one, same, other = (fingerprint("value", tmp_path / name / path) for name in ("one", "same", "other"))
        assert one == same != other
    assert fingerprint("value", 1) == fingerprint("value", 1)
    assert len({fingerprint("value", 1), fingerprint("value", 2), fingerprint("value"), fingerprint("value", "1")}) == 4


def test_the_loaded_sources_are_what_was_imported_of_this_project() -> None:
    program = "from dqlora.data.storage import loaded_sources\nprint(*loaded_sources(), sep='\\n')"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert {Path(line) for line in ended.stdout.splitlines()} == closure(ROOT / "dqlora/data/storage.py")


def test_a_folder_that_is_not_there_is_named_with_its_parameter(tmp_path: Path) -> None:
    assert existing_folder(tmp_path, "speech.path", "give another") == tmp_path
    with pytest.raises(UserError) as refused:
        existing_folder(tmp_path / "none", "speech.path", "give another")
    assert str(refused.value) == f"speech.path: {tmp_path / 'none'}: no such folder; give another"


def test_a_folder_left_behind_by_a_queued_experiment_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    copy = tmp_path / ".dvc/tmp/exps/tmpabc"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    with pytest.raises(UserError) as refused:
        existing_folder("mine", "speech.path", "give another")
    assert str(refused.value).startswith("speech.path: mine: no such folder; an experiment with --temp or --queue runs")
    assert str(refused.value).endswith(f"give the absolute path, {tmp_path / 'mine'}")
    with pytest.raises(UserError, match=r"speech\.path: none: no such folder; give another"):
        existing_folder("none", "speech.path", "give another")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("values.npy", b""),
        ("index.jsonl", b""),
        ("index.jsonl", b'{"id": "a", "start": 0, "length": 3}\n'),
        ("index.jsonl", b'{"name": "a", "start": 0, "length": 5}\n'),
        ("index.jsonl", b'{"id": "a"}\n'),
    ],
)
def test_arrays_and_index_belong_together(tmp_path: Path, name: str, content: bytes) -> None:
    with RaggedArrayWriter(tmp_path, "int16") as out:
        for item, length in (("a", 3), ("b", 2)):
            out.append(np.zeros(length), id=item)
    assert len(RaggedArray(tmp_path)) == 2
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=r"unreadable .*; run `dvc repro` to make it again"):
        RaggedArray(tmp_path)
