import io
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.cpu import load_clips
from benchmarks.transcription import join
from dqlora.data.audio import BadAudio, to_float32, to_int16
from dqlora.data.noise import synthetic_noise
from dqlora.data.storage import write_json
from dqlora.data.text import spell_out
from dqlora.evaluation.metrics import count_errors
from dqlora.models.language_model import as_decoded, train_arpa
from dqlora.models.wav2vec2 import transcribe
from dqlora.transcription import recogniser as module
from dqlora.transcription.recogniser import Recogniser, load_recogniser, transcribe_file
from dqlora.transcription.words import cues, text_of
from research.study.confidence import auc, right_words
from research.study.mixtures import mixtures
from tests.conftest import RATE, ROOT, tone, wav_bytes

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def mini() -> Recogniser:
    return load_recogniser(str(ROOT / "presets/mini/student"), CPU)


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    return load_clips(None)[0]


def wav(samples: np.ndarray) -> io.BytesIO:
    return io.BytesIO(wav_bytes(samples, subtype="FLOAT"))


def test_one_clip_is_transcribed_as_it_is_alone(mini: Recogniser, clips: list[np.ndarray]) -> None:
    seen: list[tuple[float, float]] = []
    words = transcribe_file(mini, wav(clips[0]), lambda done, whole: seen.append((done, whole)))
    assert " ".join(word.text for word in words) == mini.vocabulary.decode(mini.token_ids(clips[0]).tolist())
    assert seen[-1][0] == pytest.approx(seen[-1][1], abs=0.05)


@pytest.mark.parametrize(
    ("speech", "more"),
    [
        ("../shared/speech/prompts/validation", 0.01),
        ("presets/mini", 0.05),  # its clips are cut tightly, and read worse with silence around them: docs/usage.md
    ],
)
def test_joined_clips_have_the_errors_of_each_alone(
    speech: str, more: float, mini: Recogniser, request: pytest.FixtureRequest
) -> None:
    """Minutes of clips with pauses of 0.5 to 20 s."""
    if "shared" in speech:
        request.getfixturevalue("shared")
    clips, texts = (each[:24] for each in load_clips(ROOT / speech if "shared" in speech else None))
    joined, begins = join(clips, [], 0, [np.random.default_rng(at) for at in range(len(clips))])
    words = transcribe_file(mini, wav(joined))
    alone = [transcribe_file(mini, wav(clip)) for clip in clips]
    together = count_errors([" ".join(texts)], [text_of(words)], "en").wer
    assert together - count_errors(texts, [text_of(each) for each in alone], "en").wer < more
    for begin, single in zip(begins, alone, strict=True):
        assert min(abs(word.start - begin / RATE - single[0].start) for word in words) < 0.3


@pytest.mark.parametrize("edge", [0.0, 1.3])
@pytest.mark.parametrize("level", [0.0, 0.003, 0.03])
def test_what_fits_a_window_is_transcribed_as_evaluate_does(
    level: float, edge: float, mini: Recogniser, clips: list[np.ndarray]
) -> None:
    """Hesitations and quiet ends included; only a word that goes through a pause is ended there."""
    rng = np.random.default_rng(0)
    quiet = np.zeros(round(edge * RATE), np.float32)
    samples = np.concatenate([quiet, clips[0], quiet, quiet, clips[1], quiet])
    samples = to_float32(to_int16(samples + level * rng.standard_normal(len(samples)).astype(np.float32)))
    found, expected = text_of(transcribe_file(mini, wav(samples))), transcribe(mini.student, mini.vocabulary, samples)
    assert found.replace(" ", "") == expected.replace(" ", "")
    assert found == expected or edge > 0


@pytest.mark.parametrize("level", [0.0, 0.001])
@pytest.mark.parametrize("pause", [2.5, 20.0, 45.0])
def test_no_word_and_no_subtitle_goes_through_a_pause(
    pause: float, level: float, mini: Recogniser, clips: list[np.ndarray]
) -> None:
    gap = np.zeros(round(pause * RATE), np.float32)
    samples = np.concatenate([clips[5], gap, clips[7], gap])
    samples += level * np.random.default_rng(0).standard_normal(len(samples)).astype(np.float32)
    words = transcribe_file(mini, wav(samples))
    assert len(words) > 10
    for cue in cues(words):
        assert all(later.start - earlier.end < 1 for earlier, later in pairwise(cue))
        assert all(word.end - word.start < 2 for word in cue)


