import math
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

from dqlora.audio import to_float32, to_int16
from dqlora.config import Lora
from dqlora.errors import UserError
from dqlora.gpu import prepare_for_gpu
from dqlora.losses import ctc_loss
from dqlora.student import (
    FromFeatures,
    Switched,
    add_lora,
    base_of,
    cnn_features,
    cnn_features_together,
    frame_centre,
    frames_of,
    load_student,
    mean_entropy,
    normalise_audio,
    pad_features,
    time_mask,
    transcribe,
)
from dqlora.text import Vocabulary
from tests.conftest import SYMBOLS, tone

CPU = torch.device("cpu")
LORA = Lora(r=4, alpha=8, dropout=0.0, target_modules=["q_proj", "k_proj", "v_proj", "out_proj"])
CLIPS = [tone(2.0), tone(0.9, 140), tone(1.4, 300)]


@pytest.fixture(params=["nf4", "none"])
def student(request: pytest.FixtureRequest, student_folder: Path) -> Wav2Vec2ForCTC:
    return load_student(student_folder, request.param, CPU)


def test_only_the_transformer_is_in_four_bits(student_folder: Path) -> None:
    model = load_student(student_folder, "nf4", CPU)
    four_bits = {name for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"}
    assert len(four_bits) == 2 * 6
    assert all("encoder.layers" in name for name in four_bits)
    assert not any(weight.requires_grad for weight in model.parameters())


def test_logits_from_features_are_the_models_own(student: Wav2Vec2ForCTC) -> None:
    for samples in CLIPS:
        features = cnn_features(student, samples)
        assert len(features) == frames_of(student.config, len(samples))
        with torch.inference_mode():
            expected = student(torch.from_numpy(normalise_audio(samples))[None]).logits
            found = FromFeatures(student)(features[None], torch.tensor([len(features)]))
        assert torch.equal(found, expected)


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_a_padded_batch_gives_what_each_clip_gives_alone(tmp_path: Path, norm: str) -> None:
    """Also for `group`, wav2vec2-base's CNN, whose norm would see the padding if it were run on a padded batch."""
    torch.manual_seed(1)
    config = Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, conv_dim=[16] * 7,
        feat_extract_norm=norm, do_stable_layer_norm=norm == "layer", num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    Wav2Vec2ForCTC(config).save_pretrained(tmp_path)
    model = load_student(tmp_path, "none", CPU)
    features = [cnn_features(model, samples) for samples in CLIPS]
    rounded = [to_int16(0.3 * samples) for samples in CLIPS]  # what lies on disk
    alone = [cnn_features(model, to_float32(clip)) for clip in rounded]
    torch.testing.assert_close(cnn_features_together(model, rounded), alone, atol=1e-5, rtol=1e-4)
    padded, frames = pad_features(features)
    padded[1, frames[1] :] = 50.0
    with torch.inference_mode():
        together = FromFeatures(model)(padded, frames)
        for row, alone in enumerate(features):
            expected = FromFeatures(model)(alone[None], frames[row : row + 1])[0]
            assert torch.allclose(together[row, : frames[row]], expected, atol=1e-5)


def test_gradients_reach_lora_only(student_folder: Path) -> None:
    model = add_lora(load_student(student_folder, "nf4", CPU), LORA, seed=0).train()
    features, frames = pad_features([cnn_features(model, samples).clone() for samples in CLIPS])
    labels = torch.randint(5, 31, (3, 8))
    ctc_loss(FromFeatures(model)(features, frames), frames, labels, torch.tensor([8, 8, 8]), 0).backward()
    for name, weight in model.named_parameters():
        assert weight.requires_grad == ("lora_" in name), name
        assert (weight.grad is not None) == ("lora_" in name), name
    moved = [weight.grad.abs().max().item() for name, weight in model.named_parameters() if "lora_B" in name]
    assert len(moved) == 2 * 4
    assert min(moved) > 0


def test_entropy_is_that_of_the_symbols_over_the_clips_own_frames() -> None:
    logits = torch.zeros(3, 4, 32)
    logits[0, :2, 7] = 100.0  # sure of two frames
    logits[1, 2:] = torch.randn(2, 32)  # beyond its frames
    found = mean_entropy(logits, torch.tensor([4, 2, 0]))
    torch.testing.assert_close(found, torch.tensor([math.log(32) / 2, math.log(32), 0.0]))


@pytest.mark.parametrize("quantize", ["none", "nf4"])
@pytest.mark.parametrize("on_gpu", [False, True])  # as training leaves a model there
def test_the_adapter_reads_what_the_base_is_not_sure_of(student_folder: Path, quantize: str, on_gpu: bool) -> None:
    model = add_lora(load_student(student_folder, quantize, CPU), LORA, seed=0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.2)
    base = load_student(student_folder, quantize, CPU)
    if on_gpu:
        prepare_for_gpu(model)
        prepare_for_gpu(base)
    features, frames = pad_features([cnn_features(base, samples).clone() for samples in CLIPS])
    with torch.inference_mode():
        adapted, unadapted = FromFeatures(model)(features, frames), FromFeatures(base)(features, frames)
        assert (adapted - unadapted).abs().max() > 0.1
        entropies = mean_entropy(unadapted, frames).sort()
        between = (entropies.values[0] + entropies.values[1]).item() / 2
        for limit, sure in ((0.0, []), (between, entropies.indices[:1].tolist()), (9.0, [0, 1, 2])):
            found = Switched(model, limit)(features, frames)
            for row, count in enumerate(frames.tolist()):
                expected = (unadapted if row in sure else adapted)[row, :count]
                torch.testing.assert_close(found[row, :count], expected, atol=0.02 if on_gpu else 1e-5, rtol=1e-3)


def test_a_random_models_ctc_loss_is_near_theory(student_folder: Path) -> None:
    """Nearly uniform outputs: T ln V less the log of the number of alignments, C(T + L, 2L) without repeats."""
    model = load_student(student_folder, "none", CPU)
    features = cnn_features(model, CLIPS[0]).clone()[None]
    frames, labels = features.shape[1], torch.arange(5, 25)[None]
    with torch.inference_mode():
        logits = FromFeatures(model)(features, torch.tensor([frames]))
    found = ctc_loss(logits, torch.tensor([frames]), labels, torch.tensor([20]), 0).item()
    expected = (frames * math.log(32) - math.log(math.comb(frames + 20, 40))) / 20
    assert found == pytest.approx(expected, rel=0.05)


def test_training_after_evaluating_still_has_gradients(student_folder: Path) -> None:
    """bitsandbytes repacks 4-bit weights on some CPUs at the first evaluation, for a kernel without a gradient."""
    model = add_lora(load_student(student_folder, "nf4", CPU), LORA, seed=0)
    features = cnn_features(model, CLIPS[0]).clone()[None]
    frames = torch.tensor([features.shape[1]])
    with torch.inference_mode():
        before = FromFeatures(model.eval())(features, frames)
    FromFeatures(model.train())(features, frames).sum().backward()
    assert all(weight.grad is not None for name, weight in model.named_parameters() if "lora_" in name)
    with torch.inference_mode():
        assert torch.equal(FromFeatures(model.eval())(features, frames), before)


def test_the_adapter_reloads_with_the_same_logits(student_folder: Path, tmp_path: Path) -> None:
    model = add_lora(load_student(student_folder, "nf4", CPU), LORA, seed=0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.2)
    model.eval().save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(load_student(student_folder, "nf4", CPU), tmp_path).eval()
    values = torch.from_numpy(normalise_audio(CLIPS[0]))[None]
    with torch.inference_mode():
        logits = model(values).logits
        assert torch.equal(again(values).logits, logits)
        assert not torch.allclose(load_student(student_folder, "nf4", CPU)(values).logits, logits, atol=1e-3)
    assert [file.suffix for file in tmp_path.glob("adapter_model*")] == [".safetensors"]


def test_frames_follow_the_cnn(student_folder: Path) -> None:
    config = base_of(load_student(student_folder, "none", CPU)).config
    assert [frames_of(config, samples) for samples in (0, 399, 400, 719, 720, 16_000)] == [0, 0, 1, 1, 2, 49]
    assert frame_centre(config, 0) == pytest.approx(0.0125)
    assert frame_centre(config, 50) == pytest.approx(1.0125)


def test_a_clip_shorter_than_a_frame_is_empty(student_folder: Path, vocabulary: Vocabulary) -> None:
    model = load_student(student_folder, "none", CPU)
    assert transcribe(FromFeatures(model), vocabulary, np.zeros(100, np.float32)) == ""
    assert len(vocabulary) == len(SYMBOLS)


def test_unknown_target_modules_are_named(student_folder: Path) -> None:
    unknown = LORA.model_copy(update={"target_modules": ["query"]})
    with pytest.raises(UserError, match=r"lora.target_modules: .*query"):
        add_lora(load_student(student_folder, "none", CPU), unknown, seed=0)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be loaded as a wav2vec 2.0 CTC model"):
        load_student(tmp_path, "none", CPU)


def test_masks_cover_the_share_asked_for() -> None:
    masked = time_mask(200, 500, 0.1, torch.Generator().manual_seed(0))
    assert masked.shape == (200, 500) and 0.08 < masked.float().mean().item() < 0.11
    assert not time_mask(200, 500, 0.0).any()


def test_what_is_masked_is_not_heard(student_folder: Path) -> None:
    student = FromFeatures(load_student(student_folder, "none", CPU))
    torch.manual_seed(0)
    heard, other = torch.randn(2, 1, 50, base_of(student.model).config.conv_dim[-1])
    frames, masked = torch.tensor([50]), torch.zeros(1, 50, dtype=torch.bool)
    masked[:, 20:30] = True
    other[:, ~masked[0]] = heard[:, ~masked[0]]
    with torch.inference_mode():
        assert not torch.equal(student(heard, frames), student(other, frames))
        assert torch.equal(student(heard, frames, masked), student(other, frames, masked))
        assert not torch.equal(student(heard, frames, masked), student(heard, frames))
        assert torch.equal(student(heard, frames, torch.zeros_like(masked)), student(heard, frames))


def test_a_clip_of_no_frames_leaves_the_others_alone(student_folder: Path) -> None:
    model = FromFeatures(load_student(student_folder, "none", CPU))
    features = torch.randn(2, 50, base_of(model.model).config.conv_dim[-1])
    with torch.inference_mode():
        filled = model(features, torch.tensor([50, 0]))
        assert torch.isfinite(filled).all()
        torch.testing.assert_close(filled[:1], model(features[:1], torch.tensor([50])), atol=1e-4, rtol=1e-4)
