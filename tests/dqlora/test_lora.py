from functools import partial

import pytest
import torch

from dqlora.config import Lora
from dqlora.student import add_lora, base_of, load_student
from tests.conftest import ROOT

CPU = torch.device("cpu")
LORA = Lora(r=4, alpha=8, dropout=0.0, target_modules=["q_proj", "v_proj", "intermediate_dense"])


@pytest.mark.parametrize("quantize", ["none", "nf4"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("frozen_input", [False, True])
@pytest.mark.parametrize("module", ["attention.q_proj", "feed_forward.intermediate_dense"])
def test_lora_is_that_of_peft_forward_and_backward(
    quantize: str, dropout: float, module: str, frozen_input: bool
) -> None:
    settings = LORA.model_copy(update={"dropout": dropout})
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
