from itertools import islice

import numpy as np
import pytest

from dqlora.batching import bucketed_batches, endless_batches

LENGTHS = np.random.default_rng(0).integers(20, 1500, 300).tolist()


@pytest.mark.parametrize("longest", [1500, 4000, 20_000])
def test_an_epoch_holds_each_clip_once_in_batches_of_like_length(longest: int) -> None:
    batches = bucketed_batches(LENGTHS, longest, seed=0, epoch=0)
    assert sorted(position for batch in batches for position in batch) == list(range(300))
    for batch in batches:
        assert max(LENGTHS[position] for position in batch) * len(batch) <= longest
    padded = sum(max(LENGTHS[position] for position in batch) * len(batch) for batch in batches)
    assert sum(LENGTHS) / padded > 0.8


def test_epochs_differ_and_repeat() -> None:
    assert bucketed_batches(LENGTHS, 4000, 0, 1) == bucketed_batches(LENGTHS, 4000, 0, 1)
    assert bucketed_batches(LENGTHS, 4000, 0, 1) != bucketed_batches(LENGTHS, 4000, 0, 2)
    assert bucketed_batches(LENGTHS, 4000, 0, 1) != bucketed_batches(LENGTHS, 4000, 1, 1)


def test_a_clip_longer_than_the_batch_is_a_batch_of_its_own() -> None:
    batches = bucketed_batches([10, 500, 12], 100, 0, 0)
    assert [1] in batches
    assert len(batches) == 2


@pytest.mark.parametrize("start", [0, 1, 50, 500])
def test_going_on_skips_what_was_done(start: int) -> None:
    whole = list(islice(endless_batches(LENGTHS, 4000, 0), start + 40))
    assert list(islice(endless_batches(LENGTHS, 4000, 0, start), 40)) == whole[start:]
