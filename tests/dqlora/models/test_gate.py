import math
from pathlib import Path

import numpy as np
import pytest
import torch

from dqlora.config import Lora
from dqlora.data.batching import pad_features
from dqlora.data.storage import write_json
from dqlora.errors import UserError
from dqlora.models.gate import GatedStudent, entropies, entropy_threshold, load_distilled, mean_entropy
from dqlora.models.lora import add_lora
from dqlora.models.wav2vec2 import EncoderCTC, clip_logits, cnn_features, load_student
from dqlora.training.cuda_graphs import prepare_for_gpu
from tests.conftest import tone

CPU = torch.device("cpu")
LORA = Lora(r=4, alpha=8, dropout=0.0, target_modules=["q_proj", "k_proj", "v_proj", "out_proj"])
CLIPS = [tone(2.0), tone(0.9, 140), tone(1.4, 300)]


def test_entropy_is_that_of_the_tokens_over_the_clips_own_frames() -> None:
    logits = torch.zeros(3, 4, 32)
    logits[0, :2, 7] = 100.0  # certain of two frames
    logits[1, 2:] = torch.randn(2, 32)  # beyond its frames
    found = mean_entropy(logits, torch.tensor([4, 2, 0]))
    torch.testing.assert_close(found, torch.tensor([math.log(32) / 2, math.log(32), 0.0]))


def test_silence_put_around_a_clip_does_not_make_it_certain(student_folder: Path) -> None:
    """The gate opens between the entropy of all frames and that of the clip's own."""
    model = add_lora(load_student(student_folder, "none", CPU), LORA, seed=0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.2)
    base = load_student(student_folder, "none", CPU)
    samples, sound = np.pad(tone(2.0), 16000), slice(50, -50)
    logits = torch.from_numpy(clip_logits(EncoderCTC(base), samples))[None]
    frames = torch.tensor([logits.shape[1]])
    every, own = (mean_entropy(logits, frames, counted).item() for counted in (slice(None), sound))
    torch.testing.assert_close(own, mean_entropy(logits[:, sound], frames - 100).item())
    gated = GatedStudent(model, base, (every + own) / 2)
    by_every, by_own = clip_logits(gated, samples), clip_logits(gated, samples, sound)
    opened, closed = (by_own, by_every) if own > every else (by_every, by_own)
    np.testing.assert_allclose(closed, logits[0].numpy(), atol=1e-5)
    assert np.abs(opened - closed).max() > 0.1


@pytest.mark.parametrize("quantize", ["none", "nf4"])
@pytest.mark.parametrize("on_gpu", [False, True])  # as training leaves a model there
def test_the_adapter_runs_where_the_base_is_uncertain(student_folder: Path, quantize: str, on_gpu: bool) -> None:
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
        adapted, unadapted = EncoderCTC(model)(features, frames), EncoderCTC(base)(features, frames)
        assert (adapted - unadapted).abs().max() > 0.1
        entropy = mean_entropy(unadapted, frames).sort()
        between = (entropy.values[0] + entropy.values[1]).item() / 2
        for threshold, certain in ((0.0, []), (between, entropy.indices[:1].tolist()), (9.0, [0, 1, 2])):
            found = GatedStudent(model, base, threshold)(features, frames)
            for row, count in enumerate(frames.tolist()):
                expected = (unadapted if row in certain else adapted)[row, :count]
                torch.testing.assert_close(found[row, :count], expected, atol=0.02 if on_gpu else 1e-5, rtol=1e-3)


def test_entropies_are_those_of_transcribing_not_of_training(student_folder: Path) -> None:
    student = EncoderCTC(load_student(student_folder, "none", CPU))
    features = [cnn_features(student.model, tone(seconds)).clone() for seconds in (1.0, 0.4)]
    expected = entropies(student, features)
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    student.train()
    assert entropies(student, features) == expected and min(expected) > 0 and max(expected) < math.log(32)


def test_the_threshold_lies_beside_the_adapter(student_folder: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    add_lora(load_student(student_folder, "none", CPU), LORA, seed=0).save_pretrained(adapter)
    with pytest.raises(UserError, match=r"gate\.json: no such file; run `dvc repro fit_gate`"):
        load_distilled(student_folder, adapter, "none", CPU)
    for threshold, kind in ((0.25, GatedStudent), (None, EncoderCTC)):
        write_json(tmp_path / "gate.json", {"entropy_threshold": threshold})
        assert entropy_threshold(adapter) == threshold
        student = load_distilled(student_folder, adapter, "none", CPU)
        assert type(student) is kind and getattr(student, "threshold", None) == threshold


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_a_gated_student_holds_its_frozen_weights_once(student_folder: Path, tmp_path: Path, quantize: str) -> None:
    add_lora(load_student(student_folder, quantize, CPU), LORA, seed=0).save_pretrained(tmp_path / "adapter")
    write_json(tmp_path / "gate.json", {"entropy_threshold": 0.25})
    student = load_distilled(student_folder, tmp_path / "adapter", quantize, CPU)
    assert isinstance(student, GatedStudent)
    adapters = {name for name, _ in student.model.named_parameters() if "lora_" in name}
    assert len(adapters) >= 8 and not [name for name, _ in student.base.named_parameters() if "lora_" in name]
    shared = {weight.data_ptr() for weight in student.base.parameters()}
    assert {weight.data_ptr() for name, weight in student.model.named_parameters() if name not in adapters} == shared


def test_a_fully_trained_student_has_no_gate(student_folder: Path, tmp_path: Path) -> None:
    load_student(student_folder, "none", CPU).save_pretrained(tmp_path / "adapter")
    write_json(tmp_path / "gate.json", {"entropy_threshold": 0.25})
    assert entropy_threshold(tmp_path / "adapter") is None
    assert type(load_distilled(student_folder, tmp_path / "adapter", "none", CPU)) is EncoderCTC
