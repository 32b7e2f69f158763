"""Labels of clips without a transcript: what is kept, what is rejected, where a killed run goes on, what ends it."""

import csv
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dqlora.config import Paths
from dqlora.data.labels import labelled
from dqlora.data.storage import RaggedArray, RaggedArrayWriter, read_json
from dqlora.errors import UserError
from dqlora.evaluation.label_filter import Measures
from stages import pseudo_label
from tests.conftest import RATE, tone
from tests.dqlora.data.test_labels import write_clips
from tests.stages.test_bad_input import local  # noqa: F401

HEARD = {  # what the stand-in of the teacher hears
    "good": Measures("He said twenty-one.", -0.1, 0.1, None, "he said 21"),
    "hum": Measures("Thank you.", -0.9, 0.7, None, "you"),
    "leak": Measures("A sentence of test!", -0.1, 0.1, None, None),
    "russian": Measures("привет", -0.1, 0.1, None, None),
    "unsure": Measures("something else", -2.0, 0.1, None, None),
}


@pytest.fixture
def paths(local: Path) -> Paths:  # noqa: F811
    paths = Paths("local", local)
    write_clips(paths.clean / "test", {"t": "A SENTENCE OF TEST"})
    write_clips(paths.clean / "validation", {"v": "OF VALIDATION"})
    write_clips(paths.clean / "train", {"own": "MY OWN", **dict.fromkeys(HEARD, "")})
    write_clips(paths.clean / "out_of_domain", {"o": "ELSEWHERE"})
    return paths


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The clips that the stand-in of the teacher was asked for, two at a time."""
    asked: list[str] = []

    def listener(paths: Paths, language: str, second: str) -> pseudo_label.Listen:
        def listen(clips: RaggedArray, names: list[str]) -> list[Measures]:
            asked.extend(names)
            return [HEARD[name] for name in names]

        return listen

    monkeypatch.setattr(pseudo_label, "make_listener", listener)
    monkeypatch.setattr(pseudo_label, "BATCH_SIZE", {"cpu": 2, "cuda": 2})
    return asked


def rejected(paths: Paths) -> dict[str, str]:
    with (paths.pseudo_labels / "rejected.csv").open(encoding="utf-8") as file:
        return {f"{row['split']}/{row['id']}": row["reason"] for row in csv.DictReader(file)}


def set_params(**values: object) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["pseudo_label"] |= values
    Path("params.yaml").write_text(yaml.safe_dump(params))


def test_what_is_kept_and_what_is_rejected(paths: Paths, heard: list[str]) -> None:
    pseudo_label.main()
    assert {item["id"]: item["text"] for item in labelled(paths, "train").items} == {
        "own": "MY OWN", "good": "HE SAID TWENTY ONE"
    }  # fmt: skip
    assert rejected(paths) == {
        "train/hum": "listed hallucination: Thank you.",
        "train/leak": "its sentence stands in test too",
        "train/russian": "letters outside the student's vocabulary: В Е И П Р Т",
        "train/unsure": "low log-probability: -2.00, under -1",
    }
    metrics = read_json(paths.metrics / "pseudo_label.json", "")
    counted = {kind: metrics["train"][kind]["clips"] for kind in ("human", "kept", "rejected")}
    assert counted == {"human": 1, "kept": 1, "rejected": 4}
    assert metrics["train"]["kept"]["hours"] == pytest.approx(2 / 3600, abs=1e-6)  # of the second clip
    assert metrics["train"]["rejected"]["hours"] == pytest.approx((3 + 4 + 5 + 6) / 3600, abs=1e-6)
    assert sum(metrics["train"]["reasons"].values()) == 4
    assert metrics["test"]["kept"] == {"clips": 0, "hours": 0}
    assert heard == list(HEARD)


def test_where_all_have_transcripts_the_teacher_is_not_loaded(paths: Paths) -> None:
    write_clips(paths.clean / "train", {"own": "MY OWN"})
    pseudo_label.main()  # there is no teacher in this project
    for split in ("train", "validation", "test"):
        assert (paths.pseudo_labels / f"{split}.jsonl").read_text() == "\n"
    assert not paths.teacher_labels.exists()


def test_other_thresholds_hear_nothing_again(paths: Paths, heard: list[str]) -> None:
    pseudo_label.main()
    heard.clear()
    set_params(log_probability="none")
    pseudo_label.main()
    assert heard == []
    assert "unsure" in labelled(paths, "train")
    set_params(second="student")
    pseudo_label.main()
    assert heard == list(HEARD)


@pytest.mark.parametrize("left", ["", "half a li", "\n"])
def test_a_killed_run_goes_on_from_its_last_batch(paths: Paths, heard: list[str], left: str) -> None:
    """Three clips noted, and what stood in the file's buffer: the batch of two counts, the rest is heard again."""
    pseudo_label.main()
    whole = (paths.pseudo_labels / "train.jsonl").read_bytes()
    [log] = paths.teacher_labels.glob("train-*.jsonl")
    noted = log.read_text()
    log.write_text("".join(noted.splitlines(keepends=True)[:3]) + left.rstrip("\n"))
    shutil.rmtree(paths.pseudo_labels)
    heard.clear()
    pseudo_label.main()
    assert heard == list(HEARD)[2:]
    assert log.read_text() == noted
    assert (paths.pseudo_labels / "train.jsonl").read_bytes() == whole


