from pathlib import Path

import numpy as np
import pytest
import torch

from dqlora.config import Distill
from dqlora.data.text import Vocabulary
from dqlora.errors import UserError
from dqlora.models.teacher_head import TeacherHead
from dqlora.models.wav2vec2 import EncoderCTC, cnn_features, load_student
from dqlora.training import targets
from dqlora.training.targets import Clip, Sources, Target, frame_mask, make_target
from tests.conftest import HEAD, tone

CPU = torch.device("cpu")
WIDTH = 24  # of the teacher's features
TEXT = "HELLO ALL"
TARGETS = [
    "whisper_logits", "base_logits", "mean_logits", "whisper_ctc_posterior", "base_ctc_posterior", "whisper_features",
    "base_features", "untrained_head",
]  # fmt: skip


def target_of(name: str, frames: str = "all") -> Target:
    return make_target(Distill.model_validate({"target": name, "temperature": 1.0, "frames": frames, "layer": 2}))


def sources_of(target: Target, folder: Path) -> Sources:
    torch.manual_seed(0)
    head = TeacherHead(WIDTH, 32, HEAD).eval() if target.uses_head else None
    return Sources(EncoderCTC(load_student(folder, "none", CPU), target.base_layer), 0, 0, head)


def clean_cnn(folder: Path, seconds: float = 1.5) -> torch.Tensor:
    return cnn_features(load_student(folder, "none", CPU), tone(seconds))


@torch.inference_mode()
def made(target: Target, sources: Sources, clips: list[Clip]) -> list[np.ndarray]:
    return [each.half().numpy() for each in target.make(clips, sources)]


def make(name: str, folder: Path, labels: list[int]) -> np.ndarray:
    """The target of 1.5 s of clean speech that says `labels`."""
    target = target_of(name)
    sources = sources_of(target, folder)
    whisper = torch.randn(76, WIDTH) if target.uses_whisper else None
    return made(target, sources, [Clip(clean_cnn(folder), labels, whisper)])[0]


def test_these_are_all_targets_and_an_unknown_one_is_refused_with_their_names() -> None:
    assert set(TARGETS) <= set(targets.TARGETS)
    with pytest.raises(UserError, match=r"params\.yaml: distill\.target: unknown target 'letters'") as refused:
        target_of("letters")
    assert all(name in str(refused.value) for name in TARGETS) and "\n" not in str(refused.value)


@pytest.mark.parametrize("name", TARGETS)
def test_targets_made_together_are_those_made_alone(name: str, student_folder: Path, vocabulary: Vocabulary) -> None:
    target = target_of(name)
    sources = sources_of(target, student_folder)
    clips = [
        Clip(clean_cnn(student_folder, seconds), vocabulary.encode(text), torch.randn(frames, WIDTH))
        for seconds, frames, text in ((1.5, 76, TEXT), (0.7, 36, "A"), (1.1, 56, "YES"))
    ]
    together = made(target, sources, clips)
    assert [len(each) for each in together] == [len(clip.cnn) for clip in clips] and len(set(map(len, together))) == 3
    for each, clip in zip(together, clips, strict=True):
        (alone,) = made(target, sources, [clip])
        if name.endswith("ctc_posterior"):  # of logarithms of what is next to nothing, the last digits are noise
            each, alone = np.exp(each.astype(np.float64)), np.exp(alone.astype(np.float64))
        np.testing.assert_allclose(each, alone, atol=5e-3)


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_lies_at_the_students_frames(name: str, student_folder: Path, vocabulary: Vocabulary) -> None:
    found = make(name, student_folder, vocabulary.encode(TEXT))
    width = {"whisper_features": WIDTH, "base_features": 64}.get(name, 32)
    assert found.shape == (len(clean_cnn(student_folder)), width) and np.isfinite(found).all()
    assert target_of(name).width(load_student(student_folder, "none", CPU).config, WIDTH) == width


def test_mean_logits_are_the_mean_of_the_two_distributions(student_folder: Path, vocabulary: Vocabulary) -> None:
    labels = vocabulary.encode(TEXT)
    whisper, base, mean = (
        torch.from_numpy(make(f"{which}_logits", student_folder, labels)).float().softmax(-1)
        for which in ("whisper", "base", "mean")
    )
    torch.testing.assert_close(mean, (whisper + base) / 2, atol=2e-3, rtol=0)


@pytest.mark.parametrize("which", ["whisper", "base"])
def test_a_ctc_posterior_says_the_text(which: str, student_folder: Path, vocabulary: Vocabulary) -> None:
    found = make(f"{which}_ctc_posterior", student_folder, vocabulary.encode("A"))
    expected = np.exp(found.astype(np.float64)).sum(axis=0)
    assert expected[vocabulary.blank] + expected[vocabulary.encode("A")[0]] == pytest.approx(len(found), rel=0.01)


def test_the_frames_that_a_kl_counts() -> None:
    best = torch.tensor([[0, 0, 3, 0, 0, 0, 4, 4, 0]])
    logits = torch.nn.functional.one_hot(best, 6).float()
    frames = torch.tensor([9])
    assert frame_mask(logits, frames, 0, "all") is None
    for which, expected in {"nonblank": "001000110", "around_nonblank": "011101111"}.items():
        mask = frame_mask(logits, frames, 0, which)
        assert mask is not None and "".join(str(int(each)) for each in mask[0]) == expected


def test_padding_is_no_token_whatever_the_blank() -> None:
    logits = torch.nn.functional.one_hot(torch.tensor([[1, 5, 5, 5]]), 6).float()
    padded = torch.nn.functional.pad(logits, (0, 0, 0, 3))
    for which in ("nonblank", "around_nonblank"):
        alone, in_batch = (frame_mask(each, torch.tensor([4]), 5, which) for each in (logits, padded))
        assert alone is not None and in_batch is not None and torch.equal(alone, in_batch[:, :4])


@pytest.mark.parametrize("frames", ["all", "nonblank", "around_nonblank"])
def test_the_distance_of_logits_is_over_the_frames_asked_for(frames: str) -> None:
    torch.manual_seed(0)
    student, logits = torch.randn(2, 1, 9, 6)
    best = torch.tensor([0, 0, 3, 0, 0, 0, 4, 4, 0])
    logits[0, torch.arange(9), best] = 9.0
    counted = {"all": range(7), "nonblank": (2, 6), "around_nonblank": (1, 2, 3, 5, 6)}[frames]  # 7 frames are speech
    log_student, log_target = student[0].log_softmax(-1), logits[0].log_softmax(-1)
    expected = sum((log_target[at].exp() * (log_target[at] - log_student[at])).sum().item() for at in counted)
    found = target_of("base_logits", frames).distance(student, logits, torch.tensor([7]), 0)
    assert found.item() == pytest.approx(expected, rel=1e-4)


def test_what_is_limited_by_the_head_is_made_of_it_and_of_no_transcript() -> None:
    assert {name for name, kind in targets.TARGETS.items() if kind.limited_by_head} == {"whisper_logits", "mean_logits"}
    assert {name for name, kind in targets.TARGETS.items() if kind.seeded} == {"untrained_head"}
