import numpy as np
import pytest

from dqlora.data.audio import FRAME_HOP
from dqlora.transcription.segmentation import CONTEXT, WINDOW, pauses, windows
from tests.conftest import RATE


def noise(seconds: float, seed: int = 0, level: float = 0.1) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


def blocks(samples: np.ndarray, size: int) -> list[np.ndarray]:
    return [samples[start : start + size] for start in range(0, len(samples), size)]


RECORDINGS = {
    "short": noise(0.4),
    "one window": noise(17.0),
    "no pause": noise(61.3),
    "pauses": np.concatenate([noise(s, level=v) for s, v in ((2, 0.1), (1, 1e-4), (5, 0.1), (0.6, 1e-4), (25, 0.1))]),
    "silence": np.zeros(40 * RATE, np.float32),
    "exact": noise((WINDOW + CONTEXT) / RATE),
}  # fmt: skip


@pytest.mark.parametrize("size", [RATE // 3, 10 * RATE, 10**9])
@pytest.mark.parametrize("name", RECORDINGS)
def test_windows_own_every_frame_once_and_hear_what_is_there(name: str, size: int) -> None:
    samples = RECORDINGS[name]
    position = 0
    for window in windows(blocks(samples, size)):
        assert window.own[0] == position
        position = window.own[1]
        heard = window.first_frame * FRAME_HOP
        sound = np.trim_zeros(window.samples)  # silence may stand for what surrounds it
        first = heard + len(window.samples) - len(np.trim_zeros(window.samples, "f"))
        near = range(first - FRAME_HOP // 2, first + FRAME_HOP // 2 + 1)
        assert any(np.array_equal(sound, samples[max(0, at) : max(0, at) + len(sound)]) for at in near)
        assert len(window.samples) <= WINDOW + 2 * CONTEXT
        if not window.ends_in_pause:  # cut where somebody may be speaking: heard on both sides of the cut
            assert heard + len(window.samples) == window.own[1] * FRAME_HOP + CONTEXT
    assert position == len(samples) // FRAME_HOP


def test_a_recording_is_cut_at_its_pauses() -> None:
    (first, second) = pauses(RECORDINGS["pauses"])
    assert first / RATE == pytest.approx(2.5, abs=0.05)
    assert second / RATE == pytest.approx(8.3, abs=0.05)
    assert pauses(noise(20)) == [] == pauses(np.zeros(0, np.float32))
    found = [window.ends_in_pause for window in windows([RECORDINGS["pauses"]])]
    assert found == [True, True, False, True]
