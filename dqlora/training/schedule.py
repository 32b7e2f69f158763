"""The learning rate's schedule."""

import math


def warmup_cosine(step: int, steps: int, warmup_ratio: float) -> float:
    """Factor of the learning rate: linear from 0 over the warm-up, then half a cosine to 0."""
    warmup = warmup_ratio * steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, steps - warmup)))
