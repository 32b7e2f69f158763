"""What training on a GPU does otherwise, compared on the CPU with what it stands for."""

from pathlib import Path

import pytest
import torch

from dqlora.config import Lora
from dqlora.data.audio import to_float32
from dqlora.data.batching import pad_features
from dqlora.data.text import Vocabulary, spell_out
from dqlora.models.lora import add_lora
from dqlora.models.wav2vec2 import EncoderCTC, base_of, cnn_features, load_student
from dqlora.training.cuda_graphs import InBfloat16, blocked_convolution, prepare_for_gpu
from research.pretrain.data import read_parquet
from tests.conftest import ROOT

CPU = torch.device("cpu")
LORA = Lora(r=4, alpha=8, dropout=0.0, target_modules=["q_proj", "v_proj", "intermediate_dense"])


@pytest.mark.parametrize(("taps", "channels", "groups"), [(128, 96, 4), (32, 64, 16), (7, 8, 2)])
@pytest.mark.parametrize("frames", [1, 15, 16, 17, 100])
def test_blocked_convolution_is_the_convolution(taps: int, channels: int, groups: int, frames: int) -> None:
    torch.manual_seed(0)
    convolution = torch.nn.Conv1d(channels, channels, taps, padding=taps // 2, groups=groups)
    convolution = torch.nn.utils.parametrizations.weight_norm(convolution, dim=2)
    hidden = torch.randn(3, channels, frames, requires_grad=True)
    expected, found = convolution(hidden), blocked_convolution(convolution, hidden)
    assert torch.allclose(found, expected, atol=1e-5)
    weights = list(convolution.parameters())
    towards = torch.randn_like(expected)
    for one, other in zip(
        torch.autograd.grad(expected, [hidden, *weights], towards),
        torch.autograd.grad(found, [hidden, *weights], towards),
        strict=True,
    ):
        assert torch.allclose(one, other, atol=1e-3)


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_in_bfloat16_it_is_nearly_the_same_student(quantize: str) -> None:
    plain = load_student(ROOT / "presets/mini/student", "none", CPU)
    vocabulary = Vocabulary.load(ROOT / "presets/mini/student/vocab.json")
    clips = read_parquet(ROOT / "presets/mini/speech/test/0000.parquet")
    features, frames = pad_features([cnn_features(plain, to_float32(clip)) for clip in clips.samples[:2]])
    labels = [torch.tensor(vocabulary.encode(vocabulary.fit(spell_out(text, "en")))) for text in clips.texts[:2]]
    found = []
    for prepared in (False, True):
        model = add_lora(load_student(ROOT / "presets/mini/student", quantize, CPU), LORA, seed=0)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.data.fill_(0.01)
        student: torch.nn.Module = EncoderCTC(model)
        trained = [weight for weight in student.parameters() if weight.requires_grad]
        if prepared:
            prepare_for_gpu(model)
            student = InBfloat16(student)
        logits = student(features.float(), frames)
        assert logits.dtype == (torch.bfloat16 if prepared else torch.float32)
        log_probs = logits.float().log_softmax(-1).transpose(0, 1)
        loss = torch.nn.functional.ctc_loss(log_probs, torch.cat(labels), frames, torch.tensor([*map(len, labels)]))
        gradients = torch.autograd.grad(loss, trained)
        assert all(each.dtype == torch.float32 for each in gradients)
        found.append((logits[0, : frames[0]].float(), torch.cat([each.flatten() for each in gradients])))
    for one, other in zip(*found, strict=True):
        assert torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.999


def test_what_is_frozen_is_halved_and_what_is_trained_is_not(student_folder: Path) -> None:
    model = add_lora(load_student(student_folder, "nf4", CPU), LORA, seed=0)
    codes = {name: weight.clone() for name, weight in model.named_parameters() if weight.dtype == torch.uint8}
    prepare_for_gpu(model)
    weights = dict(model.named_parameters())
    assert codes and all(torch.equal(weights[name], code) for name, code in codes.items())
    assert all(weight.dtype == torch.float32 for weight in weights.values() if weight.requires_grad)
    assert base_of(model).lm_head.weight.dtype == torch.bfloat16
    assert all(weight.dtype == torch.float32 for weight in base_of(model).wav2vec2.feature_extractor.parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_graphs_give_the_gradients_of_the_eager_student() -> None:
    from dqlora.training.cuda_graphs import CudaGraphs

    device = torch.device("cuda")
    model = add_lora(load_student(ROOT / "presets/mini/student", "nf4", device), LORA, seed=0)
    prepare_for_gpu(model)
    student = EncoderCTC(model)
    trained = [weight for weight in student.parameters() if weight.requires_grad]
    graphs, eager = CudaGraphs(student), InBfloat16(student)
    for longest in (64, 128, 64):
        features, frames = torch.randn(3, longest, 256, device=device), torch.tensor([longest, 40, 0], device=device)
        both = [
            torch.autograd.grad(one(features, frames)[:2].float().sum(), trained, allow_unused=True)
            for one in (graphs, eager)
        ]
        assert all(torch.allclose(a, b, rtol=1e-2, atol=1e-3) for a, b in zip(*both, strict=True))
