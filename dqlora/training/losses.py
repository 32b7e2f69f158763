"""The terms of the loss: CTC, KL divergence, feature distance.

All terms are sums over their items, divided by counts that the caller gives: so that a batch spread over several
processes has the loss that it has on one.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dqlora.data.batching import length_mask


def ctc_loss(logits: Tensor, frames: Tensor, labels: Tensor, label_lengths: Tensor, blank: int) -> Tensor:
    """CTC loss (Graves et al. 2006) of each utterance in nats per label, summed over the batch.

    Parameters
    ----------
    logits
        [batch, longest, vocabulary].
    labels
        int64 [batch, most labels], padded with anything.
    frames, label_lengths
        int64 [batch], none of them 0; on the CPU, where `F.ctc_loss` wants them, or else it waits for the GPU.
    """
    log_probs = F.log_softmax(logits.float(), dim=-1).transpose(0, 1)  # [longest, batch, vocabulary]
    losses = F.ctc_loss(log_probs, labels, frames, label_lengths, blank=blank, reduction="none")  # [batch]
    return (losses / label_lengths.to(losses.device, non_blocking=True)).sum()


def posterior_given_text(logits: Tensor, labels: Tensor, blank: int) -> Tensor:
    """Log-probability of each token at each frame, given that the clip says `labels`: [frames, vocabulary].

    A soft forced alignment: how much of the probability of all CTC paths of the text passes through a token at a frame.
    The gradient of the CTC loss with respect to the logits is the softmax less this posterior (Graves et al. 2006,
    equation 16), so it is taken from there.

    Parameters
    ----------
    logits
        [frames, vocabulary] of one clip.
    labels
        int64 [labels]; where they need more frames than there are, the softmax is returned as it is.
    """
    with torch.inference_mode(False), torch.enable_grad():
        variable = logits.detach().float().clone().requires_grad_()
        log_probs = F.log_softmax(variable, dim=-1)
        lengths = torch.tensor([len(logits)]), torch.tensor([len(labels)])
        loss = F.ctc_loss(
            log_probs[:, None], labels.clone()[None], *lengths, blank=blank, reduction="sum", zero_infinity=True
        )
        (gradient,) = torch.autograd.grad(loss, variable)
    return (log_probs.detach().exp() - gradient).clamp(min=1e-6).log()


def kl_divergence(
    student: Tensor, teacher: Tensor, frames: Tensor, temperature: float = 1.0, mask: Tensor | None = None
) -> Tensor:
    """KL(teacher || student) in nats, summed over the batch's frames of speech, times temperature squared.

    The square keeps the gradient's size when the temperature changes (Hinton et al. 2015).

    Parameters
    ----------
    student, teacher
        logits [batch, longest, vocabulary], frame by frame at the same time.
    frames
        int64 [batch], how many of each are speech.
    mask
        bool [batch, longest]: the frames to count, all of them if not given.
    """
    student_log_probs = F.log_softmax(student.float() / temperature, dim=-1)
    teacher_log_probs = F.log_softmax(teacher.float() / temperature, dim=-1)
    divergence = (teacher_log_probs.exp() * (teacher_log_probs - student_log_probs)).sum(-1)  # [batch, longest]
    return temperature**2 * _over_speech(divergence, frames, mask)


def feature_distance(student: Tensor, teacher: Tensor, frames: Tensor) -> Tensor:
    """1 - cosine + smooth L1 between features [batch, longest, width], summed over the batch's frames of speech.

    The teacher's features are brought to zero mean and unit variance, a frame at a time, so that the smooth L1 has a
    scale.
    """
    target = F.layer_norm(teacher.float(), teacher.shape[-1:])
    cosine = 1 - F.cosine_similarity(student.float(), target, dim=-1)
    smooth = F.smooth_l1_loss(student.float(), target, reduction="none").mean(-1)
    return _over_speech(cosine + smooth, frames)


def _over_speech(values: Tensor, frames: Tensor, mask: Tensor | None = None) -> Tensor:
    counted = length_mask(frames, values.shape[1])
    if mask is not None:
        counted = counted & mask
    return values.masked_fill(~counted, 0.0).sum()
