"""A sample has utterances whole: each in all its conditions."""

import numpy as np
import pytest

from dqlora.evaluation.sample import sample_utterances

CONDITIONS = ("clean", "10 dB", "5 dB", "0 dB")


@pytest.mark.parametrize(
    ("utterances", "count", "chosen"),
    [(200, 50, 50), (150, 50, 50), (151, 50, 50), (60, 50, 50), (50, 50, 50), (7, 50, 7), (1, 1, 1), (9, 2, 2)],
)
def test_each_utterance_is_there_in_all_its_conditions(utterances: int, count: int, chosen: int) -> None:
    rows = [{"id": str(number), "condition": "clean"} for number in range(utterances)]
    rows += [{"id": str(number), "condition": each} for number in range(utterances) for each in CONDITIONS[1:]]
    clips = [np.full(3, number) for number in range(len(rows))]
    kept, audio = sample_utterances(rows, clips, count)
    assert len(kept) == chosen * len(CONDITIONS) <= count * len(CONDITIONS)
    for condition in CONDITIONS:
        assert len({row["id"] for row in kept if row["condition"] == condition}) == chosen
    assert [rows[int(clip[0])] for clip in audio] == kept
    numbers = sorted({int(row["id"]) for row in kept})
    assert numbers[0] == 0 and numbers[-1] >= utterances - 1 - utterances // chosen  # not the first ones alone
