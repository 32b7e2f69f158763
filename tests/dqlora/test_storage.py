import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dqlora.errors import UserError
from dqlora.storage import Packed, PackedWriter, read_json, read_jsonl, whole_folder, write_whole


@pytest.mark.parametrize("width", [None, 3])
def test_arrays_come_back_as_they_were(tmp_path: Path, width: int | None) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(n,) if width is None else (n, width)).astype(np.float16) for n in (5, 0, 1200, 7)]
    with PackedWriter(tmp_path, "float16", width) as out:
        for number, values in enumerate(arrays):
            out.append(values, id=str(number), text="ä\n")
    packed = Packed(tmp_path)
    assert [item["id"] for item in packed.items] == ["0", "1", "2", "3"]
    for number, values in enumerate(arrays):
        assert np.array_equal(packed[str(number)], values)
    assert np.load(tmp_path / "values.npy").shape[0] == 1212  # any program that reads .npy reads it


def test_nothing_packed(tmp_path: Path) -> None:
    with PackedWriter(tmp_path, "int16"):
        pass
    assert len(Packed(tmp_path)) == 0


@pytest.mark.parametrize("spoil", ["missing", "truncated"])
def test_unreadable_arrays_are_named(tmp_path: Path, spoil: str) -> None:
    with PackedWriter(tmp_path, "int16") as out:
        out.append(np.arange(1000), id="a")
    values = tmp_path / "values.npy"
    values.unlink() if spoil == "missing" else values.write_bytes(values.read_bytes()[:500])
    with pytest.raises(UserError, match=r"unreadable .* run `dvc repro`"):
        Packed(tmp_path)


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.raises(RuntimeError), whole_folder(output) as folder:
        (folder / "half").touch()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    for content in ("old", "new"):
        with whole_folder(output) as folder:
            (folder / "file").write_text(content)
            assert not output.exists() or (output / "file").read_text() == "old"
    assert (output / "file").read_text() == "new"
    assert list(tmp_path.iterdir()) == [output]


def test_what_a_killed_process_left_is_removed_and_a_living_ones_is_not(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    dead, alive = tmp_path / f".out.tmp-{int(ended.stdout)}", tmp_path / f".out.tmp-{os.getppid()}"
    dead.mkdir()
    alive.mkdir()
    with whole_folder(tmp_path / "out"):
        assert not dead.exists()
        assert alive.exists()


def test_a_text_file_is_never_half_written(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.json", "1")
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "a.json", "\ud800")
    assert (tmp_path / "a.json").read_text() == "1"
    assert list(tmp_path.iterdir()) == [tmp_path / "a.json"]


def test_lines_of_json_hold_any_text(tmp_path: Path) -> None:
    texts = ["plain", "two\nlines", "a separator\u2028in it", ""]
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    assert [line["text"] for line in read_jsonl(path, "mix")] == texts


@pytest.mark.parametrize("read", [read_json, read_jsonl])
def test_missing_and_damaged_json_is_named_with_the_stage_that_makes_it(
    tmp_path: Path, read: Callable[..., Any]
) -> None:
    path = tmp_path / "some.json"
    with pytest.raises(UserError, match=r"some\.json: no such file; run `dvc repro mix`"):
        read(path, "mix")
    for damaged in (b'{"wer": ', b"\x80\x81"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"some\.json: cannot be read as JSON .*; run `dvc repro mix`"):
            read(path, "mix")
