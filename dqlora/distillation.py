"""What the student learns from its teacher, a frame at a time: whose letters or features, and how far it is from them.

Targets are made once, on the clean speech, and lie beside each noisy example at the student's frames.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dqlora.config import Distill
from dqlora.losses import posterior_given_text
from dqlora.student import FromFeatures, base_of
from dqlora.teacher import aligned_frames
from dqlora.teacher_head import TeacherHead, head_logits

OF_HEAD = ("whisper_letters", "whisper_alignment", "both_letters")
OF_WHISPER = (*OF_HEAD, "whisper_features", "notebook")


class Targets:
    """Makes an utterance's target, float16 [student frames, width].

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
    def __call__(self, cnn: Tensor, teacher: Tensor | None, labels: list[int]) -> np.ndarray:
        """Target of one utterance.

        Parameters
        ----------
        cnn
            the student's CNN features of the clean speech, [student frames, conv_dim].
        teacher
            the teacher's features of what it heard, [teacher frames, width]; None where the target has no use for them.
        labels
            what was said; an alignment's target is the letters' given that text.
        """
        letters = self.settings.target.replace("_alignment", "_letters")
        target = getattr(self, f"_{letters}")(cnn, teacher)
        if letters != self.settings.target:
            target = posterior_given_text(target, torch.tensor(labels, device=target.device), self.blank)
        return target.half().cpu().numpy()

    def _nearest(self, rows: Tensor, frames: int) -> Tensor:
        return rows[torch.from_numpy(aligned_frames(base_of(self.base.model).config, frames, len(rows)))]

    def _whisper_letters(self, cnn: Tensor, teacher: Tensor) -> Tensor:
        assert isinstance(self.head, TeacherHead)
        return self._nearest(head_logits(self.head, teacher), len(cnn))

    def _whisper_features(self, cnn: Tensor, teacher: Tensor) -> Tensor:
        return self._nearest(teacher, len(cnn))

    def _base_letters(self, cnn: Tensor, teacher: Tensor | None) -> Tensor:
        return self.base(cnn[None], torch.tensor([len(cnn)], device=cnn.device))[0]

    def _base_features(self, cnn: Tensor, teacher: Tensor | None) -> Tensor:
        self._base_letters(cnn, teacher)
        assert self.base.hidden is not None
        return self.base.hidden[0]

    def _both_letters(self, cnn: Tensor, teacher: Tensor) -> Tensor:
        """The mean of both distributions: its KL differs from the mean of both KLs by a constant."""
        each = [make(cnn, teacher).float().log_softmax(-1) for make in (self._whisper_letters, self._base_letters)]
        return torch.logaddexp(*each)  # up to a constant, which logits may have

    def _notebook(self, cnn: Tensor, teacher: Tensor) -> Tensor:
        """As the notebook has it: an untrained projection, stretched over the student's frames."""
        assert self.head is not None
        rows = self.head(teacher.float()).T[None]  # [1, vocabulary, teacher frames]
        return F.interpolate(rows, size=len(cnn), mode="linear")[0].T
