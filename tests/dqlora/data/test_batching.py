from itertools import islice

import numpy as np
import pytest
import torch

from dqlora.data.batching import Example, bucketed_batches, collate, endless_batches, padded_shape, prefetch

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


def test_a_batch_holds_the_examples_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    examples = [
        Example(rng.normal(size=(n, 3)).astype(np.float16), [n, 1], "", rng.normal(size=(n, 2)).astype(np.float16))
        for n in (5, 9)
    ]
    for shape in (None, (4, 64)):
        batch = collate(examples, shape)
        assert batch.target is not None
        clips, longest = shape or (2, 9)
        assert batch.features.shape == (clips, longest, 3) and batch.target.shape == (clips, longest, 2)
        assert batch.frames.tolist() == [5, 9] + [0] * (clips - 2)
        assert batch.labels.tolist() == [[5, 1], [9, 1]]
        for row, example in enumerate(examples):
            assert np.array_equal(batch.features[row, : len(example.features)].numpy(), example.features)
            assert np.array_equal(batch.target[row, : len(example.features)].numpy(), example.target)
        assert batch.time_mask.shape == (clips, longest) and not batch.time_mask.any()
        for longer in (7, 100):  # a mask of the whole batch may be longer or shorter than a process' shard of it
            found = collate(examples, shape, torch.ones(2, longer, dtype=torch.bool)).time_mask
            assert found.sum() == 2 * min(longer, longest) and found[:2, : min(longer, longest)].all()
        for padded, rows in (
            (batch.features, [e.features for e in examples]),
            (batch.target, [e.target for e in examples]),
        ):
            assert padded.count_nonzero() == sum(np.count_nonzero(row) for row in rows)


def test_a_batch_is_padded_at_its_end() -> None:
    texts = ["HELLO", "GOOD DAY", "YES", "ALL IS WELL"]
    frames = [49, 64, 30, 93]
    examples = [
        Example(np.ones((count, 3), np.float16), list(range(1, len(text) + 1)), text, np.ones((count, 2), np.float16))
        for count, text in zip(frames, texts, strict=True)
    ]
    batch = collate(examples)
    assert batch.frames.tolist() == frames
    assert batch.features.shape[:2] == (4, 93)
    assert batch.target is not None and batch.target.shape[:2] == batch.features.shape[:2]
    assert batch.label_lengths.tolist() == [len(text) for text in texts]


def test_shapes_are_few() -> None:
    batches = bucketed_batches([-(-length // 64) * 64 for length in LENGTHS], 16_000, seed=0, epoch=0)
    shapes = [padded_shape(len(batch), max(LENGTHS[position] for position in batch), 16_000) for batch in batches]
    assert all(clips * longest <= 16_000 and longest % 64 == 0 for clips, longest in shapes)
    assert all(clips >= len(batch) for (clips, _), batch in zip(shapes, batches, strict=True))
    assert len({longest for _, longest in shapes}) == len(set(shapes))  # one for each length
    assert padded_shape(1, 20_000, 16_000) == (1, 20_032)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_is_made_ahead_comes_in_order_and_its_errors_too(device: str) -> None:
    assert list(prefetch(lambda item: item * 2, iter(range(7)), torch.device(device))) == [0, 2, 4, 6, 8, 10, 12]
    made = prefetch(lambda item: 1 // item, iter([1, 1, 0]), torch.device(device))
    assert [next(made), next(made)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(made)
