"""The test set, and that out of domain: every utterance clean and in each of its mixtures."""

from typing import Any

import numpy as np

from dqlora.config import Paths
from dqlora.data.labels import labelled
from dqlora.data.storage import RaggedArray

CLEAN = "clean"  # the condition of a clip that is not mixed; that of a mixture is its SNR, as "10 dB"


def test_clips(paths: Paths, split: str = "test") -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """A split's utterances, clean and at every SNR: rows (id, condition, reference, ...) and int16 [samples] each."""
    clean, noisy = labelled(paths, split), RaggedArray(paths.noisy / split)
    rows, clips = [], []
    for item in clean.items:
        rows.append({"id": item["id"], "condition": CLEAN, "reference": item["transcript"]})
        clips.append(clean[item["id"]])
    for item in noisy.items:
        condition = f"{item['snr_db']:g} dB"
        noise = {key: item[key] for key in ("snr_db", "noise", "category")}
        reference = clean.item(item["utterance"])["transcript"]
        rows.append({"id": item["utterance"], "condition": condition, "reference": reference, **noise})
        clips.append(noisy[item["id"]])
    return rows, clips
