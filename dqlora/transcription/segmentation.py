"""Where a long recording is cut: at its pauses, or into windows that overlap.

A student transcribes best what it was trained on, one utterance at a time, so a recording is cut where it pauses. Where
it does not for a while, it is cut into windows that overlap, and of each only the frames away from the cut count.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from dqlora.data.audio import FRAME_HOP, SAMPLE_RATE

WINDOW = 16 * SAMPLE_RATE  # samples without a pause, transcribed at once: as long as what students are trained on
CONTEXT = 2 * SAMPLE_RATE  # samples more that of context on either side
PAUSE = 0.3  # s under the threshold: longer than the closure of a stop consonant
RANGE = 30.0  # dB under an utterance's loudest 10 ms: what is quieter at its ends is cut off
EDGE = 0.03  # s kept beyond them
MARGIN = 7  # frames of silence before and after, about as much as in the clips that students learn from
THRESHOLD = 0.25  # of the way, in dB, from the 3rd to the 95th percentile of a stretch's level
LEAST_RANGE = 12.0  # dB between the two, below which nothing is called a pause: speech in loud, steady noise
ENERGY_HOP = SAMPLE_RATE // 100  # samples


@dataclass(frozen=True)
class Window:
    """A stretch of a recording; frames are counted from the recording's beginning.

    The own frames of all windows, one after another, are the recording's, each once.
    """

    samples: np.ndarray  # float32, with context
    first_frame: int
    own: tuple[int, int]  # first frame, and the one after the last
    ends_in_pause: bool


def windows(blocks: Iterable[np.ndarray]) -> Iterator[Window]:
    """Cut a stream of float32 samples at its pauses, or into overlapping windows; holds some 18 s of it."""
    held = np.empty(0, np.float32)
    start = own = 0  # samples of the stream at which `held`, and what is not yet given out, begin
    for block in blocks:
        held = np.concatenate([held, block])
        while start + len(held) >= own + WINDOW + CONTEXT:
            cuts = [start + cut for cut in pauses(held) if start + cut > own]
            for cut in cuts:
                yield _between_pauses(held, start, own, cut)
                held, start, own = held[cut - start :], cut, cut
            if not cuts:
                samples = held[: own + WINDOW + CONTEXT - start]
                yield Window(samples, start // FRAME_HOP, _frames(own, own + WINDOW), ends_in_pause=False)
                own += WINDOW
                held, start = held[own - CONTEXT - start :], own - CONTEXT
    for cut in [start + cut for cut in pauses(held)] + [start + len(held)]:
        if cut > own:
            yield _between_pauses(held, start, own, cut)
            held, start, own = held[cut - start :], cut, cut


def _between_pauses(held: np.ndarray, start: int, own: int, cut: int) -> Window:
    """The window whose own samples are `own` to `cut` of the stream, with silence for what surrounds its sound.

    `held` begins at `start`; what it has before `own` is context, since there was no pause at `own`. A shift of a few
    milliseconds changes words that a student is not certain of: so frames are counted from the loudest sample, and the
    same sound is transcribed alike wherever in a recording it stands.
    """
    silence = np.zeros(MARGIN * FRAME_HOP, np.float32)
    first, last = _ends(held[: cut - start])
    if own == start:
        samples = np.concatenate([silence, held[first:last], silence])
        return Window(samples, round((start + first) / FRAME_HOP) - MARGIN, _frames(own, cut), ends_in_pause=True)
    samples = np.concatenate([held[:last], silence])
    return Window(samples, start // FRAME_HOP, _frames(own, cut), ends_in_pause=True)


def _ends(samples: np.ndarray) -> tuple[int, int]:
    """Where the sound begins and ends, in samples; both a whole number of frames from the loudest sample."""
    peak = int(np.abs(samples).argmax())
    first, last, phase = 0, len(samples), peak % ENERGY_HOP
    level = _levels(samples[phase:])
    if len(level):
        threshold = level.max() - RANGE
        noisy = np.quantile(level, 0.03) > threshold - 3
        loud = np.flatnonzero(_is_loud(samples[phase:]) if noisy else level > threshold) * ENERGY_HOP + phase
        if len(loud):
            edge = round(EDGE * SAMPLE_RATE)
            first, last = int(loud[0]) - edge, int(loud[-1]) + ENERGY_HOP + edge
    first = max(peak % FRAME_HOP, peak - -(-(peak - first) // FRAME_HOP) * FRAME_HOP)
    return first, min(len(samples), peak + -(-(last - peak) // FRAME_HOP) * FRAME_HOP)


def _frames(first: int, last: int) -> tuple[int, int]:
    return first // FRAME_HOP, last // FRAME_HOP


def _levels(samples: np.ndarray) -> np.ndarray:
    """Mean power of each 10 ms, dB."""
    rows = samples[: len(samples) // ENERGY_HOP * ENERGY_HOP].reshape(-1, ENERGY_HOP)
    return 10 * np.log10((rows.astype(np.float64) ** 2).mean(axis=1) + 1e-10)


def _is_loud(samples: np.ndarray) -> np.ndarray:
    """bool [10 ms frames]: whether there is sound beside what sounds all along."""
    level = _levels(samples)
    if len(level) == 0:
        return np.zeros(0, bool)
    quiet, loud = np.quantile(level, (0.03, 0.95))
    if loud - quiet < LEAST_RANGE:
        return np.ones(len(level), bool)
    return level > quiet + THRESHOLD * (loud - quiet)


def pauses(samples: np.ndarray) -> list[int]:
    """Where to cut: the middle of each pause between two sounds, in samples, on a frame of the student's."""
    loud = np.flatnonzero(_is_loud(samples))
    gaps = np.flatnonzero(np.diff(loud) * ENERGY_HOP > PAUSE * SAMPLE_RATE)
    middles = (loud[gaps] + loud[gaps + 1]) * ENERGY_HOP // 2
    return (middles // FRAME_HOP * FRAME_HOP).tolist()
