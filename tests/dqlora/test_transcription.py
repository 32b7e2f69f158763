import io
import itertools
import os
from pathlib import Path

import jiwer
import numpy as np
import pyarrow.parquet
import pytest
import soundfile
import soxr
import torch

from dqlora.audio import FRAME_HOP, BadAudio, read_audio, stream_audio
from dqlora.errors import UserError
from dqlora.text import Vocabulary
from dqlora.transcription import (
    BREAK,
    CONTEXT,
    WINDOW,
    Recogniser,
    Word,
    cues,
    load_recogniser,
    newest_run,
    pauses,
    subtitles,
    transcribe_file,
    windows,
    words_of,
)
from tests.conftest import RATE, ROOT, tone, wav_bytes

CPU = torch.device("cpu")


def noise(seconds: float, seed: int = 0, level: float = 0.1) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


def blocks(samples: np.ndarray, size: int) -> list[np.ndarray]:
    return [samples[start : start + size] for start in range(0, len(samples), size)]


RECORDINGS = {
    "short": noise(0.4),
    "one window": noise(17.0),
    "no pause": noise(61.3),
    "pauses": np.concatenate([noise(s, level=v) for s, v in ((2, 0.1), (1, 1e-4), (5, 0.1), (0.6, 1e-4), (25, 0.1))]),
    "silence": np.zeros(40 * RATE, np.float32),
    "exact": noise((WINDOW + CONTEXT) / RATE),
}  # fmt: skip


