"""Tables and layouts through the stage: what is trained on, what is rejected by name, what ends it with one line."""

import csv
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dqlora.config import Paths, Silence
from dqlora.data.storage import RaggedArray, RaggedArrayWriter, read_json
from dqlora.data.text import Vocabulary
from dqlora.errors import Rejected, UserError
from dqlora.transcription import segmentation
from stages import fetch_speech
from stages.train_teacher_head import load_examples
from tests.conftest import RATE, tone, write_audiofolder
from tests.stages.test_bad_input import local, set_preset  # noqa: F401

TRAIN = tuple(f"train-{number}" for number in range(4))
WORDS = ("one", "two", "three", "four")


@pytest.fixture
def clean(local: Path) -> Path:  # noqa: F811
    return local / "data/local/clean"


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    for split in ("train", "validation", "test"):
        write_audiofolder(tmp_path / "speech" / split, [f"{split} sentence {word}" for word in WORDS], seconds=0.5)
    return tmp_path / "speech"


def texts(clean: Path, split: str) -> dict[str, str]:
    return {item["id"]: item["text"] for item in RaggedArray(clean / split).items}


def rejected(clean: Path) -> dict[str, str]:
    with (clean / "rejected.csv").open(encoding="utf-8") as file:
        return {f"{row['split']}/{row['id']}": row["reason"] for row in csv.DictReader(file)}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("train-0.wav,hello, this is the office", "3 cells where the table has 2"),
        ('train-0.wav,"hello', "a quote is opened and not closed"),
        ("train-0.wav", "1 cells where the table has 2"),
        ("train-0.wav,?", "empty transcript"),
    ],
)
def test_a_cut_label_is_rejected_and_named(speech: Path, clean: Path, line: str, reason: str) -> None:
    table = speech / "train/metadata.csv"
    table.write_text(f"file_name,transcription\ntrain-1.wav,please hold\n{line}\ntrain-2.wav,good bye\n")
    fetch_speech.main()
    assert texts(clean, "train") == {"train-1.wav": "PLEASE HOLD", "train-2.wav": "GOOD BYE"}
    [(name, why)] = rejected(clean).items()
    assert name == "train/train-0.wav" and why.startswith(reason)
    assert reason == "empty transcript" or f"({table}, line 3)" in why


