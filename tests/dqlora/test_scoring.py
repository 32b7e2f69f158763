import jiwer
import numpy as np
import pytest

from dqlora.scoring import Errors, count_errors, relative_gain, summed


def test_counts_agree_with_jiwer_over_the_corpus() -> None:
    references = ["the cat sat on the mat", "twenty one colours", "a b c d"]
    hypotheses = ["the cat sat on mat", "21 colors", "a x c d e"]
    errors = count_errors(references, hypotheses, "en")
    assert errors.word_edits.tolist() == [1, 0, 2]
    assert errors.wer == pytest.approx(
        jiwer.wer(["the cat sat on the mat", "21 colors", "a b c d"], ["the cat sat on mat", "21 colors", "a x c d e"])
    )


def test_a_reference_without_words_counts_insertions() -> None:
    errors = count_errors(["uh", "one word"], ["two words", ""], "en")
    assert errors.words.tolist() == [0, 2]
    assert errors.word_edits.tolist() == [2, 2]


def random_errors(rng: np.random.Generator, rate: float) -> Errors:
    words = np.full(400, 10)
    edits = rng.binomial(10, rate, 400)
    return Errors(edits, words, edits, words)


def test_the_interval_holds_the_true_gain_and_shrinks_when_paired() -> None:
    rng = np.random.default_rng(0)
    base, better = random_errors(rng, 0.5), random_errors(rng, 0.4)
    gain = relative_gain(base, better, draws=2000, seed=0)
    assert gain["ci_low"] < 0.2 < gain["ci_high"]
    assert gain["ci_low"] > 0
    paired = Errors(np.maximum(base.word_edits - 1, 0), base.words, base.char_edits, base.chars)
    narrow = relative_gain(base, paired, draws=2000, seed=0)
    assert narrow["ci_high"] - narrow["ci_low"] < 0.5 * (gain["ci_high"] - gain["ci_low"])


def test_a_system_against_itself_has_no_gain() -> None:
    base = random_errors(np.random.default_rng(0), 0.3)
    assert relative_gain(base, base, 1000, 0) == {"wer_relative": 0.0, "ci_low": 0.0, "ci_high": 0.0}


def test_the_interval_comes_from_the_seed() -> None:
    rng = np.random.default_rng(1)
    base, better = random_errors(rng, 0.5), random_errors(rng, 0.45)
    assert relative_gain(base, better, 1000, 3) == relative_gain(base, better, 1000, 3)
    assert relative_gain(base, better, 1000, 3) != relative_gain(base, better, 1000, 4)


def test_conditions_add_up_by_utterance() -> None:
    one = count_errors(["a b", "c d"], ["a", "c d"], "en")
    assert summed([one, one]).words.tolist() == (2 * one.words).tolist()
    with pytest.raises(AssertionError):
        relative_gain(one, summed([one, one]), 100, 0)
