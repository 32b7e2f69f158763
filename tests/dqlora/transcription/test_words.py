import itertools

import numpy as np

from dqlora.data.text import Vocabulary
from dqlora.transcription.words import BREAK, Frame, Word, cues, subtitles, words_of


def certain(*token_ids: int | Frame) -> list[Frame]:
    return [each if isinstance(each, Frame) else Frame(each, 1.0) for each in token_ids]


def test_words_are_those_of_the_decoder_at_their_frames(vocabulary: Vocabulary) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        token_ids = np.repeat(rng.choice([0, 0, 4, 5, 6, 7, 3], 60), rng.integers(1, 4, 60)).tolist()
        words = list(words_of(certain(*token_ids), vocabulary))
        assert " ".join(word.text for word in words) == vocabulary.decode(token_ids)
        assert all(a.end <= b.start for a, b in itertools.pairwise(words))
    a, b = vocabulary.encode("AB")
    assert list(words_of(certain(0, a, a, 0, b, 0, 4, a), vocabulary)) == [Word("ab", 0.0, 0.1), Word("a", 0.1, 0.16)]
    assert [word.text for word in words_of(certain(a, *[0] * 94, b, *[0] * 95, a), vocabulary)] == ["ab", "a"]
    assert list(words_of(certain(a, BREAK, a), vocabulary)) == [Word("a", 0.0, 0.02), Word("a", 0.02, 0.04)]


def test_a_word_is_as_certain_as_the_least_certain_frame_of_its_letters(vocabulary: Vocabulary) -> None:
    """Not those of blanks, nor of other words."""
    a, b = vocabulary.encode("AB")
    blank, space = vocabulary.blank, vocabulary.encode(" ")[0]
    frames = [(a, 0.9), (a, 0.7), (blank, 0.1), (b, 0.8), (space, 0.2), (blank, 0.3), (b, 0.6), (blank, 0.1)]
    words = list(words_of([Frame(*frame) for frame in frames], vocabulary))
    assert [(word.text, word.confidence) for word in words] == [("ab", 0.7), ("b", 0.6)]


def test_subtitles() -> None:
    words = [Word("word", start, start + 0.4) for start in (0.5, 1.0, 1.5)] + [Word("late", 3661.25, 3661.75)]
    assert subtitles(words, "srt") == (
        "1\n00:00:00,500 --> 00:00:01,900\nword word word\n\n2\n01:01:01,250 --> 01:01:01,750\nlate\n"
    )
    assert subtitles(words, "vtt").startswith("WEBVTT\n\n1\n00:00:00.500 --> 00:00:01.900\n")
    many = [Word("abcdefghij", 0.3 * number, 0.3 * number + 0.2) for number in range(60)]
    grouped = cues(many)
    assert [word for cue in grouped for word in cue] == many
    assert all(sum(len(word.text) + 1 for word in cue) <= 85 and cue[-1].end - cue[0].start <= 6 for cue in grouped)
