"""What training makes small: CTC on the transcript and the distance to the teacher, of one batch."""

from torch import Tensor, nn
from torch.nn import functional as F

from dqlora.batching import Batch
from dqlora.config import Distill
from dqlora.losses import ctc_loss, feature_distance, kl_divergence
from dqlora.student import FromFeatures, base_of

OF_FEATURES = ("whisper_features", "base_features")  # targets that are features, not letters


class Comparison(nn.Module):
    """The student's logits of a batch, and how far it is from its teacher's letters or features."""

    def __init__(self, student: FromFeatures, projection: nn.Module | None, blank: int, settings: Distill):
        super().__init__()
        self.student, self.projection, self.blank, self.settings = student, projection, blank, settings

    def forward(
        self, features: Tensor, frames: Tensor, masked: Tensor, teacher: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Logits [batch, longest, vocabulary], and the distance summed over frames where there is a teacher."""
        logits = self.student(features, frames, masked)
        if teacher is None:
            return (logits,)
        if self.projection is not None:
            return logits, feature_distance(self.projection(self.student.hidden), teacher, frames)
        kept = frames_kept(teacher, self.blank, self.settings.frames)
        return logits, kl_divergence(logits, teacher, frames, self.settings.temperature, kept)


class Objective(nn.Module):
    """The loss of a batch as two sums, CTC over clips and distance over frames; 0 for the latter without targets."""

    def __init__(self, model: nn.Module, blank: int, settings: Distill, target_width: int | None = None):
        super().__init__()
        width_of_features = target_width if settings.target in OF_FEATURES else None
        self.student = FromFeatures(model, settings.layer if width_of_features else None)
        self.blank = blank
        projection: nn.Module | None = None
        if width_of_features:
            base = base_of(model)
            width = base.config.hidden_size
            same = settings.target == "base_features"
            projection = nn.LayerNorm(width, elementwise_affine=False) if same else nn.Linear(width, width_of_features)
            projection.to(base.device)
        self.comparison: nn.Module = Comparison(self.student, projection, blank, settings)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        frames = batch.frames.to(batch.features.device, non_blocking=True)
        targets = () if batch.teacher is None else (batch.teacher,)
        logits, *distance = self.comparison(batch.features, frames, batch.masked, *targets)
        clips = len(batch.labels)  # rows beyond them only fill the batch
        ctc = ctc_loss(logits[:clips], batch.frames[:clips], batch.labels, batch.label_lengths, self.blank)
        return ctc, distance[0] if distance else ctc.new_zeros(())


def frames_kept(teacher: Tensor, blank: int, which: str) -> Tensor | None:
    """Frames of the KL, bool [batch, longest]; None for all.

    `letters` drops the frames where the teacher's best symbol is blank; `around_letters` keeps one more on either side
    of each letter (symmetric selection, Hilmes et al. 2025, arXiv 2506.01503).
    """
    if which == "all":
        return None
    spoken = teacher.argmax(-1) != blank
    if which == "letters":
        return spoken
    return F.max_pool1d(spoken[:, None].float(), 3, stride=1, padding=1)[:, 0] > 0