def test_names_need_not_be_utf_8(speech: Path, clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of recordings without a table, and of folders whose tables name files that are in UTF-8."""
    (speech / "train/metadata.csv").unlink()
    (speech / "train/train-0.wav").rename(speech / "train" / os.fsdecode(b"caf\xe9.wav"))
    (speech / "train").rename(speech / os.fsdecode(b"train-\xff"))
    (speech / "test/unlisted.wav").hardlink_to(speech / "test/test-0.wav")
    (speech / "test").rename(speech / os.fsdecode(b"test-\xff"))
    fetch_speech.main()
    assert set(texts(clean, "train")) == {rf"train-\udcff/{name}.wav" for name in (r"caf\udce9", *TRAIN[1:])}
    assert len(texts(clean, "test")) == 4
    assert r"in no table: 1 recordings (test-\udcff/unlisted.wav)" in capsys.readouterr().out


def without_text(folder: Path, *numbers: int) -> None:
    lines = (folder / "metadata.csv").read_text().splitlines()
    for number in numbers:
        lines[1 + number] = lines[1 + number].split(",")[0] + ","
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")


def test_a_file_is_heard_once(speech: Path, clean: Path) -> None:
    """Under whatever name, and in whatever split: a test clip is not trained on with another text."""
    (speech / "train/link.wav").symlink_to(speech / "train/train-2.wav")
    with (speech / "train/metadata.csv").open("a") as file:
        file.write("train-0,no suffix\nx/../train-1.wav,dots\nlink.wav,a link\n../test/test-3.wav,in test\n")
    fetch_speech.main()
    assert list(texts(clean, "train")) == [f"train-{number}.wav" for number in range(4)]
    assert rejected(clean) == {
        "train/train-0": "the same file as train/train-0.wav",
        "train/x/../train-1.wav": "the same file as train/train-1.wav",
        "train/link.wav": "the same file as train/train-2.wav",
        "train/../test/test-3.wav": "the same file as test/test-3.wav",
    }


@pytest.mark.parametrize(
    "files", [(), ("train/a.wav",), ("train/a.wav", "b.flac", *(f"more/{n}.wav" for n in "abcdefghijklm"))]
)
def test_recordings_in_no_table_are_named(
    speech: Path, clean: Path, files: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    (speech / "more").mkdir()
    for name in files:
        soundfile.write(speech / name, tone(0.5), RATE)
    fetch_speech.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("not used, in no table: ")]
    named = [f"1 recordings ({files[0]})"] if len(files) == 1 else []
    if len(files) > 1:
        named = [f"15 recordings (b.flac, {', '.join(f'more/{n}.wav' for n in 'abcdefghi')} and 5 more)"]
    assert lines == [f"not used, in no table: {line}" for line in named]
    assert len(texts(clean, "train")) == 4


@pytest.mark.parametrize(
    ("header", "cells", "whole"),
    [
        ("offset,duration", "0.0,0.3", False), ("offset,duration", "0,0.5", True), ("offset,duration", "0,0.4", True),
        ("start,end", "0.1,0.3", False), ("start,end", "12.0,12.5", True), ("start_time,end_time", "0,.2", False),
        ("duration", "0.1", True), ("start,end", "monday,friday", True), ("offset,duration", "0,0", True),
        ("offset,duration", "0,", True),
    ],
)  # fmt: skip
def test_a_row_that_means_a_part_of_its_recording_is_rejected(
    speech: Path, clean: Path, header: str, cells: str, whole: bool
) -> None:
    """Half a second: 0.4 s are as long but for rounding, and no length where the table says only how long it is."""
    soundfile.write(speech / "train/long.wav", tone(0.6 if not whole else 0.5), RATE)
    (speech / "train/metadata.csv").write_text(
        f"file_name,transcription,{header}\ntrain-0.wav,one,{',' * header.count(',')}\nlong.wav,two,{cells}\n"
    )
    fetch_speech.main()
    assert ("long.wav" in texts(clean, "train")) == whole
    if not whole:
        assert rejected(clean)["train/long.wav"].startswith("its row means 0.")


def test_clips_without_a_transcript_are_kept_but_in_test(speech: Path, clean: Path) -> None:
    for split in ("train", "validation", "test"):
        without_text(speech / split, 1, 2)
    fetch_speech.main()
    for split in ("train", "validation"):
        assert list(texts(clean, split).values()) == [
            f"{split} sentence one".upper(), "", "", f"{split} sentence four".upper()
        ]  # fmt: skip
        assert RaggedArray(clean / split).items[1]["transcript"] == ""
    assert list(texts(clean, "test").values()) == ["TEST SENTENCE ONE", "TEST SENTENCE FOUR"]
    assert rejected(clean) == {f"test/test-{number}.wav": "empty transcript" for number in (1, 2)}


def test_without_any_transcript_test_is_kept_too(speech: Path, clean: Path) -> None:
    for split in ("train", "validation", "test"):
        (speech / split / "metadata.csv").unlink()
    (speech / "train/train-0.wav").write_bytes(b"")
    fetch_speech.main()
    assert rejected(clean) == {"train/train/train-0.wav": "empty file"}
    assert {split: len(texts(clean, split)) for split in ("train", "validation", "test")} == {
        "train": 3, "validation": 4, "test": 4
    }  # fmt: skip
    assert {text for split in ("train", "validation", "test") for text in texts(clean, split).values()} == {""}


def test_a_long_recording_without_a_transcript_is_cut_at_its_pauses(
    speech: Path, clean: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the speech is lost, nothing is heard twice; with a transcript it is rejected as before."""
    spoken = np.concatenate([np.concatenate([tone(6.0, 200 + 10 * n), np.zeros(2 * RATE)]) for n in range(10)])
    soundfile.write(speech / "train/train-1.wav", spoken, RATE, subtype="FLOAT")
    soundfile.write(speech / "train/train-2.wav", np.zeros(40 * RATE) + 1e-3 * np.sin(np.arange(40 * RATE)), RATE)
    soundfile.write(speech / "train/train-3.wav", spoken, RATE)
    without_text(speech / "train", 1, 2)

    def loud(samples: np.ndarray) -> np.ndarray:
        hops = np.pad(samples, (0, -len(samples) % 512)).reshape(-1, 512)
        return (np.abs(hops).max(1) > 0.01).astype(float)

    monkeypatch.setattr(segmentation.pieces, "__defaults__", (loud,))
    fetch_speech.main()
    train = RaggedArray(clean / "train")
    parts = [item["id"] for item in train.items if ":" in item["id"]]
    assert parts == [f"train-1.wav:{number}" for number in range(1, 6)]
    assert all(item["text"] == "" for item in train.items if ":" in item["id"])
    sound = sum(int((np.abs(train[name]) > 300).sum()) for name in parts)
    assert sound == pytest.approx(int((np.abs(spoken) > 300 / 32768).sum()), rel=0.01)
    assert max(train.item(name)["length"] for name in parts) < 17 * RATE
    assert rejected(clean) == {
        "train/train-2.wav": "nobody speaks in it",
        "train/train-3.wav": "80.0 s, longer than the teacher's window of 30 s",
    }


def test_a_decomposed_name_and_a_name_of_two_rows(speech: Path, clean: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "Grüße.wav") for form in ("NFC", "NFD"))
    soundfile.write(speech / "train" / decomposed, tone(0.5), RATE)
    with (speech / "train/metadata.csv").open("a", encoding="utf-8") as file:
        file.write(f"{composed},greetings\n{decomposed},greetings again\n./{composed},and again\n")
    fetch_speech.main()
    assert texts(clean, "train")[composed] == "GREETINGS"
    assert rejected(clean) == {f"train/{composed}": "a second clip of this name"}


