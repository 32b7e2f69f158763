"""The training loop of the student, read top to bottom: data, model, optimiser, schedule, loop, checkpoint."""

import json
import math
import resource
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from dqlora.audio import FRAMES_PER_SECOND
from dqlora.batching import (
    Batch,
    Example,
    bucketed_batches,
    collate,
    endless_batches,
    made_ahead,
    padded_shape,
    rounded_up,
)
from dqlora.config import Budget, Train
from dqlora.errors import UserError
from dqlora.gpu import GPU_LOCK, CudaGraphs, prepare_for_gpu
from dqlora.objective import Objective
from dqlora.randomness import seed_for, seed_torch
from dqlora.scoring import count_errors
from dqlora.student import pad_features, time_mask
from dqlora.text import Vocabulary


@dataclass
class Progress:
    """What a checkpoint carries beside tensors."""

    step: int = 0
    best_wer: float = math.inf
    best_step: int = 0
    validations_without_gain: int = 0
    seconds: float = 0.0  # of training, over all interruptions
    audio_seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Share:
    """What one process takes of a batch, and the counts of the whole."""

    batch: Batch
    weight: float  # 0 where the batch has fewer clips than there are processes
    clips: int
    frames: int


def warmup_cosine(step: int, steps: int, warmup_share: float) -> float:
    """Factor of the learning rate: linear from 0 over the warm-up, then half a cosine to 0."""
    warmup = warmup_share * steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, steps - warmup)))


def sum_gradients(weights: Iterable[Tensor], accelerator: Accelerator) -> None:
    """Add up the gradients of all processes, as one message; with one process there is nothing to do.

    DistributedDataParallel would send them while the backward runs, in hooks that a recorded CUDA graph does not call.
    """
    if accelerator.num_processes > 1:
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        summed = accelerator.reduce(nn.utils.parameters_to_vector(gradients), reduction="sum")
        nn.utils.vector_to_parameters(summed, gradients)


