import numpy as np

from research.study.frame_sync import matched


def test_peaks_match_where_the_other_has_the_same_token() -> None:
    base = np.array([0, 5, 5, 0, 6, 0, 6, 7])  # peaks at 1, 4, 6 and 7
    early = np.array([5, 0, 0, 6, 0, 6, 7, 0])  # each a frame before
    assert matched(base, base, blank=0, shift=0) == (4, 4)
    assert matched(base, early, blank=0, shift=-1) == (4, 4)
    assert matched(base, early, blank=0, shift=0) == (0, 4)
