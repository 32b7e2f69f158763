"""Batches by seconds of audio, of clips of like length."""

from collections.abc import Iterator

from dqlora.randomness import generator_for


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
