"""What the student learns from its teacher at each frame: one class a target.

A target is made once of each clip of clean speech, at the student's frames, and lies beside each of its noisy versions.
To add one, write a class below: `dvc exp run -S distill.target=its_name` then finds it.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dqlora.config import Distill
from dqlora.data.batching import length_mask, pad_features
from dqlora.errors import UserError
from dqlora.models.alignment import aligned_frames
from dqlora.models.wav2vec2 import EncoderCTC, base_of
from dqlora.seeding import seed_torch
from dqlora.training.losses import feature_distance, kl_divergence, posterior_given_text

if TYPE_CHECKING:
    from dqlora.models.teacher_head import TeacherHead

TARGETS: dict[str, type["Target"]] = {}


@dataclass(frozen=True)
class Clip:
    """One clip of clean speech."""

    cnn: Tensor  # the student's CNN features, [student frames, conv_dim]
    labels: list[int]  # token ids of what is said
    whisper: Tensor | None = None  # the teacher's features of its input audio, [teacher frames, width]


@dataclass(frozen=True)
class Sources:
    """The frozen models that targets are made with."""

    base: EncoderCTC  # the base student; its layer `Target.base_layer` tapped
    blank: int  # token id of CTC's blank
    seed: int
    head: "TeacherHead | None" = None  # of targets with `uses_head`

    @property
    def vocabulary_size(self) -> int:
        return base_of(self.base.model).config.vocab_size


class Target(ABC):
    """What the student is drawn to, and how far it is from it."""

    uses_whisper: ClassVar[bool] = False  # made of the teacher's features
    uses_head: ClassVar[bool] = False  # made of the logits of the teacher's head
    limited_by_head: ClassVar[bool] = False  # as wrong as the head is
    seeded: ClassVar[bool] = False  # depends on the seed
    scale: ClassVar[float] = 1.0  # of the distance in the loss, so that lambda_distill 1 suits every target

    def __init_subclass__(cls, name: str | None = None, **options: Any):
        super().__init_subclass__(**options)
        if name:
            TARGETS[name] = cls

    def __init__(self, settings: Distill):
        self.settings = settings

    @property
    def base_layer(self) -> int | None:
        """The base student's transformer layer (from 1) whose features are the target; None if none is."""
        return None

    @property
    def student_layer(self) -> int | None:
        """The student's transformer layer that is compared with the target; None: its logits."""
        return None

    @abstractmethod
    def width(self, student: Any, whisper_width: int) -> int:
        """Values a frame, given the student's config and the width of Whisper's features."""

    @abstractmethod
    def make(self, clips: list[Clip], sources: Sources) -> list[Tensor]:
        """The targets [student frames, width] of clips, made as one batch."""

    def projection(self, hidden_size: int, width: int) -> nn.Module | None:
        """What brings the student's features [..., hidden_size] to the target's width; None for its logits."""
        return None

    @abstractmethod
    def distance(self, student: Tensor, target: Tensor, frames: Tensor, blank: int) -> Tensor:
        """How far the student is from the target, summed over the batch's frames of speech.

        Parameters
        ----------
        student
            [batch, longest, width]: its logits, or its projected features.
        target
            [batch, longest, width].
        frames
            int64 [batch], how many of each are speech.
        blank
            token id of CTC's blank.
        """


def make_target(settings: Distill) -> Target:
    """The target of `distill.target`; raises UserError if there is none of that name."""
    if settings.target not in TARGETS:
        known = ", ".join(TARGETS)
        raise UserError(f"params.yaml: distill.target: unknown target {settings.target!r}; known are {known}")
    return TARGETS[settings.target](settings)


class LogitsTarget(Target):
    """A distribution over the student's tokens; the distance is a KL divergence."""

    def width(self, student: Any, whisper_width: int) -> int:
        return student.vocab_size

    def distance(self, student: Tensor, target: Tensor, frames: Tensor, blank: int) -> Tensor:
        mask = frame_mask(target, frames, blank, self.settings.frames)
        return kl_divergence(student, target, frames, self.settings.temperature, mask)


class FeatureTarget(Target):
    """Features of a transformer layer; the distance is `losses.feature_distance`."""

    scale = 10.0  # of 3, 10, 30 and 100, what lowered WER most: docs/distillation.md

    @property
    def student_layer(self) -> int | None:
        return self.settings.layer

    def distance(self, student: Tensor, target: Tensor, frames: Tensor, blank: int) -> Tensor:
        return feature_distance(student, target, frames)


class BaseFeatures(FeatureTarget, name="base_features"):
    """The base student's own features of the clean speech, of the layer that is compared."""

    @property
    def base_layer(self) -> int | None:
        return self.settings.layer

    def width(self, student: Any, whisper_width: int) -> int:
        return student.hidden_size

    def make(self, clips: list[Clip], sources: Sources) -> list[Tensor]:
        _logits(clips, sources.base)
        assert sources.base.hidden is not None
        return [row[: len(clip.cnn)] for row, clip in zip(sources.base.hidden, clips, strict=True)]

    def projection(self, hidden_size: int, width: int) -> nn.Module:
        return nn.LayerNorm(hidden_size, elementwise_affine=False)


