from itertools import zip_longest

import numpy as np
import pytest

from dqlora.data.audio import FRAME_HOP
from dqlora.transcription.segmentation import CONTEXT, DETECTOR_HOP, EDGE, PAUSE, WINDOW, pieces
from tests.conftest import RATE


def loud(samples: np.ndarray) -> np.ndarray:
    """A detector for what `recording` makes."""
    padded = np.pad(samples, (0, -len(samples) % DETECTOR_HOP))
    return (np.abs(padded).reshape(-1, DETECTOR_HOP).max(axis=1) > 0.05).astype(np.float32)


def recording(*seconds: float, noise: float = 1e-4) -> np.ndarray:
    """Sound and pauses in turn, beginning with sound; `noise` is the peak of the pauses."""
    rng = np.random.default_rng(0)
    lengths = [round(length * RATE) for length in seconds]
    sounds = [0.1 * rng.standard_normal(length) for length in lengths[::2]]
    pauses = [noise * rng.uniform(-1, 1, length) for length in lengths[1::2]]
    parts = [part for pair in zip_longest(sounds, pauses, fillvalue=np.empty(0)) for part in pair]
    return np.concatenate(parts).astype(np.float32)


RECORDINGS = {
    "short": (0.4,),
    "a window with a pause": (5, 19, 5),
    "no pause": (61.3,),
    "short pauses": (18, 0.3, 20, 0.2, 25),
    "long pauses": (4, 3, 5, 20, 2, 70, 3, 1.5),
    "begins and ends in silence": (0, 40, 6, 2, 5, 45),
    "silence": (0, 95.2),
    "a pause at the window's end": (29.5, 4, 8),
    "a block more than a window": (30.0, 0, 0.01),
}


@pytest.mark.parametrize("size", [RATE // 3, 10 * RATE, 10**9])
@pytest.mark.parametrize("noise", [1e-4, 0.04])
@pytest.mark.parametrize("name", RECORDINGS)
def test_pieces_own_every_sound_once(name: str, noise: float, size: int) -> None:
    samples = recording(*RECORDINGS[name], noise=noise)
    heard, position = np.zeros(len(samples)), 0
    for piece in pieces((samples[at : at + size] for at in range(0, len(samples), size)), loud):
        assert len(piece.samples) <= WINDOW
        for first, last in piece.own:
            assert first >= position
            position = last or len(samples) // FRAME_HOP
            begin, end = first * FRAME_HOP, len(samples) if last is None else last * FRAME_HOP
            inside = piece.samples[begin - piece.first_frame * FRAME_HOP :][: end - begin]
            np.testing.assert_allclose(inside, samples[begin:end])
            heard[begin:end] += 1
    assert heard.max(initial=0) <= 1
    assert heard[np.abs(samples) > 0.05].min(initial=1) == 1


@pytest.mark.parametrize("seconds", [0.4, 12.0, 29.99, 30.0])
def test_what_fits_a_window_is_left_as_it_is_and_counts_near_speech(seconds: float) -> None:
    samples = np.concatenate([recording(seconds / 4, seconds / 2), recording(seconds / 4)])
    (piece,) = pieces([samples], loud)
    assert np.array_equal(piece.samples, samples)
    begin, end = ((seconds / 4 + 0.5) * 50, (3 * seconds / 4 - 0.5) * 50)
    expected = [0, pytest.approx(begin, abs=2), pytest.approx(end, abs=2), None] if seconds > 2 else [0, None]
    assert [frame for span in piece.own for frame in span] == expected


@pytest.mark.parametrize(
    ("seconds", "noise", "own"),
    [
        ((0, 9), 0.01, [(0, None)]),  # the detector may be wrong: nothing is lost where it hears no speech at all
        ((0, 9), 1e-4, []),  # but where nothing is loud enough to be any
        ((0, 4, 2), 1e-4, [(3.5, None)]),
        ((2, 4), 1e-4, [(0, 2.5), (6, None)]),
        ((2, 0.9, 2, 1.5, 2), 1e-4, [(0, 5.4), (5.9, None)]),
    ],
)
def test_what_counts_in_a_window(
    seconds: tuple[float, ...], noise: float, own: list[tuple[float, float | None]]
) -> None:
    (piece,) = pieces([recording(*seconds, noise=noise)], loud)
    for found, expected in zip(piece.own, own, strict=True):
        assert found == tuple(end if end is None else pytest.approx(50 * end, abs=2) for end in expected)


def test_a_longer_recording_is_cut_at_its_pauses_and_loses_silence() -> None:
    found = list(pieces([recording(*RECORDINGS["long pauses"])], loud))
    assert [piece.ends_in_pause for piece in found] == [True] * 4
    for piece, begin, length in zip(found, (0, 7, 32, 104), (4, 5, 2, 3), strict=True):
        assert piece.own[0][0] * FRAME_HOP == pytest.approx(max(0, begin * RATE - EDGE), abs=2 * DETECTOR_HOP)
        assert len(piece.samples) <= length * RATE + 2 * (CONTEXT + EDGE + DETECTOR_HOP)


@pytest.mark.parametrize("silence", [28.9, 29.9, 30.0, 30.1, 31.0])
def test_a_pause_that_a_window_ends_in_leaves_the_next_speech_its_edge(silence: float) -> None:
    """Whether nothing or speech comes before it."""
    for seconds in ((0, silence, 3, 1, 3), (3, silence - 3, 3, 1, 3)):
        before, hop = sum(seconds[:2]), DETECTOR_HOP + FRAME_HOP
        owns = [piece.own[0][0] * FRAME_HOP for piece in pieces([recording(*seconds)], loud)]
        assert before * RATE - PAUSE - hop <= owns[-2] <= before * RATE - EDGE + hop


def test_without_a_long_pause_the_longest_is_cut_and_without_any_both_sides_are_heard() -> None:
    first, *_ = pieces([recording(*RECORDINGS["short pauses"])], loud)
    assert first.ends_in_pause and (first.own[0][1] or 0) * FRAME_HOP / RATE == pytest.approx(18.15, abs=0.1)
    samples = recording(*RECORDINGS["no pause"])
    first, second, *_ = pieces([samples], loud)
    assert not first.ends_in_pause and first.own[0][1] == second.own[0][0]
    assert np.array_equal(second.samples[:CONTEXT], samples[(second.own[0][0] * FRAME_HOP) - CONTEXT :][:CONTEXT])


def test_quiet_speech_gets_silence_around_it_and_noisy_speech_none() -> None:
    for noise, context in ((1e-4, CONTEXT), (0.04, 0)):
        _, piece, *_ = pieces([recording(*RECORDINGS["long pauses"], noise=noise)], loud)
        ((first, last),) = piece.own
        assert last is not None
        assert (first - piece.first_frame) * FRAME_HOP == context
        assert piece.sound == slice(first - piece.first_frame, last - piece.first_frame)
        after = piece.samples[(last - piece.first_frame) * FRAME_HOP :]
        assert len(after) == pytest.approx(context, abs=FRAME_HOP) and not after[FRAME_HOP:].any()
