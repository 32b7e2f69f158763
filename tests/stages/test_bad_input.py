"""Bad recordings and transcripts: each is rejected, counted and named, or ends the stage with one clear line."""

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

from dqlora.config import Paths, load_params
from dqlora.data.audio import SAMPLE_RATE
from dqlora.data.storage import RaggedArray
from dqlora.errors import UserError
from stages import fetch_noise, fetch_speech
from stages.fetch_models import fetch_teacher_head
from stages.train_teacher_head import start_head
from tests.conftest import RATE, cut_data_chunk, tone, wav_bytes, write_audiofolder, write_noise


def set_preset(project: Path, **values: object) -> None:
    """Make `local` the preset, with some of its values changed: speech__path=... is speech.path."""
    params = yaml.safe_load((project / "params.yaml").read_text())
    (project / "params.yaml").write_text(yaml.safe_dump({**params, "preset": "local"}))
    path = project / "presets" / "local.yaml"
    preset = yaml.safe_load(path.read_text())
    for name, value in values.items():
        block = preset
        *blocks, key = name.split("__")
        for part in blocks:
            block = block[part]
        block[key] = str(value) if isinstance(value, Path) else value
    path.write_text(yaml.safe_dump(preset))


@pytest.fixture
def local(project: Path, student_folder: Path, tmp_path: Path) -> Path:
    """A project whose local preset reads tmp_path/speech and tmp_path/noise, with a student fetched."""
    shutil.copytree(student_folder, project / "models/local/pretrained/student")
    set_preset(project, speech__path=tmp_path / "speech", noise__path=tmp_path / "noise")
    return project


def rejected(folder: Path) -> dict[str, str]:
    with (folder / "rejected.csv").open(encoding="utf-8") as file:
        return {f"{row['split']}/{row['id']}": row["reason"] for row in csv.DictReader(file)}


BAD_SPEECH: dict[str, tuple[bytes | None, str, str]] = {
    # name: file, transcript, reason
    "missing": (None, "a missing file", "no such file"),
    "empty": (b"", "an empty file", "empty file"),
    "truncated": (cut_data_chunk(wav_bytes(tone(2.0))), "a truncated file", "truncated file"),
    "text": (b"not a sound " * 100, "a text file", "not readable as audio"),
    "silent": (wav_bytes(np.zeros(RATE, np.float32)), "a silent file", "silent"),
    "nan": (wav_bytes(np.full(RATE, np.nan, np.float32), subtype="FLOAT"), "a file of nan", "NaN or infinite samples"),
    "clipped": (wav_bytes(np.clip(30 * tone(1.0), -1, 1)), "a clipped file", "clipped"),
    "short": (wav_bytes(tone(0.1)), "a short file", "0.10 s, shorter than 0.3 s"),
    "long": (wav_bytes(tone(60.0)), "a long file", "60.0 s, longer than the teacher's window"),
    "cyrillic": (wav_bytes(tone(1.0)), "привет мир", "letters outside the student's vocabulary"),
    "punctuation": (wav_bytes(tone(1.0)), "?!", "empty transcript"),
}


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    for split, count in (("train", 3), ("validation", 2), ("test", 2)):
        write_audiofolder(tmp_path / "speech" / split, [f"{split} sentence {'abcdef'[n]}" for n in range(count)])
    return tmp_path / "speech"


def add(folder: Path, name: str, content: bytes | None, transcript: str) -> None:
    if content is not None:
        (folder / name).write_bytes(content)
    with (folder / "metadata.csv").open("a", encoding="utf-8", newline="") as file:
        csv.writer(file).writerow((name, transcript))


