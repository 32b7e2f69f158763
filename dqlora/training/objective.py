"""What training makes small: CTC + lambda_distill * distance(teacher, student), of one batch."""

from torch import Tensor, nn

from dqlora.data.batching import Batch
from dqlora.models.wav2vec2 import EncoderCTC, base_of
from dqlora.training.losses import ctc_loss
from dqlora.training.targets import Target


class StudentWithDistance(nn.Module):
    """The student's logits of a batch, and how far it is from its target: what a CUDA graph can replay."""

    def __init__(self, student: EncoderCTC, target: Target | None, projection: nn.Module | None, blank: int):
        super().__init__()
        self.student, self.target, self.projection, self.blank = student, target, projection, blank

    def forward(
        self, features: Tensor, frames: Tensor, time_mask: Tensor, target: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Logits [batch, longest, vocabulary], and the distance summed over frames where there is a target."""
        logits = self.student(features, frames, time_mask)
        if target is None or self.target is None:
            return (logits,)
        student = logits if self.projection is None else self.projection(self.student.hidden)
        return logits, self.target.distance(student, target, frames, self.blank)


class DistillationLoss(nn.Module):
    """The loss of a batch as two sums: CTC over clips, and the distance over frames; 0 for the latter without targets.

    Parameters
    ----------
    model
        a Wav2Vec2ForCTC, or a PeftModel of one; trainable is what requires gradients.
    blank
        token id of CTC's blank.
    target, width
        what the student is drawn to, and its values a frame; None: CTC alone.
    lambda_distill
        weight of the distance, times the target's own scale.
    """

    def __init__(
        self, model: nn.Module, blank: int, target: Target | None = None, width: int = 0, lambda_distill: float = 0.0
    ):
        super().__init__()
        config, device = base_of(model).config, base_of(model).device
        self.student = EncoderCTC(model, target.student_layer if target else None)
        self.blank = blank
        self.distance_weight = lambda_distill * (target.scale if target else 1.0)
        projection = target.projection(config.hidden_size, width) if target else None
        if projection is not None:
            projection.to(device)
        self.student_with_distance: nn.Module = StudentWithDistance(self.student, target, projection, blank)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        frames = batch.frames.to(batch.features.device, non_blocking=True)
        targets = () if batch.target is None else (batch.target,)
        logits, *distance = self.student_with_distance(batch.features, frames, batch.time_mask, *targets)
        clips = len(batch.labels)  # rows beyond them only fill the batch
        ctc = ctc_loss(logits[:clips], batch.frames[:clips], batch.labels, batch.label_lengths, self.blank)
        return ctc, distance[0] if distance else ctc.new_zeros(())
