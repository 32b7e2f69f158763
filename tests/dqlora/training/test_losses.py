import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from dqlora.data.text import frames_needed
from dqlora.models.wav2vec2 import EncoderCTC, cnn_features, load_student
from dqlora.training.losses import ctc_loss, feature_distance, kl_divergence, posterior_given_text
from tests.conftest import tone


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def slow_ctc(logits: np.ndarray, labels: list[int], blank: int) -> float:
    """-ln P(labels | logits) by the forward recursion of Graves et al. 2006, one frame and state at a time."""
    log_probs = log_softmax(logits.astype(np.float64))
    states = [blank] + [token for label in labels for token in (label, blank)]
    alpha = [-math.inf] * len(states)
    alpha[0] = log_probs[0, blank]
    alpha[1] = log_probs[0, states[1]]
    for frame in range(1, len(logits)):
        before = alpha
        alpha = []
        for number, token in enumerate(states):
            paths = [before[number]] + ([before[number - 1]] if number >= 1 else [])
            if number >= 2 and token != blank and token != states[number - 2]:
                paths.append(before[number - 2])
            alpha.append(float(np.logaddexp.reduce(paths)) + log_probs[frame, token])
    return -float(np.logaddexp(alpha[-1], alpha[-2]))


def random_batch(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    logits, teacher = (torch.from_numpy(rng.normal(size=(3, 40, 12)) * 2).float() for _ in range(2))
    frames, lengths = torch.tensor([40, 31, 17]), torch.tensor([9, 6, 5])
    labels = torch.from_numpy(rng.integers(1, 12, size=(3, 9)))
    labels[1, 1] = labels[1, 0]  # a repeat
    return logits, teacher, frames, labels, lengths


@pytest.mark.parametrize("seed", range(4))
def test_the_loss_equals_a_slow_float64_reference(seed: int) -> None:
    logits, teacher, frames, labels, lengths = random_batch(seed)
    expected_ctc = sum(
        slow_ctc(logits[row, : frames[row]].numpy(), labels[row, : lengths[row]].tolist(), 0) / int(lengths[row])
        for row in range(3)
    )
    assert ctc_loss(logits, frames, labels, lengths, blank=0).item() == pytest.approx(expected_ctc, rel=1e-5)

    for temperature in (1.0, 3.0):
        expected_kl = 0.0
        for row in range(3):
            student = log_softmax(logits[row, : frames[row]].double().numpy() / temperature)
            target = log_softmax(teacher[row, : frames[row]].double().numpy() / temperature)
            expected_kl += temperature**2 * float((np.exp(target) * (target - student)).sum())
        found = kl_divergence(logits, teacher, frames, temperature).item()
        assert found == pytest.approx(expected_kl, rel=1e-5)


def test_the_kl_of_a_distribution_to_itself_is_zero() -> None:
    logits, _, frames, _, _ = random_batch(0)
    assert kl_divergence(logits, logits, frames).item() == pytest.approx(0.0, abs=1e-5)


def test_padding_has_no_influence() -> None:
    logits, teacher, frames, labels, lengths = random_batch(0)
    spoilt, spoilt_teacher = logits.clone(), teacher.clone()
    spoilt[1, 31:], spoilt_teacher[1, 31:], spoilt[2, 17:] = 1e4, -1e4, -77.0
    assert torch.equal(ctc_loss(logits, frames, labels, lengths, 0), ctc_loss(spoilt, frames, labels, lengths, 0))
    assert torch.equal(kl_divergence(logits, teacher, frames), kl_divergence(spoilt, spoilt_teacher, frames))


def test_ctc_of_uniform_logits_is_the_count_of_alignments() -> None:
    """L labels without repeats have C(T + L, 2L) alignments in T frames, each of probability V^-T."""
    frames, labels, vocabulary = 100, 20, 32
    token_ids = torch.arange(1, labels + 1)[None]
    assert frames_needed(token_ids[0].tolist()) == labels
    found = ctc_loss(
        torch.zeros(1, frames, vocabulary), torch.tensor([frames]), token_ids, torch.tensor([labels]), blank=0
    )
    expected = frames * math.log(vocabulary) - math.log(math.comb(frames + labels, 2 * labels))
    assert found.item() == pytest.approx(expected / labels, rel=1e-5)


def test_the_posterior_given_the_text_is_the_fraction_of_its_paths() -> None:
    frames, tokens, labels = 6, 4, [1, 1, 3]
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(frames, tokens)) * 2).float()
    probabilities = logits.softmax(-1).numpy()
    fraction = np.zeros((frames, tokens))
    for path in itertools.product(range(tokens), repeat=frames):
        if [token for token, _ in itertools.groupby(path) if token] == labels:
            fraction[range(frames), path] += math.prod(probabilities[range(frames), path])
    fraction /= fraction.sum(axis=1, keepdims=True)
    with torch.inference_mode():
        found = posterior_given_text(logits, torch.tensor(labels), blank=0)
    np.testing.assert_allclose(found.exp().numpy(), fraction, atol=1e-5)
    too_long = torch.tensor([1] * frames)  # needs a blank between each two
    np.testing.assert_allclose(posterior_given_text(logits, too_long, 0).exp().numpy(), probabilities, atol=1e-5)


def test_a_random_models_ctc_loss_is_near_theory(student_folder: Path) -> None:
    """Nearly uniform outputs: T ln V less the log of the number of alignments, C(T + L, 2L) without repeats."""
    model = load_student(student_folder, "none", torch.device("cpu"))
    features = cnn_features(model, tone(2.0)).clone()[None]
    frames, labels = features.shape[1], torch.arange(5, 25)[None]
    with torch.inference_mode():
        logits = EncoderCTC(model)(features, torch.tensor([frames]))
    found = ctc_loss(logits, torch.tensor([frames]), labels, torch.tensor([20]), 0).item()
    expected = (frames * math.log(32) - math.log(math.comb(frames + 20, 40))) / 20
    assert found == pytest.approx(expected, rel=0.05)


def test_the_distance_of_features_is_cosine_and_smooth_l1_over_speech() -> None:
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 7, 5)), rng.normal(size=(2, 7, 5)) * 3 + 1
    frames = [7, 4]
    expected = 0.0
    for row, count in enumerate(frames):
        for x, y in zip(student[row, :count], teacher[row, :count], strict=True):
            y = (y - y.mean()) / np.sqrt(y.var() + 1e-5)
            off = np.abs(x - y)
            expected += 1 - x @ y / np.linalg.norm(x) / np.linalg.norm(y)
            expected += np.where(off < 1, off**2 / 2, off - 0.5).mean()
    found = feature_distance(torch.from_numpy(student), torch.from_numpy(teacher), torch.tensor(frames))
    assert found.item() == pytest.approx(expected, rel=1e-4)
