"""The figures that are committed are those that `python -m research.figures` writes, and the docs show each."""

import subprocess
from pathlib import Path

import pytest

from research import figures
from research.figures import FIGURES, OUTPUT, direct_needs
from tests.conftest import ROOT
from tests.test_docs import PAGES


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The metrics that git tracks: those on the disk are an experiment's, or of another kind of CPU, which rounds."""
    tracked = subprocess.run(["git", "show", f":{figures.METRICS}"], cwd=ROOT, capture_output=True, check=True)
    path = tmp_path_factory.mktemp("metrics") / "evaluate.json"
    path.write_bytes(tracked.stdout)
    return path


@pytest.mark.parametrize("name", FIGURES)
def test_a_committed_figure_is_what_the_command_writes(
    name: str, metrics: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(figures, "METRICS", metrics)
    committed = (OUTPUT / f"{name}.svg").read_text(encoding="utf-8")
    assert FIGURES[name]().svg() == committed, "run `python -m research.figures`"


def test_every_figure_is_shown_and_no_other_is_there() -> None:
    assert {path.stem for path in (ROOT / OUTPUT).iterdir()} == set(FIGURES)
    pages = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [name for name in FIGURES if f"figures/{name}.svg)" not in pages] == []


def test_direct_needs_leave_out_what_others_imply() -> None:
    stages = {
        "fetch": {"deps": ["code.py"], "outs": ["data/${preset}/clean"]},
        "mix": {"deps": ["data/${preset}/clean/train"], "outs": ["data/${preset}/noisy"]},
        "train": {
            "deps": ["data/${preset}/${teacher_input}/train", "data/${preset}/noisy/train"],
            "outs": ["models/adapter"],
            "metrics": [{"metrics/train.json": {"cache": False}}],
        },
        "report": {"deps": ["metrics/train.json", "data/${preset}/cleaner"]},
    }
    assert direct_needs(stages) == {"fetch": set(), "mix": {"fetch"}, "train": {"mix"}, "report": {"train"}}
