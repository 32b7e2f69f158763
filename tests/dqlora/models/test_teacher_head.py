from pathlib import Path

import pytest
import torch

from dqlora.errors import UserError
from dqlora.models.teacher_head import TeacherHead, load_head, save_head
from dqlora.training.losses import ctc_loss
from tests.conftest import HEAD

CPU = torch.device("cpu")


def test_the_head_does_not_see_padding() -> None:
    torch.manual_seed(0)
    head = TeacherHead(24, 32, HEAD).eval()
    features, frames = torch.randn(2, 60, 24), torch.tensor([60, 33])
    spoilt = features.clone()
    spoilt[1, 33:] = 1e3
    expected = head(features, frames)
    assert torch.allclose(head(spoilt, frames)[1, :33], expected[1, :33], atol=1e-5)
    assert torch.allclose(head(features[1:, :33], frames[1:])[0], expected[1, :33], atol=1e-5)


def test_gradients_reach_the_whole_head() -> None:
    head = TeacherHead(24, 32, HEAD).train()
    frames = torch.tensor([60])
    ctc_loss(head(torch.randn(1, 60, 24), frames), frames, torch.tensor([[5, 6, 7]]), torch.tensor([3]), 0).backward()
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in head.letters.parameters())
    assert all(weight.grad is not None for weight in head.parameters())


def test_the_head_comes_back_as_it_was(tmp_path: Path) -> None:
    head = TeacherHead(24, 32, HEAD).eval()
    save_head(head, 0.25, tmp_path)
    again, wer = load_head(tmp_path, CPU)
    features, frames = torch.randn(1, 20, 24), torch.tensor([20])
    assert wer == 0.25
    assert torch.allclose(again(features, frames), head(features, frames), atol=1e-6)
    assert not any(weight.requires_grad for weight in again.parameters())
    (tmp_path / "head.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match="unreadable teacher head"):
        load_head(tmp_path, CPU)
