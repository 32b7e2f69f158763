"""The student: a wav2vec 2.0 CTC model, in 4 bits or not, with LoRA adapters or not.

Its CNN stays frozen, so that a clip's CNN features are fixed: they are computed once, for each clip alone, and
everything after them works on padded batches. A padded batch gives the logits that each clip gives alone.
"""

import copy
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BitsAndBytesConfig, Wav2Vec2ForCTC

from dqlora.data.audio import SAMPLE_RATE, to_float32
from dqlora.data.batching import bucketed_batches, length_mask, pad_features, pad_waves
from dqlora.data.text import Vocabulary
from dqlora.errors import UserError, first_line

Model = TypeVar("Model", bound=nn.Module)

MASK_EMBEDDING = "masked_spec_embed"  # SpecAugment's; fine-tuned checkpoints may have dropped it
EVERY_FRAME = slice(None)
NOT_QUANTISED = ["lm_head", "projection"]  # the CTC head and the feature projection


def load_student(
    folder: Path, quantize: str, device: torch.device, dtype: torch.dtype = torch.float32
) -> Wav2Vec2ForCTC:
    """Load a student from a safetensors folder, every weight frozen.

    Parameters
    ----------
    quantize
        `nf4`: the transformer's linear layers in 4 bits with double quantisation (Dettmers et al. 2023); `none`.
    dtype
        of what is not quantised, and of the 4-bit layers' products.
    """
    options: dict[str, Any] = {}
    if quantize == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=NOT_QUANTISED,
        )
    try:
        model, found = Wav2Vec2ForCTC.from_pretrained(
            folder,
            dtype=dtype,
            device_map={"": device},
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder}: cannot be loaded as a wav2vec 2.0 CTC model ({first_line(error)})") from None
    for name in found["missing_keys"]:
        if not name.endswith(MASK_EMBEDDING):
            raise UserError(f"{folder}: its weights lack {name}; name another checkpoint")
        model.get_parameter(name).data.zero_()  # transformers has drawn it at random
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # bitsandbytes would repack the weights at the first evaluation, for a bf16 kernel that has no gradient
            module.support_avx512bf16_for_cpu = False
    model.config.layerdrop = 0.0
    model.requires_grad_(False)
    return model.eval()


def with_same_weights(model: Model, but: Iterable[nn.Parameter] = ()) -> Model:
    """A second model that has the first one's weights in common with it, not a copy of them, `but` some."""
    own = set(map(id, but))
    return copy.deepcopy(
        model, {id(each): each for each in (*model.parameters(), *model.buffers()) if id(each) not in own}
    )


def base_of(model: Any) -> Wav2Vec2ForCTC:
    """The Wav2Vec2ForCTC inside a PeftModel, its adapters in place; or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def backbone_of(model: Any) -> Any:
    """The encoder and the CNN below the CTC head, by whatever name the model's kind gives it (`wav2vec2`, `hubert`)."""
    return base_of(model).base_model


