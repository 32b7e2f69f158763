"""Batches of clips of like length: padding, length masks, sampling by seconds of audio, prefetching."""

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from dqlora.data.audio import SAMPLE_RATE
from dqlora.seeding import generator_for

# s of padded audio a batch of `inference_batches`; on the CPU each clip alone, so that it has the same to the last bit
# whatever others there are
BATCH_SECONDS = {"cuda": 160, "cpu": 0}

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Example:
    """One noisy utterance as the loop needs it."""

    features: np.ndarray | Tensor  # CNN features, float16 [frames, conv_dim]
    labels: list[int]
    text: str
    target: np.ndarray | Tensor | None = None  # logits or features to learn, float16 [frames, width]


@dataclass(frozen=True)
class Batch:
    """Padded examples. Rows beyond those of `labels` only fill the batch: clips of no frames."""

    features: Tensor  # float16 [clips, longest, conv_dim]
    frames: Tensor  # int64 [clips], on the CPU
    time_mask: Tensor  # bool [clips, longest]: frames hidden from the student, by SpecAugment
    labels: Tensor  # int64 [examples, most labels]
    label_lengths: Tensor  # int64 [examples], on the CPU
    target: Tensor | None  # float16 [clips, longest, width]

    def to(self, device: torch.device) -> "Batch":
        """The batch with its features, labels and targets on `device`, there when this returns."""
        if device.type == "cpu":
            return self
        stream, using = torch.cuda.Stream(device), torch.cuda.default_stream(device)
        moved = {}
        with torch.cuda.stream(stream):
            for name in ("features", "time_mask", "labels", "target"):
                if (each := getattr(self, name)) is not None:
                    moved[name] = each.pin_memory().to(device, non_blocking=True)
                    moved[name].record_stream(using)  # not to be overwritten while that stream still reads it
        stream.synchronize()
        return replace(self, **moved)


def collate(
    examples: list[Example],
    shape: tuple[int, int] | None = None,
    time_mask: Tensor | None = None,
    pinned: bool = False,
) -> Batch:
    """A batch as small as the examples allow, or of `shape` (clips, longest).

    Parameters
    ----------
    time_mask
        bool [examples, frames]: frames to hide, as far as the batch has them; none if not given.
    pinned
        features and targets in memory that a GPU reads without a copy, and that is used again from batch to batch:
        first touching fresh pages takes five times as long as filling them.
    """
    clips, longest = shape or (len(examples), max(len(example.features) for example in examples))
    features, frames = _padded([example.features for example in examples], clips, longest, pinned)
    labels = nn.utils.rnn.pad_sequence([torch.tensor(example.labels) for example in examples], batch_first=True)
    lengths = torch.tensor([len(example.labels) for example in examples])
    targets = [example.target for example in examples if example.target is not None]
    target = _padded(targets, clips, longest, pinned)[0] if targets else None
    hidden = torch.zeros(clips, longest, dtype=torch.bool)
    if time_mask is not None:
        covered = min(longest, time_mask.shape[1])
        hidden[: len(examples), :covered] = time_mask[:, :covered]
    return Batch(features, frames, hidden, labels, lengths, target)


def length_mask(lengths: Tensor, longest: int) -> Tensor:
    """Which positions of padded rows lie within each row's length: bool [rows, longest], of int64 [rows]."""
    return torch.arange(longest, device=lengths.device) < lengths[:, None]


def pad_features(features: Sequence[Tensor | np.ndarray]) -> tuple[Tensor, Tensor]:
    """Stack [frames, width] arrays into [batch, longest, width], with the frames of each, int64 [batch]."""
    tensors = [torch.from_numpy(np.array(item)) if isinstance(item, np.ndarray) else item for item in features]
    lengths = torch.tensor([len(item) for item in tensors])
    return nn.utils.rnn.pad_sequence(tensors, batch_first=True), lengths


def pad_waves(clips: Sequence[np.ndarray], device: torch.device, longest: int | None = None) -> Tensor:
    """Clips, [samples] each, all int16 or all float32 in [-1, 1], as float32 [clips, longest] in [-1, 1], then 0.

    They travel to a GPU as they are, from pinned memory, and need not have arrived when this returns. Without
    `longest`, it is that of the clips.
    """
    dtype = torch.int16 if clips[0].dtype == np.int16 else torch.float32
    shape = len(clips), longest or max(map(len, clips))
    padded = torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")
    for row, clip in zip(padded.numpy(), clips, strict=True):
        row[: len(clip)] = clip
        row[len(clip) :] = 0
    waves = padded.to(device, non_blocking=True).float()
    return waves.div_(32768) if dtype == torch.int16 else waves


