"""What a module of this project executes when it is imported or run: its import closure, read from the source."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("dqlora", "stages", "research", "benchmarks")


def module_file(name: str) -> Path | None:
    """The file of a dotted name, if it is one of this project's modules."""
    path = ROOT / (name.replace(".", "/") + ".py")
    return path if name.split(".")[0] in PACKAGES and path.is_file() else None


def _imports(nodes: list[ast.AST]) -> Iterator[str]:
    """Names that may be modules, of every import, in functions too; those for the type checker alone are left out."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            yield from _imports(list(node.orelse))
        else:
            yield from _imports(list(ast.iter_child_nodes(node)))


@cache
def imported(file: Path) -> frozenset[Path]:
    """The project's files that a file imports itself."""
    names = _imports([ast.parse(file.read_text(encoding="utf-8"))])
    return frozenset(found for name in names if (found := module_file(name)))


def closure(file: Path) -> set[Path]:
    """The file, and all that it imports, directly or not."""
    found, waiting = set[Path](), [file]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting += imported(one)
    return found
