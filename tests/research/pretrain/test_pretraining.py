from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

from dqlora.data.text import Vocabulary
from dqlora.models.wav2vec2 import normalise_waves
from dqlora.training.cuda_graphs import InBfloat16
from research.pretrain import augment
from research.pretrain.data import Clips, Speech, encode
from research.pretrain.train import STUDENT, AugmentedStudent, ctc, divergence, forward, make_batch, schedule
from research.pretrain.voices import SAMPLE_RATE

UNCHANGED = augment.Strength((1.0, 1.0), (1.0, 1.0), 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def student() -> Wav2Vec2ForCTC:
    return Wav2Vec2ForCTC.from_pretrained(STUDENT, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def batch() -> tuple[Speech, torch.Tensor, int]:
    rng = np.random.default_rng(0)
    clips = Clips(
        ["some words", "others"], [rng.integers(-9000, 9000, n * SAMPLE_RATE).astype(np.int16) for n in (2, 3)]
    )
    vocabulary = Vocabulary.load(STUDENT / "vocab.json")
    return Speech([encode(clips, vocabulary, 1)], torch.device("cpu")), torch.tensor([1, 0]), 4 * SAMPLE_RATE


@pytest.fixture(scope="module")
def post_norm() -> Wav2Vec2ForCTC:
    """A small model with the norms of wav2vec2-base: one group norm in the CNN, layer norms after the layers."""
    config = Wav2Vec2Config(
        hidden_size=64, num_hidden_layers=7, num_attention_heads=4, intermediate_size=128, conv_dim=(32,) * 7,
        num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    torch.manual_seed(0)
    return Wav2Vec2ForCTC(config).eval()


@pytest.mark.parametrize("name", ["student", "post_norm"])
@torch.no_grad()
def test_the_fast_forward_is_the_models_own(name: str, batch: tuple, request: pytest.FixtureRequest) -> None:
    student = request.getfixturevalue(name)
    speech, numbers, samples = batch
    waves, lengths = make_batch(speech, numbers, samples, UNCHANGED, np.random.default_rng(0))
    assert lengths.tolist() == [3 * SAMPLE_RATE - 1, 2 * SAMPLE_RATE - 1]
    waves = normalise_waves(waves, lengths)
    last, _ = forward(student, waves, lengths, mask_ratio=0)
    for row, wave, length in zip(last, waves, lengths, strict=True):  # each alone, as a group norm needs it
        own = student(wave[None, :length]).logits[0]
        torch.testing.assert_close(row[: len(own)], own, atol=2e-3, rtol=0)


def test_a_student_is_drawn_to_its_teacher(student: Wav2Vec2ForCTC, post_norm: Wav2Vec2ForCTC, batch: tuple) -> None:
    speech, numbers, samples = batch
    waves, lengths = make_batch(speech, numbers, samples, UNCHANGED, np.random.default_rng(0))
    log_probs, _, taught = InBfloat16(AugmentedStudent(post_norm, UNCHANGED, student))(waves, lengths)
    assert not taught.requires_grad and log_probs.requires_grad
    frames = student._get_feat_extract_output_lengths(lengths)
    assert divergence(taught, taught, frames) == 0
    each = zip(log_probs, taught, frames, strict=True)
    rows = [F.kl_div(ours[:count], theirs[:count], log_target=True, reduction="sum") for ours, theirs, count in each]
    assert divergence(log_probs, taught, frames).item() == pytest.approx((sum(rows) / frames.sum()).item(), rel=1e-4)


def test_in_bfloat16_the_loss_is_nearly_that_of_float32(student: Wav2Vec2ForCTC, batch: tuple) -> None:
    speech, numbers, samples = batch
    waves, lengths = make_batch(speech, numbers, samples, UNCHANGED, np.random.default_rng(0))
    frames = student._get_feat_extract_output_lengths(lengths)
    labels, counts = speech.labels[numbers], speech.label_counts[numbers]
    logits, _ = forward(student, normalise_waves(waves, lengths), lengths, mask_ratio=0)
    exact = ctc(logits.log_softmax(-1), frames, labels, counts)
    log_probs, _ = InBfloat16(AugmentedStudent(student, UNCHANGED))(waves, lengths)
    loss = ctc(log_probs, frames, labels, counts)
    loss.backward()
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)
    weights = dict(student.named_parameters())
    assert all(weights[name].grad is not None for name in weights if name != "wav2vec2.masked_spec_embed")


def test_a_batch_is_played_at_its_own_speeds(batch: tuple) -> None:
    speech, numbers, samples = batch
    fast = replace(UNCHANGED, rate=(1.25, 1.25))
    waves, lengths = make_batch(speech, numbers, samples, fast, np.random.default_rng(0))
    assert lengths.tolist() == [int((n * SAMPLE_RATE - 1) / 1.25) for n in (3, 2)]
    ends = [row.nonzero()[-1].item() + 1 for row in waves]
    assert all(0 <= length - end < 3 for length, end in zip(lengths.tolist(), ends, strict=True))


@pytest.mark.parametrize("samples", [12_800, 15_999, 16_001])
def test_formants_that_stay_leave_the_sound_as_it_is(samples: int) -> None:
    waves = torch.randn(2, samples, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(augment.move_formants(waves, UNCHANGED), waves, atol=2e-3, rtol=0)


def test_overlapped_frames_add_up_as_in_istft() -> None:
    window = torch.hann_window(augment.N_FFT)
    spectrum = torch.randn(2, augment.N_FFT // 2 + 1, 40, dtype=torch.complex64)
    spectrum.imag[:, [0, -1]] = 0
    expected = torch.istft(spectrum, augment.N_FFT, augment.HOP, window=window)
    waves = augment.overlapped(torch.fft.irfft(spectrum.transpose(1, 2)) * window)
    windows = augment.overlapped(window.square().expand(1, 40, -1))
    inner = slice(augment.N_FFT // 2, augment.N_FFT // 2 + expected.shape[1])
    torch.testing.assert_close(waves[:, inner] / windows[:, inner], expected, atol=1e-5, rtol=1e-5)


def test_the_learning_rate_rises_to_its_peak_and_falls_to_the_final_ratio() -> None:
    rates = [schedule(progress, warmup=0.1, final=0.4) for progress in (0.05, 0.1, 0.55, 1.0, 1.2)]
    assert rates == pytest.approx([0.5, 1.0, 0.7, 0.4, 0.4])
