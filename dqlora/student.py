"""The student: a wav2vec 2.0 CTC model, in 4 bits or not, with LoRA adapters or not.

Its CNN stays frozen, so that a clip's CNN features are fixed: they are computed once, for each clip alone, and
everything after them works on padded batches. A padded batch gives the logits that each clip gives alone.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BitsAndBytesConfig, Wav2Vec2ForCTC

from dqlora.audio import SAMPLE_RATE, to_float32
from dqlora.config import Lora
from dqlora.errors import UserError
from dqlora.lora import fuse_lora
from dqlora.randomness import seed_torch
from dqlora.storage import read_json
from dqlora.text import Vocabulary

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
        model = Wav2Vec2ForCTC.from_pretrained(
            folder, dtype=dtype, device_map={"": device}, use_safetensors=True, local_files_only=True, **options
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{folder}: cannot be loaded as a wav2vec 2.0 CTC model ({reason})") from None
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # bitsandbytes would repack the weights at the first evaluation, for a bf16 kernel that has no gradient
            module.support_avx512bf16_for_cpu = False
    model.config.layerdrop = 0.0
    model.requires_grad_(False)
    return model.eval()


def add_lora(model: Wav2Vec2ForCTC, settings: Lora, seed: int) -> Any:
    """The model with trainable LoRA adapters (Hu et al. 2021) on `settings.target_modules`; a PeftModel."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.target_modules),
    )
    seed_torch(seed, "lora")
    try:
        adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    except ValueError as error:
        raise UserError(f"params.yaml: lora.target_modules: {str(error).splitlines()[0]}") from None
    adapted.peft_config["default"].target_modules = sorted(settings.target_modules)  # peft makes it a set, unordered
    fuse_lora(adapted)
    return adapted


def load_adapted(student: Path, adapter: Path, quantize: str, device: torch.device) -> nn.Module:
    """The distilled student: `student` with the adapter that training left, or the fully trained model itself."""
    if not (adapter / "adapter_config.json").exists():
        return load_student(adapter, quantize, device)
    from peft import PeftModel

    return PeftModel.from_pretrained(load_student(student, quantize, device), adapter).eval()


def load_reader(student: Path, adapter: Path, quantize: str, device: torch.device) -> "FromFeatures":
    """The distilled student as a run left it: with an adapter it reads what the base is not sure of."""
    model, limit = load_adapted(student, adapter, quantize, device), entropy_limit(adapter)
    return FromFeatures(model) if limit is None else Switched(model, limit)


def entropy_limit(adapter: Path) -> float | None:
    """Up to which mean entropy, in nats per frame, a run's base reads a clip itself; None where it never does."""
    return read_json(adapter / "run.json", "train").get("entropy_limit")


def base_of(model: Any) -> Wav2Vec2ForCTC:
    """The Wav2Vec2ForCTC inside a PeftModel, its adapters in place; or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def normalise_audio(samples: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance over the clip, as wav2vec 2.0's feature extractor does. float32 [samples]."""
    return (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)


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
    return base.wav2vec2.feature_extractor(values[None])[0].T


@torch.inference_mode()
def cnn_features_together(model: nn.Module, clips: Sequence[np.ndarray]) -> list[Tensor]:
    """`cnn_features` of each clip, computed at once: on a GPU, one alone is little more than launches of kernels.

    Parameters
    ----------
    clips
        int16 [samples] each, at 16 kHz; the less their lengths differ, the less is padding.
    """
    if len(clips) == 1:
        return [cnn_features(model, to_float32(clips[0]))]
    base = base_of(model)
    waves = padded_waves(clips, base.device)
    frames = torch.tensor([len(clip) for clip in clips], device=base.device)
    inside = torch.arange(waves.shape[1], device=base.device) < frames[:, None]
    centred = (waves - waves.sum(-1, keepdim=True) / frames[:, None]) * inside
    deviation = (centred.square().sum(-1, keepdim=True) / frames[:, None] + 1e-7).sqrt()
    hidden = (centred / deviation).to(base.dtype)[:, None]  # [clips, 1, samples], as of normalise_audio
    for layer in base.wav2vec2.feature_extractor.conv_layers:
        frames = (frames - layer.conv.kernel_size[0]) // layer.conv.stride[0] + 1
        if isinstance(getattr(layer, "layer_norm", None), nn.GroupNorm):
            hidden = layer.activation(norm_over_time(layer.layer_norm, layer.conv(hidden), frames))
        else:
            hidden = layer(hidden)
    rows = hidden.transpose(1, 2).contiguous()
    return [row[:count] for row, count in zip(rows, frames.tolist(), strict=True)]


def padded_waves(clips: Sequence[np.ndarray], device: torch.device, longest: int | None = None) -> Tensor:
    """Clips, [samples] each, all int16 or all float32 in [-1, 1], as float32 [clips, longest] in [-1, 1], then 0.

    They travel to a GPU as they are, from pinned memory, and need not have arrived when this returns. Without
    `longest`, it is that of the clips.
    """
    dtype = torch.int16 if clips[0].dtype == np.int16 else torch.float32
    shape = len(clips), longest or max(map(len, clips))
    padded = torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")
    for row, clip in zip(padded.numpy(), clips, strict=True):
        row[: len(clip)] = clip
        row[len(clip) :] = 0
    waves = padded.to(device, non_blocking=True).float()
    return waves.div_(32768) if dtype == torch.int16 else waves


