"""The training loop of the student, read top to bottom: data, model, optimiser, schedule, loop, checkpoint."""

import json
import math
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dqlora.config import Budget, Train
from dqlora.data.audio import FRAMES_PER_SECOND
from dqlora.data.batching import Batch, Example, collate, endless_batches, padded_shape, prefetch, rounded_up
from dqlora.data.text import Vocabulary
from dqlora.errors import UserError
from dqlora.evaluation.metrics import count_errors
from dqlora.models.wav2vec2 import draw_time_mask, transcribe_batch
from dqlora.progress import ProgressBar
from dqlora.seeding import seed_for, seed_torch
from dqlora.training.cuda_graphs import GPU_LOCK, CudaGraphs, prepare_for_gpu
from dqlora.training.objective import DistillationLoss
from dqlora.training.schedule import warmup_cosine

SKIPPED_IN_A_ROW = 10  # steps whose gradient is not finite, at which training ends; or more than
SKIPPED_RATIO = 0.01  # of the budget's steps, if that is more than one

OnPoint = Callable[[dict[str, float]], None]  # takes a point of the curve: step, train_loss, validation_wer


@dataclass(frozen=True)
class TrainingData:
    """On several processes the same everywhere: each takes its shard of every batch."""

    training: list[Example]
    validation: list[Example]
    vocabulary: Vocabulary
    language: str  # ISO 639-1: how transcripts are scored

    def validation_wer(self, student: nn.Module, longest: int) -> float:
        """WER of greedy decoding over the validation clips, batched up to `longest` padded frames."""
        features = [example.features for example in self.validation]
        hypotheses = transcribe_batch(student, features, self.vocabulary, longest)
        return count_errors([example.text for example in self.validation], hypotheses, self.language).wer


@dataclass
class Progress:
    """What a checkpoint carries beside tensors."""

    step: int = 0
    best_wer: float = math.inf
    best_step: int = 0
    validations_without_gain: int = 0
    seconds: float = 0.0  # of training, over all interruptions
    audio_seconds: float = 0.0
    skipped: list[int] = field(default_factory=list)  # steps whose gradient was not finite
    curve: list[dict[str, float]] = field(default_factory=list)


class TrainingState:
    """The weights in training and the best so far, the optimiser, and the progress: what a checkpoint holds.

    Parameters
    ----------
    loss
        its weights that require gradients are trained, in place.
    """

    def __init__(self, loss: DistillationLoss, plan: "Plan"):
        self.trainable: dict[str, Tensor] = {name: each for name, each in loss.named_parameters() if each.requires_grad}
        self.start = {name: weight.detach().clone() for name, weight in self.trainable.items()}
        self.best = {name: weight.clone() for name, weight in self.start.items()}
        self.optimiser = torch.optim.AdamW(
            self.trainable.values(), lr=plan.budget.learning_rate, weight_decay=plan.settings.weight_decay, fused=True
        )
        self.progress = Progress()

    def record(self, wer: float, train_loss: float) -> dict[str, float]:
        """Add a validation to the curve; its weights are kept if they are the best, of equals those that saw more."""
        progress = self.progress
        progress.validations_without_gain = 0 if wer < progress.best_wer else progress.validations_without_gain + 1
        if wer <= progress.best_wer:
            progress.best_wer, progress.best_step = wer, progress.step
            for name, weight in self.trainable.items():
                self.best[name].copy_(weight.detach())
        progress.curve.append({"step": progress.step, "train_loss": train_loss, "validation_wer": wer})
        return progress.curve[-1]

    @torch.no_grad()
    def keep_best(self, wise_ft_alpha: float) -> None:
        """Set the weights to the best ones, `wise_ft_alpha` of the way from where they started."""
        for name, parameter in self.trainable.items():
            parameter.copy_(wise_ft(name, self.start[name], self.best[name], wise_ft_alpha))

    def save(self, checkpoint: Path) -> None:
        tensors = {f"weight/{name}": weight.detach() for name, weight in self.trainable.items()}
        tensors |= {f"best/{name}": weight for name, weight in self.best.items()}
        for number, slots in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser/{number}/{name}": value for name, value in slots.items()}
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        temporary = checkpoint.with_suffix(".tmp")
        contiguous = {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, temporary, metadata={"progress": json.dumps(vars(self.progress))})
        temporary.replace(checkpoint)

    @torch.no_grad()
    def load(self, checkpoint: Path) -> None:
        slots: dict[int, dict[str, Tensor]] = {}
        with safe_open(checkpoint, "pt") as file:
            self.progress = Progress(**json.loads(file.metadata()["progress"]))
            for key in file.keys():  # noqa: SIM118 (a safetensors file is no dict)
                kind, _, name = key.partition("/")
                if kind == "optimiser":
                    number, _, slot = name.partition("/")
                    slots.setdefault(int(number), {})[slot] = file.get_tensor(key)
                else:
                    (self.trainable if kind == "weight" else self.best)[name].copy_(file.get_tensor(key))
        self.optimiser.load_state_dict({"state": slots, "param_groups": self.optimiser.state_dict()["param_groups"]})


