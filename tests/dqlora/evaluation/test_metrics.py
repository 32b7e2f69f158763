import jiwer
import numpy as np
import pytest

from dqlora.evaluation.metrics import (
    Errors,
    count_errors,
    metrics_of,
    relative_wer_reduction,
    score,
    summed,
    wer_by,
)


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


def test_the_interval_holds_the_true_reduction_and_shrinks_when_paired() -> None:
    rng = np.random.default_rng(0)
    base, better = random_errors(rng, 0.5), random_errors(rng, 0.4)
    reduction = relative_wer_reduction(base, better, draws=2000, seed=0)
    assert reduction["ci_low"] < 0.2 < reduction["ci_high"]
    assert reduction["ci_low"] > 0
    paired = Errors(np.maximum(base.word_edits - 1, 0), base.words, base.char_edits, base.chars)
    narrow = relative_wer_reduction(base, paired, draws=2000, seed=0)
    assert narrow["ci_high"] - narrow["ci_low"] < 0.5 * (reduction["ci_high"] - reduction["ci_low"])


def test_a_system_against_itself_reduces_nothing() -> None:
    base = random_errors(np.random.default_rng(0), 0.3)
    assert relative_wer_reduction(base, base, 1000, 0) == {"relative": 0.0, "ci_low": 0.0, "ci_high": 0.0}


def test_the_interval_comes_from_the_seed() -> None:
    rng = np.random.default_rng(1)
    base, better = random_errors(rng, 0.5), random_errors(rng, 0.45)
    assert relative_wer_reduction(base, better, 1000, 3) == relative_wer_reduction(base, better, 1000, 3)
    assert relative_wer_reduction(base, better, 1000, 3) != relative_wer_reduction(base, better, 1000, 4)


def test_conditions_add_up_by_utterance() -> None:
    one = count_errors(["a b", "c d"], ["a", "c d"], "en")
    assert summed([one, one]).words.tolist() == (2 * one.words).tolist()
    with pytest.raises(AssertionError):
        relative_wer_reduction(one, summed([one, one]), 100, 0)


def test_where_the_base_has_no_error_nothing_is_lower() -> None:
    none, some = count_errors(["a b", "c d"], ["a b", "c d"], "en"), count_errors(["a b", "c d"], ["a", "c d"], "en")
    assert relative_wer_reduction(none, none, 100, 0) == {"relative": 0.0, "ci_low": 0.0, "ci_high": 0.0}
    worse = relative_wer_reduction(none, some, 100, 0)
    assert worse["relative"] == -1.0 and worse["ci_high"] <= 0.0


def test_utterances_of_one_sentence_are_one_unit_of_the_bootstrap() -> None:
    """Twice the readers of each sentence say nothing more of other sentences: the interval stays as wide."""
    texts = [f"sentence number {number} of the test set" for number in range(12)]
    heard = [text if number % 3 else "nothing of it" for number, text in enumerate(texts)]

    def rows(readers: int) -> list[dict[str, str]]:
        said = [{"reference": a, "base": "x", "distilled": b} for a, b in zip(texts, heard, strict=True)]
        return [{"condition": condition} | row for condition in ("clean", "5 dB") for row in said * readers]

    once, twice = ({name: score(rows(readers), name, "en") for name in ("base", "distilled")} for readers in (1, 2))
    assert len(twice["base"]["5 dB"].words) == 12
    assert twice["distilled"]["clean"].wer == once["distilled"]["clean"].wer
    intervals = [
        relative_wer_reduction(one["base"]["5 dB"], one["distilled"]["5 dB"], 1000, 0) for one in (once, twice)
    ]
    assert intervals[0] == intervals[1]
    assert intervals[0]["ci_low"] < intervals[0]["relative"] < intervals[0]["ci_high"]


def test_one_sentence_written_in_several_ways_is_one_unit() -> None:
    ways = ["Turn on the light.", "turn on the light", "TURN ON THE LIGHT", "Open it", "open it!"]
    rows = [{"condition": "clean", "reference": way, "base": "turn on the night"} for way in ways]
    assert score(rows, "base", "en")["clean"].words.tolist() == [12, 4]


def test_rates_are_by_condition_and_their_mean_over_the_snrs() -> None:
    said = {"clean": "a b c d", "5 dB": "a b c x", "0 dB": "a x x x"}
    rows = [{"id": "u", "condition": name, "reference": "a b c d", "base": text} for name, text in said.items()]
    found = metrics_of(score(rows, "base", "xx"))
    assert found["clean"] == {"wer": 0.0, "cer": 0.0}
    assert {snr: rates["wer"] for snr, rates in found["snr"].items()} == {"5": 0.25, "0": 0.75}
    assert found["noisy"]["wer"] == 0.5 and found["noisy"]["cer"] == pytest.approx((1 / 7 + 3 / 7) / 2)


def test_noisy_clips_are_grouped_by_what_they_share() -> None:
    noisy = [("road", "a b", "x b"), ("fan", "a b", "x x"), ("fan", "a b c d e f", "a b c d e f")]
    rows = [{"reference": text, "category": noise, "base": said, "teacher": text} for noise, text, said in noisy]
    rows.append({"reference": "a b", "base": "x x", "teacher": "x x"})  # clean
    assert wer_by(rows, "category", ("base", "teacher"), "xx") == [
        {"category": "fan", "clips": 2, "base": 0.25, "teacher": 0.0},
        {"category": "road", "clips": 1, "base": 0.5, "teacher": 0.0},
    ]


@pytest.mark.parametrize(
    ("language", "reference", "hypothesis", "word_edits", "words", "char_edits", "chars"),
    [
        ("zh", "今天天气很好。", "今天 天气好", 1, 6, 1, 6),
        ("th", "ใกล้ ๆ", "ใกล ๆ", 1, 4, 1, 5),
        ("my", "ကို", "ကု", 1, 1, 1, 3),
        ("hi", "प्राचीन संस्कृतियों और जनजातियों", "प्रचिन संस्कृतियो और जनजातियो", 3, 4, 4, 32),
        ("en", "They don’t know (yet), 21 of them.", "they don't know yet twenty one of them", 0, 8, 0, 31),
        ("de", "(Lachen) Straße", "", 2, 2, 14, 14),
    ],
)
def test_words_and_characters_are_counted_as_the_script_has_them(
    language: str, reference: str, hypothesis: str, word_edits: int, words: int, char_edits: int, chars: int
) -> None:
    errors = count_errors([reference], [hypothesis], language)
    counted = [errors.word_edits, errors.words, errors.char_edits, errors.chars]
    assert [field.item() for field in counted] == [word_edits, words, char_edits, chars]
