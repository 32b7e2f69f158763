"""Other terms beside CTC and the feature distance, compared by `research.study.run --compare losses`.

- consistency: KL between what the student gives for two views of a clip, each drawn to the other (CR-CTC, Yao et al.
  2024, arXiv 2410.05101); the views are two mixtures, and two masks where there are masks
- correlation: the student's and the target's features are to be correlated, each number with its own and with no other
  (Barlow Twins, Zbontar et al. 2021, arXiv 2103.03230)
- variance: no number of the student's features is to be constant, or to say what another says (VICReg, Bardes et al.
  2021, arXiv 2105.04906; for noisy speech HuBERT-VIC, arXiv 2508.12292)
- layers: the distance is the mean of that of several layers
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dqlora.config import Params
from dqlora.data.batching import Batch, Example, length_mask
from dqlora.data.storage import RaggedArray
from dqlora.errors import UserError
from dqlora.models.lora import add_lora
from dqlora.models.wav2vec2 import EncoderCTC, backbone_of, load_student
from dqlora.training.losses import ctc_loss, feature_distance
from dqlora.training.objective import DistillationLoss
from dqlora.training.targets import FeatureTarget, Target
from research.study.runner import Job, Runner, shared, targets_folder
from research.study.variants import ALPHAS, at_alpha

OFF_DIAGONAL = 5e-3  # weight of the correlations between different numbers; Barlow Twins'
COVARIANCE = 0.04  # weight of the covariances beside the variances; VICReg's 1 to 25
VIEWS = 2


class SideBySide:
    """Arrays [frames, width] as one, put together where it is read: [frames, sum of the widths]."""

    def __init__(self, *arrays: np.ndarray):
        self.arrays = arrays
        self.shape = len(arrays[0]), sum(each.shape[1] for each in arrays)

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.concatenate(self.arrays, axis=1).astype(dtype, copy=False)


def consistency(logits: Tensor, frames: Tensor) -> Tensor:
    """Half of KL(a || b) + KL(b || a) between the views' distributions, summed over frames.

    What each is drawn to has no gradient.

    Parameters
    ----------
    logits
        [views * batch, longest, vocabulary], the first views first.
    frames
        int64 [batch].
    """
    log_probs = F.log_softmax(logits.float(), dim=-1)
    one, other = log_probs.chunk(VIEWS)
    divergence = sum(
        F.kl_div(drawn, to.detach(), log_target=True, reduction="none").sum(-1)
        for drawn, to in ((one, other), (other, one))
    )
    return 0.5 * torch.as_tensor(divergence).masked_fill(~length_mask(frames, logits.shape[1]), 0.0).sum()


def standardised(features: Tensor, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Features [batch * longest, width] of zero mean and unit variance over the batch's speech, 0 elsewhere.

    Beside them their deviations [width] and the frames of speech.
    """
    inside = length_mask(frames, features.shape[1])[..., None].float()
    count = inside.sum().clamp(min=2.0)
    centred = (features.float() - (features.float() * inside).sum((0, 1)) / count) * inside
    deviation = (centred.square().sum((0, 1)) / (count - 1) + 1e-4).sqrt()
    return (centred / deviation).flatten(0, 1), deviation, count


def correlation_loss(student: Tensor, target: Tensor, frames: Tensor) -> Tensor:
    """Barlow Twins' loss of features [batch, longest, width], a number's mean, times the frames of speech."""
    (ours, _, count), (theirs, _, _) = (standardised(each, frames) for each in (student, target))
    correlations = ours.t() @ theirs / count  # [width, width]
    own = correlations.diagonal()
    others = correlations.square().sum() - own.square().sum()
    return count * ((1 - own).square().sum() + OFF_DIAGONAL * others) / len(own)


def variance_loss(student: Tensor, frames: Tensor) -> Tensor:
    """VICReg's variance and covariance terms of features [batch, longest, width], times the frames of speech."""
    scaled, deviation, count = standardised(student, frames)
    centred = scaled * deviation
    covariances = centred.t() @ centred / (count - 1)
    others = covariances.square().sum() - covariances.diagonal().square().sum()
    return count * (F.relu(1 - deviation).mean() + COVARIANCE * others / len(deviation))


