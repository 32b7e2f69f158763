"""The confidence gate: the adapter runs only where the base model is uncertain, so clean speech is left unchanged."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dqlora.data.batching import length_mask, pad_features
from dqlora.data.storage import read_json, rerun
from dqlora.models.lora import add_trained_lora, load_adapted
from dqlora.models.wav2vec2 import EVERY_FRAME, EncoderCTC, base_of, load_student, with_same_weights


class GatedStudent(EncoderCTC):
    """Transcribes a clip without the adapter where the base model is certain of it, and with the adapter elsewhere.

    Parameters
    ----------
    model
        with the adapter.
    base
        without; the two may have their frozen weights in common.
    threshold
        The base is certain of a clip if the mean entropy of its token distribution, in nats per frame, is at most
        this.
    """

    def __init__(self, model: nn.Module, base: nn.Module, threshold: float):
        super().__init__(model)
        self.base = EncoderCTC(base)
        self.threshold = threshold

    def forward(self, features: Tensor, frames: Tensor, time_mask: Tensor | None = None) -> Tensor:
        return self.with_base(features, frames, time_mask)[1]

    def of_clip(self, features: Tensor, sound: slice) -> Tensor:
        return self.with_base(features[None], torch.tensor([len(features)], device=features.device), sound=sound)[1][0]

    def with_base(
        self, features: Tensor, frames: Tensor, time_mask: Tensor | None = None, sound: slice = EVERY_FRAME
    ) -> tuple[Tensor, Tensor]:
        """The base's logits and the student's, [batch, longest, vocabulary] each; `sound` as `mean_entropy`."""
        base = self.base(features, frames, time_mask)
        uncertain = mean_entropy(base, frames, sound) > self.threshold
        logits = base.clone()
        if uncertain.any():
            logits[uncertain] = super().forward(
                features[uncertain], frames[uncertain], time_mask if time_mask is None else time_mask[uncertain]
            )
        return base, logits


def mean_entropy(logits: Tensor, frames: Tensor, sound: slice = EVERY_FRAME) -> Tensor:
    """Entropy of the token distribution, nats per frame [batch], over the `frames` of [batch, longest, vocabulary].

    Only those in `sound` count: of silence that was put around a clip every student is certain.
    """
    log_probs = F.log_softmax(logits.float(), dim=-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1)  # [batch, longest]
    counted = length_mask(frames, logits.shape[1])[:, sound]
    return (entropy[:, sound] * counted).sum(-1) / counted.sum(-1).clamp(min=1)


@torch.inference_mode()
def entropies(student: EncoderCTC, clips: Sequence[Tensor | np.ndarray]) -> list[float]:
    """`mean_entropy` of each clip, CNN features [frames, conv_dim], as the student transcribes it."""
    student.eval()
    device = base_of(student.model).device
    padded = ((features.to(device), frames.to(device)) for features, frames in map(pad_features, ([c] for c in clips)))
    return [mean_entropy(student(features, frames), frames).item() for features, frames in padded]


def entropy_threshold(adapter: Path) -> float | None:
    """The threshold that the stage `fit_gate` left beside an adapter folder; None where the adapter is always on.

    A fully trained student has no adapter to switch off, and so no gate.
    """
    if not (adapter / "adapter_config.json").exists():
        return None
    way_out = f"{rerun('fit_gate')}, or copy it along with the adapter's folder"
    gate: dict[str, float | None] = read_json(adapter.with_name("gate.json"), way_out, ["entropy_threshold"])
    return gate["entropy_threshold"]


def load_distilled(student: Path, adapter: Path, quantize: str, device: torch.device) -> EncoderCTC:
    """The distilled student as a run left it, behind its gate if it has one."""
    threshold = entropy_threshold(adapter)
    if threshold is None:
        return EncoderCTC(load_adapted(student, adapter, quantize, device))
    base = load_student(student, quantize, device)
    return GatedStudent(add_trained_lora(with_same_weights(base), adapter), base, threshold)
