"""Batches by seconds of audio, of clips of like length."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dqlora.randomness import generator_for
from dqlora.student import pad_features


@dataclass(frozen=True)
class Example:
    """One noisy utterance as the loop needs it."""

    features: np.ndarray | Tensor  # CNN features, float16 [frames, conv_dim]
    labels: list[int]
    text: str
    teacher: np.ndarray | Tensor | None = None  # logits or features to learn, float16 [frames, width]


@dataclass(frozen=True)
class Batch:
    features: Tensor  # [batch, longest, conv_dim]
    frames: Tensor  # int64 [batch]
    labels: Tensor  # int64 [batch, most labels]
    label_lengths: Tensor  # int64 [batch]
    teacher: Tensor | None  # [batch, longest, width]


def collate(examples: list[Example], device: torch.device) -> Batch:
    features, frames = pad_features([example.features for example in examples])
    labels = nn.utils.rnn.pad_sequence([torch.tensor(example.labels) for example in examples], batch_first=True)
    lengths = torch.tensor([len(example.labels) for example in examples])
    logits = [example.teacher for example in examples if example.teacher is not None]
    teacher = pad_features(logits)[0].to(device) if logits else None
    return Batch(features.to(device).float(), frames.to(device), labels.to(device), lengths.to(device), teacher)


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


def endless_batches(lengths: list[int], longest: int, seed: int, start: int = 0) -> Iterator[list[int]]:
    """Epoch after epoch of `bucketed_batches`, from batch number `start` on."""
    epoch = 0
    while True:
        batches = bucketed_batches(lengths, longest, seed, epoch)
        yield from batches[start:]
        start = max(0, start - len(batches))
        epoch += 1