def test_no_clip_of_the_users_test_split_is_trained_on(tmp_path: Path, clean: Path) -> None:
    rows = []
    for split in ("train", "val", "test"):
        write_audiofolder(tmp_path / "speech" / split, [f"{split} sentence {word}" for word in WORDS], seconds=0.5)
        (tmp_path / "speech" / split / "metadata.csv").unlink()
        rows += [f"{split}/{split}-{number}.wav,{split} sentence {word}\n" for number, word in enumerate(WORDS)]
    (tmp_path / "speech/metadata.csv").write_text("file_name,transcription\n" + "".join(rows))
    fetch_speech.main()
    for split, folder in (("train", "train"), ("validation", "val"), ("test", "test")):
        assert list(texts(clean, split)) == [f"{folder}/{folder}-{number}.wav" for number in range(4)]


@pytest.mark.parametrize("clips", [3, 5])
def test_a_handful_of_clips_is_enough(tmp_path: Path, clean: Path, clips: int) -> None:
    write_audiofolder(tmp_path / "speech", [f"agent {word}" for word in (*WORDS, "five")[:clips]])
    fetch_speech.main()
    assert sum(len(texts(clean, split)) for split in ("train", "validation", "test")) == clips


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            "file_name,transcription\n",
            r"no usable clip in validation: it has no rows; give it some, or remove its table",
        ),
        (
            "file_name,transcription\na.wav,hello\nb.wav,bye\n",
            r"all 2 were rejected: no such file \(2\); a table names",
        ),
    ],
)
def test_a_split_without_clips_says_why(speech: Path, clean: Path, rows: str, message: str) -> None:
    (speech / "validation/metadata.csv").write_text(rows)
    with pytest.raises(UserError, match=message):
        fetch_speech.main()
    assert not clean.exists()


def test_labels_longer_than_their_audio_everywhere_are_named(tmp_path: Path, vocabulary: Vocabulary) -> None:
    """The teacher's head has nothing to train on."""
    paths = Paths("local", tmp_path)
    with (
        RaggedArrayWriter(paths.clean / "train", "int16") as clips,
        RaggedArrayWriter(paths.teacher_features / "train", "float16", 8) as features,
    ):
        for number in range(2):
            clips.append(np.zeros(16_000, "int16"), id=f"{number}", transcript="", text="A B C " * 20 + "A")
            features.append(np.zeros((50, 8), "float16"), id=f"{number}", utterance=f"{number}")
    with pytest.raises(UserError, match=r"clean/train: every transcript has more labels than its audio has frames"):
        load_examples(paths, "train", vocabulary, {}, Rejected())


