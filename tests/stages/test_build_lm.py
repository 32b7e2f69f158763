"""The language model's stage: what goes into it, and the text and models that it refuses in one line."""

import csv
from pathlib import Path

import numpy as np
import pytest

from dqlora.config import Paths
from dqlora.data.storage import RaggedArrayWriter, read_json
from dqlora.data.text import Vocabulary
from dqlora.errors import UserError
from dqlora.models.language_model import as_decoded, read_arpa, train_arpa
from stages import build_lm
from tests.dqlora.models.test_decoding import kenlm_binary
from tests.stages.test_bad_input import set_preset

TRANSCRIPTS = {
    "train": ["THE FERRY LEAVES THE HARBOR", "THE BRIDGE IS OLD"],
    "validation": ["THE HARBOR IS OLD"],
    "test": ["THE FERRY IS LATE"],
    "out_of_domain": ["OPEN THE DOOR"],
}


@pytest.fixture
def clips(project: Path, student_folder: Path) -> Paths:
    """The clips of a local preset, and a student."""
    paths = Paths("local")
    paths.student.parent.mkdir(parents=True)
    paths.student.symlink_to(student_folder)
    for split, texts in TRANSCRIPTS.items():
        paths.clean.mkdir(parents=True, exist_ok=True)
        with RaggedArrayWriter(paths.clean / split, "int16") as out:
            for number, text in enumerate(texts):
                out.append(np.zeros(10, np.int16), id=f"{split}-{number}", transcript=text.capitalize(), text=text)
    paths.metrics.mkdir(parents=True)
    return paths


def run(project: Path, **lm: object) -> dict[str, object]:
    set_preset(project, lm={"model": "train", "text": "none", **lm})
    build_lm.main()
    return read_json(Paths("local").metrics / "lm.json", "")


def test_it_knows_the_words_of_training_and_text_and_no_sentence_that_is_held_out(clips: Paths, tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    lines = ["The ferry is late!", "THE harbor is OLD", "", "A café closes at 7.", "привет мир", "?!", "Open the door."]
    (tmp_path / "text" / "more.txt").write_text("\n".join(lines), encoding="utf-8")
    metrics = run(Path(), text=str(tmp_path / "text"))
    assert read_json(clips.lm / "origin.json", "")["source"] == "own text (text)"
    assert metrics["sentences"] == 3
    words = set(read_arpa(clips.lm / "model.arpa").vocabulary())
    assert "LATE" not in words and {"BRIDGE", "CAFE", "SEVEN"} <= words
    with (clips.lm / "rejected.csv").open(encoding="utf-8") as file:
        reasons = {line["id"].rpartition(":")[2]: line["reason"] for line in csv.DictReader(file)}
    assert set(reasons) == {"1", "2", "5", "6", "7"}
    assert reasons["1"] == reasons["2"] == reasons["7"] == "a sentence of validation, test or out of domain"
    assert "outside the student's vocabulary" in reasons["5"]
    assert metrics["unknown_ratio"] == 0 and 1 < metrics["perplexity"] < 100  # type: ignore[operator]


def test_somebodys_model_is_taken_as_it_is_but_for_its_case(
    clips: Paths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arpa = train_arpa(["A FERRY", "AN OLD HARBOR"], 2, 0.0)
    (tmp_path / "mine.arpa").write_text(arpa.lower())
    metrics = run(Path(), model=str(tmp_path / "mine.arpa"))
    assert (clips.lm / "model.arpa").read_text() == as_decoded(arpa, Vocabulary.load(clips.student / "vocab.json"))
    assert metrics["unknown_ratio"] == 0.5
    assert "warning: of so many unknown words" in capsys.readouterr().err


def test_a_binary_model_is_taken_as_it_is(clips: Paths, tmp_path: Path) -> None:
    content = kenlm_binary()
    (tmp_path / "mine.bin").write_bytes(content)
    assert run(Path(), model=str(tmp_path / "mine.bin"))["model"] == str(tmp_path / "mine.bin")
    assert (clips.lm / "model.bin").read_bytes() == content
    at = content.rindex(b"<unk>")
    (tmp_path / "mine.bin").write_bytes(content[:at] + content[at:].lower())
    with pytest.raises(UserError, match=r"mine\.bin: no word in it is of the student's letters, in the case of its"):
        run(Path(), model=str(tmp_path / "mine.bin"))


@pytest.mark.parametrize("language", ["zh", "ja", "th"])
def test_a_language_without_spaces_has_none(language: str, clips: Paths) -> None:
    set_preset(Path(), speech__language=language)
    assert run(Path())["model"] == "none"
    assert not (clips.lm / "model.arpa").exists()


def test_none_is_none(clips: Paths) -> None:
    assert run(Path(), model="none")["model"] == "none"


RUSSIAN = train_arpa(["привет мир", "мир"], 2, 0.0)
CUT_SHORT = train_arpa(TRANSCRIPTS["train"], 3, 0.0)[:300]


@pytest.mark.parametrize(
    ("file", "content", "lm", "reason"),
    [
        ("empty.txt", "\n \n", {"text": "{}"}, "lm.text: {}: no sentence in it"),
        ("latin.txt", "caf\xe9".encode("latin-1"), {"text": "{}"}, "lm.text: {}: not UTF-8"),
        ("russian.txt", "привет мир\n", {"text": "{}"}, "lm.text: no line can be used: letters outside the student's"),
        ("other", None, {"text": "{}/missing.txt"}, "lm.text: {}/missing.txt: no such file"),
        ("cut.arpa", CUT_SHORT, {"model": "{}"}, "{}: cannot be read as a language model"),
        ("cut.bin", "mmap lm http://kheafield.com/code", {"model": "{}"}, "{}: no language model with its words"),
        ("russian.arpa", RUSSIAN, {"model": "{}"}, "lm.model: {}: no word in it is of the student's letters; give"),
        ("other", None, {"model": "{}.arpa"}, "lm.model: {}.arpa: no such file; give an .arpa or .bin"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named_in_one_line(
    file: str, content: str | bytes | None, lm: dict[str, str], reason: str, clips: Paths, tmp_path: Path
) -> None:
    path = tmp_path / file
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as raised:
        run(Path(), **{name: value.format(path) for name, value in lm.items()})
    assert reason.format(path) in str(raised.value) and "\n" not in str(raised.value)
    assert not clips.lm.exists()