def test_words_start_when_they_are_said(mini: Recogniser, clips: list[np.ndarray]) -> None:
    """The first word of a clip begins with its first sound, which is known."""
    for clip in clips[:8]:
        power = (clip[: len(clip) // 160 * 160].reshape(-1, 160) ** 2).mean(axis=1)
        onset = np.flatnonzero(power > power.max() * 1e-4)[0] / 100
        assert transcribe_file(mini, wav(clip))[0].start == pytest.approx(onset, abs=0.15)


def test_wrong_words_have_a_lower_confidence(shared: Path, mini: Recogniser) -> None:
    """Of real prompts, clean and in real noise: right words have more than wrong ones in most pairs."""
    of_right: list[float] = []
    of_wrong: list[float] = []
    speech = shared / "speech/prompts/validation"
    for one in mixtures([speech], shared / "noise/train", (5.0,), 12):
        words = transcribe_file(mini, wav(one.samples))
        right_ones = right_words(spell_out(one.reference, "en"), text_of(words))
        for word, right in zip(words, right_ones, strict=True):
            (of_right if right else of_wrong).append(word.confidence)
    assert min(len(of_right), len(of_wrong)) > 20
    assert auc(np.array(of_right), np.array(of_wrong)) > 0.85


def test_a_babble_of_voices_is_not_written_in_a_long_recording(
    mini: Recogniser, clips: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The detector hears speech in it, and so it is. What is said clearly before it stays."""
    rng = np.random.default_rng(0)
    babble = 0.1 * synthetic_noise("babble", 40 * RATE, rng, clips[10:22])
    samples = np.concatenate([clips[0], np.zeros(RATE, np.float32), babble])
    words = transcribe_file(mini, wav(samples))
    monkeypatch.setattr(module, "LEAST_CONFIDENCE", 0.0)
    everything = transcribe_file(mini, wav(samples))
    seconds = len(clips[0]) / RATE + 0.5
    in_noise, left = (sum(word.start > seconds for word in each) for each in (everything, words))
    assert in_noise > 20 and left < in_noise / 4
    said = [word for word in everything if word.start < seconds]
    assert len(said) > 5 and words[: len(said)] == said


def test_only_a_long_recording_loses_what_is_uncertain(
    mini: Recogniser, clips: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LEAST_CONFIDENCE", 0.8)
    one = transcribe_file(mini, wav(clips[0]))
    many = transcribe_file(mini, wav(join(clips[:6], [], 0, [np.random.default_rng(at) for at in range(6)])[0]))
    assert min(word.confidence for word in one) < 0.8 <= min(word.confidence for word in many)


def test_hot_words_that_are_spelt_by_ear_come_right_and_other_clips_stay(
    mini: Recogniser, clips: list[np.ndarray]
) -> None:
    """Of words with sounds that the student writes in another way, and of a name that nobody says."""
    words = ["quarry", "reptile", "prairie", "nectar", "liters", "Kowalski"]
    listening = load_recogniser(str(ROOT / "presets/mini/student"), CPU, words)
    told: set[str] = set()
    for clip in clips[:26]:
        without, found = (text_of(transcribe_file(each, wav(clip))) for each in (mini, listening))
        new = set(found.split()) - set(without.split())
        assert new & set(words) or found == without
        told |= new & set(words)
    assert told == {"quarry", "reptile", "prairie", "nectar", "liters"}


def test_the_words_of_pieces_are_those_of_the_runs_decoder(clips: list[np.ndarray], tmp_path: Path) -> None:
    """A long recording too: each piece is searched alone, so that memory stays as it is."""
    sentences = (ROOT / "presets/mini/text/sentences.txt").read_text().upper().replace(".", "").splitlines()
    shutil.copytree(ROOT / "presets/mini/student", tmp_path / "student")
    model = load_recogniser(str(tmp_path / "student"), CPU)
    (tmp_path / "student/model.arpa").write_text(as_decoded(train_arpa(sentences, 3, 0.0), model.vocabulary))
    settings = {"method": "beam", "language_model": "model.arpa", "weights": {"alpha": 0.35, "unknown": -10.0}}
    write_json(tmp_path / "student/decoder.json", settings)
    with_model = load_recogniser(str(tmp_path / "student"), CPU)
    alone = [text_of(transcribe_file(with_model, wav(clip))) for clip in clips[2:5]]
    assert alone != [text_of(transcribe_file(model, wav(clip))) for clip in clips[2:5]]
    gap = np.zeros(20 * RATE, np.float32)
    words = transcribe_file(with_model, wav(np.concatenate([clips[2], gap, clips[3], gap, clips[4]])))
    assert count_errors([" ".join(alone)], [text_of(words)], "en").wer < 0.1
    assert all(before.end <= after.start and after.start < after.end for before, after in pairwise(words))


def test_silence_says_nothing(mini: Recogniser) -> None:
    assert transcribe_file(mini, wav(np.zeros(20 * RATE, np.float32))) == []


@pytest.mark.parametrize("factor", [32768.0, 3.0, 0.01, 1e-3, 1e-5])
@pytest.mark.parametrize("longer", [False, True])
def test_no_level_loses_words(longer: bool, factor: float, mini: Recogniser, clips: list[np.ndarray]) -> None:
    gap = np.zeros(RATE if longer else 0, np.float32)
    samples = np.concatenate([part for clip in clips[: 9 if longer else 1] for part in (clip, gap)])
    assert len(samples) > 30 * RATE or not longer
    assert text_of(transcribe_file(mini, wav(factor * samples))) == text_of(transcribe_file(mini, wav(samples)))


@pytest.mark.parametrize("seconds", [10, 70])
@pytest.mark.parametrize("level", [2e-4, 2e-5, 2e-6])
def test_the_noise_of_a_silent_microphone_says_nothing(level: float, seconds: int, mini: Recogniser) -> None:
    hiss = level * np.random.default_rng(0).standard_normal(seconds * RATE).astype(np.float32)
    assert transcribe_file(mini, wav(hiss)) == []


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
