import numpy as np
import pytest

from dqlora.evaluation.results import (
    SYSTEMS,
    Estimate,
    Scores,
    best_and_worst,
    compare,
    out_of_domain_in_words,
    verdict,
)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.01, 0.2, "better"),
        (-0.1, 0.2, "no difference shown"),
        (0.0, 0.2, "no difference shown"),
        (-0.2, -0.1, "worse"),
    ],
)
def test_verdict(low: float, high: float, expected: str) -> None:
    assert verdict(Estimate(0.0, low, high)) == expected


def test_cer_counts_characters_and_has_its_interval() -> None:
    hypotheses = ["bat", "cot", "cut", "cog", "can", "dog"]
    references = ["cat", "cot", "cut", "cab", "can", "cat"]
    rows = [{"id": f"u{at}", "condition": "clean", "reference": said} for at, said in enumerate(references)]
    scores = Scores(
        [row | dict.fromkeys(SYSTEMS, text) for row, text in zip(rows, hypotheses, strict=True)], "en", 500, 0
    )
    wer, cer = scores.overall(noisy=False)["base"], scores.overall(noisy=False, rate="cer")["base"]
    assert (wer.value, cer.value) == (3 / 6, 6 / 18)
    for rate in (wer, cer):
        assert rate.low is not None and rate.high is not None and 0 <= rate.low < rate.value < rate.high <= 1
    assert cer.high < wer.high


@pytest.mark.parametrize("decoded", [(), ("base_lm", "distilled_lm")])
def test_what_is_decoded_with_a_language_model_is_scored_where_it_is(decoded: tuple[str, ...]) -> None:
    row = {"id": "u0", "condition": "clean", "reference": "a word"} | dict.fromkeys((*SYSTEMS, *decoded), "a word")
    assert set(Scores([row], "en", 100, 0).overall(noisy=False)) == {*SYSTEMS, *decoded}


def test_compare_marks_each_difference() -> None:
    words = compare("The cat sat down on the mat.", "the cap sat on the red mat", "en")
    assert [(word.kind, word.text) for word in words] == [
        ("same", "the"),
        ("substituted", "cap"),
        ("same", "sat"),
        ("deleted", "down"),
        ("same", "on"),
        ("same", "the"),
        ("inserted", "red"),
        ("same", "mat"),
    ]
    assert words[1].instead_of == "cat"
    assert [word.kind for word in compare("", "uh huh", "xx")] == ["inserted", "inserted"]
    assert [word.kind for word in compare("one word", "", "xx")] == ["deleted", "deleted"]


def test_an_utterance_is_shown_once_and_improvements_are_real() -> None:
    rows = [{"id": f"u{at % 4}", "condition": "5 dB"} for at in range(8)] + [{"id": "u0", "condition": "clean"}]
    base = np.array([5, 4, 3, 2, 9, 4, 3, 2, 9])
    distilled = np.array([1, 4, 6, 2, 9, 3, 3, 2, 0])
    best, worst = best_and_worst(rows, {"base": base, "distilled": distilled})
    assert best == [0, 5]  # saved 4 and 1; the clean row does not count
    assert worst == [2, 3]


@pytest.mark.parametrize(
    ("noisy", "clean", "expected", "warns"),
    [
        (
            (0.052, 0.01, 0.091),
            (0.0, 0.0, 0.0),
            "out of domain: noisy WER 5.2 % lower [1.0, 9.1], clean WER 0.0 % lower [0.0, 0.0] than the base's",
            False,
        ),
        ((0.1, 0.0, 0.2), (-0.04, -0.1, 0.03), "clean WER 4.0 % higher [-3.0, 10.0] than the base's", False),
        ((-0.02, -0.05, 0.01), (0.0, 0.0, 0.0), "noisy WER 2.0 % higher [-1.0, 5.0], clean", True),
        (
            (0.1, 0.0, 0.2),
            (-0.3, -0.4, -0.2),
            "clean WER 30.0 % higher [20.0, 40.0] than the base's; lower budget.wise",
            True,
        ),
    ],
)
def test_what_is_lost_out_of_domain_is_a_warning_with_a_way_out(
    noisy: tuple, clean: tuple, expected: str, warns: bool
) -> None:
    names = ("relative", "ci_low", "ci_high")
    reductions = {"noisy": dict(zip(names, noisy, strict=True)), "clean": dict(zip(names, clean, strict=True))}
    said = out_of_domain_in_words({"wer_reduction": reductions})
    assert expected in said and said.startswith("warning: ") == warns == ("; lower budget" in said)
    gained = {"noisy": {"relative": 0.1, "ci_low": 0.0, "ci_high": 0.2}, "clean": dict.fromkeys(names, 0.0)}
    said = out_of_domain_in_words({"wer_reduction": gained, "lm_wer_reduction": reductions})
    found = expected.removeprefix("out of domain: ").partition(" than the base's")[0]
    assert "; with the language model " in said and found in said.partition("language model ")[2]
    assert said.startswith("warning: ") == warns == ("decode.method=greedy leaves it out" in said)