def wise_ft(name: str, start: Tensor, end: Tensor, alpha: float) -> Tensor:
    """`alpha` of the way from one weight to the other, as WiSE-FT mixes a model with its fine-tuned one.

    Wortsman et al. 2022 (arXiv 2109.01903): most of what fine-tuning gains is kept, much of what it loses elsewhere
    comes back. Of LoRA's factors only B, which starts from 0, is moved: B A is then `alpha` of the trained update.
    """
    return end if "lora_A" in name else torch.lerp(start, end, alpha)


@dataclass(frozen=True)
class Shard:
    """What one process takes of a batch, and the counts of the whole."""

    batch: Batch
    weight: float  # 0 where the batch has fewer clips than there are processes
    clips: int
    frames: int


class Shards:
    """This process' shard of each training step's batch: a function of the seed and the step alone.

    Parameters
    ----------
    longest
        the padded size of a batch, in frames.
    """

    def __init__(
        self, examples: list[Example], longest: int, mask_time_prob: float, seed: int, accelerator: Accelerator
    ):
        self.examples, self.longest, self.mask_time_prob, self.seed = examples, longest, mask_time_prob, seed
        self.processes, self.process = accelerator.num_processes, accelerator.process_index
        self.device = accelerator.device
        self.fixed_shapes = self.device.type == "cuda"  # each new one is another CUDA graph
        self.lengths = [len(example.features) for example in examples]

    def from_step(self, step: int) -> Generator[Shard, None, None]:
        """The shards of step `step` and all after it."""
        lengths = [rounded_up(length) for length in self.lengths] if self.fixed_shapes else self.lengths
        batches = enumerate(endless_batches(lengths, self.longest, self.seed, start=step), start=step)
        return prefetch(self.shard, batches, self.device)

    def shard(self, numbered: tuple[int, list[int]]) -> Shard:
        """This process' part of one step, given its number and the positions of its examples."""
        step, positions = numbered
        mine = range(self.process, len(positions), self.processes)
        rows = list(mine) or [0]
        most = max(self.lengths[position] for position in positions)
        generator = torch.Generator().manual_seed(seed_for(self.seed, "mask", step))
        time_mask = draw_time_mask(len(positions), most, self.mask_time_prob, generator)
        clips, frames = padded_shape(len(positions), most, self.longest)
        shape = (-(-clips // self.processes), frames) if self.fixed_shapes else None
        examples = [self.examples[positions[row]] for row in rows]
        with GPU_LOCK:
            batch = collate(examples, shape, time_mask[rows], pinned=self.fixed_shapes).to(self.device)
        return Shard(
            batch,
            weight=1.0 if mine else 0.0,
            clips=len(positions),
            frames=sum(self.lengths[position] for position in positions),
        )


def all_reduce_gradients(weights: Iterable[Tensor], accelerator: Accelerator) -> None:
    """Add up the gradients of all processes, as one message; with one process there is nothing to do.

    DistributedDataParallel would send them while the backward runs, in hooks that a recorded CUDA graph does not call.
    """
    if accelerator.num_processes > 1:
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        summed = accelerator.reduce(nn.utils.parameters_to_vector(gradients), reduction="sum")
        nn.utils.vector_to_parameters(summed, gradients)


@dataclass(frozen=True)
class Plan:
    """How to train: what params.yaml and the preset say of it."""

    settings: Train
    budget: Budget
    seed: int

    @property
    def longest(self) -> int:
        """The padded size of a batch, in frames."""
        return round(self.budget.batch_seconds * FRAMES_PER_SECOND)


def train_student(
    loss: DistillationLoss,
    data: TrainingData,
    plan: Plan,
    checkpoint: Path,
    accelerator: Accelerator,
    on_point: OnPoint = lambda point: None,
) -> Progress:
    """Train the trainable weights of `loss` in place; they end as those of the best validation, after WiSE-FT.

    Goes on from `checkpoint` where that exists; the result is the same as without the interruption.

    Parameters
    ----------
    loss
        with a distance, every training example needs a `target`.
    data
        on several processes their gradients are summed, so that the loss is that of one process (dropout aside, which
        each draws for itself).
    checkpoint
        a safetensors file, written at every validation.
    on_point
        called with each point of the curve, those before an interruption included.

    Raises
    ------
    UserError
        if too many steps have no finite gradient.
    """
    settings, budget = plan.settings, plan.budget
    if accelerator.device.type == "cuda":
        prepare_for_gpu(loss.student.model)
        loss.student_with_distance = CudaGraphs(loss.student_with_distance)
    state = TrainingState(loss, plan)
    weights = list(state.trainable.values())
    if checkpoint.exists():
        state.load(checkpoint)
        accelerator.print(f"training goes on from step {state.progress.step} ({checkpoint})")
    progress = state.progress
    for point in progress.curve:
        on_point(point)
    loss.train()
    if not progress.curve:
        on_point(state.record(_validate(loss, data, plan, accelerator), train_loss=math.nan))

    losses: list[Tensor] = []
    finite: list[Tensor] = []  # of each step since the last validation, whether its gradient is
    started = time.perf_counter() - progress.seconds
    shards = Shards(data.training, plan.longest, settings.mask_time_prob, plan.seed, accelerator).from_step(
        progress.step
    )
    main = accelerator.is_main_process
    bar = ProgressBar(total=budget.steps, initial=progress.step, desc="train", unit=" steps", disable=not main)
    while progress.step < budget.steps and progress.validations_without_gain < settings.patience:
        shard = next(shards)
        seed_torch(plan.seed, "dropout", progress.step, accelerator.process_index)
        for group in state.optimiser.param_groups:
            group["lr"] = budget.learning_rate * warmup_cosine(progress.step, budget.steps, settings.warmup_ratio)
        ctc, distance = loss(shard.batch)
        total = shard.weight * (ctc / shard.clips + loss.distance_weight * distance / shard.frames)
        total.backward()
        all_reduce_gradients(weights, accelerator)
        norm = nn.utils.clip_grad_norm_(weights, settings.gradient_clip)  # a loss that is not finite has none that is
        finite.append(norm.isfinite())
        # AdamW leaves out this step where it is 1: found without waiting for the GPU
        state.optimiser.found_inf = 1.0 - finite[-1].float()  # type: ignore[attr-defined]
        state.optimiser.step()
        state.optimiser.zero_grad()
        losses.append(total.detach())

        progress.step += 1
        progress.audio_seconds += shard.frames / FRAMES_PER_SECOND
        bar.update()
        if progress.step % budget.validate_every == 0 or progress.step == budget.steps:
            kept = torch.stack(finite)
            train_loss = accelerator.reduce(torch.stack(losses), reduction="sum")[kept].mean().item()
            first = progress.step - len(finite)
            progress.skipped += [first + at for at, is_finite in enumerate(kept.tolist()) if not is_finite]
            _check_skipped(progress.skipped, plan)
            losses.clear()
            finite.clear()
            on_point(state.record(_validate(loss, data, plan, accelerator), train_loss))
            progress.seconds = time.perf_counter() - started
            wer = progress.curve[-1]["validation_wer"]
            bar.set_postfix_str(f"at step {progress.step} loss {train_loss:.3f}, validation WER {wer:.1%}")
            if main:
                state.save(checkpoint)
    bar.close()
    shards.close()
    progress.seconds = time.perf_counter() - started
    state.keep_best(budget.wise_ft_alpha)
    return progress


def _validate(loss: DistillationLoss, data: TrainingData, plan: Plan, accelerator: Accelerator) -> float:
    """The validation WER, found by the main process and broadcast to the others."""
    wer = data.validation_wer(loss.student, plan.longest) if accelerator.is_main_process else 0.0
    return broadcast_object_list([wer])[0]


def _check_skipped(skipped: list[int], plan: Plan) -> None:
    in_a_row = any(
        last - first == SKIPPED_IN_A_ROW - 1
        for first, last in zip(skipped, skipped[SKIPPED_IN_A_ROW - 1 :], strict=False)
    )
    if in_a_row or len(skipped) > max(1, SKIPPED_RATIO * plan.budget.steps):
        raise UserError(
            f"training diverged: {len(skipped)} of its steps have no finite loss or gradient, the first is step "
            f"{skipped[0]}; lower the preset's budget.learning_rate (now {plan.budget.learning_rate}) or "
            f"train.gradient_clip (now {plan.settings.gradient_clip})"
        )
