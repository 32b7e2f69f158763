"""Transcripts: spelt out for training, the student's vocabulary, and the normaliser that scoring shares."""

import re
import unicodedata
from functools import cache
from itertools import pairwise
from pathlib import Path

import num2words as _num2words
from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

from dqlora.data.storage import read_json, rerun
from dqlora.errors import UserError

_NUMBER = re.compile(r"(?P<digits>\d+(?:,\d{3})*(?:\.\d+)?)(?P<ordinal>(?:st|nd|rd|th)\b)?")
_YEAR = re.compile(r"1[1-9]\d\d|20[1-9]\d")
_CURRENCY = re.compile(r"([$€£])\s?(\d[\d,.]*\d|\d)(\s(?:hundred|thousand|million|billion|trillion))?")
_CURRENCY_NAMES = {"$": "dollars", "€": "euros", "£": "pounds"}


class BadText(ValueError):
    """A transcript that cannot be used; the message is the reason, in a few words."""


def spell_out(transcript: str, language: str) -> str:
    """The words of a transcript as they are spoken: lower case, digits spelt out, punctuation dropped.

    Letters keep their accents; `Vocabulary.fit` decides what the student can write.

    Raises
    ------
    BadText
        if the transcript has digits and num2words does not know the language.
    """
    text = unicodedata.normalize("NFKC", transcript).replace("’", "'").lower()
    if language == "en":
        text = _CURRENCY.sub(lambda match: f"{match[2]}{match[3] or ''} {_CURRENCY_NAMES[match[1]]}", text)
        text = text.replace("%", " percent ").replace("&", " and ")
    text = _NUMBER.sub(lambda match: f" {_spell_number(match, language)} ", text)
    kept = (char if char == "'" or unicodedata.category(char)[0] in "LM" else " " for char in text)
    words = (word.strip("'") for word in "".join(kept).split())
    return " ".join(word for word in words if word)


def _spell_number(match: re.Match[str], language: str) -> str:
    digits = match["digits"]
    if "," not in digits and _YEAR.fullmatch(digits) and not match["ordinal"]:
        form = "year"
    elif match["ordinal"]:
        form = "ordinal"
    else:
        form = "cardinal"
    number = digits.replace(",", "")
    try:
        return _num2words.num2words(number if "." in number else int(number), lang=language, to=form)
    except NotImplementedError:
        raise BadText(f"digits cannot be spelt out in language {language!r}") from None
    except OverflowError:
        raise BadText("a number too large to spell out") from None


class Vocabulary:
    """The student's tokens: letters. `blank` is the id of CTC's blank, wav2vec 2.0's padding token."""

    def __init__(self, token_ids: dict[str, int], blank: str = "<pad>", delimiter: str = "|"):
        self.token_ids = token_ids
        self.blank = token_ids[blank]
        self.delimiter = delimiter
        self.letters = {token for token in token_ids if len(token) == 1 and token != delimiter}
        self._names = {index: token for token, index in token_ids.items()}
        self._upper = any(letter.isupper() for letter in self.letters)

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
        cased = text.upper() if self._upper else text
        fitted = "".join(self._fit_letter(char) for char in cased)
        foreign = sorted({char for char in fitted if char != " " and char not in self.letters})
        if foreign:
            raise BadText(f"letters outside the student's vocabulary: {' '.join(foreign[:8])}")
        if not fitted.strip():
            raise BadText("empty transcript")
        return " ".join(fitted.split())

    def _fit_letter(self, char: str) -> str:
        if char == " " or char in self.letters:
            return char
        if char == "'":
            return ""
        plain = "".join(part for part in unicodedata.normalize("NFD", char) if not unicodedata.combining(part))
        return plain or ("" if unicodedata.combining(char) else char)

    def encode(self, text: str) -> list[int]:
        """Token ids of a fitted text."""
        return [self.token_ids[self.delimiter if char == " " else char] for char in text]

    def decode(self, frames: list[int]) -> str:
        """Greedy CTC decoding: repeats merged, blanks dropped. `frames` holds one token id a frame."""
        merged = [token for before, token in zip([None, *frames], frames, strict=False) if token != before]
        return " ".join("".join(self.name(token) for token in merged).split()).lower()

    def name(self, token: int) -> str:
        """What a token writes: a letter, a space, or nothing (the blank and whatever stands for no letter)."""
        name = self._names.get(token, "")
        if name == self.delimiter:
            return " "
        return name if len(name) == 1 and token != self.blank else ""


@cache
def scoring_normaliser(language: str) -> BasicTextNormalizer | EnglishTextNormalizer:
    """Whisper's normaliser (Radford et al. 2022, appendix C), the same for references and hypotheses."""
    return EnglishTextNormalizer() if language == "en" else BasicTextNormalizer()


def frames_needed(labels: list[int]) -> int:
    """The fewest frames in which CTC can emit `labels`: one each, and a blank between two that are the same."""
    return len(labels) + sum(before == after for before, after in pairwise(labels))
