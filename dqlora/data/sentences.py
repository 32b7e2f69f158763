"""Text without sound, for a language model: files with one sentence a line."""

from collections.abc import Iterator
from pathlib import Path

from dqlora.errors import UserError

WAY_OUT = "give text files in UTF-8 or folders of them (*.txt), one sentence a line, or lm.text: none"


def read_sentences(sources: list[str]) -> Iterator[tuple[str, str]]:
    """The lines of text files that are not blank, each with its place (`file:line`).

    Parameters
    ----------
    sources
        files, and folders whose *.txt are read in the order of their names.

    Raises
    ------
    UserError
        if one of them is missing, is no text in UTF-8, or has no line that is not blank.
    """
    for source in map(Path, sources):
        files = sorted(source.rglob("*.txt")) if source.is_dir() else [source]
        found = False
        for file in files:
            try:
                with file.open(encoding="utf-8-sig") as lines:
                    for number, line in enumerate(lines, 1):
                        if line.strip():
                            found = True
                            yield f"{file}:{number}", line.strip()
            except FileNotFoundError:
                raise UserError(f"lm.text: {file}: no such file; {WAY_OUT}") from None
            except UnicodeDecodeError:
                raise UserError(f"lm.text: {file}: not UTF-8; {WAY_OUT}") from None
        if not found:
            raise UserError(f"lm.text: {source}: no sentence in it; {WAY_OUT}")