def test_nothing_usable_ends_it_with_one_line(paths: Paths, heard: list[str]) -> None:
    write_clips(paths.clean / "train", dict.fromkeys(("hum", "unsure"), ""))
    with pytest.raises(
        UserError, match=r"train: no usable clip: .*listed hallucination \(1\), low .* \(1\); "
    ) as error:
        pseudo_label.main()
    assert "\n" not in str(error.value)
    assert not paths.pseudo_labels.exists()


def test_without_human_transcripts_the_test_is_labelled_too(paths: Paths, heard: list[str]) -> None:
    write_clips(paths.clean / "test", {"good": "", "hum": ""})
    write_clips(paths.clean / "train", {"own": "MY OWN", "good": ""})
    pseudo_label.main()
    [item] = labelled(paths, "test").items
    assert (item["transcript"], item["labelled_by"]) == ("He said twenty-one.", "teacher")
    assert rejected(paths)["train/good"] == "its sentence stands in test too"


KILLED = """
import os, signal, sys
from stages import pseudo_label
make = pseudo_label.make_listener
def killed_after_one_batch(*arguments):
    listen, calls = make(*arguments), []
    def once(*clips):
        if calls:
            os.kill(os.getpid(), signal.SIGKILL)
        calls.append(clips)
        return listen(*clips)
    return once
pseudo_label.make_listener = killed_after_one_batch
pseudo_label.BATCH_SIZE = {"cpu": 1, "cuda": 1}
pseudo_label.main()
"""


def test_the_teacher_itself_labels_and_is_killed(paths: Paths, teacher_folder: Path) -> None:
    """kill -9 in the second batch, with the real Whisper: silence and a tone are rejected, each with its reason."""
    shutil.copytree(teacher_folder, paths.teacher)
    with RaggedArrayWriter(paths.clean / "train", "int16") as clips:
        clips.append(np.zeros(RATE, "int16"), id="own", transcript="my own", text="MY OWN")
        for name, samples in {"silence": np.zeros(2 * RATE), "tone": 32767 * tone(1.5)}.items():
            clips.append(samples.astype("int16"), id=name, transcript="", text="")
    ended = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr[-2000:]
    assert not paths.pseudo_labels.exists()
    [log] = paths.teacher_labels.glob("train-*.jsonl")
    assert len(log.read_text().splitlines()) == 1
    command = KILLED.replace("pseudo_label.make_listener = killed_after_one_batch\n", "")
    again = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr[-2000:]
    assert f"labelling goes on from clip 1 ({log.relative_to(Path.cwd())})" in again.stdout
    lines: list[dict[str, Any]] = [json.loads(line) for line in (paths.pseudo_labels / "train.jsonl").open()]
    assert [line["id"] for line in lines] == ["silence", "tone"]
    assert not any(line["kept"] for line in lines) and all(line["reason"] for line in lines)
    assert lines[0]["no_speech"] > 0.6