def fetched(tensor: Tensor) -> Callable[[], np.ndarray]:
    """Starts a tensor on its way to the CPU's memory; what it returns waits for it, and gives it as an array."""
    if tensor.device.type != "cuda":
        return tensor.numpy
    there = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    there.copy_(tensor, non_blocking=True)
    ready = torch.cuda.Event()
    ready.record()

    def values() -> np.ndarray:
        ready.synchronize()
        return there.numpy()

    return values


def once_the_next_began(started: Iterable[Item]) -> Iterator[Item]:
    """Each item after the next one was drawn, whose work a GPU does while this one's result is taken."""
    waiting: list[Item] = []
    for item in started:
        if waiting:
            yield waiting.pop()
        waiting.append(item)
    yield from waiting


def _padded(rows: list[np.ndarray | Tensor], clips: int, longest: int, pinned: bool) -> tuple[Tensor, Tensor]:
    """Rows [frames, width] in one tensor [clips, longest, width], 0 behind each, and the frames of each."""
    padded = torch.empty(clips, longest, rows[0].shape[1], dtype=torch.float16, pin_memory=pinned)
    frames = torch.zeros(clips, dtype=torch.int64)
    values = padded.numpy()
    for number, row in enumerate(rows):
        values[number, : len(row)] = row
        values[number, len(row) :] = 0
        frames[number] = len(row)
    values[len(rows) :] = 0
    return padded, frames


def padded_shape(examples: int, longest: int, budget: int) -> tuple[int, int]:
    """Clips and frames to pad a batch to where each new shape costs: the frames to a step, the clips to `budget`.

    Parameters
    ----------
    longest
        frames of the longest clip.
    budget
        the padded size of a batch, in frames.
    """
    frames = rounded_up(longest)
    return max(examples, budget // frames), frames


def rounded_up(frames: int, step: int = 64) -> int:
    return -(-frames // step) * step


def prefetch(
    load: Callable[[Item], Result], items: Iterator[Item], device: torch.device, ahead: int = 2
) -> Generator[Result, None, None]:
    """`load(item)` of each item in order; for a GPU in another thread, while the ones before are in use there.

    On a CPU two threads, each with all the cores to itself, are slower than one.
    """
    if device.type != "cuda":
        yield from map(load, items)
        return
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(load, item) for item in itertools.islice(items, ahead))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(load, item) for item in itertools.islice(items, 1))


def bucketed_batches(lengths: list[int], longest: int, seed: int, epoch: int, jitter: float = 0.1) -> list[list[int]]:
    """One epoch's batches, as lists of positions in `lengths`.

    Clips are ordered by length, each length changed by up to `jitter` of itself so that batches differ from epoch
    to epoch, cut into batches whose padded size (clips x longest clip) stays within `longest`, and the batches
    shuffled. A clip longer than that is a batch of its own.

    Parameters
    ----------
    lengths
        of each clip, in any unit.
    longest
        the padded size of a batch, in the same unit.
    """
    generator = generator_for(seed, "epoch", epoch)
    keys = [length * (1 + jitter * generator.uniform(-1, 1)) for length in lengths]
    batches: list[list[int]] = []
    batch: list[int] = []
    widest = 0
    for position in sorted(range(len(lengths)), key=lambda position: (keys[position], position)):
        widest_with = max(widest, lengths[position])
        if batch and widest_with * (len(batch) + 1) > longest:
            batches.append(batch)
            batch, widest_with = [], lengths[position]
        batch.append(position)
        widest = widest_with
    if batch:
        batches.append(batch)
    return [batches[place] for place in generator.permutation(len(batches))]


def inference_batches(samples: list[int], device: torch.device) -> list[list[int]]:
    """Positions of clips in batches of like length, given the samples of each. On a CPU each clip is one alone."""
    return bucketed_batches(samples, BATCH_SECONDS[device.type] * SAMPLE_RATE, seed=0, epoch=0, jitter=0.0)


def endless_batches(lengths: list[int], longest: int, seed: int, start: int = 0) -> Iterator[list[int]]:
    """Epoch after epoch of `bucketed_batches`, from batch number `start` on."""
    epoch = 0
    while True:
        batches = bucketed_batches(lengths, longest, seed, epoch)
        yield from batches[start:]
        start = max(0, start - len(batches))
        epoch += 1
