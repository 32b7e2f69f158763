"""WER and CER through one normaliser for both sides, and the paired bootstrap over sentences."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jiwer
import numpy as np

from dqlora.data.text import scoring_normaliser, without_spaces
from dqlora.evaluation.test_set import CLEAN

INTERVAL = (0.025, 0.975)  # of the bootstrap's draws: the quantiles between which every interval lies
FEWEST_SENTENCES = 5  # for an interval: a bootstrap over fewer looks surer than it is
CONFIDENCE = f"{100 * (INTERVAL[1] - INTERVAL[0]):g} %"


@dataclass(frozen=True)
class Errors:
    """Edits and lengths of utterances or sentences, int64 [utterances] each."""

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
    """Edits of each hypothesis against its reference, after the scoring normaliser on both.

    Spaces count as characters; in languages without spaces they are none, and each character counts as a word.
    """
    rows = [
        _edits(reference, hypothesis, language) for reference, hypothesis in zip(references, hypotheses, strict=True)
    ]
    return Errors(*np.array(rows, dtype=np.int64).reshape(-1, 4).T)


@lru_cache(maxsize=100_000)
def _normalised(text: str, language: str) -> str:
    return " ".join(scoring_normaliser(language)(text).split())


@lru_cache(maxsize=100_000)  # the same pairs are counted by SNR, by noise and in all
def _edits(reference: str, hypothesis: str, language: str) -> tuple[int, int, int, int]:
    reference, hypothesis = (_normalised(text, language) for text in (reference, hypothesis))
    between = "" if without_spaces(language) else " "
    reference_chars, hypothesis_chars = between.join(reference.split()), between.join(hypothesis.split())
    if not reference:  # jiwer refuses an empty reference; every word of the hypothesis is then an insertion
        return len(hypothesis.split()), 0, len(hypothesis_chars), 0
    words = jiwer.process_words(reference, hypothesis)
    chars = jiwer.process_characters(reference_chars, hypothesis_chars)
    return (
        words.substitutions + words.deletions + words.insertions,
        len(reference.split()),
        chars.substitutions + chars.deletions + chars.insertions,
        len(reference_chars),
    )


def relative_wer_reduction(base: Errors, better: Errors, draws: int, seed: int) -> dict[str, float]:
    """Relative WER reduction of `better` against `base`, with its interval.

    Paired bootstrap (Koehn 2004; Bisani and Ney 2004): rows are drawn with replacement, the same for both systems, and
    the interval lies between the quantiles INTERVAL of the draws' reductions.

    Parameters
    ----------
    base, better
        errors on the same sentences in the same order, a row each (`per_sentence`): utterances of one sentence, and its
        conditions, are not independent.
    """
    assert np.array_equal(base.words, better.words), "the systems were not scored on the same utterances"
    reduction = np.empty(draws)
    generator = np.random.default_rng(seed)
    count = len(base.words)
    for start in range(0, draws, 1000):
        drawn = generator.integers(count, size=(min(1000, draws - start), count))
        edits = (one.word_edits[drawn].sum(axis=1) for one in (base, better))
        reduction[start : start + len(drawn)] = _reduction(*edits)
    low, high = np.quantile(reduction, INTERVAL)
    whole = _reduction(base.word_edits.sum(), better.word_edits.sum())
    return {"relative": float(whole), "ci_low": float(low), "ci_high": float(high)}


def _reduction(base: np.ndarray, better: np.ndarray) -> np.ndarray:
    """Relative reduction of edits; where the base has none, nothing can be lower: 0, or minus the edits made anew."""
    return np.where(base == 0, -better, 1 - better / np.maximum(base, 1)).astype(np.float64)


def per_sentence(errors: Errors, references: Sequence[str], language: str) -> Errors:
    """Errors added up over the utterances of the same words, however they are written, in the order of their first."""
    sentences = [_normalised(reference, language) for reference in references]
    order = {sentence: row for row, sentence in enumerate(dict.fromkeys(sentences))}
    rows = [order[sentence] for sentence in sentences]
    fields = (errors.word_edits, errors.words, errors.char_edits, errors.chars)
    return Errors(*(np.bincount(rows, field).astype(np.int64) for field in fields))


def summed(errors: list[Errors]) -> Errors:
    """Errors of the same sentences under several conditions, added up sentence by sentence."""
    fields = ("word_edits", "words", "char_edits", "chars")
    return Errors(*(np.sum([getattr(one, field) for one in errors], axis=0) for field in fields))


def score(rows: list[dict[str, Any]], system: str, language: str) -> dict[str, Errors]:
    """Errors of one system by condition, a row a sentence, in the same order under each."""
    chosen: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        chosen[row["condition"]].append(row)
    errors = {}
    for condition, same in chosen.items():
        references = [row["reference"] for row in same]
        found = count_errors(references, [row[system] for row in same], language)
        errors[condition] = per_sentence(found, references, language)
    return errors


def metrics_of(errors: dict[str, Errors]) -> dict[str, Any]:
    """WER and CER of one system: clean, at each SNR, and their mean over the SNRs."""
    by_snr = {
        condition.removesuffix(" dB"): {"wer": one.wer, "cer": one.cer}
        for condition, one in errors.items()
        if condition != CLEAN
    }
    return {
        "clean": {"wer": errors[CLEAN].wer, "cer": errors[CLEAN].cer},
        "noisy": {name: float(np.mean([one[name] for one in by_snr.values()])) for name in ("wer", "cer")},
        "snr": by_snr,
    }


def wer_reductions(
    before: dict[str, Errors], after: dict[str, Errors], draws: int, seed: int
) -> dict[str, dict[str, float]]:
    """Relative WER reductions of one system against another, each as `score` gives it: over all SNRs, and clean.

    Without intervals where there are fewer than FEWEST_SENTENCES.
    """
    old, new = (summed([one for name, one in errors.items() if name != CLEAN]) for errors in (before, after))
    reductions = {
        "noisy": relative_wer_reduction(old, new, draws, seed),
        "clean": relative_wer_reduction(before[CLEAN], after[CLEAN], draws, seed),
    }
    if len(before[CLEAN].words) >= FEWEST_SENTENCES:
        return reductions
    return {name: {"relative": reduction["relative"]} for name, reduction in reductions.items()}


def wer_by(rows: list[dict[str, Any]], key: str, systems: Sequence[str], language: str) -> list[dict[str, Any]]:
    """WER of each system over the noisy clips that share a value of `key`, a row each."""
    table = []
    for value in sorted({row[key] for row in rows if key in row}):
        same = [row for row in rows if row.get(key) == value]
        references = [row["reference"] for row in same]
        wers = {name: count_errors(references, [row[name] for row in same], language).wer for name in systems}
        table.append({key: value, "clips": len(same), **wers})
    return table
