"""LoRA layers as training uses them: what peft's compute, in fewer passes over memory."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LoraProduct(torch.autograd.Function):
    """base(x) + scaling * B(A(x)) with every sum made by the product that comes last, forward and backward.

    Left to autograd, each LoRA layer copies its output and adds up its input's gradients in passes of their own.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, dropped: Tensor | None, down: Tensor, up: Tensor, base: nn.Module, scaling: float
    ) -> Tensor:
        """All [rows, width]; `dropped` is what A reads where that is not `hidden`, down [r, width], up [width, r]."""
        low = F.linear(hidden if dropped is None else dropped, down) * scaling  # [rows, r]
        ctx.save_for_backward(hidden, dropped, low, down, up)
        ctx.base, ctx.scaling = base, scaling
        return base(hidden).addmm_(low, up.t())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, dropped, low, down, up = ctx.saved_tensors
        of_low, of_hidden, of_dropped = (gradient @ up) * ctx.scaling, None, None
        if ctx.needs_input_grad[0]:  # not where the frozen CNN's features come in
            of_hidden = gradient @ frozen_weight(ctx.base).to(gradient.dtype)
            if dropped is None:
                of_hidden.addmm_(of_low, down)
        if ctx.needs_input_grad[1]:
            of_dropped = of_low @ down
        of_down = of_low.t() @ (hidden if dropped is None else dropped)
        return of_hidden, of_dropped, of_down, gradient.t() @ low, None, None


def frozen_weight(layer: Any) -> Tensor:
    """A linear layer's weight [out, in], out of its 4-bit codes if it has such."""
    from bitsandbytes.functional import dequantize_4bit

    state = getattr(layer.weight, "quant_state", None)
    return layer.weight if state is None else dequantize_4bit(layer.weight, state)


def fuse_lora(model: nn.Module) -> None:
    """Have every linear LoRA layer of a PeftModel compute what it does by `LoraProduct`, in place."""
    from peft.tuners.lora import LoraLayer

    for module in model.modules():
        if isinstance(module, LoraLayer) and isinstance(module.base_layer, nn.Linear):
            layer: Any = module
            layer.forward = partial(lora_forward, layer)


def lora_forward(layer: Any, hidden: Tensor) -> Tensor:
    """What peft's LoRA layer gives for `hidden` [batch, longest, width], by `LoraProduct`."""
    if layer.disable_adapters:
        return layer.base_layer(hidden)
    dropout = layer.lora_dropout["default"]
    rows = hidden.flatten(0, 1)
    dropped = dropout(rows) if layer.training and getattr(dropout, "p", 0.0) else None
    weights = (layer.lora_A["default"].weight.to(hidden.dtype), layer.lora_B["default"].weight.to(hidden.dtype))
    out: Any = LoraProduct.apply(rows, dropped, *weights, layer.base_layer, layer.scaling["default"])
    return out.view(*hidden.shape[:-1], -1)