class WhisperFeatures(FeatureTarget, name="whisper_features"):
    """Whisper's encoder features, which a trained linear map of the student's is compared with."""

    uses_whisper = True

    def width(self, student: Any, whisper_width: int) -> int:
        return whisper_width

    def make(self, clips: list[Clip], sources: Sources) -> list[Tensor]:
        return [_at_student_frames(_whisper(clip), clip, sources) for clip in clips]

    def projection(self, hidden_size: int, width: int) -> nn.Module:
        return nn.Linear(hidden_size, width)


class BaseLogits(LogitsTarget, name="base_logits"):
    """The base student's own logits on the clean speech."""

    def make(self, clips: list[Clip], sources: Sources) -> list[Tensor]:
        logits = _logits(clips, sources.base)
        return [row[: len(clip.cnn)] for row, clip in zip(logits, clips, strict=True)]


class WhisperLogits(LogitsTarget, name="whisper_logits"):
    """The logits of the teacher's head on Whisper's features."""

    uses_whisper = uses_head = limited_by_head = True

    def make(self, clips: list[Clip], sources: Sources) -> list[Tensor]:
        assert sources.head is not None
        return [_at_student_frames(sources.head.clip_logits(_whisper(clip)), clip, sources) for clip in clips]


class MeanLogits(LogitsTarget, name="mean_logits"):
    """The mean of both distributions: its KL differs from the mean of both KLs by a constant."""

    uses_whisper = uses_head = limited_by_head = True

    def make(self, clips: list[Clip], sources: Sources) -> list[Tensor]:
        both = (kind(self.settings).make(clips, sources) for kind in (WhisperLogits, BaseLogits))
        # up to a constant, which logits may have
        return [
            torch.logaddexp(*(logits.float().log_softmax(-1) for logits in each)) for each in zip(*both, strict=True)
        ]


class BaseCtcPosterior(BaseLogits, name="base_ctc_posterior"):
    """`base_logits` given the text: a soft forced alignment to the transcript."""

    def make(self, clips: list[Clip], sources: Sources) -> list[Tensor]:
        return _posteriors(super().make(clips, sources), clips, sources)


class WhisperCtcPosterior(WhisperLogits, name="whisper_ctc_posterior"):
    """`whisper_logits` given the text: a soft forced alignment to the transcript."""

    limited_by_head = False

    def make(self, clips: list[Clip], sources: Sources) -> list[Tensor]:
        return _posteriors(super().make(clips, sources), clips, sources)


class UntrainedHead(LogitsTarget, name="untrained_head"):
    """As in the research notebook (DQLoRA): an untrained projection of Whisper's features, stretched to the frames."""

    uses_whisper = seeded = True

    def make(self, clips: list[Clip], sources: Sources) -> list[Tensor]:
        seed_torch(sources.seed, "untrained_head")
        head = nn.Linear(_whisper(clips[0]).shape[1], sources.vocabulary_size).to(_whisper(clips[0]).device)
        rows = [head(_whisper(clip).float()).T[None] for clip in clips]  # [1, vocabulary, teacher frames] each
        return [F.interpolate(row, len(clip.cnn), mode="linear")[0].T for row, clip in zip(rows, clips, strict=True)]


def frame_mask(target: Tensor, frames: Tensor, blank: int, which: str) -> Tensor | None:
    """Frames that a KL counts, bool [batch, longest], of the `frames` of each clip, int64 [batch]; None for all.

    `nonblank` drops the frames where the target's best token is blank; `around_nonblank` keeps one more on either side
    of each that is left (symmetric selection, Hilmes et al. 2025, arXiv 2506.01503).
    """
    if which == "all":
        return None
    nonblank = (target.argmax(-1) != blank) & length_mask(frames, target.shape[1])
    if which == "nonblank":
        return nonblank
    return F.max_pool1d(nonblank[:, None].float(), 3, stride=1, padding=1)[:, 0] > 0


def _whisper(clip: Clip) -> Tensor:
    assert clip.whisper is not None
    return clip.whisper


def _logits(clips: list[Clip], base: EncoderCTC) -> Tensor:
    padded, frames = pad_features([clip.cnn for clip in clips])
    return base(padded, frames.to(padded.device))


def _at_student_frames(rows: Tensor, clip: Clip, sources: Sources) -> Tensor:
    config = base_of(sources.base.model).config
    return rows[torch.from_numpy(aligned_frames(config, len(clip.cnn), len(rows)))]


def _posteriors(logits: list[Tensor], clips: list[Clip], sources: Sources) -> list[Tensor]:
    return [
        posterior_given_text(row, torch.tensor(clip.labels, device=row.device), sources.blank)
        for row, clip in zip(logits, clips, strict=True)
    ]
