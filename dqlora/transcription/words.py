"""Words with their times and confidences, out of a student's frames, and what is written of them."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from dqlora.data.audio import FRAME_HOP, SAMPLE_RATE
from dqlora.data.text import Vocabulary

LATENESS = 0.05  # s from a word's onset to the mini student's first peak, in the median; a test holds it to 0.15
MAX_CUE = 84  # characters of a subtitle: two lines of 42 (BBC subtitle guidelines: 37 to 42)
MAX_CUE_SECONDS = 6.0
LONGEST_GAP = 95  # frames (1.9 s) between two letters of a word: a student unsure of what it hears may leave one
CUE_PAUSE = 0.8  # s between two words that ends a subtitle


class Frame(NamedTuple):
    """A frame of a decoder's path."""

    token_id: int
    confidence: float  # from 0 to 1


BREAK = Frame(-1, 1.0)  # in a stream of frames: a pause, which is no frame


@dataclass(frozen=True)
class Word:
    text: str
    start: float  # s
    end: float  # s
    confidence: float = 1.0  # from 0 to 1


def words_of(frames: Iterable[Frame], vocabulary: Vocabulary) -> Iterator[Word]:
    """Words of a stream of frames, as `Vocabulary.decode` spells them, with the times of their letters.

    A word ends where `|` stands, where letters are far apart, and at BREAK. It is as certain as the least certain frame
    of its letters.
    """
    letters: list[str] = []
    confidence = 1.0
    frame = first = last = 0
    ended = 0.0  # when the word before ended
    previous = vocabulary.blank

    def word() -> Word:
        start = max(ended, first * FRAME_HOP / SAMPLE_RATE - LATENESS)
        end = (last + 1) * FRAME_HOP / SAMPLE_RATE
        return Word("".join(letters).lower(), round(start, 2), round(end, 2), round(confidence, 3))

    for each in frames:
        token = each.token_id
        name = " " if each == BREAK else vocabulary.name(token)
        if letters and (name == " " or (name and frame - last > LONGEST_GAP)):
            yield (made := word())
            letters, confidence, ended = [], 1.0, made.end
        if name and name != " ":
            if token != previous:
                first = first if letters else frame
                letters.append(name)
            confidence = min(confidence, each.confidence)
            last = frame
        previous = token
        frame += each != BREAK
    if letters:
        yield word()


def cues(words: list[Word]) -> list[list[Word]]:
    """Words of one subtitle each: at most 84 characters and 6 s, and none across a pause."""
    grouped: list[list[Word]] = []
    for word in words:
        group = grouped[-1] if grouped else []
        length = sum(len(each.text) + 1 for each in group) + len(word.text)
        new = not group or word.start - group[-1].end > CUE_PAUSE
        if new or length > MAX_CUE or word.end - group[0].start > MAX_CUE_SECONDS:
            grouped.append([word])
        else:
            group.append(word)
    return grouped


def text_of(words: list[Word]) -> str:
    return " ".join(word.text for word in words)


def subtitles(words: list[Word], kind: str) -> str:
    """`srt` (SubRip) or `vtt` (WebVTT, W3C 2019)."""
    mark = "," if kind == "srt" else "."
    blocks = []
    for number, cue in enumerate(cues(words), 1):
        times = f"{_timestamp(cue[0].start, mark)} --> {_timestamp(cue[-1].end, mark)}"
        blocks.append(f"{number}\n{times}\n{text_of(cue)}\n")
    return ("WEBVTT\n\n" if kind == "vtt" else "") + "\n".join(blocks)


def _timestamp(seconds: float, mark: str) -> str:
    milliseconds = round(1000 * seconds)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{mark}{rest % 1000:03d}"


def as_json(name: str, words: list[Word]) -> dict[str, Any]:
    return {"file": name, "text": text_of(words), "words": [asdict(word) for word in words]}
