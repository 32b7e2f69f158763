"""The mean of two students' weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer import BadParameter

from research.pretrain.average import main
from research.pretrain.train import load_weights

WEIGHTS = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[4.0]])}


def test_weights_lie_so_far_from_the_first_to_the_second(tmp_path: Path) -> None:
    for name, factor in {"first": 1, "second": 3}.items():
        (tmp_path / name).mkdir()
        for key, weight in WEIGHTS.items():  # one shard for each
            save_file({key: (factor * weight).half()}, tmp_path / name / f"{key}.safetensors")
    main(tmp_path / "first", tmp_path / "second", tmp_path / "mean", 0.25)
    mean = load_file(tmp_path / "mean/model.safetensors")
    assert mean.keys() == WEIGHTS.keys()
    assert all(mean[key].dtype == torch.float16 and torch.equal(mean[key], 1.5 * WEIGHTS[key].half()) for key in mean)


def test_what_cannot_be_averaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no safetensors file"):
        load_weights(tmp_path)
    for name, key in {"first": "a", "second": "b"}.items():
        (tmp_path / name).mkdir()
        save_file({key: torch.ones(1)}, tmp_path / name / "model.safetensors")
    with pytest.raises(BadParameter, match="not the weights of the model"):
        main(tmp_path / "first", tmp_path / "second", tmp_path / "mean")
    assert not (tmp_path / "mean").exists()