def norm_over_time(norm: nn.GroupNorm, hidden: Tensor, frames: Tensor) -> Tensor:
    """A group norm of one channel a group, [clips, channels, longest], over each clip's own `frames`, int64 [clips]."""
    inside = (torch.arange(hidden.shape[2], device=hidden.device) < frames[:, None])[:, None]
    count = frames[:, None, None]
    centred = hidden - (hidden * inside).sum(-1, keepdim=True) / count
    variance = (centred.square() * inside).sum(-1, keepdim=True) / count
    return centred / (variance + norm.eps).sqrt() * norm.weight[:, None] + norm.bias[:, None]


def time_mask(
    clips: int, frames: int, share: float, generator: torch.Generator | None = None, span: int = 10
) -> Tensor:
    """SpecAugment's mask over time (Park et al. 2019): spans of `span` frames that cover about `share` of them.

    Drawn on the CPU, so that it is the same wherever training runs. bool [clips, frames].
    """
    starts = (torch.rand(clips, frames, generator=generator) < share / span).float()
    return F.max_pool1d(F.pad(starts, (span - 1, 0)), span, stride=1) > 0


class FromFeatures(nn.Module):
    """Everything of the student after its CNN. Wraps a Wav2Vec2ForCTC or a PeftModel of one.

    Attributes
    ----------
    hidden
        [batch, longest, width]: what transformer layer `layer` (from 1) gave in the last call; None without `layer`.
    """

    def __init__(self, model: nn.Module, layer: int | None = None):
        super().__init__()
        layers = base_of(model).wav2vec2.encoder.layers
        if layer is not None and layer > len(layers):
            raise UserError(f"params.yaml: distill.layer: {layer}: the student has {len(layers)} layers")
        self.model = model
        self.layer = layer
        self.hidden: Tensor | None = None

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.hidden = output[0] if isinstance(output, tuple) else output

    def forward(self, features: Tensor, frames: Tensor, masked: Tensor | None = None) -> Tensor:
        """Logits [batch, longest, vocabulary] of padded CNN features.

        Parameters
        ----------
        features
            [batch, longest, conv_dim]; what lies beyond a clip's frames has no influence.
        frames
            int64 [batch], how many frames of each clip are speech.
        masked
            bool [batch, longest]: frames to hide, in training.
        """
        base = base_of(self.model)
        wav2vec2 = base.wav2vec2
        # [batch, longest]; a clip of no frames attends to one, or else its softmax would be undefined
        mask = torch.arange(features.shape[1], device=features.device) < frames[:, None].clamp(min=1)
        hidden, _ = wav2vec2.feature_projection(features.to(wav2vec2.feature_projection.layer_norm.weight.dtype))
        if masked is not None:
            hidden = torch.where(masked[..., None], wav2vec2.masked_spec_embed.to(hidden.dtype), hidden)
        tapped = wav2vec2.encoder.layers[(self.layer or 1) - 1]
        with tapped.register_forward_hook(self._keep) if self.layer else nullcontext():
            hidden = wav2vec2.encoder(hidden, attention_mask=mask).last_hidden_state
        return base.lm_head(base.dropout(hidden))


class Switched(FromFeatures):
    """Reads with the adapter what the base is not sure of, and the rest as the base does, its adapter switched off.

    The base is sure of a clip if the mean entropy of its letters, in nats per frame, is at most `limit`.
    """

    def __init__(self, model: nn.Module, limit: float):
        super().__init__(model)
        self.limit = limit

    def forward(self, features: Tensor, frames: Tensor, masked: Tensor | None = None) -> Tensor:
        model: Any = self.model
        with model.disable_adapter():
            logits = super().forward(features, frames, masked)
        unsure = mean_entropy(logits, frames) > self.limit
        if unsure.any():
            logits[unsure] = super().forward(
                features[unsure], frames[unsure], masked if masked is None else masked[unsure]
            )
        return logits


def mean_entropy(logits: Tensor, frames: Tensor) -> Tensor:
    """Entropy of the symbols, nats per frame [batch], over the `frames` of each row of [batch, longest, vocabulary]."""
    log_probs = F.log_softmax(logits.float(), dim=-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1)  # [batch, longest]
    inside = torch.arange(logits.shape[1], device=logits.device) < frames[:, None]
    return (entropy * inside).sum(-1) / frames.clamp(min=1)


def pad_features(features: Sequence[Tensor | np.ndarray]) -> tuple[Tensor, Tensor]:
    """Stack [frames, width] arrays into [batch, longest, width], with the frames of each, int64 [batch]."""
    tensors = [torch.from_numpy(np.array(item)) if isinstance(item, np.ndarray) else item for item in features]
    lengths = torch.tensor([len(item) for item in tensors])
    return nn.utils.rnn.pad_sequence(tensors, batch_first=True), lengths


@torch.inference_mode()
def transcribe(student: FromFeatures, vocabulary: Vocabulary, samples: np.ndarray) -> str:
    """Greedy transcript of one clip, float32 [samples] at 16 kHz. A clip shorter than a frame is empty."""
    if frames_of(base_of(student.model).config, len(samples)) == 0:
        return ""
    features = cnn_features(student.model, samples)
    logits = student(features[None], torch.tensor([len(features)], device=features.device))
    return vocabulary.decode(logits[0].argmax(-1).tolist())
