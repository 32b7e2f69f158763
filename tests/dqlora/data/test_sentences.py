"""Text for a language model, from files and folders."""

from pathlib import Path

import pytest

from dqlora.data.sentences import read_sentences
from dqlora.errors import UserError


def test_files_and_folders_are_read_in_order_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "folder/deeper").mkdir(parents=True)
    (tmp_path / "folder/b.txt").write_text("\ufeffThe second.\n\n  The third.  \n", encoding="utf-8")
    (tmp_path / "folder/a.txt").write_text("The first.", encoding="utf-8")
    (tmp_path / "folder/deeper/c.txt").write_text("The fourth.\n", encoding="utf-8")
    (tmp_path / "folder/notes.md").write_text("no text", encoding="utf-8")
    (tmp_path / "other").write_text("The last.\n", encoding="utf-8")
    found = list(read_sentences([str(tmp_path / "folder"), str(tmp_path / "other")]))
    assert [line for _, line in found] == ["The first.", "The second.", "The third.", "The fourth.", "The last."]
    assert [Path(place).name for place, _ in found] == ["a.txt:1", "b.txt:1", "b.txt:3", "c.txt:1", "other:1"]
    assert list(read_sentences([])) == []


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("missing.txt", None, "no such file"),
        ("empty.txt", b" \n\n", "no sentence in it"),
        ("latin.txt", b"caf\xe9", "not UTF-8"),
    ],
)
def test_what_cannot_be_read_is_named(name: str, content: bytes | None, reason: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"lm\.text: .*{name}: {reason}") as raised:
        list(read_sentences([str(tmp_path / name)]))
    assert "lm.text: none" in str(raised.value)
