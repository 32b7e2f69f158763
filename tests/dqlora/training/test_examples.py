from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dqlora.data.storage import RaggedArray, RaggedArrayWriter
from dqlora.data.text import Vocabulary
from dqlora.errors import Rejected, UserError
from dqlora.training.examples import load_examples

TEXTS = {"cat": "CAT", "hello": "HELLO"}


def written(folder: Path, width: int | None, lengths: dict[str, int], **fields: dict[str, Any]) -> RaggedArray:
    """Arrays of these lengths by id, each filled with a number of its own."""
    with RaggedArrayWriter(folder, "float16", width) as out:
        for number, (name, length) in enumerate(lengths.items()):
            values = np.full((length,) if width is None else (length, width), number)
            out.append(values, id=name, **{field: of[name] for field, of in fields.items()})
    return RaggedArray(folder)


@pytest.fixture
def arrays(tmp_path: Path) -> dict[str, RaggedArray]:
    frames = {"hello#1": 7, "cat#0": 3, "hello#0": 5}  # HELLO needs 6: a blank between its two L
    noisy = written(tmp_path / "noisy", None, frames, utterance={name: name.split("#")[0] for name in frames})
    features = written(tmp_path / "features", 4, dict(sorted(frames.items())))  # in another order
    return {
        "noisy": noisy,
        "features": features,
        "clean": written(tmp_path / "clean", None, {"cat": 9, "hello": 9}, text=TEXTS),
    }


def test_examples_are_those_of_the_mixtures_and_a_text_too_long_is_rejected(
    arrays: dict[str, RaggedArray], vocabulary: Vocabulary
) -> None:
    rejected = Rejected()
    examples = load_examples("train", **arrays, targets=None, vocabulary=vocabulary, rejected=rejected)
    assert [example.text for example in examples] == ["HELLO", "CAT"]
    assert rejected.items == [("train", "hello#0", "more labels than frames")]
    for example, name in zip(examples, ("hello#1", "cat#0"), strict=True):
        assert np.array_equal(example.features, arrays["features"][name])
        assert example.labels == vocabulary.encode(example.text) and example.target is None


@pytest.mark.parametrize("of", ["utterance", "mixture"])
def test_a_target_is_the_mixtures_own_or_its_utterances(
    of: str, arrays: dict[str, RaggedArray], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    names = {"utterance": ("hello", "cat"), "mixture": ("hello#1", "cat#0")}[of]
    targets = written(tmp_path / "targets", 2, dict.fromkeys(reversed(names), 7))
    examples = load_examples("train", **arrays, targets=targets, vocabulary=vocabulary, rejected=Rejected())
    assert len(examples) == 2
    for example, name in zip(examples, names, strict=True):
        assert example.target is not None and np.array_equal(example.target, targets[name])


def test_where_no_text_fits_the_split_is_named(vocabulary: Vocabulary, tmp_path: Path) -> None:
    noisy = written(tmp_path / "noisy", None, {"hello#0": 5}, utterance={"hello#0": "hello"})
    features, clean = (
        written(tmp_path / "features", 4, {"hello#0": 5}),
        written(tmp_path / "clean", None, {"hello": 9}, text=TEXTS),
    )
    rejected = Rejected()
    with pytest.raises(UserError, match="validation: every transcript has more labels than its audio has frames"):
        load_examples(
            "validation", noisy=noisy, clean=clean, features=features, targets=None,
            vocabulary=vocabulary, rejected=rejected,
        )  # fmt: skip
    assert len(rejected.items) == 1
