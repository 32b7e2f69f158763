import math
from pathlib import Path

import numpy as np
import pytest
import torch

from dqlora.audio import to_float32, to_int16
from dqlora.config import Params, load_params
from dqlora.storage import Packed, PackedWriter
from dqlora.student import FromFeatures, base_of, cnn_features, load_student
from stages.train import SECONDS_AT_ONCE, adapt, entropies, write_cnn_features
from tests.conftest import tone


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_dropout_is_what_the_parameters_say_everywhere(dropout: float, student_folder: Path) -> None:
    values = load_params().model_dump()
    values["train"]["dropout"], values["lora"]["dropout"] = dropout, 0.25
    model = adapt(load_student(student_folder, "nf4", torch.device("cpu")), Params.model_validate(values))
    places = {name: module.p for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout)}
    own = [p for name, p in places.items() if "lora" not in name]
    assert own and set(own) == {dropout}
    assert {p for name, p in places.items() if "lora" in name} == {0.25}
    assert base_of(model).wav2vec2.encoder.layers[0].attention.dropout == dropout


@pytest.mark.parametrize("at_once", [0, 5, 100])  # seconds: each clip alone, a few of like length, all of them
def test_cnn_features_written_together_are_each_clips_own(
    at_once: int, student_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SECONDS_AT_ONCE, "cpu", at_once)
    model = load_student(student_folder, "none", torch.device("cpu"))
    with PackedWriter(tmp_path / "clips", "int16") as out:
        for number, seconds in enumerate((2.0, 0.5, 1.3, 3.1, 1.3, 0.9)):
            out.append(to_int16(tone(seconds, 100 + 60 * number)), id=f"clip {number}")
    clips = Packed(tmp_path / "clips")
    write_cnn_features(model, clips, tmp_path / "cnn")
    written = Packed(tmp_path / "cnn")
    assert len(written) == len(clips)
    for item in clips.items:
        alone = cnn_features(model, to_float32(clips[item["id"]])).half()
        torch.testing.assert_close(torch.from_numpy(written[item["id"]].copy()), alone, atol=2e-3, rtol=2e-3)
        assert at_once or np.array_equal(written[item["id"]], alone.numpy())


def test_entropies_are_those_of_reading_not_of_training(student_folder: Path) -> None:
    student = FromFeatures(load_student(student_folder, "none", torch.device("cpu")))
    features = [cnn_features(student.model, tone(seconds)).clone() for seconds in (1.0, 0.4)]
    expected = entropies(student, features)
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    student.train()
    assert entropies(student, features) == expected and min(expected) > 0 and max(expected) < math.log(32)
