"""A sample of the test set, where all of it would take too long."""

from typing import Any

import numpy as np


def sample_utterances(
    rows: list[dict[str, Any]], clips: list[np.ndarray], count: int
) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """Rows and clips of at most `count` utterances, spread evenly over the set, each in all its conditions.

    Parameters
    ----------
    rows, clips
        as `test_clips` gives them.
    count
        1 or more.
    """
    names = list(dict.fromkeys(row["id"] for row in rows))
    chosen = {names[at * len(names) // count] for at in range(count)}
    kept = [number for number, row in enumerate(rows) if row["id"] in chosen]
    return [rows[number] for number in kept], [clips[number] for number in kept]
