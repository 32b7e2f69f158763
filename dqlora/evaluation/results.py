"""What a run's predictions say: WERs with their intervals, the clips that stand out, words against the reference."""

from collections import defaultdict
from collections.abc import Container
from dataclasses import dataclass
from typing import Any, Literal

import jiwer
import numpy as np

from dqlora.data.text import scoring_normaliser
from dqlora.evaluation.metrics import FEWEST_SENTENCES, Errors, count_errors, per_sentence, relative_wer_reduction
from dqlora.evaluation.test_set import CLEAN

SYSTEMS = {"base": "Base student", "distilled": "Distilled student", "teacher": "Whisper"}
LM_SYSTEMS = {"base_lm": "Base student, language model", "distilled_lm": "Distilled student, language model"}
SHOWN = ("base", "distilled", "distilled_lm", "teacher")  # side by side, in this order
CLIPS_A_LIST = 6

# one prediction: id, condition, reference, each system's transcript (LM_SYSTEMS' where the run has a language model);
# noisy ones snr_db, category
Row = dict[str, Any]


def shown(systems: Container[str]) -> dict[str, str]:
    """Those of `systems` that stand side by side, with their names: the three, and what `dqlora transcribe` gives."""
    return {system: (SYSTEMS | LM_SYSTEMS)[system] for system in SHOWN if system in systems}


@dataclass(frozen=True)
class Estimate:
    """A ratio (0.1 is 10 %) with its interval; None where it was not measured."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @property
    def has_interval(self) -> bool:
        return self.low is not None and self.high is not None


Verdict = Literal["better", "no difference shown", "worse", "no verdict"]


def verdict(reduction: Estimate) -> Verdict:
    """What the interval of a relative WER reduction allows to say."""
    if reduction.low is None or reduction.high is None:
        return "no verdict"
    if reduction.low > 0:
        return "better"
    return "worse" if reduction.high < 0 else "no difference shown"


def in_words(reduction: dict[str, float]) -> str:
    """A relative WER reduction with its interval, as "5.2 % lower [1.0, 9.1]" or "2.0 % higher [-1.0, 5.3]"."""
    sign = 1 if reduction["relative"] >= 0 else -1
    change = f"{abs(100 * reduction['relative']):.1f} % {'lower' if sign == 1 else 'higher'}"
    if "ci_low" not in reduction:
        return f"{change} [no interval: fewer than {FEWEST_SENTENCES} sentences]"
    # + 0.0: of what rounds to 0, no sign
    low, high = sorted(round(100 * sign * reduction[end], 1) + 0.0 for end in ("ci_low", "ci_high"))
    return f"{change} [{low:.1f}, {high:.1f}]"


def out_of_domain_in_words(metrics: dict[str, Any]) -> str:
    """What `evaluate.json` says of the speech out of domain, a line.

    It warns where the student lost, or decoding with the language model did: in noise by any measure, on clean speech
    beyond the interval.
    """

    def compared(reductions: dict[str, Any]) -> tuple[str, bool]:
        found = ", ".join(f"{name} WER {in_words(reductions[name])}" for name in ("noisy", "clean"))
        return found, reductions["noisy"]["relative"] < 0 or reductions["clean"].get("ci_high", 0) < 0

    found, lost = compared(metrics["wer_reduction"])
    line = f"{found} than the base's"
    if lost:
        line += "; lower budget.wise_ft_alpha in the preset keeps more of the base, speech of more kinds helps"
    if "lm_wer_reduction" in metrics:
        found, lost_by_model = compared(metrics["lm_wer_reduction"])
        line += f"; with the language model {found} than without"
        if lost_by_model:
            line += "; more text in lm.text helps, decode.method=greedy leaves it out"
            lost = True
    return f"{'warning: ' * lost}out of domain: {line}"


@dataclass(frozen=True)
class Group:
    """Predictions that share a condition or a noise category: how many, and each system's WER."""

    name: str
    clips: int
    wer: dict[str, Estimate]

    @property
    def snr_db(self) -> float:
        """Of a group that shares a noisy condition."""
        return float(self.name.removesuffix(" dB"))


