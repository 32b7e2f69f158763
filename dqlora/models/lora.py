"""What is trained of a student: LoRA adapters (peft's, computed in fewer passes over memory), or every weight."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Wav2Vec2ForCTC

from dqlora.config import Lora
from dqlora.data.storage import rerun
from dqlora.errors import UserError, first_line
from dqlora.models.wav2vec2 import backbone_of, base_of, load_student
from dqlora.seeding import seed_torch


def adapt(model: Wav2Vec2ForCTC, method: str, lora: Lora, dropout: float, seed: int) -> Any:
    """The student with what is to be trained of it; trainable is what requires gradients.

    Parameters
    ----------
    method
        `lora`: adapters, in a PeftModel; `full`: every weight but the CNN's.
    dropout
        of the student's own layers and attention.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
        elif isinstance(getattr(module, "dropout", None), float):  # attention's
            module.dropout = dropout
    if method == "lora":
        return add_lora(model, lora, seed)
    model.requires_grad_(True)
    model.freeze_feature_encoder()
    backbone_of(model).masked_spec_embed.requires_grad_(False)
    return model


def add_lora(model: Wav2Vec2ForCTC, settings: Lora, seed: int) -> Any:
    """The model with trainable LoRA adapters (Hu et al. 2021) on `settings.target_modules`; a PeftModel.

    Raises
    ------
    UserError
        for a target that names no linear layer: peft leaves it out if it finds another, and other layers stay frozen.
    """
    from peft import LoraConfig, get_peft_model

    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for target in settings.target_modules:
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            known = ", ".join(sorted({name.rpartition(".")[-1] for name in linear}))
            raise UserError(
                f"params.yaml: lora.target_modules: {target!r} is the end of no linear layer's name; known are {known}"
            )

    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.target_modules),
    )
    seed_torch(seed, "lora")
    adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    adapted.peft_config["default"].target_modules = sorted(settings.target_modules)  # peft makes it a set, unordered
    fuse_lora(adapted)
    return adapted


def save_adapted(model: Any, folder: Path) -> None:
    """Write what `load_adapted` reads: the LoRA adapter of a PeftModel, or the fully trained student."""
    if base_of(model) is model:
        model.save_pretrained(folder)
        return
    model.save_pretrained(
        folder, save_embedding_layers=False
    )  # with one on lm_head peft looks for them; there are none
    (folder / "README.md").unlink()  # PEFT's card, empty; `dqlora push` writes one


def load_adapted(student: Path, adapter: Path, quantize: str, device: torch.device) -> nn.Module:
    """The distilled student: `student` with the adapter that training left, or the fully trained model itself."""
    if not (adapter / "adapter_config.json").exists():
        return load_student(adapter, quantize, device)
    return add_trained_lora(load_student(student, quantize, device), adapter)


def add_trained_lora(model: nn.Module, adapter: Path) -> Any:
    """The model, changed in place to a PeftModel, with the LoRA adapter that training left in a folder.

    Raises
    ------
    UserError
        if the adapter is damaged, or not one of this model.
    """
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, adapter).eval()
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        way_out = f"{rerun('train')}, or copy the whole folder of a run of this student"
        raise UserError(
            f"{adapter}: cannot be loaded as an adapter of its base ({first_line(error)}); {way_out}"
        ) from None


class LoraProduct(torch.autograd.Function):
    """base(x) + scaling * B(A(x)) with every sum made by the product that comes last, forward and backward.

    Left to autograd, each LoRA layer copies its output and adds up its input's gradients in passes of their own.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, dropped: Tensor | None, down: Tensor, up: Tensor, base: nn.Module, scaling: float
    ) -> Tensor:
        """All [rows, width]; `dropped` is A's input where that is not `hidden`, down [r, width], up [width, r]."""
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
