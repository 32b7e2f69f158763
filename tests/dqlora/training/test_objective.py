from pathlib import Path

import pytest
import torch

from dqlora.config import Lora
from dqlora.data.batching import Example, collate
from dqlora.data.text import Vocabulary
from dqlora.models.lora import add_lora
from dqlora.models.wav2vec2 import load_student
from dqlora.training.losses import ctc_loss
from dqlora.training.objective import DistillationLoss
from tests.dqlora.training.test_targets import CPU, TARGETS, TEXT, clean_cnn, make, target_of

LORA = Lora(r=4, alpha=8, dropout=0.0, target_modules=["q_proj", "v_proj"])


@pytest.mark.parametrize("name", TARGETS)
def test_the_distance_from_every_target_reaches_the_adapters(
    name: str, student_folder: Path, vocabulary: Vocabulary
) -> None:
    labels, cnn = vocabulary.encode(TEXT), clean_cnn(student_folder)
    made = make(name, student_folder, labels)
    model = add_lora(load_student(student_folder, "nf4", CPU), LORA, seed=0)
    loss = DistillationLoss(model, vocabulary.blank, target_of(name), made.shape[1], 1.0)
    _, distance = loss(collate([Example(cnn.numpy(), labels, TEXT, made)]))
    distance.backward()
    projection = "student_with_distance.projection"
    trained = {where: weight for where, weight in loss.named_parameters() if weight.requires_grad}
    assert all("lora_" in where or where.startswith(projection) for where in trained)
    assert any(where.startswith(projection) for where in trained) == (name == "whisper_features")
    moved = [where for where, weight in trained.items() if weight.grad is not None and weight.grad.abs().max() > 0]
    assert any("lora_B" in where for where in moved)  # lora_A moves once B is no longer 0


def test_the_base_is_at_no_distance_from_itself(student_folder: Path, vocabulary: Vocabulary) -> None:
    labels = vocabulary.encode(TEXT)
    for name in ("base_logits", "base_features"):
        loss = DistillationLoss(load_student(student_folder, "none", CPU), 0, target_of(name), 64, 1.0).eval()
        example = Example(clean_cnn(student_folder).numpy(), labels, TEXT, make(name, student_folder, labels))
        assert loss(collate([example]))[1].item() == pytest.approx(0.0, abs=1e-2)


def test_without_a_target_the_loss_is_ctc_alone(student_folder: Path, vocabulary: Vocabulary) -> None:
    labels, cnn = vocabulary.encode(TEXT), clean_cnn(student_folder)
    loss = DistillationLoss(load_student(student_folder, "none", CPU), vocabulary.blank).eval()
    batch = collate([Example(cnn.numpy(), labels, TEXT)])
    with torch.inference_mode():
        ctc, distance = loss(batch)
        logits = loss.student(batch.features, batch.frames)
    expected = ctc_loss(logits, batch.frames, batch.labels, batch.label_lengths, vocabulary.blank)
    assert distance.item() == 0.0 and ctc.item() == pytest.approx(expected.item())
