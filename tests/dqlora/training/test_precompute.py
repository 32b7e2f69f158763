from pathlib import Path

import numpy as np
import pytest
import torch

from dqlora.data.audio import to_float32, to_int16
from dqlora.data.batching import BATCH_SECONDS
from dqlora.data.storage import RaggedArray, RaggedArrayWriter
from dqlora.models.wav2vec2 import cnn_features, load_student
from dqlora.training.precompute import write_cnn_features
from tests.conftest import tone


@pytest.mark.parametrize("batch_seconds", [0, 5, 100])  # seconds: each clip alone, a few of like length, all of them
def test_cnn_features_written_together_are_each_clips_own(
    batch_seconds: int, student_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BATCH_SECONDS, "cpu", batch_seconds)
    model = load_student(student_folder, "none", torch.device("cpu"))
    with RaggedArrayWriter(tmp_path / "clips", "int16") as out:
        for number, seconds in enumerate((2.0, 0.5, 1.3, 3.1, 1.3, 0.9)):
            out.append(to_int16(tone(seconds, 100 + 60 * number)), id=f"clip {number}")
    clips = RaggedArray(tmp_path / "clips")
    write_cnn_features(model, clips, tmp_path / "cnn")
    written = RaggedArray(tmp_path / "cnn")
    assert len(written) == len(clips)
    for item in clips.items:
        alone = cnn_features(model, to_float32(clips[item["id"]])).half()
        torch.testing.assert_close(torch.from_numpy(written[item["id"]].copy()), alone, atol=2e-3, rtol=2e-3)
        assert batch_seconds or np.array_equal(written[item["id"]], alone.numpy())