@pytest.mark.parametrize("kind", BAD_SPEECH)
def test_bad_speech_is_rejected(local: Path, speech: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    content, transcript, reason = BAD_SPEECH[kind]
    add(speech / "train", f"{kind}.wav", content, transcript)
    fetch_speech.main()
    found = rejected(local / "data/local/clean")
    assert list(found) == [f"train/{kind}.wav"]
    assert found[f"train/{kind}.wav"].startswith(reason)
    assert f"rejected: 1\n  train/{kind}.wav: {reason}" in capsys.readouterr().out
    assert len(RaggedArray(local / "data/local/clean/train")) == 3


@pytest.mark.parametrize(("rate", "channels"), [(8_000, 1), (48_000, 2), (16_000, 10)])
def test_other_rates_and_channels_are_fine(local: Path, speech: Path, rate: int, channels: int) -> None:
    samples = np.stack([tone(1.0, rate=rate)] * channels, axis=1)
    add(speech / "train", "other.wav", wav_bytes(samples, rate), "In 1987, 21 men came")
    fetch_speech.main()
    train = RaggedArray(local / "data/local/clean/train")
    assert rejected(local / "data/local/clean") == {}
    assert SAMPLE_RATE <= len(train["other.wav"]) <= 2 * SAMPLE_RATE  # with silence at its ends
    assert train.item("other.wav")["text"] == "IN NINETEEN EIGHTY SEVEN TWENTY ONE MEN CAME"


def test_two_clips_of_one_name_and_a_sentence_in_two_splits(local: Path, speech: Path) -> None:
    add(speech / "train", "train-0.wav", wav_bytes(tone(1.0)), "another sentence")
    add(speech / "train", "leak.wav", wav_bytes(tone(1.0)), "Test sentence A!")
    fetch_speech.main()
    assert rejected(local / "data/local/clean") == {
        "train/train-0.wav": "a second clip of this name",
        "train/leak.wav": "its sentence stands in test too",
    }


def test_a_folder_without_splits_is_split_by_sentence(local: Path, tmp_path: Path) -> None:
    sentences = [f"sentence number {number} of this corpus" for number in range(40)] * 2
    write_audiofolder(tmp_path / "speech", sentences, seconds=4.0)
    fetch_speech.main()
    texts = {}
    for split in ("train", "validation", "test"):
        texts[split] = {item["text"] for item in RaggedArray(local / "data/local/clean" / split).items}
        assert texts[split]
    assert not texts["train"] & texts["test"] and not texts["train"] & texts["validation"]
    assert len(set.union(*texts.values())) == 40


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "no such folder"),
        (lambda folder: (shutil.rmtree(folder), folder.write_text("a.wav,hello")), "a file, and no folder"),
        (lambda folder: shutil.rmtree(folder / "test"), "not both train and test"),
        (lambda folder: (folder / "test/metadata.csv").write_text(""), "needs a header file_name,transcription"),
        (lambda folder: (folder / "test/metadata.csv").write_text("a,b\n1,2\n"), "needs a header"),
        (lambda folder: (folder / "test/metadata.csv").write_bytes(b"file_name,transcription\n\xff\xfe,x\n"), "UTF-8"),
        (
            lambda folder: [file.unlink() for file in folder.glob("test/*.wav")],
            r"no such file \(2\); a table names recordings",
        ),
    ],
    ids=["no folder", "a file", "no test", "empty", "columns", "encoding", "no audio"],
)
def test_a_bad_corpus_is_named(local: Path, speech: Path, spoil, message: str) -> None:  # type: ignore[no-untyped-def]
    spoil(speech)
    with pytest.raises(UserError, match=message):
        fetch_speech.main()
    assert not (local / "data/local/clean").exists()


@pytest.mark.parametrize("layout", ["no column", "no Parquet", "one split"])
def test_a_bad_parquet_folder_is_named(local: Path, tmp_path: Path, layout: str) -> None:
    import pyarrow
    import pyarrow.parquet

    for split in ("test", "validation", "train"):
        (tmp_path / "speech" / split).mkdir(parents=True)
        path = tmp_path / "speech" / split / "0000.parquet"
        if layout == "no Parquet":
            path.write_bytes(b"PAR1 but not really")
        elif layout == "no column" or split == "train":
            pyarrow.parquet.write_table(pyarrow.table({"id": [1], "text": ["a"]}), path)
    with pytest.raises(UserError, match=r"\.parquet|no Parquet files"):
        fetch_speech.main()


BAD_NOISE = {name: BAD_SPEECH[name] for name in ("empty", "truncated", "text", "silent", "nan", "clipped")}


@pytest.mark.parametrize("kind", BAD_NOISE)
def test_bad_noise_is_rejected(local: Path, tmp_path: Path, kind: str) -> None:
    folder = write_noise(tmp_path / "noise")
    content, _, reason = BAD_NOISE[kind]
    (folder / "train" / f"{kind}.wav").write_bytes(content or b"")
    fetch_noise.main()
    found = rejected(local / "data/local/noise")
    assert list(found) == [f"train/{kind}.wav"]
    assert found[f"train/{kind}.wav"].startswith(reason)
    assert len(RaggedArray(local / "data/local/noise/train")) == 3


def test_a_recording_in_both_splits_stays_out_of_training(local: Path, tmp_path: Path) -> None:
    folder = write_noise(tmp_path / "noise")
    shutil.copy(folder / "test/fan_0.wav", folder / "train/renamed.wav")
    fetch_noise.main()
    assert rejected(local / "data/local/noise") == {"train/renamed.wav": "the same sound as test/fan_0.wav"}


