from dataclasses import replace
from pathlib import Path

import pytest

from dqlora.config import PseudoLabel, load_params
from dqlora.evaluation.label_filter import Measures, most_repeats, why_rejected
from tests.conftest import ROOT

SETTINGS: PseudoLabel = load_params(ROOT / "params.yaml").pseudo_label
GOOD = Measures("The kettle boils at nine.", -0.2, 0.05, 0.99, "the kettle boils at 9")
LOOP = "I can see what you are looking for. " * 12
# what is wrong with a transcript, the parameter that finds it, and the reason
BAD = {
    "unsure": ({"log_probability": -1.01}, "log_probability", "low log-probability: -1.01, under -1"),
    "silence": ({"no_speech": 0.61}, "no_speech", "no speech: 0.61, over 0.6"),
    "french": ({"language": 0.69}, "language", "another language: 0.69, under 0.7"),
    "differs": ({"second": "the cattle boils at nine"}, "wer", "two transcripts differ: 0.2, over 0.1"),
    "nothing the second time": ({"second": ""}, "wer", "two transcripts differ: 1, over 0.1"),
    "says it again": ({"transcript": "no " * 5, "second": "no " * 5}, "repeats", "repeated words: 5, over 4"),
    "listed": ({"transcript": "Thank you.", "second": None}, "hallucinations", "listed hallucination: Thank you."),
}  # fmt: skip


def test_a_good_transcript_is_kept() -> None:
    assert why_rejected(GOOD, SETTINGS, "en") == ""
    assert why_rejected(replace(GOOD, language=None, second=None), SETTINGS, "en") == ""
    assert why_rejected(replace(GOOD, ended=False), SETTINGS, "en") == "too long for the teacher"


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_one_is_rejected_by_its_threshold_and_by_no_other(kind: str) -> None:
    wrong, parameter, reason = BAD[kind]
    found = replace(GOOD, **wrong)
    assert why_rejected(found, SETTINGS, "en") == reason
    off = [] if parameter == "hallucinations" else "none"
    assert why_rejected(found, SETTINGS.model_copy(update={parameter: off}), "en") == ""


def test_a_loop_is_rejected_by_its_compression_or_its_repeats() -> None:
    loop = replace(GOOD, transcript=LOOP, second=LOOP)
    assert why_rejected(loop, SETTINGS, "en").startswith("high compression ratio: ")
    without = SETTINGS.model_copy(update={"compression_ratio": "none"})
    assert why_rejected(loop, without, "en") == ""  # nine words, more than are looked for
    short = replace(GOOD, transcript="Ah, so. " * 12, second=None)
    assert why_rejected(short, without, "en") == "repeated words: 12, over 4"


@pytest.mark.parametrize("text", ["", "   ", ". . .", "♪♪"])
def test_what_has_no_words_is_rejected_by_any_settings(text: str) -> None:
    off = dict.fromkeys(("log_probability", "no_speech", "compression_ratio", "language", "repeats", "wer"), "none")
    settings = SETTINGS.model_copy(update={**off, "hallucinations": []})
    assert why_rejected(replace(GOOD, transcript=text), settings, "en") == "no words"


@pytest.mark.parametrize(
    ("words", "times"),
    [
        ("", 1), ("one", 1), ("a b a b", 2), ("a a b a a", 2), ("a b c a b c a b c", 3), ("x no no no no y", 4),
        ("a b a c a b a c", 2), ("one two three four five six " * 3, 1), ("one two three four five " * 3, 3),
    ],
)  # fmt: skip
def test_repeats_are_counted_in_a_row(words: str, times: int) -> None:
    assert most_repeats(words.split()) == times


def test_thresholds_are_those_of_whisper(tmp_path: Path) -> None:
    """openai/whisper, transcribe.py: logprob_threshold, no_speech_threshold, compression_ratio_threshold."""
    assert (SETTINGS.log_probability, SETTINGS.no_speech, SETTINGS.compression_ratio) == (-1.0, 0.6, 2.4)
