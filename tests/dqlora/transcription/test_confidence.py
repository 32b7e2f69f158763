import numpy as np
import pytest

from dqlora.transcription.confidence import frame_confidence


def test_confidence_goes_from_all_alike_to_one_alone() -> None:
    logits = np.zeros((4, 32), np.float32)
    logits[1:, 5] = 3, 8, 1000
    uniform, low, high, certain = frame_confidence(logits).tolist()
    assert uniform == pytest.approx(0, abs=1e-6) and certain == pytest.approx(1)
    assert uniform < low < high < certain


def test_the_same_chance_of_a_mistake_is_more_certain_shared_by_few_tokens() -> None:
    few, many = np.full((2, 1, 32), -30, np.float32)
    few[0, :2] = np.log([0.6, 0.4])
    many[0] = np.log(0.4 / 31)
    many[0, 0] = np.log(0.6)
    assert frame_confidence(few) > frame_confidence(many) + 0.3


@pytest.mark.parametrize("shift", [-500.0, 500.0])
def test_what_is_added_to_all_logits_changes_nothing(shift: float) -> None:
    logits = np.random.default_rng(0).normal(size=(20, 32)).astype(np.float32)
    assert frame_confidence(logits + np.float32(shift)) == pytest.approx(frame_confidence(logits), abs=1e-3)


def test_no_frames() -> None:
    assert frame_confidence(np.zeros((0, 32), np.float32)).shape == (0,)
