"""Which of the teacher's transcripts may stand in for human ones: published thresholds, each with its reason."""

import zlib
from dataclasses import dataclass

from dqlora.config import PseudoLabel
from dqlora.data.text import scoring_normaliser
from dqlora.evaluation.metrics import count_errors

LONGEST_GROUP = 5  # words of a group whose repeats are counted


@dataclass(frozen=True)
class Measures:
    """What a transcript is judged by; None where it was not measured."""

    transcript: str
    log_probability: float  # mean of a token's, nats
    no_speech: float  # probability
    language: float | None  # probability of the language that was asked for
    second: str | None  # another transcript of the same clip
    ended: bool = True  # rather than broken off, at the most tokens that the teacher writes

    @property
    def compression_ratio(self) -> float:
        """Bytes of the text by its bytes in zlib, as openai/whisper's utils.py has it; 0 of no text."""
        text = self.transcript.encode()
        return len(text) / len(zlib.compress(text)) if text else 0.0

    def disagreement(self, language: str) -> float | None:
        """WER of the second transcript by the first."""
        if self.second is None:
            return None
        errors = count_errors([self.transcript], [self.second], language)
        return errors.wer if errors.words[0] else float(errors.word_edits[0] > 0)


def why_rejected(measures: Measures, settings: PseudoLabel, language: str) -> str:
    """The first reason to leave a transcript out, in a few words that begin with its kind; empty if it is kept.

    Log-probability, no-speech probability and compression ratio are those at which openai/whisper takes a transcript
    for failed (Radford et al. 2022, section 4.5); there a high no-speech probability counts only where the
    log-probability is low too, here it counts alone. Whole transcripts that Whisper makes of sounds without speech, and
    loops: Baranski et al. 2025, arXiv 2501.11378. Two transcripts that must agree, for want of a human one: Waheed et
    al. 2024, arXiv 2407.01257; at most 10 % WER: Gandhi et al. 2023, arXiv 2311.00430, against human transcripts.
    """
    words = scoring_normaliser(language)(measures.transcript).split()
    if not words:
        return "no words"
    if not measures.ended:
        return "too long for the teacher"
    listed = {scoring_normaliser(language)(text) for text in settings.hallucinations}
    if " ".join(words) in listed:
        return f"listed hallucination: {measures.transcript}"
    low = (
        ("low log-probability", measures.log_probability, settings.log_probability),
        ("another language", measures.language, settings.language),
    )
    for name, value, least in low:
        if value is not None and least != "none" and value < least:
            return f"{name}: {value:.2f}, under {least:g}"
    high = (
        ("no speech", measures.no_speech, settings.no_speech),
        ("high compression ratio", measures.compression_ratio, settings.compression_ratio),
        ("repeated words", most_repeats(words), settings.repeats),
        ("two transcripts differ", measures.disagreement(language), settings.wer),
    )
    for name, value, most in high:
        if value is not None and most != "none" and value > most:
            return f"{name}: {round(value, 2):g}, over {most:g}"
    return ""


def most_repeats(words: list[str]) -> int:
    """How often a group of up to LONGEST_GROUP words stands in a row, at most; 1 where nothing is said twice."""
    most = 1
    for size in range(1, LONGEST_GROUP + 1):
        run = 0  # words in a row that are the same as those a group before
        for before, word in zip(words, words[size:], strict=False):
            run = run + 1 if word == before else 0
            most = max(most, 1 + run // size)
    return most
