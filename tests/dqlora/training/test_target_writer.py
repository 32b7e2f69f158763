from pathlib import Path

import numpy as np
import pytest
import torch

from dqlora.data.audio import to_float32, to_int16
from dqlora.data.batching import BATCH_SECONDS
from dqlora.data.storage import RaggedArray, RaggedArrayWriter
from dqlora.data.text import Vocabulary
from dqlora.models.wav2vec2 import cnn_features
from dqlora.training.target_writer import TargetWriter
from dqlora.training.targets import Clip
from tests.conftest import tone
from tests.dqlora.training.test_targets import TARGETS, WIDTH, made, sources_of, target_of

SECONDS = {"cat": 2.0, "dog": 0.5, "crow": 1.3, "hen": 1.3}


@pytest.fixture
def clean(tmp_path: Path) -> RaggedArray:
    with RaggedArrayWriter(tmp_path / "clean", "int16") as out:
        for number, (name, seconds) in enumerate(SECONDS.items()):
            out.append(to_int16(tone(seconds, 100 + 60 * number)), id=name, text=name.upper())
    return RaggedArray(tmp_path / "clean")


def whisper_features(folder: Path, copies: int) -> RaggedArray:
    """Of each clip; or of two mixtures of each, where the teacher hears them."""
    rng = np.random.default_rng(0)
    with RaggedArrayWriter(folder, "float16", WIDTH) as out:
        for name, seconds in SECONDS.items():
            for copy in range(copies):
                rows = rng.normal(size=(round(50 * seconds), WIDTH))
                out.append(rows, id=name if copies == 1 else f"{name}#{copy}", utterance=name)
    return RaggedArray(folder)


@pytest.mark.parametrize("batch_seconds", [0, 3, 100])  # each clip alone, a few of like length, all of them
@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("name", TARGETS)
def test_each_item_has_the_target_that_it_has_alone(
    name: str,
    copies: int,
    batch_seconds: int,
    clean: RaggedArray,
    student_folder: Path,
    vocabulary: Vocabulary,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(BATCH_SECONDS, "cpu", batch_seconds)
    target = target_of(name)
    sources = sources_of(target, student_folder)
    whisper = whisper_features(tmp_path / "whisper", copies) if target.uses_whisper else None
    TargetWriter(target, sources, vocabulary, clean, whisper).write(tmp_path / "targets")
    written = RaggedArray(tmp_path / "targets")
    assert written.values.dtype == np.float16
    # one for each utterance, that serves all its mixtures, unless the teacher hears these
    items = (clean if whisper is None else whisper).items
    assert sorted(item["id"] for item in written.items) == sorted(item["id"] for item in items)
    for item in items:
        utterance = item.get("utterance", item["id"])
        heard = None if whisper is None else torch.from_numpy(whisper[item["id"]].copy())
        cnn = cnn_features(sources.base.model, to_float32(clean[utterance]))
        (alone,) = made(target, sources, [Clip(cnn, vocabulary.encode(clean.item(utterance)["text"]), heard)])
        found = written[item["id"]]
        if batch_seconds == 0:
            assert np.array_equal(found, alone)
        elif name.endswith("ctc_posterior"):  # of logarithms of what is next to nothing, the last digits are noise
            np.testing.assert_allclose(np.exp(found.astype(float)), np.exp(alone.astype(float)), atol=5e-3)
        else:
            np.testing.assert_allclose(found, alone, atol=5e-3)
