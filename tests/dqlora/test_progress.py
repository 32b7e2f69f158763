"""Long loops show a bar on a terminal, and leave lines in a log: every half minute, and at the end."""

import io
from typing import Any

import pytest

from dqlora import progress
from dqlora.progress import ProgressBar
from tests.conftest import ROOT


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("count", "options", "line"),
    [
        (5, {"desc": "mix train", "unit": " clips"}, "mix train: 5 clips, 0 s\n"),
        (3, {"desc": "extract", "unit": "files", "total": 300}, "extract: 3 files, 0 s\n"),
        (2, {"desc": "train", "unit": " steps", "initial": 40}, "train: 42 steps, 0 s\n"),
        (0, {"desc": "speech: of two", "unit": " clips"}, "speech: of two: 0 clips, 0 s\n"),
        (4, {"desc": "talk.wav", "unit": "s", "leave": False}, ""),
        (4, {"desc": "of another process", "disable": True}, ""),
    ],
)
@pytest.mark.parametrize("how", ["loop", "update", "broken off"])
def test_a_log_has_one_line_without_a_bar(count: int, options: dict[str, Any], line: str, how: str) -> None:
    log = io.StringIO()
    if how == "loop":
        assert list(ProgressBar(range(count), file=log, mininterval=0, **options)) == list(range(count))
    elif how == "update":
        with ProgressBar(file=log, mininterval=0, **options) as bar:
            for _ in range(count):
                bar.update()
    else:
        with pytest.raises(KeyError), ProgressBar(file=log, **options) as bar:
            bar.update(count)
            raise KeyError
    assert log.getvalue() == line


def test_a_log_says_every_half_minute_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    log, now = io.StringIO(), [1000.0]
    with ProgressBar(total=480, desc="train", unit=" steps", file=log) as bar:
        monkeypatch.setattr(bar, "_time", lambda: now[0])
        bar.start_t = bar.last_print_t = now[0]
        for step in range(120):
            now[0] += 0.5
            bar.update()
            if step == 59:
                bar.set_postfix(loss="1.0")
    assert log.getvalue().splitlines() == [
        "train: 60 of 480 steps, 30 s",
        "train: 120 of 480 steps, 60 s, loss=1.0",
        "train: 120 steps, 60 s, loss=1.0",
    ]


def test_a_log_counts_bytes_as_a_bar_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LOG_EVERY", 0.0)
    log = io.StringIO()
    with ProgressBar(desc="download", unit="B", unit_scale=True, leave=False, file=log, total=3_000_000) as bar:
        bar.update(1_500_000)
    assert log.getvalue().splitlines()[-1] == "download: 1.50M of 3.00M B, 0 s"


def test_a_terminal_has_a_bar() -> None:
    terminal = Terminal()
    for _ in ProgressBar(range(3), "mix", unit=" clips", file=terminal, ncols=80, mininterval=0):
        pass
    assert terminal.getvalue().count("\r") >= 3 and "| 3/3 [" in terminal.getvalue()


def test_bars_are_made_in_one_place() -> None:
    """Every other module of the project takes them from there."""
    files = [file for top in ("dqlora", "stages", "research", "benchmarks") for file in (ROOT / top).rglob("*.py")]
    making = [file for file in files if "import tqdm" in file.read_text(encoding="utf-8")]
    assert making == [ROOT / "dqlora/progress.py"]
