"""Where a recording longer than one window is cut: at its pauses, or into pieces that overlap.

What fits one window is one piece, untouched. What is longer is cut at every pause of half a second; speech that goes on
for a whole window is cut at its longest pause. What lies far from speech does not count, for a student hears noise as
letters. Quiet speech gets silence around it, as clips have. Noisy speech does not: silence beside noise is heard as a
sound, and more of the noise as letters.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from dqlora.data.audio import FRAME_HOP, MAX_SECONDS, SAMPLE_RATE, SILENCE_PEAK, audible
from dqlora.data.mixing import power

WINDOW = round(MAX_SECONDS * SAMPLE_RATE)  # samples transcribed at once: the longest clip that students are trained on
PAUSE = SAMPLE_RATE // 2  # samples without speech at which a longer recording is always cut
SHORTEST_PAUSE = SAMPLE_RATE // 10  # samples; to be looked for where speech goes on for a window
CONTEXT = 50 * FRAME_HOP  # samples (1 s) on either side of those whose frames count: silence, or speech that was cut
EDGE = 10 * FRAME_HOP  # samples (0.2 s) on either side of speech whose frames still count, where it is cut
NOISY_END = 3 * FRAME_HOP  # after noisy speech; the detector hears its beginning late, its end not
NEAR = 25 * FRAME_HOP  # samples (0.5 s) on either side of speech whose frames count in what is not cut
QUIET = 20.0  # dB by which pauses are under the speech where silence is put around it
THRESHOLD = 0.5  # probability of speech; Silero's default
DETECTOR_HOP = 512  # samples of which Silero says one probability


@dataclass(frozen=True)
class Piece:
    """A stretch of a recording to transcribe at once; frames are counted from the recording's beginning.

    A frame is owned by at most one piece; what none owns is without speech.
    """

    samples: np.ndarray  # float32, with context
    first_frame: int  # of `samples`
    own: list[tuple[int, int | None]]  # spans that count: first frame, and the one after the last (None: to the end)
    ends_in_pause: bool
    sound: slice  # frames of `samples` that are no silence put around them


@cache
def _silero() -> Any:
    threads = torch.get_num_threads()
    from silero_vad import load_silero_vad

    torch.set_num_threads(threads)  # its import leaves torch with one
    return load_silero_vad(sequence=True)


def speech_probabilities(samples: np.ndarray) -> np.ndarray:
    """Silero's probability of speech, float32 [samples / 512], in float32 [samples] at 16 kHz, of any level."""
    return _silero().audio_forward(audible(samples))


def pieces(
    blocks: Iterable[np.ndarray], detector: Callable[[np.ndarray], np.ndarray] = speech_probabilities
) -> Iterator[Piece]:
    """Cut a stream of float32 samples at 16 kHz into pieces of at most a window; holds a window and one block of it."""
    blocks, held = iter(blocks), np.empty(0, np.float32)
    start = own = 0  # samples of the stream: where `held` begins, and up to where pieces have been made
    in_pause = True  # whether `own` is
    while True:
        while len(held) <= WINDOW and (block := next(blocks, None)) is not None:
            held = np.concatenate([held, block])
        ends = len(held) <= WINDOW
        window = held[:WINDOW]
        probabilities = detector(window)
        if ends and own == 0:
            near = _near_speech(probabilities, np.abs(held).max(initial=0.0) < SILENCE_PEAK, len(held))
            yield Piece(held, 0, near, ends_in_pause=True, sound=slice(None))
            return
        noisy = _is_noisy(window, probabilities)
        pauses = _pauses(probabilities, own - start, len(window))
        begin, end = pauses[0].tolist() if len(pauses) else (len(window), len(window))
        if begin == own - start and (end == len(window) or end - begin > PAUSE):  # silence, of no piece
            after, in_pause = (end if end == len(held) else end - EDGE), True
        else:
            samples, after_pause = window.copy(), in_pause
            if after_pause:
                samples[: own - start] = 0
            edge = NOISY_END if noisy else EDGE
            before, after, in_pause = _cut(pauses[pauses[:, 0] > own - start], len(window), ends, edge)
            if in_pause:
                samples[before:] = 0
            first = own - start if noisy and after_pause else 0
            last = before if noisy and in_pause else before + CONTEXT
            first_frame, own_frame = (start + first) // FRAME_HOP, own // FRAME_HOP
            end_frame = None if before == len(held) else (start + before) // FRAME_HOP
            sound = slice(own_frame - first_frame, end_frame and end_frame - first_frame)
            yield Piece(samples[first:last], first_frame, [(own_frame, end_frame)], in_pause, sound)
        if after == len(held):
            return
        own = (start + after) // FRAME_HOP * FRAME_HOP
        kept = max(start, own - CONTEXT)
        held, start = held[kept - start :], kept


def _pauses(probabilities: np.ndarray, first: int, last: int) -> np.ndarray:
    """Where there is no speech between samples `first` and `last`: int [pauses, 2], begin and end of each."""
    quiet = np.concatenate([[False], probabilities < THRESHOLD, [False]])
    bounds = np.flatnonzero(quiet[1:] != quiet[:-1]).reshape(-1, 2) * DETECTOR_HOP
    bounds = np.clip(bounds, first, last)
    return bounds[bounds[:, 0] < bounds[:, 1]]


def _near_speech(probabilities: np.ndarray, faint: bool, length: int) -> list[tuple[int, int | None]]:
    """Spans of frames of `length` samples that are near speech; all where the detector hears none, unless `faint`."""
    if not (probabilities >= THRESHOLD).any():
        return [] if faint else [(0, None)]
    spans: list[tuple[int, int | None]] = []
    first = 0
    for begin, end in _pauses(probabilities, 0, length).tolist():
        begin, end = (begin + NEAR if begin else 0), (end - NEAR if end < length else length)
        if begin < end:
            spans += [(first, begin // FRAME_HOP)] if begin else []
            first = end // FRAME_HOP
    return [*spans, (first, None)]


def _is_noisy(samples: np.ndarray, probabilities: np.ndarray) -> bool:
    """Whether pauses are less than QUIET dB under the speech."""
    speech = np.repeat(probabilities >= THRESHOLD, DETECTOR_HOP)[: len(samples)]
    return bool(0 < speech.mean() < 1) and power(samples[~speech]) * 10 ** (QUIET / 10) > power(samples[speech])


def _cut(pauses: np.ndarray, length: int, ends: bool, edge: int) -> tuple[int, int, bool]:
    """Where in a window of `length` samples the next piece ends, where what follows begins, and if that is a pause.

    `edge` is how much of a long pause belongs to the speech before it, in samples.
    """
    lengths, middles = pauses[:, 1] - pauses[:, 0], pauses.mean(axis=1).astype(int)
    if (lengths >= PAUSE).any():
        begin, end = pauses[np.argmax(lengths >= PAUSE)].tolist()
        return begin + edge, end if ends and end == length else end - EDGE, True
    if ends:
        return length, length, True
    lengths = lengths * ((middles > WINDOW // 2) & (middles <= WINDOW - CONTEXT))
    if (lengths >= SHORTEST_PAUSE).any():
        middle = int(middles[lengths.argmax()])
        return middle, middle, True
    return length - CONTEXT, length - CONTEXT, False
