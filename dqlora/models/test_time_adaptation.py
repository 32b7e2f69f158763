"""A student that adapts itself to the clip at hand, without its text, before it transcribes it.

SUTA (Lin, Li and Lee 2022, "Listen, Adapt, Better WER: Source-free Single-utterance Test-time Adaptation for Automatic
Speech Recognition"), with layer norms alone: they cost less than the CNN, and a clip's CNN features stay as they are.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dqlora.models.gate import GatedStudent, mean_entropy
from dqlora.models.wav2vec2 import (
    EVERY_FRAME,
    EncoderCTC,
    backbone_of,
    base_of,
    clip_logits,
    cnn_features,
    frames_of,
    with_same_weights,
)

STEPS = 1
LEARNING_RATE = 1e-2
TEMPERATURE, ENTROPY_WEIGHT = 2.5, 0.3  # the paper's
MOST_UNCERTAIN = 1.0  # nats per frame of a clip that is adapted to: beyond, there is little right to become sure of


def layer_norms(model: nn.Module) -> list[nn.Parameter]:
    """The weights of those behind the CNN."""
    backbone = backbone_of(model)
    return [
        weight
        for part in (backbone.feature_projection, backbone.encoder)
        for module in part.modules()
        if isinstance(module, nn.LayerNorm)
        for weight in module.parameters()
    ]


def uncertainty(logits: Tensor, blank: int) -> Tensor:
    """What adapting lowers, of one clip's logits [frames, vocabulary], smoothed by the temperature.

    The mean entropy of the frames that are no blank, and the confusion of tokens with each other (Jin et al. 2020).
    """
    log_probs = F.log_softmax(logits / TEMPERATURE, -1)
    probs = log_probs.exp()
    entropy = -(probs * log_probs).sum(-1)
    spoken = logits.argmax(-1) != blank
    of_entropy = entropy[spoken].mean() if spoken.any() else entropy.new_zeros(())
    confusion = (probs * (1 + (-entropy).exp())[:, None]).T @ probs  # a frame counts the more, the surer it is
    confusion = confusion / confusion.sum(1, keepdim=True)
    of_confusion = (confusion.sum() - confusion.trace()) / len(confusion)
    return ENTROPY_WEIGHT * of_entropy + (1 - ENTROPY_WEIGHT) * of_confusion


def adapted_logits(
    student: EncoderCTC,
    samples: np.ndarray,
    blank: int,
    sound: slice = EVERY_FRAME,
    steps: int = STEPS,
    learning_rate: float = LEARNING_RATE,
) -> np.ndarray:
    """Logits float32 [frames, vocabulary] of a clip, float32 [samples] at 16 kHz, after `steps` of adapting to it.

    They stay as they are where a gated student's base is certain of the clip, and where the student knows hardly
    anything of it; both are judged by the frames in `sound`, as `clip_logits` has it. A clip shorter than a frame has
    none. The student itself stays as it is: the clip has layer norms of its own.
    """
    if frames_of(base_of(student.model).config, len(samples)) == 0:
        return clip_logits(student, samples)
    features = cnn_features(student.model, samples)[None]
    frames = torch.tensor([features.shape[1]], device=features.device)
    if isinstance(student, GatedStudent):
        with torch.inference_mode():
            base = student.base(features, frames)
        if mean_entropy(base, frames, sound).item() <= student.threshold:
            return base[0].float().cpu().numpy()
    own = with_same_weights(student.model, layer_norms(student.model))
    norms = [norm.requires_grad_(True) for norm in layer_norms(own)]
    encoder, optimiser = EncoderCTC(own), torch.optim.AdamW(norms, learning_rate, weight_decay=0.0)
    features = features.clone()  # as gradients need it: it comes from inference alone
    logits = encoder(features, frames)[0].float()
    if mean_entropy(logits[None], frames, sound).item() <= MOST_UNCERTAIN:
        for _ in range(steps):
            for norm, gradient in zip(norms, torch.autograd.grad(uncertainty(logits, blank), norms), strict=True):
                norm.grad = gradient
            optimiser.step()
            logits = encoder(features, frames)[0].float()
    return logits.detach().cpu().numpy()
