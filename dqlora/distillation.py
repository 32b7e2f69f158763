"""What the student learns from its teacher, a frame at a time: whose letters or features, and how far it is from them.

Targets are made once, on the clean speech, and lie beside each noisy example at the student's frames.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dqlora.config import Distill
from dqlora.losses import posterior_given_text
from dqlora.student import FromFeatures, base_of, pad_features
from dqlora.teacher import aligned_frames
from dqlora.teacher_head import TeacherHead, head_logits

OF_HEAD = ("whisper_letters", "whisper_alignment", "both_letters")
OF_WHISPER = (*OF_HEAD, "whisper_features", "notebook")


class Targets:
    """Makes utterances' targets, float16 [student frames, width] each.

    Parameters
    ----------
    base
        the base student, unadapted; with `settings.layer` tapped if its features are the target.
    blank
        the symbol of CTC's blank.
    head
        reads letters out of the teacher's features; of a `notebook` target, an untrained linear map.
    """

    def __init__(self, settings: Distill, base: FromFeatures, blank: int, head: nn.Module | None):
        self.settings, self.base, self.blank, self.head = settings, base, blank, head

    @torch.inference_mode()
    def __call__(self, cnn: list[Tensor], teacher: list[Tensor], labels: list[list[int]]) -> list[np.ndarray]:
        """Targets of utterances, made together.

        Parameters
        ----------
        cnn
            the student's CNN features of the clean speech, [student frames, conv_dim] each.
        teacher
            the teacher's features of what it heard, [teacher frames, width] each; empty where the target has no use for
            them.
        labels
            what was said; an alignment's target is the letters' given that text.
        """
        letters = self.settings.target.replace("_alignment", "_letters")
        targets: list[Tensor] = getattr(self, f"_{letters}")(cnn, teacher)
        if letters != self.settings.target:
            targets = [
                posterior_given_text(target, torch.tensor(said, device=target.device), self.blank)
                for target, said in zip(targets, labels, strict=True)
            ]
        return [target.half().cpu().numpy() for target in targets]

    def _nearest(self, rows: Tensor, frames: int) -> Tensor:
        return rows[torch.from_numpy(aligned_frames(base_of(self.base.model).config, frames, len(rows)))]

    def _whisper_letters(self, cnn: list[Tensor], teacher: list[Tensor]) -> list[Tensor]:
        assert isinstance(self.head, TeacherHead)
        return [self._nearest(head_logits(self.head, rows), len(own)) for own, rows in zip(cnn, teacher, strict=True)]

    def _whisper_features(self, cnn: list[Tensor], teacher: list[Tensor]) -> list[Tensor]:
        return [self._nearest(rows, len(own)) for own, rows in zip(cnn, teacher, strict=True)]

    def _base_letters(self, cnn: list[Tensor], teacher: list[Tensor]) -> list[Tensor]:
        padded, frames = pad_features(cnn)
        logits = self.base(padded, frames.to(padded.device))
        return [row[: len(own)] for row, own in zip(logits, cnn, strict=True)]

    def _base_features(self, cnn: list[Tensor], teacher: list[Tensor]) -> list[Tensor]:
        self._base_letters(cnn, teacher)
        assert self.base.hidden is not None
        return [row[: len(own)] for row, own in zip(self.base.hidden, cnn, strict=True)]

    def _both_letters(self, cnn: list[Tensor], teacher: list[Tensor]) -> list[Tensor]:
        """The mean of both distributions: its KL differs from the mean of both KLs by a constant."""
        made = zip(self._whisper_letters(cnn, teacher), self._base_letters(cnn, teacher), strict=True)
        # up to a constant, which logits may have
        return [torch.logaddexp(*(logits.float().log_softmax(-1) for logits in both)) for both in made]

    def _notebook(self, cnn: list[Tensor], teacher: list[Tensor]) -> list[Tensor]:
        """As the notebook has it: an untrained projection, stretched over the student's frames."""
        assert self.head is not None
        rows = [self.head(each.float()).T[None] for each in teacher]  # [1, vocabulary, teacher frames] each
        return [F.interpolate(each, len(own), mode="linear")[0].T for each, own in zip(rows, cnn, strict=True)]
