import numpy as np
import pytest
import torch

from dqlora.data.batching import Example
from dqlora.data.text import Vocabulary
from dqlora.models.teacher_head import TeacherHead, transcribe_head
from dqlora.training import head_loop
from dqlora.training.head_loop import train_head
from tests.conftest import HEAD

WIDTH = 24
TEXTS = ["HELLO", "GOOD DAY", "YES"]


@pytest.fixture
def examples(vocabulary: Vocabulary) -> list[Example]:
    rng = np.random.default_rng(0)
    made = []
    for number, text in enumerate(TEXTS):
        frames = 40 + 10 * number
        features = rng.normal(size=(frames, WIDTH)).astype(np.float16)
        target = rng.normal(size=(frames, len(vocabulary))).astype(np.float16)
        made.append(Example(features, vocabulary.encode(text), text, target))
    return made


def test_the_head_can_be_overfitted(examples: list[Example], vocabulary: Vocabulary) -> None:
    torch.manual_seed(0)
    settings = HEAD.model_copy(update={"dropout": 0.0, "mask_ratio": 0.0, "learning_rate": 5e-3})
    head = TeacherHead(WIDTH, len(vocabulary), settings)
    train_head(head, examples, vocabulary.blank, settings, steps=150, batch_seconds=10, seed=0)
    assert not head.training
    assert transcribe_head(head, examples, vocabulary) == [text.lower() for text in TEXTS]


@pytest.mark.parametrize(("weight", "steps_with_kl"), [(1.0, 5), (0.0, 0)])
def test_the_students_timing_is_followed_over_the_first_half(
    weight: float,
    steps_with_kl: int,
    examples: list[Example],
    vocabulary: Vocabulary,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared = []
    kl = head_loop.kl_divergence
    monkeypatch.setattr(head_loop, "kl_divergence", lambda *inputs: compared.append(inputs) or kl(*inputs))
    torch.manual_seed(0)
    settings = HEAD.model_copy(update={"frame_sync_weight": weight})
    head = TeacherHead(WIDTH, len(vocabulary), settings)
    train_head(head, examples, vocabulary.blank, settings, steps=10, batch_seconds=10, seed=0)
    assert len(compared) == steps_with_kl