def test_noise_of_any_length_rate_and_channels(local: Path, tmp_path: Path) -> None:
    folder = write_noise(tmp_path / "noise")
    for name, seconds, rate in (("short", 0.1, 8_000), ("long", 70.0, 48_000)):
        samples = np.random.default_rng(rate).uniform(-0.1, 0.1, (round(seconds * rate), 2))
        soundfile.write(folder / "train" / f"{name}.wav", samples, rate)
    fetch_noise.main()
    train = RaggedArray(local / "data/local/noise/train")
    assert (len(train["short.wav"]), len(train["long.wav"])) == (1_600, 60 * SAMPLE_RATE)
    assert rejected(local / "data/local/noise") == {}
    assert all(abs(int(np.abs(train[item["id"]]).max()) - 16_384) < 20 for item in train.items)


@pytest.mark.parametrize(
    ("make", "message"),
    [(lambda folder: None, "no such folder"), (lambda folder: folder.mkdir(), "no recordings to")],
    ids=["missing", "empty"],
)
def test_a_bad_noise_folder_is_named(local: Path, tmp_path: Path, make, message: str) -> None:  # type: ignore[no-untyped-def]
    make(tmp_path / "noise")
    with pytest.raises(UserError, match=message):
        fetch_noise.main()
    assert not (local / "data/local/noise").exists()


def test_a_user_error_is_one_line_and_exit_code_1(local: Path, speech: Path) -> None:
    shutil.rmtree(speech)
    ended = subprocess.run([sys.executable, "-m", "stages.fetch_speech"], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.strip().splitlines() == [
        f"error: speech.path: {speech}: no such folder; give a folder of recordings or hf://datasets/..."
    ]


@pytest.mark.parametrize("stage", ["make_targets", "train"])
def test_an_unknown_distillation_target_is_refused(local: Path, stage: str) -> None:
    params = yaml.safe_load((local / "params.yaml").read_text())
    params["distill"]["target"] = "letters"
    (local / "params.yaml").write_text(yaml.safe_dump(params))
    ended = subprocess.run([sys.executable, "-m", f"stages.{stage}"], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    [line] = ended.stderr.strip().splitlines()
    assert line.startswith("error: params.yaml: distill.target: unknown target 'letters'; known are base_features, ")


def test_a_trained_teacher_head_is_taken_or_named(project: Path, tmp_path: Path) -> None:
    shutil.copytree(project / "presets/mini/teacher_head", tmp_path / "head")
    fetch_teacher_head(tmp_path / "head", tmp_path / "fetched")
    assert (tmp_path / "fetched/head.safetensors").read_bytes() == (tmp_path / "head/head.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"nowhere: no such folder; give that of a trained head, or `scratch`"):
        fetch_teacher_head(tmp_path / "nowhere", tmp_path / "other")
    (tmp_path / "head/config.json").write_text("{}")
    with pytest.raises(UserError, match="unreadable teacher head"):
        fetch_teacher_head(tmp_path / "head", tmp_path / "other")


def test_a_head_for_another_teacher_is_refused(project: Path) -> None:
    paths = Paths("local")
    shutil.copytree(project / "presets/mini/teacher_head", paths.pretrained_head)
    settings = load_params().teacher_head
    assert start_head(paths, settings, width=384, vocabulary=32, device=torch.device("cpu")).width == 384
    with pytest.raises(
        UserError, match=r"the student has 32 and the teacher 512: set the preset's teacher_head\.path: scratch"
    ):
        start_head(paths, settings, width=512, vocabulary=32, device=torch.device("cpu"))


@pytest.mark.parametrize("bad", [0, 1, 30])
def test_each_split_says_how_many_clips_it_has(
    bad: int, local: Path, speech: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same number that the later stages count; of the rejected ones, too, and no bar in a log."""
    for number in range(bad):
        add(speech / "train", f"bad-{number}.wav", b"", "an empty file")
    fetch_speech.main()
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[:3] == [
        "test: 2 clips, 0.1 min, 0 rejected",
        "validation: 2 clips, 0.1 min, 0 rejected",
        f"train: 3 clips, 0.1 min, {bad} rejected",
    ]
    assert lines[3] == "out_of_domain: 40 clips, 1.8 min, 0 rejected"
    assert lines[4:5] == [f"rejected: {bad}"] * (bad > 0)
    assert [line.partition(",")[0] for line in captured.err.splitlines()] == [
        "warning: test has 2",
        "warning: validation has 2",
    ]


def test_a_stage_that_fails_names_no_file_that_goes(
    local: Path, speech: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(2):
        (speech / "test" / f"test-{number}.wav").write_bytes(b"")
    for number in range(30):
        add(speech / "test", f"bad-{number}.wav", b"", "an empty file")
    with pytest.raises(UserError, match=r"no usable clip in test: all 32 were rejected: empty file \(32\)"):
        fetch_speech.main()
    said = capsys.readouterr().out
    assert "rejected: 32\n  test/test-0.wav: empty file\n" in said and "  and 12 more\n" in said
    assert not (local / "data/local/clean").exists()
