import json
import re
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

from dqlora.data.text import Vocabulary
from research.pretrain import synthesise
from research.pretrain.data import MAX_SECONDS, Clips, Shards, Speech, encode
from research.pretrain.voices import SAMPLE_RATE, TEST_VOICES, TRAIN_VOICES, Voice


def write_shard(folder: Path, name: str, seconds: list[float]) -> None:
    samples = [round(SAMPLE_RATE * each) for each in seconds]
    np.save(folder / f"{name}.npy", np.arange(sum(samples)).astype(np.int16))
    entries = [{"text": f"{name} {number}", "voice": "v", "samples": n} for number, n in enumerate(samples)]
    (folder / f"{name}.json").write_text(json.dumps(entries))


def test_each_shard_is_given_once_and_to_one_process(tmp_path: Path) -> None:
    for number in range(6):
        write_shard(tmp_path, f"0-{number}-0", [0.5, 0.25])
    shards = [Shards(tmp_path, rank, 2) for rank in range(2)]
    first = [each.new() for each in shards]
    assert sorted(text for clips in first for text in clips.texts) == sorted(
        f"0-{number}-0 {clip}" for number in range(6) for clip in range(2)
    )
    assert [len(samples) for samples in first[0].samples[:2]] == [8000, 4000]
    assert first[0].samples[1][0] == 8000
    write_shard(tmp_path, "0-0-1", [0.5])
    assert sum(len(each.new().texts) for each in shards) == 1
    assert sum(len(each.new().texts) for each in shards) == 0


def test_an_epoch_draws_each_clip_as_often_as_asked(vocabulary: Vocabulary) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.uniform(1, 6, 40)
    clips = Clips(["some words"] * 40, [np.zeros(round(s * SAMPLE_RATE), np.int16) for s in lengths])
    speech = Speech([encode(clips, vocabulary, 2)], torch.device("cpu"))
    long = Clips(["too long"], [np.zeros(round((MAX_SECONDS + 1) * SAMPLE_RATE), np.int16)])
    speech.add(encode(long, vocabulary, 5))
    speech.add(encode(Clips([], []), vocabulary, 1))
    doubtful = Clips(["in 3D", "привет"], [np.full(SAMPLE_RATE, 7, np.int16)] * 2)
    assert encode(doubtful, vocabulary, 1).labels == []  # left out: nobody knows how it is said
    speech.add(encode(Clips(["many more words"], [np.full(SAMPLE_RATE, 7, np.int16)]), vocabulary, 1))
    drawn = torch.cat([clips for clips, _ in speech.epoch(1.0, rng)]).bincount(minlength=42)  # a clip a batch
    assert drawn.tolist() == [2] * 40 + [0, 1]
    assert (speech.audio[speech.starts[41] :] == 7).all()
    assert speech.label_counts.tolist()[-2:] == [8, 15]
    assert vocabulary.decode(speech.labels[0, :10].tolist()) == "some words"
    assert speech.labels.shape == (42, 15)
    assert (speech.labels[0, 10:] == 0).all()


@pytest.mark.parametrize("pauses", [False, True])
def test_clips_with_pauses_hold_the_same_speech(pauses: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f"line {number}" for number in range(30)]
    speech = np.full(2 * SAMPLE_RATE, 0.5, np.float32)
    monkeypatch.setattr("research.pretrain.synthesise.synthesise", lambda *arguments: speech)
    args = Namespace(
        seed=0, workers=1, folder=tmp_path, engines=["hibari"], pauses=pauses, no_test_voices=False, joined=0.3
    )
    assert synthesise.work(0, args, lines, time.time() + 60)[0] == 30
    clips = Shards(tmp_path).new()
    assert sorted(re.findall(r"line \d+", " ".join(clips.texts))) == sorted(lines)
    assert sum((samples != 0).sum() for samples in clips.samples) == 30 * len(speech)
    assert all(len(samples) <= synthesise.MAX_SECONDS * SAMPLE_RATE for samples in clips.samples)
    together = [text.count("line") for text in clips.texts]
    assert (max(together) > 1) == pauses
    assert all(
        (samples != 0).sum() == count * len(speech) for samples, count in zip(clips.samples, together, strict=True)
    )


def test_held_out_sentences_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("Nine.\nNine lamps.\nThe lamp is lit!\nLamps\n")
    (tmp_path / "metadata.csv").write_text("file_name,transcription\na.wav,9\nb.wav,the lamp is lit\n")
    lines = synthesise.lines_to_read(tmp_path / "text.txt", [tmp_path / "metadata.csv"])
    assert lines == ["Nine lamps.", "Lamps"]


def test_the_mini_corpus_test_voices_can_be_left_out() -> None:
    assert all(synthesise.is_test_voice(voice) for voice in TEST_VOICES.values())
    assert not any(synthesise.is_test_voice(voice) for voice in TRAIN_VOICES.values())
    assert synthesise.is_test_voice(Voice("hibari", "us", 2, 0.9, 1.3))
    assert not synthesise.is_test_voice(Voice("hibari", "us", 2, 0.95, 1.3))
