from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

from dqlora.data.audio import to_float32, to_int16
from dqlora.data.batching import pad_features
from dqlora.data.text import Vocabulary
from dqlora.errors import UserError
from dqlora.models.wav2vec2 import (
    EncoderCTC,
    base_of,
    cnn_features,
    cnn_features_batch,
    draw_time_mask,
    frame_centre,
    frames_of,
    load_student,
    normalise_audio,
    transcribe,
)
from tests.conftest import TOKENS, tone

CPU = torch.device("cpu")
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
            found = EncoderCTC(student)(features[None], torch.tensor([len(features)]))
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
    torch.testing.assert_close(cnn_features_batch(model, rounded), alone, atol=1e-5, rtol=1e-4)
    padded, frames = pad_features(features)
    padded[1, frames[1] :] = 50.0
    with torch.inference_mode():
        together = EncoderCTC(model)(padded, frames)
        for row, alone in enumerate(features):
            expected = EncoderCTC(model)(alone[None], frames[row : row + 1])[0]
            assert torch.allclose(together[row, : frames[row]], expected, atol=1e-5)


def test_frames_follow_the_cnn(student_folder: Path) -> None:
    config = base_of(load_student(student_folder, "none", CPU)).config
    assert [frames_of(config, samples) for samples in (0, 399, 400, 719, 720, 16_000)] == [0, 0, 1, 1, 2, 49]
    assert frame_centre(config, 0) == pytest.approx(0.0125)
    assert frame_centre(config, 50) == pytest.approx(1.0125)


def test_a_clip_shorter_than_a_frame_is_empty(student_folder: Path, vocabulary: Vocabulary) -> None:
    model = load_student(student_folder, "none", CPU)
    assert transcribe(EncoderCTC(model), vocabulary, np.zeros(100, np.float32)) == ""
    assert len(vocabulary) == len(TOKENS)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be loaded as a wav2vec 2.0 CTC model"):
        load_student(tmp_path, "none", CPU)


def test_masks_cover_the_ratio_asked_for() -> None:
    time_mask = draw_time_mask(200, 500, 0.1, torch.Generator().manual_seed(0))
    assert time_mask.shape == (200, 500) and 0.08 < time_mask.float().mean().item() < 0.11
    assert not draw_time_mask(200, 500, 0.0).any()


def test_what_is_masked_is_not_heard(student_folder: Path) -> None:
    student = EncoderCTC(load_student(student_folder, "none", CPU))
    torch.manual_seed(0)
    heard, other = torch.randn(2, 1, 50, base_of(student.model).config.conv_dim[-1])
    frames, time_mask = torch.tensor([50]), torch.zeros(1, 50, dtype=torch.bool)
    time_mask[:, 20:30] = True
    other[:, ~time_mask[0]] = heard[:, ~time_mask[0]]
    with torch.inference_mode():
        assert not torch.equal(student(heard, frames), student(other, frames))
        assert torch.equal(student(heard, frames, time_mask), student(other, frames, time_mask))
        assert not torch.equal(student(heard, frames, time_mask), student(heard, frames))
        assert torch.equal(student(heard, frames, torch.zeros_like(time_mask)), student(heard, frames))


def test_a_clip_of_no_frames_leaves_the_others_alone(student_folder: Path) -> None:
    model = EncoderCTC(load_student(student_folder, "none", CPU))
    features = torch.randn(2, 50, base_of(model.model).config.conv_dim[-1])
    with torch.inference_mode():
        filled = model(features, torch.tensor([50, 0]))
        assert torch.isfinite(filled).all()
        torch.testing.assert_close(filled[:1], model(features[:1], torch.tensor([50])), atol=1e-4, rtol=1e-4)


def test_a_layer_that_the_student_lacks_is_named(student_folder: Path) -> None:
    with pytest.raises(UserError, match=r"distill.layer: 3: the student has 2 layers"):
        EncoderCTC(load_student(student_folder, "none", CPU), 3)