class Scores:
    """The errors of every prediction, counted once, and WERs of groups of them with intervals."""

    def __init__(self, rows: list[Row], language: str, draws: int, seed: int):
        self.rows, self._language, self._draws, self._seed = rows, language, draws, seed
        references = [row["reference"] for row in rows]
        systems = [*SYSTEMS, *(system for system in LM_SYSTEMS if rows and system in rows[0])]
        self.errors = {system: count_errors(references, [row[system] for row in rows], language) for system in systems}

    def by(self, field: str, noisy_only: bool) -> list[Group]:
        """One group for each value of `field`, in the order of their names."""
        groups = defaultdict(list)
        for at, row in enumerate(self.rows):
            if not noisy_only or row["condition"] != CLEAN:
                groups[row[field]].append(at)
        return [Group(name, len(chosen), self._rates(chosen)) for name, chosen in sorted(groups.items())]

    def overall(self, noisy: bool, rate: Literal["wer", "cer"] = "wer") -> dict[str, Estimate]:
        """Each system's WER, or CER, over all noisy conditions, or over the clean one."""
        return self._rates([at for at, row in enumerate(self.rows) if (row["condition"] != CLEAN) == noisy], rate)

    def _rates(self, chosen: list[int], rate: Literal["wer", "cer"] = "wer") -> dict[str, Estimate]:
        references = [self.rows[at]["reference"] for at in chosen]
        rates = {}
        for system, errors in self.errors.items():
            fields = (errors.word_edits, errors.words, errors.char_edits, errors.chars)
            found = per_sentence(Errors(*(field[chosen] for field in fields)), references, self._language)
            if rate == "cer":  # characters in the words' place: the bootstrap is the same
                found = Errors(found.char_edits, found.chars, found.char_edits, found.chars)
            rates[system] = wer_with_interval(found, self._draws, self._seed)
        return rates


def wer_with_interval(errors: Errors, draws: int, seed: int) -> Estimate:
    """WER and its bootstrap interval over sentences, if there are enough of them.

    1 - WER is the relative WER reduction over a system that gets every word wrong, so that the bootstrap is the one of
    `relative_wer_reduction`.
    """
    if errors.words.sum() == 0:
        return Estimate(None)
    if len(errors.words) < FEWEST_SENTENCES:
        return Estimate(errors.wer)
    all_wrong = Errors(errors.words, errors.words, errors.chars, errors.chars)
    reduction = relative_wer_reduction(all_wrong, errors, draws, seed)
    return Estimate(errors.wer, 1 - reduction["ci_high"], 1 - reduction["ci_low"])


def best_and_worst(rows: list[Row], edits: dict[str, np.ndarray]) -> tuple[list[int], list[int]]:
    """Noisy predictions where the distilled student saves most word edits over base, and where it saves fewest.

    Every utterance stands at most once in the two lists together; the first list holds only what improved.

    Parameters
    ----------
    edits
        word edits of base and of distilled, [rows] each.
    """
    saved = edits["base"] - edits["distilled"]
    noisy = [at for at, row in enumerate(rows) if row["condition"] != CLEAN]
    limit = min(CLIPS_A_LIST, max(1, len({rows[at]["id"] for at in noisy}) // 2))
    taken: set[str] = set()

    def first(candidates: list[int]) -> list[int]:
        chosen: list[int] = []
        for at in candidates:
            if rows[at]["id"] not in taken and len(chosen) < limit:
                taken.add(rows[at]["id"])
                chosen.append(at)
        return chosen

    improved = [at for at in noisy if saved[at] > 0]
    best = first(sorted(improved, key=lambda at: (-saved[at], edits["distilled"][at], at)))
    worst = first(sorted(noisy, key=lambda at: (saved[at], -edits["distilled"][at], at)))
    return best, worst


@dataclass(frozen=True)
class Word:
    """A word of an aligned transcript: as in the reference, or how it differs from it."""

    kind: Literal["same", "substituted", "inserted", "deleted"]
    text: str
    instead_of: str = ""


def compare(reference: str, hypothesis: str, language: str) -> list[Word]:
    """The hypothesis word by word against the reference, both through the scoring normaliser, as WER counts them."""
    normalise = scoring_normaliser(language)
    expected, found = normalise(reference).split(), normalise(hypothesis).split()
    if not expected:  # jiwer refuses an empty reference
        return [Word("inserted", word) for word in found]
    words: list[Word] = []
    for chunk in jiwer.process_words(" ".join(expected), " ".join(found)).alignments[0]:
        reference_words = expected[chunk.ref_start_idx : chunk.ref_end_idx]
        words_found = found[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "equal":
            words += [Word("same", word) for word in words_found]
        elif chunk.type == "substitute":
            words += [Word("substituted", word, of) for word, of in zip(words_found, reference_words, strict=True)]
        elif chunk.type == "insert":
            words += [Word("inserted", word) for word in words_found]
        else:
            words += [Word("deleted", word) for word in reference_words]
    return words