def normalise_audio(samples: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance over the clip, as wav2vec 2.0's feature extractor does. float32 [samples]."""
    return (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)


def normalise_waves(waves: Tensor, lengths: Tensor | None = None) -> Tensor:
    """`normalise_audio` of each row of float32 [clips, longest], over its own length if padded: int64 [clips]."""
    if lengths is None:
        mean, variance = waves.mean(-1, keepdim=True), waves.var(-1, keepdim=True, unbiased=False)
        return (waves - mean) / (variance + 1e-7).sqrt()
    count = lengths[:, None]
    centred = (waves - waves.sum(-1, keepdim=True) / count) * length_mask(lengths, waves.shape[1])
    return centred / (centred.square().sum(-1, keepdim=True) / count + 1e-7).sqrt()


def frame_geometry(config: Any) -> tuple[int, int]:
    """Receptive field and hop of one CNN frame, in samples (400 and 320 for every published wav2vec 2.0)."""
    field, hop = 1, 1
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        field += (kernel - 1) * hop
        hop *= stride
    return field, hop


def frames_of(config: Any, samples: int) -> int:
    """Frames the CNN makes of a clip."""
    field, hop = frame_geometry(config)
    return max(0, (samples - field) // hop + 1)


def frame_centre(config: Any, frame: int) -> float:
    """Time of a frame's centre, in seconds."""
    field, hop = frame_geometry(config)
    return (frame * hop + field / 2) / SAMPLE_RATE


@torch.inference_mode()
def cnn_features(model: nn.Module, samples: np.ndarray) -> Tensor:
    """CNN features of one clip, [frames, conv_dim], on the model's device.

    Parameters
    ----------
    samples
        float32 [samples] in [-1, 1], at 16 kHz.
    """
    base = base_of(model)
    values = torch.from_numpy(normalise_audio(samples)).to(base.device, base.dtype)
    return backbone_of(base).feature_extractor(values[None])[0].T


@torch.inference_mode()
def cnn_features_batch(model: nn.Module, clips: Sequence[np.ndarray]) -> list[Tensor]:
    """`cnn_features` of each clip, computed at once: on a GPU, one alone is little more than launches of kernels.

    A GPU computes them in float16.

    Parameters
    ----------
    clips
        int16 [samples] each, at 16 kHz; the less their lengths differ, the less is padding.
    """
    if len(clips) == 1:
        return [cnn_features(model, to_float32(clips[0]))]
    base = base_of(model)
    counts = [len(clip) for clip in clips]
    waves = normalise_waves(pad_waves(clips, base.device), torch.tensor(counts, device=base.device))
    hidden = waves.to(base.dtype)[:, None]  # [clips, 1, samples]
    with torch.autocast(base.device.type, torch.float16, enabled=base.device.type == "cuda"):
        for layer in backbone_of(base).feature_extractor.conv_layers:
            counts = [(count - layer.conv.kernel_size[0]) // layer.conv.stride[0] + 1 for count in counts]
            if isinstance(getattr(layer, "layer_norm", None), nn.GroupNorm):  # over a clip's own frames
                hidden = layer.conv(hidden)
                for row, count in zip(hidden, counts, strict=True):
                    row[:, :count] = layer.layer_norm(row[None, :, :count])[0]
                hidden = layer.activation(hidden)
            else:
                hidden = layer(hidden)
    rows = hidden.transpose(1, 2).contiguous()
    return [row[:count] for row, count in zip(rows, counts, strict=True)]


def project_features(backbone: Any, features: Tensor) -> Tensor:
    """CNN features [batch, frames, conv_dim] as the encoder takes them, [batch, frames, hidden_size]."""
    projection = backbone.feature_projection
    projected = projection(features.to(projection.layer_norm.weight.dtype))
    return projected[0] if isinstance(projected, tuple) else projected


def draw_time_mask(
    clips: int, frames: int, ratio: float, generator: torch.Generator | None = None, span: int = 10
) -> Tensor:
    """SpecAugment's mask over time (Park et al. 2019): spans of `span` frames that cover about `ratio` of them.

    Drawn on the CPU, so that it is the same wherever training runs. bool [clips, frames].
    """
    starts = (torch.rand(clips, frames, generator=generator) < ratio / span).float()
    return F.max_pool1d(F.pad(starts, (span - 1, 0)), span, stride=1) > 0


class EncoderCTC(nn.Module):
    """The student after its CNN: encoder and CTC head. Wraps a Wav2Vec2ForCTC or a PeftModel of one.

    Attributes
    ----------
    hidden
        [batch, longest, width]: what transformer layer `layer` (from 1) gave in the last call; None without `layer`.
    """

    def __init__(self, model: nn.Module, layer: int | None = None):
        super().__init__()
        layers = backbone_of(model).encoder.layers
        if layer is not None and layer > len(layers):
            raise UserError(f"params.yaml: distill.layer: {layer}: the student has {len(layers)} layers")
        self.model = model
        self.layer = layer
        self.hidden: Tensor | None = None

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.hidden = output[0] if isinstance(output, tuple) else output

    def forward(self, features: Tensor, frames: Tensor, time_mask: Tensor | None = None) -> Tensor:
        """Logits [batch, longest, vocabulary] of padded CNN features.

        Parameters
        ----------
        features
            [batch, longest, conv_dim]; what lies beyond a clip's frames has no influence.
        frames
            int64 [batch], how many frames of each clip are speech.
        time_mask
            bool [batch, longest]: frames to hide, in training.
        """
        base = base_of(self.model)
        backbone = backbone_of(base)
        # [batch, longest]; a clip of no frames attends to one, or else its softmax would be undefined
        mask = length_mask(frames.clamp(min=1), features.shape[1])
        hidden = project_features(backbone, features)
        if time_mask is not None:
            hidden = torch.where(time_mask[..., None], backbone.masked_spec_embed.to(hidden.dtype), hidden)
        tapped = backbone.encoder.layers[(self.layer or 1) - 1]
        with tapped.register_forward_hook(self._keep) if self.layer else nullcontext():
            hidden = backbone.encoder(hidden, attention_mask=mask).last_hidden_state
        return base.lm_head(base.dropout(hidden))

    def of_clip(self, features: Tensor, sound: slice) -> Tensor:
        """Logits [frames, vocabulary] of one clip's CNN features [frames, conv_dim]; a gate judges it by `sound`."""
        return self(features[None], torch.tensor([len(features)], device=features.device))[0]


@torch.inference_mode()
def clip_logits(student: EncoderCTC, samples: np.ndarray, sound: slice = EVERY_FRAME) -> np.ndarray:
    """Logits float32 [frames, vocabulary] of a clip, float32 [samples] at 16 kHz; none if shorter than a frame.

    `sound` are the frames that are no silence put around the clip: by these a gate judges it.
    """
    config = base_of(student.model).config
    if frames_of(config, len(samples)) == 0:
        return np.empty((0, config.vocab_size), np.float32)
    return student.of_clip(cnn_features(student.model, samples), sound).float().cpu().numpy()


def transcribe(student: EncoderCTC, vocabulary: Vocabulary, samples: np.ndarray) -> str:
    """Greedy transcript of one clip, float32 [samples] at 16 kHz. A clip shorter than a frame is empty."""
    return vocabulary.decode(clip_logits(student, samples).argmax(-1).tolist())


@torch.inference_mode()
def transcribe_batch(
    student: nn.Module, features: Sequence[Tensor | np.ndarray], vocabulary: Vocabulary, longest: int
) -> list[str]:
    """Greedy transcripts of CNN features [frames, conv_dim], batched up to `longest` padded frames."""
    was_training = student.training
    student.eval()
    device = next(student.parameters()).device
    hypotheses = [""] * len(features)
    for positions in bucketed_batches([len(one) for one in features], longest, seed=0, epoch=0):
        padded, frames = pad_features([features[position] for position in positions])
        token_ids = student(padded.to(device), frames.to(device)).argmax(-1).cpu()
        for position, row, count in zip(positions, token_ids, frames.tolist(), strict=True):
            hypotheses[position] = vocabulary.decode(row[:count].tolist())
    student.train(was_training)
    return hypotheses