class JointStudent(nn.Module):
    """The student's logits of a batch, of all views, and the weighted terms beside CTC: what a CUDA graph replays."""

    def __init__(self, student: EncoderCTC, terms: Mapping[str, Any], layers: tuple[int, ...], weight: float):
        super().__init__()
        self.student, self.terms, self.layers, self.weight = student, terms, layers, weight

    def forward(
        self, features: Tensor, frames: Tensor, time_mask: Tensor, target: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits [views * batch, longest, vocabulary], and the terms' weighted sum over frames."""
        views = VIEWS if "consistency" in self.terms else 1
        hidden: list[Tensor] = []
        blocks = backbone_of(self.student.model).encoder.layers

        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            hidden.append(output[0] if isinstance(output, tuple) else output)

        handles = [blocks[layer - 1].register_forward_hook(keep) for layer in self.layers]
        masks = torch.cat([time_mask.roll(view, dims=0) for view in range(views)])  # another clip's mask
        logits = self.student(torch.cat(features.chunk(views, dim=-1)), frames.repeat(views), masks)
        for handle in handles:
            handle.remove()
        total = logits.new_zeros((), dtype=torch.float32)
        if target is not None:
            for ours, theirs in zip(hidden, target.chunk(len(self.layers), dim=-1), strict=True):
                total = total + self._distance(ours, theirs.repeat(views, 1, 1), frames.repeat(views)) / views
            total = total / len(self.layers)
        if views == VIEWS:
            total = total + self.terms["consistency"] * consistency(logits, frames)
        return logits, total

    def _distance(self, hidden: Tensor, target: Tensor, frames: Tensor) -> Tensor:
        student = F.layer_norm(hidden.float(), hidden.shape[-1:])
        distance = self.weight * feature_distance(student, target, frames)
        if "correlation" in self.terms:
            distance = distance + self.terms["correlation"] * correlation_loss(student, target, frames)
        if "variance" in self.terms:
            distance = distance + self.terms["variance"] * variance_loss(student, frames)
        return distance


class JointLoss(DistillationLoss):
    """CTC, the mean over the views, and the terms of a variant."""

    def __init__(self, model: nn.Module, blank: int, target: Target | None, job: Job):
        super().__init__(model, blank)
        self.views = VIEWS if "consistency" in job.loss else 1
        self.distance_weight = 1.0
        weight = job.params.lambda_distill * FeatureTarget.scale
        self.student_with_distance = JointStudent(self.student, job.loss, layers_of(job) if target else (), weight)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        frames = batch.frames.to(batch.features.device, non_blocking=True)
        targets = () if batch.target is None else (batch.target,)
        logits, distance = self.student_with_distance(batch.features, frames, batch.time_mask, *targets)
        clips = len(batch.labels)
        each = [
            ctc_loss(view[:clips], batch.frames[:clips], batch.labels, batch.label_lengths, self.blank)
            for view in logits.chunk(self.views)
        ]
        return torch.stack(each).mean(), distance


def layers_of(job: Job) -> tuple[int, ...]:
    return job.loss.get("layers", (job.params.distill.layer,))


class LossRunner(Runner):
    """Trains with the terms of each variant's `loss`."""

    @staticmethod
    def targets_of(job: Job) -> list[Params]:
        if not job.params.lambda_distill or "mean_of" in job.loss:
            return []
        distill = job.params.distill
        return [
            job.params.model_copy(update={"distill": distill.model_copy(update={"layer": layer})})
            for layer in layers_of(job)
        ]

    def loss_of(self, job: Job, model: nn.Module, target: Target | None, width: int) -> DistillationLoss:
        if not job.loss:
            return super().loss_of(job, model, target, width)
        return JointLoss(model, self.vocabulary.blank, target, job)

    def examples(self, job: Job, split: str, targets: RaggedArray | None) -> list[Example]:
        examples = super().examples(job, split, targets)
        if split != "train":
            return examples
        if targets is not None and len(layers_of(job)) > 1:
            folders = [targets_folder(self.paths, each) for each in self.targets_of(job)]
            every = [super(LossRunner, self).examples(job, split, RaggedArray(folder)) for folder in folders]
            examples = [
                replace(of_layers[0], target=SideBySide(*(each.target for each in of_layers)))
                for of_layers in zip(*every, strict=True)
            ]
        if "consistency" in job.loss:
            examples = paired(examples, job.params.mix.copies)
        return examples

    def keep_weights(self, job: Job, weights: dict[str, Tensor]) -> None:
        self._weights.mkdir(parents=True, exist_ok=True)
        file = self._weights / f"{job.variant}, {job.steps} steps, seed {job.seed}.safetensors"
        save_file({name: weight.cpu().contiguous() for name, weight in weights.items()}, file)

    @property
    def _weights(self) -> Path:
        return shared(self.paths) / "weights"

    def run(self, job: Job) -> list[dict[str, Any]]:
        if "mean_of" not in job.loss:
            return super().run(job)
        of = f"{job.loss['mean_of']}, {job.steps} steps, seed *.safetensors"
        files = sorted(self._weights.glob(of))
        if not files:
            raise UserError(f"{job.variant}: no adapter of {job.loss['mean_of']!r} to take the mean of; train it first")
        model = mean_of_adapters(
            load_student(self.paths.student, job.params.student.quantize, self.device), job, list(map(load_file, files))
        )
        trained = {name: weight.clone() for name, weight in model.named_parameters() if "lora_B" in name}
        results = []
        for alpha in ALPHAS:
            with torch.no_grad():
                for name, weight in trained.items():
                    model.get_parameter(name).copy_(alpha * weight)
            result = {"variant": at_alpha(job.variant, alpha), "steps": job.steps, "seed": job.seed}
            results.append(result | {"adapters": len(files), "errors": self._errors(EncoderCTC(model))})
        return results


def paired(examples: list[Example], copies: int) -> list[Example]:
    """Each mixture beside the next one of the same utterance, the last beside the first: as many as there are mixtures.

    `copies` of each utterance follow one another.
    """
    pairs = []
    for first in range(0, len(examples), copies):
        versions = examples[first : first + copies]
        for one, other in zip(versions, versions[1:] + versions[:1], strict=True):
            pairs.append(replace(one, features=SideBySide(one.features, other.features)))
    return pairs


def mean_of_adapters(model: Any, job: Job, adapters: list[dict[str, Tensor]]) -> Any:
    """The student with the mean of LoRA updates: their factors side by side, in one adapter of the ranks' sum."""
    lora = job.params.lora.model_copy(
        update={"r": job.params.lora.r * len(adapters), "alpha": job.params.lora.alpha * len(adapters)}
    )
    model = add_lora(model, lora, job.seed)
    prefix = "student.model."
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_A" in name:
                weight.copy_(torch.cat([each[prefix + name] for each in adapters], dim=0))
            elif "lora_B" in name:
                weight.copy_(torch.cat([each[prefix + name] for each in adapters], dim=1) / len(adapters))
    return model
