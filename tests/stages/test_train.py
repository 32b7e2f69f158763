from pathlib import Path

import pytest
import torch

from dqlora.config import Params, load_params
from dqlora.student import base_of, load_student
from stages.train import adapt


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
