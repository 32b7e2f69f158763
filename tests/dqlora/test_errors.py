"""What a stage rejects, written and said; how it ends where the disk is full."""

import errno
import io
from pathlib import Path

import pytest
from safetensors import SafetensorError

from dqlora.errors import Rejected, named, run_stage


def rejected(count: int) -> Rejected:
    items = Rejected()
    for number in range(count):
        items.add("test" if number % 3 else "train", f"clip {number}", f"too long ({number} s): really")
    return items


@pytest.mark.parametrize("count", [0, 1, 20, 21, 300])
def test_all_are_written_and_the_first_named(count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = rejected(count)
    items.write(tmp_path)
    assert len((tmp_path / "rejected.csv").read_text().splitlines()) == 1 + count
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == (0 if not count else 1 + min(count, 20) + (count > 20))
    assert lines[:1] == [f"rejected: {count}"] * (count > 0)
    assert lines[21:] == [f"  and {count - 20} more, all in rejected.csv"] * (count > 20)
    assert items.count("train") + items.count("test") == count == sum(items.counts().values())


@pytest.mark.parametrize("count", [0, 20, 21, 300])
def test_no_file_is_named_where_none_is_left(count: int, capsys: pytest.CaptureFixture[str]) -> None:
    rejected(count).show()
    lines = capsys.readouterr().out.splitlines()
    assert lines[21:] == [f"  and {count - 20} more"] * (count > 20)


@pytest.mark.parametrize(
    ("error", "written"),
    [
        (OSError(errno.ENOSPC, "full"), "output"),
        (OSError(errno.EDQUOT, "quota", "models/gate.json"), "models/gate.json"),
        (OSError(errno.ENOSPC, "full", "from/another/disk", None, "models/head"), "models/head"),  # as shutil.copyfile
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), "output"),
    ],
)
def test_a_full_disk_ends_a_stage_with_one_line(error: Exception, written: str) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        run_stage(fail)
    assert ended.value.code == f"error: no space left on the disk ({written}); free some and run `dvc repro` again"


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "presets/local/talk.wav"), "presets/local/talk.wav"),
        (OSError(errno.EROFS, "Read-only file system", "models/gate.json"), "models/gate.json"),
        (OSError(errno.EPERM, "not permitted", "a", None, "models/head"), "models/head"),
        (SafetensorError("Error opening file: Permission denied (os error 13)"), "Error opening file: Permission"),
    ],
)
def test_a_file_that_it_may_not_use_ends_a_stage_with_one_line(error: Exception, named: str) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        run_stage(fail)
    line = str(ended.value.code)
    assert line.startswith(f"error: {named}") and line.endswith(
        ": not allowed; change its rights and run `dvc repro` again"
    )


def test_a_name_that_is_not_utf_8_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(out, encoding="utf-8", write_through=True))
    run_stage(lambda: print("caf\udce9.wav"))
    assert out.getvalue() == b"caf\\udce9.wav\n"


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), ValueError("I/O error (os error 5)")])
def test_other_errors_stay_as_they_are(error: Exception) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        run_stage(fail)
    assert raised.value is error


@pytest.mark.parametrize(
    ("names", "line"),
    [
        ([], ""),
        (["a"], "a"),
        (["a", "b"], "a, b"),
        (["a", "b", "c"], "a, b and 1 more"),
        (list("abcde"), "a, b and 3 more"),
    ],
)
def test_many_names_make_one_line(names: list[str], line: str) -> None:
    assert named(names, most=2) == line
