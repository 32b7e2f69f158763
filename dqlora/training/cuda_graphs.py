"""Training on a GPU: in bfloat16, each shape of batch recorded as a CUDA graph, one slow convolution done otherwise."""

from functools import partial
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from dqlora.models.wav2vec2 import backbone_of, base_of

# held while a graph is recorded, and by a thread that allocates or copies beside: that would spoil the recording
GPU_LOCK = Lock()
BLOCK = 16  # frames of a positional convolution computed by one row of a matrix product


def prepare_for_gpu(model: nn.Module) -> None:
    """Bring what is frozen of a student to bfloat16, in place. Its 4-bit codes and what is trained stay as they are.

    Attention is left to PyTorch's own kernels: given a padding mask and bfloat16, cuDNN's backward makes the queries'
    gradients NaN beyond the end of a clip once queries and keys are large (seen on an H200 with wav2vec2-base's
    architecture after some 200 steps; torch 2.11, cuDNN 9).
    """
    from bitsandbytes.nn import Linear4bit

    torch.backends.cuda.enable_cudnn_sdp(False)
    backbone = backbone_of(model)
    positional = backbone.encoder.pos_conv_embed.conv
    exact = set(positional.parameters())  # its weight norm
    for part in (backbone.feature_projection, backbone.encoder, base_of(model).lm_head):
        for parameter in part.parameters():
            if parameter.is_floating_point() and not parameter.requires_grad and parameter not in exact:
                parameter.data = parameter.data.bfloat16()
        for module in part.modules():
            if isinstance(module, Linear4bit):
                weight: Any = module.weight
                module.compute_dtype = weight.quant_state.dtype = torch.bfloat16
    positional.forward = partial(blocked_convolution, positional)


def blocked_convolution(convolution: nn.Conv1d, hidden: Tensor) -> Tensor:
    """A grouped convolution over time as matrix products, `BLOCK` frames at once: each block of frames is a row.

    For the positional convolution of wav2vec 2.0 (128 taps, 16 groups of 48 channels) cuDNN has only a slow kernel in
    bfloat16: 27 ms for 11 minutes of audio on an H200, against 2.2 ms so. A row of the product holds the
    BLOCK + taps - 1 frames that a block depends on; the matrix holds the taps, shifted for each frame of the block.

    Parameters
    ----------
    hidden
        [batch, channels, frames].
    """
    batch, _, frames = hidden.shape
    weight = convolution.weight.to(hidden.dtype)
    channels, of_group, taps = weight.shape
    groups, padding = convolution.groups, int(convolution.padding[0])
    made = frames + 2 * padding - taps + 1
    blocks = -(-made // BLOCK)
    padded = F.pad(hidden, (padding, padding + blocks * BLOCK - made))
    rows = padded.unfold(2, BLOCK + taps - 1, BLOCK)  # [batch, channels, blocks, reach]
    rows = rows.reshape(batch, groups, of_group, blocks, -1).permute(1, 0, 3, 2, 4).reshape(groups, batch * blocks, -1)
    shifted = F.pad(weight, (BLOCK - 1, BLOCK - 1)).unfold(2, BLOCK, 1).flip(-1)  # [channels, of_group, reach, BLOCK]
    shifted = shifted.reshape(groups, channels // groups, of_group, -1, BLOCK).permute(0, 2, 3, 1, 4)
    product = torch.bmm(rows, shifted.reshape(groups, rows.shape[2], -1))  # [groups, batch * blocks, channels * BLOCK]
    out = product.view(groups, batch, blocks, channels // groups, BLOCK).permute(1, 0, 3, 2, 4)
    out = out.reshape(batch, channels, blocks * BLOCK)[:, :, :made]
    return out if convolution.bias is None else out + convolution.bias.to(out.dtype)[:, None]


class InBfloat16(nn.Module):
    """Calls a module with its trained weights cast to bfloat16; the gradients are those of the float32 weights."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        weights = {
            name: weight.bfloat16()
            for name, weight in self.module.named_parameters()
            if weight.requires_grad and "parametrizations" not in name  # a weight norm is exact
        }
        return functional_call(self.module, weights, inputs)


class CudaGraphs(nn.Module):
    """Replays the forward and backward of a module in bfloat16, recorded once for each shape of its inputs.

    A step is some thousand kernels, whose launches can cost more than their work; a graph is one launch. The shapes
    must therefore be few (`batching.padded_shape`).
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module
        self._recorded: dict[tuple[torch.Size, ...], Any] = {}
        self._memory = torch.cuda.graph_pool_handle()
        # weights are first met on the stream of the recording: harmless, as each step ends on the default one
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        shapes = tuple(each.shape for each in inputs)
        if shapes not in self._recorded:
            with GPU_LOCK:
                samples = tuple(each.clone() for each in inputs)
                self._recorded[shapes] = torch.cuda.make_graphed_callables(
                    InBfloat16(self.module), samples, pool=self._memory
                )
        return self._recorded[shapes](*inputs)
