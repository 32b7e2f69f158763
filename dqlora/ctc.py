"""CTC on a GPU, one kernel each way, all of it there: `F.ctc_loss` waits for the GPU to copy the lengths to it.

The recursions are those of Graves et al. 2006 in the log domain, a program a clip, its states side by side. A clip of
L labels has 2 L + 1 states: blank, label, blank, ... label, blank.
"""
# mypy: allow-untyped-defs, disable-error-code="no-untyped-call"

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _symbols(labels, count, state, BLANK: tl.constexpr):
    """Each state's symbol, whether the clip has that state, and whether it may follow the state two before it."""
    used = state < 2 * count + 1
    letter = (state % 2 == 1) & used
    symbol = tl.load(labels + state // 2, mask=letter, other=BLANK)
    before = tl.load(labels + state // 2 - 1, mask=letter & (state > 2), other=BLANK)
    return symbol, used, letter & (state > 2) & (symbol != before)


@triton.jit
def _log_sum_exp(one, two, three):
    largest = tl.maximum(tl.maximum(one, two), three)
    largest = tl.where(largest == float("-inf"), 0.0, largest)
    return largest + tl.log(tl.exp(one - largest) + tl.exp(two - largest) + tl.exp(three - largest))


@triton.jit
def _forward(log_probs, labels, frames, counts, alphas, losses, longest, vocabulary, most,
             BLANK: tl.constexpr, STATES: tl.constexpr):  # fmt: skip
    clip = tl.program_id(0).to(tl.int64)
    state = tl.arange(0, STATES)
    last, count = tl.load(frames + clip), tl.load(counts + clip)
    symbol, used, skips = _symbols(labels + clip * most, count, state, BLANK)
    row = log_probs + clip * longest * vocabulary
    alpha_row = alphas + clip * longest * STATES
    alpha = tl.load(row + symbol, mask=used & (state < 2), other=float("-inf"))
    tl.store(alpha_row + state, alpha)
    for _ in range(1, last):
        tl.debug_barrier()
        one = tl.load(alpha_row + state - 1, mask=used & (state > 0), other=float("-inf"))
        two = tl.load(alpha_row + state - 2, mask=skips, other=float("-inf"))
        row += vocabulary
        alpha_row += STATES
        alpha = _log_sum_exp(alpha, one, two) + tl.load(row + symbol, mask=used, other=float("-inf"))
        tl.store(alpha_row + state, alpha)
    ends = used & (state >= 2 * count - 1)
    final = tl.where(ends, alpha, float("-inf"))
    largest = tl.max(final)
    largest = tl.where(largest == float("-inf"), 0.0, largest)
    tl.store(losses + clip, -largest - tl.log(tl.sum(tl.exp(final - largest))))


@triton.jit
def _backward(log_probs, labels, frames, counts, alphas, losses, weights, betas, gradient, longest, vocabulary, most,
              BLANK: tl.constexpr, STATES: tl.constexpr):  # fmt: skip
    """Take from `gradient`, which holds the weighted softmax, each symbol's weighted share of the paths."""
    clip = tl.program_id(0).to(tl.int64)
    state = tl.arange(0, STATES)
    last, count = tl.load(frames + clip), tl.load(counts + clip)
    loss, weight = tl.load(losses + clip), tl.load(weights + clip)
    symbol, used, _ = _symbols(labels + clip * most, count, state, BLANK)
    _, follows, skipped = _symbols(labels + clip * most, count, state + 2, BLANK)
    offset = (clip * longest + last - 1) * vocabulary
    row, gradient_row = log_probs + offset, gradient + offset
    alpha_row = alphas + (clip * longest + last - 1) * STATES
    beta_row = betas + clip * 2 * STATES  # two frames in turn: no state is overwritten before its neighbours read it
    beta = tl.full([STATES], 0.0, tl.float32)
    for step in range(0, last):
        log_prob = tl.load(row + symbol, mask=used, other=float("-inf"))
        if step == 0:
            beta = tl.where(used & (state >= 2 * count - 1), log_prob, float("-inf"))
        else:
            tl.debug_barrier()
            before = beta_row + (step - 1) % 2 * STATES
            one = tl.load(before + state + 1, mask=state < 2 * count, other=float("-inf"))
            two = tl.load(before + state + 2, mask=skipped & follows, other=float("-inf"))
            beta = _log_sum_exp(beta, one, two) + log_prob
        tl.store(beta_row + step % 2 * STATES + state, beta)
        alpha = tl.load(alpha_row + state)
        through = used & (alpha > float("-inf")) & (beta > float("-inf"))
        share = tl.where(through, weight * tl.exp(alpha + beta - log_prob + loss), 0.0)
        tl.atomic_add(gradient_row + symbol, -share, mask=used & (state % 2 == 1))
        tl.atomic_add(gradient_row + BLANK, -tl.sum(tl.where(state % 2 == 0, share, 0.0)))
        row -= vocabulary
        gradient_row -= vocabulary
        alpha_row -= STATES


def warps(states: int) -> int:
    """Two states a thread, within what a program may have."""
    return min(16, max(1, states // 64))


class _Ctc(torch.autograd.Function):
    @staticmethod
    def forward(context, logits: Tensor, frames: Tensor, labels: Tensor, label_lengths: Tensor, blank: int) -> Tensor:
        log_probs = logits.float().log_softmax(-1)
        clips, longest, vocabulary = log_probs.shape
        labels = labels.contiguous()
        states = triton.next_power_of_2(2 * labels.shape[1] + 1)
        alphas = log_probs.new_empty(clips, longest, states)
        losses = log_probs.new_empty(clips)
        sizes = (longest, vocabulary, labels.shape[1], blank, states)
        _forward[(clips,)](log_probs, labels, frames, label_lengths, alphas, losses, *sizes, num_warps=warps(states))
        context.save_for_backward(log_probs, labels, frames, label_lengths, alphas, losses)
        context.sizes, context.dtype = sizes, logits.dtype
        return torch.where(losses.isfinite(), losses, 0.0)

    @staticmethod
    def backward(context, towards: Tensor) -> tuple[Tensor | None, ...]:
        log_probs, labels, frames, label_lengths, alphas, losses = context.saved_tensors
        weights = torch.where(losses.isfinite(), towards, 0.0)
        spoken = torch.arange(log_probs.shape[1], device=log_probs.device) < frames[:, None]
        gradient = log_probs.exp() * (spoken * weights[:, None])[..., None]
        losses = losses.nan_to_num(posinf=0.0)
        betas = alphas.new_empty(len(losses), 2, alphas.shape[2])
        _backward[(len(losses),)](
            log_probs, labels, frames, label_lengths, alphas, losses, weights, betas, gradient, *context.sizes,
            num_warps=warps(alphas.shape[2]),
        )  # fmt: skip
        return gradient.to(context.dtype), None, None, None, None


def ctc_on_gpu(logits: Tensor, frames: Tensor, labels: Tensor, label_lengths: Tensor, blank: int) -> Tensor:
    """-ln P(labels | logits) of each clip, float32 [clips]; 0, and no gradient, where the labels do not fit.

    Parameters
    ----------
    logits
        [clips, longest, vocabulary].
    labels
        int64 [clips, most labels], padded with any symbols.
    frames, label_lengths
        int64 [clips], none of them 0; like the others on the GPU.
    """
    return _Ctc.apply(logits, frames, labels, label_lengths, blank)
