"""Which module may import which: downwards in the house, and never in a circle."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.closure import ROOT, imported

HOUSE = (  # bottom to top: a module imports from its own floor and from those below
    {"config", "errors", "progress", "seeding", "device"},
    {"data"},
    {"models"},
    {"evaluation"},
    {"training"},
    {"transcription"},
    {"report"},
    {"demo"},
    {"cli"},
)
MODULES = sorted((ROOT / "dqlora").rglob("*.py"))
STAGES = sorted((ROOT / "stages").rglob("*.py"))


def top(file: Path) -> str:
    """`dqlora`, `stages`, `research` or `benchmarks`."""
    return file.relative_to(ROOT).parts[0]


def floor(file: Path) -> int:
    """Of a module of dqlora."""
    package = file.relative_to(ROOT / "dqlora").with_suffix("").parts[0]
    [number] = [number for number, packages in enumerate(HOUSE) if package in packages]
    return number


def imports_of(files: list[Path]) -> Iterator[tuple[Path, Path]]:
    for file in files:
        yield from ((file, other) for other in sorted(imported(file)))


def said(pairs: list[tuple[Path, Path]]) -> list[str]:
    return [f"{file.relative_to(ROOT)} imports {other.relative_to(ROOT)}" for file, other in pairs]


def test_no_import_of_dqlora_runs_upwards_or_out_of_it() -> None:
    pairs = list(imports_of(MODULES))
    assert len(MODULES) > 40 and len(pairs) > 100
    assert {floor(file) for file in MODULES} == set(range(len(HOUSE)))
    assert not said([pair for pair in pairs if top(pair[1]) != "dqlora"])
    assert not said([(file, other) for file, other in pairs if floor(other) > floor(file)])


def test_stages_import_dqlora_and_not_each_other() -> None:
    pairs = list(imports_of(STAGES))
    assert len(STAGES) > 10 and {file for file, _ in pairs} == set(STAGES)
    assert not said([pair for pair in pairs if top(pair[1]) != "dqlora"])


def test_no_module_imports_itself_in_a_circle() -> None:
    try:
        TopologicalSorter({file: imported(file) for file in MODULES + STAGES}).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(str(file.relative_to(ROOT)) for file in error.args[1]))


def test_imports_are_absolute() -> None:
    """So that the tests above see them all."""
    for file in MODULES + STAGES:
        nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        assert not [node.lineno for node in nodes if isinstance(node, ast.ImportFrom) and node.level], file