@torch.inference_mode()
def read_batched(
    model: nn.Module, features: Sequence[Tensor | np.ndarray], vocabulary: Vocabulary, longest: int
) -> list[str]:
    """Greedy transcripts of CNN features [frames, conv_dim], batched up to `longest` padded frames."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    hypotheses = [""] * len(features)
    for positions in bucketed_batches([len(one) for one in features], longest, seed=0, epoch=0):
        padded, frames = pad_features([features[position] for position in positions])
        symbols = model(padded.to(device), frames.to(device)).argmax(-1).cpu()
        for position, row, count in zip(positions, symbols, frames.tolist(), strict=True):
            hypotheses[position] = vocabulary.decode(row[:count].tolist())
    model.train(was_training)
    return hypotheses


def validation_wer(
    model: nn.Module, examples: list[Example], vocabulary: Vocabulary, language: str, longest: int
) -> float:
    """WER of greedy decoding over `examples`, batched up to `longest` padded frames."""
    hypotheses = read_batched(model, [example.features for example in examples], vocabulary, longest)
    return count_errors([example.text for example in examples], hypotheses, language).wer


def train_student(
    objective: Objective,
    training: list[Example],
    validation: list[Example],
    vocabulary: Vocabulary,
    language: str,
    settings: Train,
    budget: Budget,
    lambda_distill: float,
    seed: int,
    checkpoint: Path,
    accelerator: Accelerator,
    on_point: Callable[[dict[str, float]], None] = lambda point: None,
) -> Progress:
    """Train the trainable weights of `objective` in place and leave it those of the best validation, interpolated.

    Goes on from `checkpoint` where that exists; the result is the same as without the interruption.

    Parameters
    ----------
    objective
        holds the student; what is to be trained requires gradients.
    training, validation
        on several processes the same everywhere: each takes its share of every batch, and the gradients are summed, so
        that the loss is that of one process (dropout aside, which each draws for itself).
    lambda_distill
        weight of the distance to the teacher; above 0 every training example needs `teacher`.
    checkpoint
        a safetensors file, written at every validation.
    on_point
        called with each point of the curve, those before an interruption included.

    Raises
    ------
    UserError
        if the loss is no longer finite.
    """
    device = accelerator.device
    longest = round(budget.batch_seconds * FRAMES_PER_SECOND)
    graphs = device.type == "cuda"
    if graphs:
        prepare_for_gpu(objective.student.model)
        objective.comparison = CudaGraphs(objective.comparison)
    trainable: dict[str, Tensor] = {name: each for name, each in objective.named_parameters() if each.requires_grad}
    optimiser = torch.optim.AdamW(
        trainable.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    start = {name: weight.detach().clone() for name, weight in trainable.items()}
    best = {name: weight.clone() for name, weight in start.items()}
    progress = _resume(checkpoint, trainable, best, optimiser) if checkpoint.exists() else Progress()
    if progress.step:
        accelerator.print(f"training goes on from step {progress.step} ({checkpoint})")
    curve = progress.curve
    for point in curve:
        on_point(point)

    def validate(train_loss: float) -> None:
        """One point of the curve; the main process decides, the others hear of it."""
        wer = 0.0
        if accelerator.is_main_process:
            wer = validation_wer(objective.student, validation, vocabulary, language, longest)
        wer = broadcast_object_list([wer])[0]
        progress.validations_without_gain = 0 if wer < progress.best_wer else progress.validations_without_gain + 1
        if wer <= progress.best_wer:  # of equals the one that has seen more
            progress.best_wer, progress.best_step = wer, progress.step
            for name, weight in trainable.items():
                best[name].copy_(weight.detach())
        curve.append({"step": progress.step, "train_loss": train_loss, "validation_wer": wer})
        on_point(curve[-1])

    objective.train()
    if not curve:
        validate(train_loss=math.nan)
    losses: list[Tensor] = []
    started = time.perf_counter() - progress.seconds
    lengths = [len(example.features) for example in training]
    rounded = [rounded_up(length) for length in lengths] if graphs else lengths
    batches = enumerate(endless_batches(rounded, longest, seed, start=progress.step), start=progress.step)

    def share_of(numbered: tuple[int, list[int]]) -> Share:
        step, positions = numbered
        mine = range(accelerator.process_index, len(positions), accelerator.num_processes)
        rows = list(mine) or [0]
        most = max(lengths[position] for position in positions)
        masked = time_mask(
            len(positions), most, settings.mask_time_prob, torch.Generator().manual_seed(seed_for(seed, "mask", step))
        )
        clips, frames = padded_shape(len(positions), most, longest)
        shape = (-(-clips // accelerator.num_processes), frames) if graphs else None
        with GPU_LOCK:
            batch = collate([training[positions[row]] for row in rows], shape, masked[rows], pinned=graphs).to(device)
        return Share(
            batch,
            weight=1.0 if mine else 0.0,
            clips=len(positions),
            frames=sum(lengths[position] for position in positions),
        )

    shares = made_ahead(share_of, batches, device)
    bar = tqdm(
        total=budget.steps, initial=progress.step, desc="train", unit=" step", disable=not accelerator.is_main_process
    )
    while progress.step < budget.steps and progress.validations_without_gain < settings.patience:
        share = next(shares)
        seed_torch(seed, "dropout", progress.step, accelerator.process_index)
        factor = warmup_cosine(progress.step, budget.steps, settings.warmup_share)
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * factor
        ctc, distance = objective(share.batch)
        loss = share.weight * (ctc / share.clips + lambda_distill * distance / share.frames)
        loss.backward()
        sum_gradients(trainable.values(), accelerator)
        nn.utils.clip_grad_norm_(trainable.values(), settings.gradient_clip)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.detach())

        progress.step += 1
        progress.audio_seconds += share.frames / FRAMES_PER_SECOND
        bar.update()
        if progress.step % budget.validate_every == 0 or progress.step == budget.steps:
            train_loss = accelerator.reduce(torch.stack(losses), reduction="sum").mean().item()
            if not math.isfinite(train_loss):
                raise UserError(
                    f"training diverged: the loss is {train_loss} at step {progress.step}; lower train.learning_rate "
                    f"(now {settings.learning_rate}) or train.gradient_clip (now {settings.gradient_clip})"
                )
            losses.clear()
            validate(train_loss)
            progress.seconds = time.perf_counter() - started
            bar.set_postfix(loss=f"{train_loss:.3f}", wer=f"{curve[-1]['validation_wer']:.3f}")
            if accelerator.is_main_process:
                _save(checkpoint, trainable, best, optimiser, progress)
    bar.close()
    shares.close()
    progress.seconds = time.perf_counter() - started
    with torch.no_grad():
        for name, parameter in trainable.items():
            parameter.copy_(interpolated(name, start[name], best[name], settings.interpolation))
    return progress


def interpolated(name: str, start: Tensor, end: Tensor, share: float) -> Tensor:
    """`share` of the way from one weight to the other, as WiSE-FT mixes a model with its fine-tuned one.

    Wortsman et al. 2022 (arXiv 2109.01903): most of what fine-tuning gains is kept, much of what it loses elsewhere
    comes back. Of LoRA's factors only B, which starts from 0, is moved: B A is then `share` of the trained update.
    """
    return end if "lora_A" in name else torch.lerp(start, end, share)


def _save(
    checkpoint: Path, trainable: dict[str, Tensor], best: dict[str, Tensor], optimiser: Any, progress: Progress
) -> None:
    tensors = {f"weight/{name}": weight.detach() for name, weight in trainable.items()}
    tensors |= {f"best/{name}": weight for name, weight in best.items()}
    for number, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser/{number}/{name}": value for name, value in state.items()}
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    temporary = checkpoint.with_suffix(".tmp")
    contiguous = {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, temporary, metadata={"progress": json.dumps(vars(progress))})
    temporary.replace(checkpoint)


def _resume(
    checkpoint: Path, trainable: dict[str, Tensor], best: dict[str, Tensor], optimiser: torch.optim.Optimizer
) -> Progress:
    state: dict[int, dict[str, Tensor]] = {}
    with safe_open(checkpoint, "pt") as file, torch.no_grad():
        progress = Progress(**json.loads(file.metadata()["progress"]))
        for key in file.keys():  # noqa: SIM118 (a safetensors file is no dict)
            kind, _, name = key.partition("/")
            if kind == "optimiser":
                number, _, slot = name.partition("/")
                state.setdefault(int(number), {})[slot] = file.get_tensor(key)
            else:
                (trainable if kind == "weight" else best)[name].copy_(file.get_tensor(key))
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    return progress


def peak_memory_mb() -> dict[str, float]:
    """Peak memory so far in MB (10^6 bytes): resident, and on the GPU (0 without one)."""
    device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {"rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, "device": device / 1e6}
