"""Random numbers that depend on the seed and the item's id alone: not on order, workers or machine."""

import hashlib

import numpy as np


def seed_for(seed: int, *ids: object) -> int:
    """A 63-bit seed for one item, from SHA-256 of the global seed and the item's ids."""
    digest = hashlib.sha256("\x1f".join(map(str, (seed, *ids))).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator_for(seed: int, *ids: object) -> np.random.Generator:
    return np.random.default_rng(seed_for(seed, *ids))


def seed_torch(seed: int, *ids: object) -> None:
    """Seed torch's generators: dropout and masks draw from them."""
    import torch  # takes seconds, which the stages without it save

    torch.manual_seed(seed_for(seed, *ids))
