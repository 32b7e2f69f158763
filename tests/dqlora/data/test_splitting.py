"""Splits by sentence: what becomes of a row depends on the seed and its sentence alone."""

from pathlib import Path

import numpy as np
import pytest

from dqlora.data.splitting import HASH_RATIOS, VALIDATION_RATIOS, split_by_sentence
from dqlora.data.tables import Row
from dqlora.errors import UserError

FOLDER = Path("corpus")


def rows_of(sentences: list[str]) -> list[tuple[Row, int]]:
    return [(Row(f"{at}.wav", f"{at}.wav", sentence), at) for at, sentence in enumerate(sentences)]


@pytest.mark.parametrize("count", [3, 4, 30, 2000])
@pytest.mark.parametrize("ratios", [HASH_RATIOS, VALIDATION_RATIOS])
def test_a_sentence_has_one_split_in_any_order_and_each_split_a_sentence(
    ratios: tuple[tuple[str, float], ...], count: int
) -> None:
    sentences = [f"Sentence number {at % count}!" for at in range(2 * count)]
    spoken = rows_of(sentences)
    shuffled = [spoken[at] for at in np.random.default_rng(0).permutation(len(spoken))]
    once, again = (
        {row.id: row.split for row, _ in split_by_sentence(FOLDER, each, ratios, 3)} for each in (spoken, shuffled)
    )
    assert once == again
    assert all(once[f"{at}.wav"] == once[f"{at + count}.wav"] for at in range(count))
    splits = list(once.values())
    assert set(splits) == {name for name, _ in ratios}
    if count == 2000:
        below = 0.0
        for name, upto in ratios:
            assert splits.count(name) / len(splits) == pytest.approx(upto - below, abs=0.03)
            below = upto


def test_capitals_and_points_make_no_other_sentence() -> None:
    rows = split_by_sentence(FOLDER, rows_of(["One two.", "ONE, two", "three", "four"]), HASH_RATIOS, 0)
    assert rows[0][0].split == rows[1][0].split


def test_too_few_sentences_are_refused_by_number() -> None:
    with pytest.raises(UserError, match="2 usable rows with 1 different sentences are too few to split into test, val"):
        split_by_sentence(FOLDER, rows_of(["one", "one"]), HASH_RATIOS, 0)
