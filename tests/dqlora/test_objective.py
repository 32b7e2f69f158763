from pathlib import Path

import numpy as np
import pytest
import torch

from dqlora.batching import Example, collate
from dqlora.config import Distill, Lora
from dqlora.distillation import Targets
from dqlora.errors import UserError
from dqlora.losses import feature_distance
from dqlora.objective import Objective, frames_kept
from dqlora.student import FromFeatures, add_lora, cnn_features, load_student
from dqlora.teacher_head import TeacherHead
from dqlora.text import Vocabulary
from tests.conftest import tone
from tests.dqlora.test_teacher import SETTINGS as HEAD

CPU = torch.device("cpu")
WIDTH = 24  # of the teacher's features
TEXT = "HELLO ALL"
TARGETS = [
    "whisper_letters", "base_letters", "both_letters", "whisper_alignment", "base_alignment", "whisper_features",
    "base_features", "notebook",
]  # fmt: skip


def settings(target: str, frames: str = "all") -> Distill:
    return Distill.model_validate({"target": target, "temperature": 1.0, "frames": frames, "layer": 2})


def clean_cnn(folder: Path) -> torch.Tensor:
    return cnn_features(load_student(folder, "none", CPU), tone(1.5))


def targets_of(target: str, folder: Path) -> Targets:
    torch.manual_seed(0)
    base = FromFeatures(load_student(folder, "none", CPU), 2 if target == "base_features" else None)
    head = torch.nn.Linear(WIDTH, 32) if target == "notebook" else TeacherHead(WIDTH, 32, HEAD).eval()
    return Targets(settings(target), base, 0, head)


def make_target(target: str, folder: Path, labels: list[int]) -> np.ndarray:
    return targets_of(target, folder)([clean_cnn(folder)], [torch.randn(76, WIDTH)], [labels])[0]


@pytest.mark.parametrize("target", TARGETS)
def test_targets_made_together_are_those_made_alone(target: str, student_folder: Path, vocabulary: Vocabulary) -> None:
    make, model = targets_of(target, student_folder), load_student(student_folder, "none", CPU)
    cnn = [cnn_features(model, tone(seconds)) for seconds in (1.5, 0.7, 1.1)]
    teacher = [torch.randn(frames, WIDTH) for frames in (76, 36, 56)]
    labels = [vocabulary.encode(text) for text in (TEXT, "A", "YES")]
    together = make(cnn, teacher, labels)
    assert len({len(each) for each in together}) == 3
    for number, each in enumerate(together):
        (alone,) = make(cnn[number : number + 1], teacher[number : number + 1], labels[number : number + 1])
        if target.endswith("alignment"):  # of logarithms of what is next to nothing, the last digits are noise
            each, alone = np.exp(each.astype(np.float64)), np.exp(alone.astype(np.float64))
        np.testing.assert_allclose(each, alone, atol=5e-3)


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_lies_at_the_students_frames_and_reaches_the_adapters(
    target: str, student_folder: Path, vocabulary: Vocabulary
) -> None:
    labels = vocabulary.encode(TEXT)
    made = make_target(target, student_folder, labels)
    cnn = clean_cnn(student_folder)
    width = {"whisper_features": WIDTH, "base_features": 64}.get(target, 32)
    assert made.dtype == np.float16 and made.shape == (len(cnn), width) and np.isfinite(made).all()

    lora = Lora(r=4, alpha=8, dropout=0.0, target_modules=["q_proj", "v_proj"])
    model = add_lora(load_student(student_folder, "nf4", CPU), lora, seed=0)
    objective = Objective(model, vocabulary.blank, settings(target), width)
    _, distance = objective(collate([Example(cnn.numpy(), labels, TEXT, made)]))
    distance.backward()
    trained = {name: weight for name, weight in objective.named_parameters() if weight.requires_grad}
    assert all("lora_" in name or name.startswith("comparison.projection") for name in trained)
    assert any(name.startswith("comparison.projection") for name in trained) == (target == "whisper_features")
    moved = [name for name, weight in trained.items() if weight.grad is not None and weight.grad.abs().max() > 0]
    assert any("lora_B" in name for name in moved)  # lora_A moves once B is no longer 0


def test_both_letters_is_the_mean_of_the_two_distributions(student_folder: Path, vocabulary: Vocabulary) -> None:
    labels = vocabulary.encode(TEXT)
    whisper, base, both = (
        torch.from_numpy(make_target(f"{which}_letters", student_folder, labels)).float().softmax(-1)
        for which in ("whisper", "base", "both")
    )
    torch.testing.assert_close(both, (whisper + base) / 2, atol=2e-3, rtol=0)


@pytest.mark.parametrize("which", ["whisper", "base"])
def test_an_alignment_reads_as_the_text(which: str, student_folder: Path, vocabulary: Vocabulary) -> None:
    made = make_target(f"{which}_alignment", student_folder, vocabulary.encode("A"))
    expected = np.exp(made.astype(np.float64)).sum(axis=0)
    assert expected[vocabulary.blank] + expected[vocabulary.encode("A")[0]] == pytest.approx(len(made), rel=0.01)


def test_the_base_is_at_no_distance_from_itself(student_folder: Path, vocabulary: Vocabulary) -> None:
    labels = vocabulary.encode(TEXT)
    for target in ("base_letters", "base_features"):
        objective = Objective(load_student(student_folder, "none", CPU), 0, settings(target), 64).eval()
        example = Example(clean_cnn(student_folder).numpy(), labels, TEXT, make_target(target, student_folder, labels))
        assert objective(collate([example]))[1].item() == pytest.approx(0.0, abs=1e-2)


def test_the_frames_of_letters() -> None:
    best = torch.tensor([[0, 0, 3, 0, 0, 0, 4, 4, 0]])
    logits = torch.nn.functional.one_hot(best, 6).float()
    assert frames_kept(logits, 0, "all") is None
    for which, expected in {"letters": "001000110", "around_letters": "011101111"}.items():
        kept = frames_kept(logits, 0, which)
        assert kept is not None and "".join(str(int(each)) for each in kept[0]) == expected


def test_the_distance_of_features_is_cosine_and_smooth_l1_over_speech() -> None:
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 7, 5)), rng.normal(size=(2, 7, 5)) * 3 + 1
    frames = [7, 4]
    expected = 0.0
    for row, count in enumerate(frames):
        for x, y in zip(student[row, :count], teacher[row, :count], strict=True):
            y = (y - y.mean()) / np.sqrt(y.var() + 1e-5)
            off = np.abs(x - y)
            expected += 1 - x @ y / np.linalg.norm(x) / np.linalg.norm(y)
            expected += np.where(off < 1, off**2 / 2, off - 0.5).mean()
    found = feature_distance(torch.from_numpy(student), torch.from_numpy(teacher), torch.tensor(frames))
    assert found.item() == pytest.approx(expected, rel=1e-4)


def test_a_layer_that_the_student_lacks_is_named(student_folder: Path) -> None:
    with pytest.raises(UserError, match=r"distill.layer: 3: the student has 2 layers"):
        FromFeatures(load_student(student_folder, "none", CPU), 3)
