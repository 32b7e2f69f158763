"""Transcripts: spelt out for training, the student's vocabulary, and the normaliser that scoring shares."""

import html
import unicodedata
from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise
from pathlib import Path

import regex
from whisper_normalizer.english import EnglishTextNormalizer

from dqlora.data.numbers import WITHOUT_SPACES, BadText, normal_code, spell_numbers
from dqlora.data.storage import read_json, rerun
from dqlora.errors import UserError

__all__ = ["BadText", "Vocabulary", "frames_needed", "scoring_normaliser", "spell_out", "without_spaces"]

JOINERS = "\u200c\u200d"  # zero-width: they shape Persian and Indic words, and belong to them
# What is typed for an apostrophe: modifier letters, quotes, accents that stand alone, a prime except after a digit.
_APOSTROPHES = regex.compile(r"[\u2019\u2018\u201b\u00b4`\u02bc\u02bb\u02b9\uff07\u05f3]|(?<!\d)\u2032")
# Soft hyphens, byte order marks, directions; Arabic's kashida; what chooses an emoji's look.
_INVISIBLE = regex.compile(rf"(?V1)[\p{{Cf}}--[{JOINERS}]]|[\u0640\ufe00-\ufe0f\u20e3]")
_ENTITY = regex.compile(r"&(?:#\d+|#[xX][0-9a-fA-F]+|[a-zA-Z]+\d*);")  # of HTML
_DIGIT = regex.compile(r"(?V1)[\p{Nd}--0-9]")
_GROUP_SPACE = regex.compile(r"(?<=\d)[\u00a0\u202f\u2009](?=\d{3}(?!\d))")
_KEPT_APART = regex.compile(r"([\p{No}№ºª′″])")  # NFKC makes digits and letters of them: 5² is not 52
_DASHES = str.maketrans({"\u2010": "-", "\u2011": "-", "\u2012": "-", "\u2013": "-", "\u2212": "-", "\u2014": " - "})
_COMMAS_BELOW = str.maketrans("şţŞŢ", "șțȘȚ")  # Romanian is often typed with cedillas, and CLDR's rules are
_NOT_SPOKEN = regex.compile(rf"[^\p{{L}}\p{{M}}\p{{Nl}}'{JOINERS}]+")
_NOT_WRITTEN = regex.compile(
    rf"[^\p{{L}}\p{{M}}\p{{Nl}}0-9'{JOINERS}]+"
)  # digits that no rules spell stay, to be scored
_LOOSE = regex.compile(rf"(?<![\p{{L}}\p{{M}}])[\p{{M}}{JOINERS}]+|[{JOINERS}]+(?![\p{{L}}\p{{M}}])")


def spell_out(transcript: str, language: str, strict: bool = True) -> str:
    """The words of a transcript as they are spoken: lower case, digits spelt out, punctuation dropped.

    Letters keep their accents; `Vocabulary.fit` decides what the student can write. A text that is spelt out already
    stays as it is.

    Parameters
    ----------
    language
        ISO 639, or with script and territory as FLEURS names it (`cmn_hans_cn`).
    strict
        False for scoring: a number in doubt is spelt as best can be.

    Raises
    ------
    BadText
        if strict, naming the number or sign that cannot be spelt out with certainty in the language.
    """
    text = _lower(spell_numbers(_plain(transcript), language, strict), language)
    text = (_NOT_SPOKEN if strict else _NOT_WRITTEN).sub(" ", _LOOSE.sub("", _INVISIBLE.sub("", text)))
    words = (word.strip("'") for word in text.split())
    return " ".join(word for word in words if word)


def _plain(text: str) -> str:
    """One character for what is written with many (apostrophes, dashes, digits, spaces), nothing invisible."""
    for _ in range(2):  # &amp;quot; has been escaped twice
        text = _ENTITY.sub(lambda match: html.unescape(match[0]), text)
    text = _INVISIBLE.sub("", _APOSTROPHES.sub("'", text)).translate(_DASHES)
    text = _DIGIT.sub(lambda match: str(unicodedata.decimal(match[0])), text)
    text = _GROUP_SPACE.sub("_", text)
    pieces = _KEPT_APART.split(text)
    pieces[::2] = [unicodedata.normalize("NFKC", piece) for piece in pieces[::2]]
    return "".join(pieces)


def _lower(text: str, language: str) -> str:
    if normal_code(language) in {"az", "tr"}:
        text = text.replace("I", "ı")
    if normal_code(language) == "ro":
        text = text.translate(_COMMAS_BELOW)
    return unicodedata.normalize("NFKC", text.replace("İ", "i").lower())


def without_spaces(language: str) -> bool:
    """Whether the language puts no spaces between words, so that what is counted as words is characters."""
    return normal_code(language) in WITHOUT_SPACES


