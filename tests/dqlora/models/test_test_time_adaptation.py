"""Adapting to the clip at hand: what is lowered, that errors in noise are fewer, and that the student stays."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.cpu import load_clips
from dqlora.data.audio import to_float32, to_int16
from dqlora.data.mixing import mix_int16
from dqlora.data.noise import synthetic_noise
from dqlora.device import CPU, map_on_cores
from dqlora.errors import UserError
from dqlora.evaluation.metrics import count_errors
from dqlora.models import test_time_adaptation
from dqlora.models.decoding import greedy
from dqlora.models.gate import GatedStudent
from dqlora.models.test_time_adaptation import adapted_logits, layer_norms, uncertainty
from dqlora.models.wav2vec2 import clip_logits, with_same_weights
from dqlora.transcription.recogniser import AdaptingRecogniser, load_recogniser
from tests.conftest import ROOT

CLIPS = 4


@pytest.fixture(scope="module")
def mini() -> AdaptingRecogniser:
    recogniser = load_recogniser(str(ROOT / "presets/mini/student"), CPU, adapt=True)
    assert isinstance(recogniser, AdaptingRecogniser)
    return recogniser


@pytest.fixture(scope="module")
def noisy() -> tuple[list[np.ndarray], list[str]]:
    """Clips in noise, and their texts."""
    samples, texts = load_clips(None)
    generator = np.random.default_rng(0)
    noise = to_int16(synthetic_noise("pink", 160_000, generator, []))
    return [to_float32(mix_int16(to_int16(clip), noise, 15, generator)) for clip in samples[:CLIPS]], texts[:CLIPS]


def test_what_is_lowered_is_the_papers() -> None:
    """Against loops in float64 over its formulas: entropy without blanks, and the confusion of pairs of tokens."""
    logits = torch.randn(30, 5, generator=torch.Generator().manual_seed(0)) * 6
    blank, temperature, weight = 2, 2.5, 0.3
    probs = np.exp(logits.numpy().astype(np.float64) / temperature)
    probs /= probs.sum(1, keepdims=True)
    entropy = -(probs * np.log(probs)).sum(1)
    spoken = logits.numpy().argmax(1) != blank
    assert 0 < spoken.sum() < len(spoken)
    confusion = np.zeros((5, 5))
    for row, certainty in zip(probs, 1 + np.exp(-entropy), strict=True):
        confusion += certainty * np.outer(row, row)
    confusion /= confusion.sum(1, keepdims=True)
    between = (confusion.sum() - np.trace(confusion)) / 5
    expected = weight * entropy[spoken].mean() + (1 - weight) * between
    assert uncertainty(logits, blank).item() == pytest.approx(expected, rel=1e-5)


def test_a_clip_without_speech_can_be_adapted_to() -> None:
    logits = torch.zeros(4, 5)
    logits[:, 2] = 3.0
    assert torch.isfinite(uncertainty(logits, blank=2))


def test_errors_in_noise_are_fewer_and_the_student_stays(
    mini: AdaptingRecogniser, noisy: tuple[list[np.ndarray], list[str]]
) -> None:
    clips, texts = noisy
    before = [clip_logits(mini.student, clip) for clip in clips]
    after = list(map_on_cores(mini.logits, clips))
    for clip, logits in zip(clips, before, strict=True):
        assert np.array_equal(clip_logits(mini.student, clip), logits)
    errors = [
        count_errors(texts, [mini.vocabulary.decode(greedy(each).tolist()) for each in logits], "en").wer
        for logits in (before, after)
    ]
    assert errors[1] < 0.9 * errors[0]
    [alone] = map_on_cores(mini.logits, clips[:1])
    assert np.array_equal(after[0], alone)  # neither of what came before it nor beside it
    assert not any(norm.requires_grad for norm in layer_norms(mini.student.model))


def test_what_the_base_is_certain_of_is_left(
    mini: AdaptingRecogniser, noisy: tuple[list[np.ndarray], list[str]]
) -> None:
    model, blank = mini.student.model, mini.vocabulary.blank
    for threshold, changes in ((0.0, True), (9.0, False)):
        gated = GatedStudent(with_same_weights(model), model, threshold)
        changed = np.abs(adapted_logits(gated, noisy[0][0], blank) - clip_logits(gated, noisy[0][0])).max()
        assert (changed > 0.1) == changes


def test_what_the_student_knows_nothing_of_is_left(
    mini: AdaptingRecogniser, noisy: tuple[list[np.ndarray], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = noisy[0][0]
    for most, changes in ((9.0, True), (0.0, False)):
        monkeypatch.setattr(test_time_adaptation, "MOST_UNCERTAIN", most)
        changed = np.abs(mini.logits(clip) - clip_logits(mini.student, clip)).max()
        assert (changed > 0.1) == changes


def test_a_clip_shorter_than_a_frame_has_no_logits(mini: AdaptingRecogniser) -> None:
    assert mini.logits(np.zeros(300, np.float32)).shape == (0, 32)
    assert mini.logits(np.ones(500, np.float32)).shape == (1, 32)


def test_an_onnx_export_says_that_it_cannot(tmp_path: Path) -> None:
    for name in ("config.json", "model.onnx"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match="an ONNX export cannot adapt itself; give --model a run's adapter folder"):
        load_recogniser(str(tmp_path), CPU, adapt=True)
