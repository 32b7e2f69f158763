import json
from pathlib import Path

import numpy as np
import pytest

from dqlora.config import Paths
from dqlora.data.labels import labelled
from dqlora.data.origin import amount_used
from dqlora.data.storage import RaggedArray, RaggedArrayWriter
from dqlora.errors import UserError

RATE = 16_000


def write_clips(folder: Path, texts: dict[str, str]) -> None:
    with RaggedArrayWriter(folder, "int16") as clips:
        for number, (name, text) in enumerate(texts.items(), 1):
            clips.append(np.full(RATE * number, number, "int16"), id=name, transcript=text.lower(), text=text)


def write_labels(paths: Paths, split: str, labels: dict[str, str | None]) -> None:
    paths.pseudo_labels.mkdir(parents=True, exist_ok=True)
    lines = [
        {"id": name, "transcript": (text or "bad").lower(), "text": text or "BAD", "kept": text is not None}
        for name, text in labels.items()
    ]
    (paths.pseudo_labels / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths("local", tmp_path)
    write_clips(paths.clean / "train", {"a": "ONE", "b": "", "c": "", "d": "FOUR"})
    write_labels(paths, "train", {"b": "TWO", "c": None})
    return paths


def test_human_transcripts_stay_kept_labels_come_in_and_rejected_clips_go(paths: Paths) -> None:
    clips = labelled(paths, "train")
    assert [(item["id"], item["transcript"], item["text"], item.get("labelled_by")) for item in clips.items] == [
        ("a", "one", "ONE", None), ("b", "two", "TWO", "teacher"), ("d", "four", "FOUR", None)
    ]  # fmt: skip
    assert len(clips) == 3 and "c" not in clips
    assert np.array_equal(clips["d"], np.full(4 * RATE, 4, "int16"))
    assert RaggedArray(paths.clean / "train").item("b")["text"] == ""


def test_where_no_transcript_lacks_nothing_is_read(paths: Paths) -> None:
    write_clips(paths.clean / "test", {"a": "ONE"})
    assert labelled(paths, "test").item("a")["text"] == "ONE"


def test_a_missing_label_file_says_what_makes_it(paths: Paths) -> None:
    (paths.pseudo_labels / "train.jsonl").unlink()
    with pytest.raises(UserError, match=r"pseudo_labels/train\.jsonl: no such file; run `dvc repro pseudo_label`"):
        labelled(paths, "train")


def test_how_much_the_teacher_labelled_is_counted(paths: Paths) -> None:
    with RaggedArrayWriter(paths.noisy / "train", "int16") as noisy:
        for name in ("a", "b", "d"):
            noisy.append(np.zeros(1, "int16"), id=f"{name}#0", utterance=name, snr_db=None)
    noisy = RaggedArray(paths.noisy / "train")
    used = amount_used(labelled(paths, "train"), noisy)
    assert (used["clips"], used["seconds"]) == (3, 7)
    assert used["labelled_by_teacher"] == {"clips": 1, "seconds": 2}
    assert "labelled_by_teacher" not in amount_used(labelled(paths, "train"), noisy, {"b#0"})
