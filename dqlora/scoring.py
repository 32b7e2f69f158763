"""WER and CER through one normaliser for both sides, and the paired bootstrap over utterances."""

from dataclasses import dataclass

import jiwer
import numpy as np

from dqlora.text import scoring_normaliser


@dataclass(frozen=True)
class Errors:
    """Edits and lengths of utterances, int64 [utterances] each."""

    word_edits: np.ndarray
    words: np.ndarray
    char_edits: np.ndarray
    chars: np.ndarray

    @property
    def wer(self) -> float:
        return float(self.word_edits.sum() / self.words.sum())

    @property
    def cer(self) -> float:
        return float(self.char_edits.sum() / self.chars.sum())


def count_errors(references: list[str], hypotheses: list[str], language: str) -> Errors:
    """Edits of each hypothesis against its reference, after the scoring normaliser on both."""
    normalise = scoring_normaliser(language)
    rows = [_edits(normalise(ref), normalise(hyp)) for ref, hyp in zip(references, hypotheses, strict=True)]
    return Errors(*np.array(rows, dtype=np.int64).reshape(-1, 4).T)


def _edits(reference: str, hypothesis: str) -> tuple[int, int, int, int]:
    reference, hypothesis = " ".join(reference.split()), " ".join(hypothesis.split())
    if not reference:  # jiwer refuses an empty reference; everything heard is then an insertion
        return len(hypothesis.split()), 0, len(hypothesis), 0
    words = jiwer.process_words(reference, hypothesis)
    chars = jiwer.process_characters(reference, hypothesis)
    return (
        words.substitutions + words.deletions + words.insertions,
        len(reference.split()),
        chars.substitutions + chars.deletions + chars.insertions,
        len(reference),
    )


def relative_gain(base: Errors, better: Errors, draws: int, seed: int) -> dict[str, float]:
    """How much lower `better`'s WER is, relative to `base`'s, with its 95 % interval.

    Paired bootstrap (Koehn 2004; Bisani and Ney 2004): utterances are drawn with replacement, the same for both
    systems, and the interval holds the middle 95 % of the draws' gains.

    Parameters
    ----------
    base, better
        errors on the same utterances in the same order; a row may sum several conditions of one utterance.
    """
    assert np.array_equal(base.words, better.words), "the systems were not scored on the same utterances"
    gain = np.empty(draws)
    generator = np.random.default_rng(seed)
    count = len(base.words)
    for start in range(0, draws, 1000):
        drawn = generator.integers(count, size=(min(1000, draws - start), count))
        base_edits = np.maximum(base.word_edits[drawn].sum(axis=1), 1)  # a draw without base errors has no gain
        gain[start : start + len(drawn)] = 1 - better.word_edits[drawn].sum(axis=1) / base_edits
    low, high = np.quantile(gain, (0.025, 0.975))
    whole = 1 - better.word_edits.sum() / max(base.word_edits.sum(), 1)
    return {"wer_relative": float(whole), "ci_low": float(low), "ci_high": float(high)}


def summed(errors: list[Errors]) -> Errors:
    """Errors of the same utterances under several conditions, added up utterance by utterance."""
    fields = ("word_edits", "words", "char_edits", "chars")
    return Errors(*(np.sum([getattr(one, field) for one in errors], axis=0) for field in fields))
