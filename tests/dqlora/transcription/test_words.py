import itertools

import numpy as np

from dqlora.data.text import Vocabulary
from dqlora.transcription.words import BREAK, Word, cues, subtitles, words_of


def test_words_are_those_of_the_decoder_at_their_frames(vocabulary: Vocabulary) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        token_ids = np.repeat(rng.choice([0, 0, 4, 5, 6, 7, 3], 60), rng.integers(1, 4, 60)).tolist()
        words = list(words_of(token_ids, vocabulary))
        assert " ".join(word.text for word in words) == vocabulary.decode(token_ids)
        assert all(a.end <= b.start for a, b in itertools.pairwise(words))
    a, b = vocabulary.encode("AB")
    assert list(words_of([0, a, a, 0, b, 0, 4, a], vocabulary)) == [Word("ab", 0.0, 0.1), Word("a", 0.1, 0.16)]
    assert [word.text for word in words_of([a, *[0] * 94, b, *[0] * 95, a], vocabulary)] == ["ab", "a"]
    assert list(words_of([a, BREAK, a], vocabulary)) == [Word("a", 0.0, 0.02), Word("a", 0.02, 0.04)]


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