@pytest.mark.parametrize("seconds", [0.3, 6.0, 29.5, 30.0])
def test_silence_stands_at_the_ends_of_a_clip_and_comes_from_its_name(seconds: float) -> None:
    samples = tone(seconds)
    silence = Silence(ratio=0.5, seconds=0.5)
    made = {name: fetch_speech.pad_with_silence(silence, 0, samples, name) for name in map(str, range(100))}
    again = {name: fetch_speech.pad_with_silence(silence, 0, samples, name) for name in reversed(made)}
    for name, padded in made.items():
        assert np.array_equal(padded, again[name])
        assert len(samples) <= len(padded) <= min(len(samples) + RATE, 30 * RATE)
        start = int(np.flatnonzero(padded)[0] - np.flatnonzero(samples)[0])
        assert np.array_equal(padded[start : start + len(samples)], samples)
        assert not padded[:start].any() and not padded[start + len(samples) :].any()
    if seconds < 29:
        assert 30 < sum(len(padded) > len(samples) for padded in made.values()) < 70
        added = [len(padded) - len(samples) for padded in made.values() if len(padded) > len(samples)]
        assert 0.4 * RATE < np.mean(added) < 0.6 * RATE  # two draws of 0.25 s in the mean


def test_training_clips_alone_get_silence(speech: Path, clean: Path) -> None:
    fetch_speech.main()
    lengths = {split: [item["length"] for item in RaggedArray(clean / split).items] for split in ("train", "test")}
    assert set(lengths["test"]) == {RATE // 2}
    assert max(lengths["train"]) > RATE // 2


def test_splits_that_are_too_small_are_named(speech: Path, clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fetch_speech.main()
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 2 and "test has 4, too few" in warnings[0] and "validation has 4" in warnings[1]


def test_speech_out_of_domain_is_another_corpus_and_shares_no_sentence(
    speech: Path, clean: Path, tmp_path: Path
) -> None:
    other = write_audiofolder(
        tmp_path / "other/test", ["turn it off", "train sentence one", "open the door"], seconds=0.5
    )
    set_preset(clean.parents[2], out_of_domain__speech=other.parent)
    fetch_speech.main()
    assert set(texts(clean, "out_of_domain").values()) == {"TURN IT OFF", "OPEN THE DOOR"}
    assert rejected(clean) == {"out_of_domain/test-1.wav": "its sentence stands in train too"}
    assert read_json(clean / "out_of_domain/origin.json", "")["source"] == "own recordings (other)"
    assert len(texts(clean, "train")) == 4


@pytest.mark.parametrize("none", [True, False])
def test_where_there_is_none_in_the_language_the_split_is_empty(
    none: bool, speech: Path, clean: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if none:
        set_preset(clean.parents[2], out_of_domain="none")
    else:
        set_preset(clean.parents[2], speech__language="fr")
    fetch_speech.main()
    assert len(RaggedArray(clean / "out_of_domain")) == 0
    said = "out_of_domain: none, it is in en and the student's speech in fr\n"
    assert (said in capsys.readouterr().out) == (not none)


def test_speech_out_of_domain_that_cannot_be_used_ends_it(speech: Path, clean: Path, tmp_path: Path) -> None:
    set_preset(clean.parents[2], out_of_domain__speech=tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"out_of_domain\.speech: .*nowhere: no such folder"):
        fetch_speech.main()
    other = write_audiofolder(tmp_path / "other/test", ["train sentence one"], seconds=0.5)
    set_preset(clean.parents[2], out_of_domain__speech=other.parent)
    with pytest.raises(UserError, match=r"out_of_domain\.speech: .*other: no usable clip in out_of_domain: all 1 were"):
        fetch_speech.main()
