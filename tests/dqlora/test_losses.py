import itertools
import math

import numpy as np
import pytest
import torch

from dqlora.losses import ctc_loss, kl_divergence, posterior_given_text
from dqlora.text import frames_needed


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def slow_ctc(logits: np.ndarray, labels: list[int], blank: int) -> float:
    """-ln P(labels | logits) by the forward recursion of Graves et al. 2006, one frame and state at a time."""
    log_probs = log_softmax(logits.astype(np.float64))
    states = [blank] + [symbol for label in labels for symbol in (label, blank)]
    alpha = [-math.inf] * len(states)
    alpha[0] = log_probs[0, blank]
    alpha[1] = log_probs[0, states[1]]
    for frame in range(1, len(logits)):
        before = alpha
        alpha = []
        for number, symbol in enumerate(states):
            paths = [before[number]] + ([before[number - 1]] if number >= 1 else [])
            if number >= 2 and symbol != blank and symbol != states[number - 2]:
                paths.append(before[number - 2])
            alpha.append(float(np.logaddexp.reduce(paths)) + log_probs[frame, symbol])
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
    symbols = torch.arange(1, labels + 1)[None]
    assert frames_needed(symbols[0].tolist()) == labels
    found = ctc_loss(
        torch.zeros(1, frames, vocabulary), torch.tensor([frames]), symbols, torch.tensor([labels]), blank=0
    )
    expected = frames * math.log(vocabulary) - math.log(math.comb(frames + labels, 2 * labels))
    assert found.item() == pytest.approx(expected / labels, rel=1e-5)


def test_the_posterior_given_the_text_is_the_share_of_its_paths() -> None:
    frames, symbols, labels = 6, 4, [1, 1, 3]
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(frames, symbols)) * 2).float()
    probabilities = logits.softmax(-1).numpy()
    share = np.zeros((frames, symbols))
    for path in itertools.product(range(symbols), repeat=frames):
        if [symbol for symbol, _ in itertools.groupby(path) if symbol] == labels:
            share[range(frames), path] += math.prod(probabilities[range(frames), path])
    share /= share.sum(axis=1, keepdims=True)
    with torch.inference_mode():
        found = posterior_given_text(logits, torch.tensor(labels), blank=0)
    np.testing.assert_allclose(found.exp().numpy(), share, atol=1e-5)
    too_long = torch.tensor([1] * frames)  # needs a blank between each two
    np.testing.assert_allclose(posterior_given_text(logits, too_long, 0).exp().numpy(), probabilities, atol=1e-5)