@pytest.mark.parametrize("size", [RATE // 3, 10 * RATE, 10**9])
@pytest.mark.parametrize("name", RECORDINGS)
def test_windows_own_every_frame_once_and_hear_what_is_there(name: str, size: int) -> None:
    samples = RECORDINGS[name]
    position = 0
    for window in windows(blocks(samples, size)):
        assert window.own[0] == position
        position = window.own[1]
        heard = window.first_heard * FRAME_HOP
        sound = np.trim_zeros(window.samples)  # silence may stand for what surrounds it
        first = heard + len(window.samples) - len(np.trim_zeros(window.samples, "f"))
        near = range(first - FRAME_HOP // 2, first + FRAME_HOP // 2 + 1)
        assert any(np.array_equal(sound, samples[max(0, at) : max(0, at) + len(sound)]) for at in near)
        assert len(window.samples) <= WINDOW + 2 * CONTEXT
        if not window.ends_in_pause:  # cut where somebody may be speaking: heard on both sides of the cut
            assert heard + len(window.samples) == window.own[1] * FRAME_HOP + CONTEXT
    assert position == len(samples) // FRAME_HOP


def test_a_recording_is_cut_at_its_pauses() -> None:
    (first, second) = pauses(RECORDINGS["pauses"])
    assert first / RATE == pytest.approx(2.5, abs=0.05)
    assert second / RATE == pytest.approx(8.3, abs=0.05)
    assert pauses(noise(20)) == [] == pauses(np.zeros(0, np.float32))
    found = [window.ends_in_pause for window in windows([RECORDINGS["pauses"]])]
    assert found == [True, True, False, True]


def test_words_are_those_of_the_decoder_at_their_frames(vocabulary: Vocabulary) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        symbols = np.repeat(rng.choice([0, 0, 4, 5, 6, 7, 3], 60), rng.integers(1, 4, 60)).tolist()
        words = list(words_of(symbols, vocabulary))
        assert " ".join(word.text for word in words) == vocabulary.decode(symbols)
        assert all(a.end <= b.start for a, b in itertools.pairwise(words))
    a, b = vocabulary.encode("AB")
    assert list(words_of([0, a, a, 0, b, 0, 4, a], vocabulary)) == [Word("ab", 0.0, 0.1), Word("a", 0.1, 0.16)]
    assert list(words_of([a, BREAK, a], vocabulary)) == [Word("a", 0.0, 0.02), Word("a", 0.02, 0.04)]


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (16_000, 2), (44_100, 1), (48_000, 10)])
def test_a_stream_is_the_recording(rate: int, channels: int) -> None:
    samples = soxr.resample(tone(25.0), RATE, rate)
    file = io.BytesIO()
    soundfile.write(file, np.stack([samples] * channels, axis=1), rate, format="WAV")
    seconds, stream = stream_audio(file)
    found = np.concatenate(list(stream))
    expected = read_audio(file.getvalue())
    assert seconds == pytest.approx(25.0, abs=1e-3)
    assert len(found) == pytest.approx(len(expected), abs=2)
    np.testing.assert_allclose(found[: len(expected)][1000:-1000], expected[: len(found)][1000:-1000], atol=2e-3)


def test_a_stream_of_unknown_length_is_read_to_its_end() -> None:
    """As a program writes it into a pipe, where it cannot go back to fill in the lengths."""
    file = bytearray(wav_bytes(tone(3.0)))
    file[4:8] = file[40:44] = b"\xff" * 4
    _, stream = stream_audio(io.BytesIO(bytes(file)))
    assert sum(map(len, stream)) == 3 * RATE


@pytest.fixture(scope="module")
def mini() -> Recogniser:
    return load_recogniser(str(ROOT / "presets/mini/student"), CPU)


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    table = pyarrow.parquet.read_table(ROOT / "presets/mini/speech/test/0000.parquet", columns=["audio"])
    return [read_audio(row["audio"]["bytes"]) for row in table.to_pylist()[:8]]


def wav(samples: np.ndarray) -> io.BytesIO:
    return io.BytesIO(wav_bytes(samples, subtype="FLOAT"))


def test_one_clip_reads_as_it_does_alone(mini: Recogniser, clips: list[np.ndarray]) -> None:
    seen: list[tuple[float, float]] = []
    words = transcribe_file(mini, wav(clips[0]), lambda done, whole: seen.append((done, whole)))
    assert " ".join(word.text for word in words) == mini.vocabulary.decode(mini.symbols(clips[0]).tolist())
    assert seen[-1][0] == pytest.approx(seen[-1][1], abs=0.05)


def test_joined_clips_lose_and_double_no_words(mini: Recogniser, clips: list[np.ndarray]) -> None:
    """Cut at its pauses, each clip is heard alone, so the words are the same; their times are moved."""
    gap = np.zeros(round(0.8 * RATE), np.float32)
    joined = np.concatenate([part for clip in clips for part in (gap, clip)])
    words = transcribe_file(mini, wav(joined))
    starts = np.cumsum([len(gap) + len(clip) for clip in clips]) - [len(clip) for clip in clips]
    alone = [transcribe_file(mini, wav(clip)) for clip in clips]
    expected = [(word, start / RATE) for start, words in zip(starts, alone, strict=True) for word in words]
    compared = jiwer.process_words(" ".join(w.text for w, _ in expected), " ".join(w.text for w in words))
    assert compared.wer < 0.01
    firsts = [starts[n] / RATE + alone[n][0].start for n in range(len(clips))]
    for first in firsts:
        assert min(abs(word.start - first) for word in words) < 0.05


@pytest.mark.parametrize("shift", [1, 80, 160, 3333])
def test_a_shift_changes_no_word(shift: int, mini: Recogniser, clips: list[np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    for clip in clips:
        noisy = clip + 0.003 * rng.standard_normal(len(clip)).astype(np.float32)
        quiet = 0.003 * rng.standard_normal(RATE + shift).astype(np.float32)
        there = transcribe_file(mini, wav(np.concatenate([quiet, noisy, quiet])))
        assert [word.text for word in there] == [word.text for word in transcribe_file(mini, wav(noisy))]


def test_words_start_when_they_are_said(mini: Recogniser, clips: list[np.ndarray]) -> None:
    """The first word of a clip begins with its first sound, which is known."""
    for clip in clips:
        power = (clip[: len(clip) // 160 * 160].reshape(-1, 160) ** 2).mean(axis=1)
        onset = np.flatnonzero(power > power.max() * 1e-4)[0] / 100
        assert transcribe_file(mini, wav(clip))[0].start == pytest.approx(onset, abs=0.15)


def test_silence_says_nothing(mini: Recogniser) -> None:
    assert transcribe_file(mini, wav(np.zeros(20 * RATE, np.float32))) == []


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (b"", "empty file"),
        (b"some words " * 50, "not readable as audio"),
        (wav_bytes(tone(2.0))[:5000], "truncated file"),
        (wav_bytes(tone(0.01)), "0.01 s, shorter than 0.3 s"),
        (wav_bytes(np.full(RATE, np.nan, np.float32), subtype="FLOAT"), "NaN or infinite samples"),
        (wav_bytes(np.zeros(0, np.float32)), "no samples"),
    ],
)
def test_what_is_no_speech_is_named(file: bytes, reason: str, mini: Recogniser) -> None:
    with pytest.raises(BadAudio, match=reason):
        transcribe_file(mini, io.BytesIO(file))


def test_subtitles() -> None:
    words = [Word("word", start, start + 0.4) for start in (0.5, 1.0, 1.5)] + [Word("late", 3661.25, 3661.75)]
    assert subtitles(words, "srt") == (
        "1\n00:00:00,500 --> 00:00:01,900\nword word word\n\n2\n01:01:01,250 --> 01:01:01,750\nlate\n"
    )
    assert subtitles(words, "vtt").startswith("WEBVTT\n\n1\n00:00:00.500 --> 00:00:01.900\n")
    many = [Word("abcdefghij", 0.3 * number, 0.3 * number + 0.2) for number in range(60)]
    grouped = cues(many)
    assert [word for cue in grouped for word in cue] == many
    assert all(sum(len(word.text) + 1 for word in cue) <= 85 and cue[-1].end - cue[0].start <= 6 for cue in grouped)


def test_a_model_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for source, message in {
        None: "no trained adapter; run `dvc repro`",
        "nowhere": "no such folder; a model on the hub",
    }.items():
        with pytest.raises(UserError, match=message):
            load_recogniser(source, CPU)
    for number, name in enumerate(("older", "newer")):
        folder = tmp_path / "models" / name / "adapter"
        folder.mkdir(parents=True)
        (folder / "run.json").write_text('{"student": "gone", "quantize": "nf4"}')
        os.utime(folder / "run.json", (number, number))
    assert newest_run() == Path("models/newer/adapter")
    with pytest.raises(UserError, match="its base, gone, is not here"):
        load_recogniser(None, CPU)
