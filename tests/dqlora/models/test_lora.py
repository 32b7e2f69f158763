from functools import partial
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from dqlora.config import Lora
from dqlora.data.batching import pad_features
from dqlora.errors import UserError
from dqlora.models.lora import adapt, add_lora, add_trained_lora, load_adapted, save_adapted
from dqlora.models.wav2vec2 import EncoderCTC, base_of, cnn_features, load_student, normalise_audio
from dqlora.training.losses import ctc_loss
from tests.conftest import ROOT, tone

CPU = torch.device("cpu")
LORA = Lora(r=4, alpha=8, dropout=0.0, target_modules=["q_proj", "k_proj", "v_proj", "out_proj"])
CLIPS = [tone(2.0), tone(0.9, 140), tone(1.4, 300)]


@pytest.mark.parametrize("quantize", ["none", "nf4"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("frozen_input", [False, True])
@pytest.mark.parametrize("module", ["attention.q_proj", "feed_forward.intermediate_dense"])
def test_lora_is_that_of_peft_forward_and_backward(
    quantize: str, dropout: float, module: str, frozen_input: bool
) -> None:
    settings = Lora(r=4, alpha=8, dropout=dropout, target_modules=["q_proj", "v_proj", "intermediate_dense"])
    model = add_lora(load_student(ROOT / "presets/mini/student", quantize, CPU), settings, seed=0)
    layer = base_of(model).wav2vec2.encoder.layers[0].get_submodule(module).train()
    assert isinstance(layer.forward, partial)  # it is fused
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    hidden = torch.randn(2, 7, 256, requires_grad=not frozen_input)
    inputs = [each for each in (hidden, *layer.parameters()) if each.requires_grad]
    assert len(inputs) == 2 + hidden.requires_grad
    found = []
    for forward in (partial(type(layer).forward, layer), layer):  # peft's own, and the fused
        torch.manual_seed(0)  # of the dropout
        out = forward(hidden)
        found.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    for expected, each in zip(*found, strict=True):
        torch.testing.assert_close(each, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


def test_gradients_reach_lora_only(student_folder: Path) -> None:
    model = add_lora(load_student(student_folder, "nf4", CPU), LORA, seed=0).train()
    features, frames = pad_features([cnn_features(model, samples).clone() for samples in CLIPS])
    labels = torch.randint(5, 31, (3, 8))
    ctc_loss(EncoderCTC(model)(features, frames), frames, labels, torch.tensor([8, 8, 8]), 0).backward()
    for name, weight in model.named_parameters():
        assert weight.requires_grad == ("lora_" in name), name
        assert (weight.grad is not None) == ("lora_" in name), name
    moved = [weight.grad.abs().max().item() for name, weight in model.named_parameters() if "lora_B" in name]
    assert len(moved) == 2 * 4
    assert min(moved) > 0


def test_training_after_evaluating_still_has_gradients(student_folder: Path) -> None:
    """bitsandbytes repacks 4-bit weights on some CPUs at the first evaluation, for a kernel without a gradient."""
    model = add_lora(load_student(student_folder, "nf4", CPU), LORA, seed=0)
    features = cnn_features(model, CLIPS[0]).clone()[None]
    frames = torch.tensor([features.shape[1]])
    with torch.inference_mode():
        before = EncoderCTC(model.eval())(features, frames)
    EncoderCTC(model.train())(features, frames).sum().backward()
    assert all(weight.grad is not None for name, weight in model.named_parameters() if "lora_" in name)
    with torch.inference_mode():
        assert torch.equal(EncoderCTC(model.eval())(features, frames), before)


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


@pytest.mark.parametrize("quantize", ["none", "nf4"])
@pytest.mark.parametrize("wrong", ["query", "", ".*proj", "rojection", "attention", "layer_norm", "conv"])
def test_target_modules_that_are_no_linear_layers_are_named(student_folder: Path, wrong: str, quantize: str) -> None:
    """Also beside one that is; a convolution's weights would never be trained, since the CNN's features are fixed."""
    unknown = LORA.model_copy(update={"target_modules": ["q_proj", wrong]})
    with pytest.raises(
        UserError, match=rf"lora\.target_modules: {wrong!r} is .*; known are intermediate_dense, "
    ) as raised:
        add_lora(load_student(student_folder, quantize, CPU), unknown, seed=0)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("kept", [None, 0, 0.5], ids=["missing", "empty", "cut"])
def test_a_damaged_adapter_is_named(student_folder: Path, tmp_path: Path, name: str, kept: float | None) -> None:
    save_adapted(add_lora(load_student(student_folder, "none", CPU), LORA, seed=0), tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    if kept is not None:
        (tmp_path / name).write_bytes(content[: int(kept * len(content))])
    with pytest.raises(
        UserError, match=r"cannot be loaded as an adapter of its base \(.*; run `dvc repro train`, or copy"
    ) as raised:
        add_trained_lora(load_student(student_folder, "none", CPU), tmp_path)
    assert str(raised.value).startswith(str(tmp_path)) and "\n" not in str(raised.value)


@pytest.mark.parametrize("targets", [["lm_head"], ["feature_projection.projection", "lm_head", "q_proj"]])
def test_every_linear_layer_can_be_adapted_saved_and_loaded(
    student_folder: Path, tmp_path: Path, targets: list[str]
) -> None:
    model = add_lora(
        load_student(student_folder, "nf4", CPU), LORA.model_copy(update={"target_modules": targets}), seed=0
    )
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    save_adapted(model, tmp_path)
    loaded = load_adapted(student_folder, tmp_path, "nf4", CPU)
    features, frames = pad_features([cnn_features(model, CLIPS[0])])
    before, after = (EncoderCTC(each.eval())(features, frames) for each in (model, loaded))
    torch.testing.assert_close(after, before)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_dropout_is_what_the_parameters_say_everywhere(dropout: float, student_folder: Path) -> None:
    settings = LORA.model_copy(update={"dropout": 0.25})
    model = adapt(load_student(student_folder, "nf4", CPU), "lora", settings, dropout, seed=0)
    places = {name: module.p for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout)}
    own = [p for name, p in places.items() if "lora" not in name]
    assert own and set(own) == {dropout}
    assert {p for name, p in places.items() if "lora" in name} == {0.25}
    assert base_of(model).wav2vec2.encoder.layers[0].attention.dropout == dropout


def test_full_adaptation_trains_every_weight_but_the_cnns(student_folder: Path) -> None:
    model = adapt(load_student(student_folder, "none", CPU), "full", LORA, 0.3, seed=0)
    frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    cnn = {name for name, _ in model.named_parameters() if "feature_extractor" in name}
    assert cnn and frozen == cnn | {"wav2vec2.masked_spec_embed"}
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.3}