class Vocabulary:
    """The student's tokens: letters, capitals if `upper`. `blank` is the id of CTC's blank, the padding token."""

    def __init__(self, token_ids: dict[str, int], blank: str = "<pad>", delimiter: str = "|"):
        self.token_ids = token_ids
        self.blank = token_ids[blank]
        self.delimiter = delimiter
        self.letters = {token for token in token_ids if len(token) == 1 and token != delimiter}
        self._names = {index: token for token, index in token_ids.items()}
        # the case of most: some have a letter of the other left, and those with both learn to write small ones
        self.upper = sum(map(str.isupper, self.letters)) > sum(map(str.islower, self.letters))
        self._dotted_capitals = "İ" in self.letters  # Turkish and Azerbaijani

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """Read vocab.json, and tokenizer_config.json beside it if there, of a wav2vec 2.0 checkpoint."""
        way_out = "check the preset's student, then " + rerun("fetch_models")
        try:
            token_ids = read_json(path, way_out)
            config_path = path.with_name("tokenizer_config.json")
            config = read_json(config_path, way_out) if config_path.exists() else {}
            pad, delimiter = config.get("pad_token", "<pad>"), config.get("word_delimiter_token", "|")
            pad = pad["content"] if isinstance(pad, dict) else pad
            return cls(token_ids, pad, delimiter)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: not a wav2vec 2.0 vocabulary ({error}); {way_out}") from None

    def __len__(self) -> int:
        return max(self.token_ids.values()) + 1

    def fit(self, text: str) -> str:
        """`text` in the vocabulary's case, accents dropped where the vocabulary lacks them, words joined by a space.

        Raises
        ------
        BadText
            if nothing is left, or letters remain that the vocabulary cannot write.
        """
        if self.upper:
            text = (text.replace("i", "İ") if self._dotted_capitals else text).upper()
        fitted = "".join(self._fit_letter(char) for char in text)
        foreign = sorted({char for char in fitted if char != " " and char not in self.letters})
        if foreign:
            raise BadText(f"letters outside the student's vocabulary: {' '.join(foreign[:8])}")
        if not fitted.strip():
            raise BadText("empty transcript")
        return " ".join(fitted.split())

    def _fit_letter(self, char: str) -> str:
        if char == " " or char in self.letters:
            return char
        if char in "'" + JOINERS:
            return ""
        if char == "ß":
            return "ss"
        plain = "".join(part for part in unicodedata.normalize("NFD", char) if not unicodedata.combining(part))
        return plain or ("" if unicodedata.combining(char) else char)

    def encode(self, text: str) -> list[int]:
        """Token ids of a fitted text."""
        return [self.token_ids[self.delimiter if char == " " else char] for char in text]

    def decode(self, frames: list[int]) -> str:
        """Greedy CTC decoding: repeats merged, blanks dropped. `frames` holds one token id a frame."""
        merged = [token for before, token in zip([None, *frames], frames, strict=False) if token != before]
        return self.lower(" ".join("".join(self.name(token) for token in merged).split()))

    def lower(self, text: str) -> str:
        """In small letters, as transcripts are shown."""
        return _lower(text, "tr") if self._dotted_capitals else text.lower()

    def name(self, token: int) -> str:
        """What a token writes: a letter, a space, or nothing (the blank and whatever stands for no letter)."""
        name = self._names.get(token, "")
        if name == self.delimiter:
            return " "
        return name if len(name) == 1 and token != self.blank else ""


@cache
def scoring_normaliser(language: str) -> Callable[[str], str]:
    """The words that are counted, the same path for references and hypotheses, after the one that labels take.

    Both are spelt out as for training, so that a student that writes its labels makes no errors. Then English goes
    through Whisper's normaliser (Radford et al. 2022, appendix C: contractions, spelling variants, numbers). Other
    languages are case-folded, and lose apostrophes and zero-width joiners. Whisper's basic normaliser is not used: it
    takes vowel signs for punctuation. As in Whisper's paper, languages without spaces are split into characters
    (grapheme clusters), so that their WER is an error rate of characters.
    """
    return partial(_normalise_english if normal_code(language) == "en" else _normalise, language=language)


_english = cache(EnglishTextNormalizer)


def _normalise_english(text: str, language: str) -> str:
    return _english()(spell_out(text, language, strict=False))


def _normalise(text: str, language: str) -> str:
    words = unicodedata.normalize("NFC", spell_out(text, language, strict=False).casefold())
    words = regex.sub(f"['{JOINERS}]", "", words)
    return " ".join(regex.findall(r"\X", words.replace(" ", ""))) if without_spaces(language) else words


def frames_needed(labels: list[int]) -> int:
    """The fewest frames in which CTC can emit `labels`: one each, and a blank between two that are the same."""
    return len(labels) + sum(before == after for before, after in pairwise(labels))
