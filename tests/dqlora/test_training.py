import math
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from dqlora.batching import Example, collate
from dqlora.config import Budget, Distill, Lora, Train
from dqlora.errors import UserError
from dqlora.objective import Objective
from dqlora.student import add_lora, cnn_features, load_student
from dqlora.text import Vocabulary
from dqlora.training import Progress, train_student, validation_wer, warmup_cosine
from tests.conftest import tone

CPU = torch.device("cpu")
LORA = Lora(r=4, alpha=8, dropout=0.1, target_modules=["q_proj", "k_proj", "v_proj", "out_proj"])
TRAIN = Train(
    learning_rate=3e-3,
    warmup_share=0.1,
    weight_decay=0.0,
    gradient_clip=1.0,
    dropout=0.1,
    mask_time_prob=0.05,
    interpolation=1.0,
    base_reads=0.0,
    patience=99,
)
DISTILL = Distill(target="whisper_letters", temperature=1.0, frames="all", layer=1)
BUDGET = Budget(head_steps=1, steps=6, batch_seconds=4, validate_every=2)
TEXTS = ["HELLO", "GOOD DAY", "YES", "ALL IS WELL"]


@pytest.fixture
def examples(student_folder: Path, vocabulary: Vocabulary) -> list[Example]:
    model = load_student(student_folder, "none", CPU)
    rng = np.random.default_rng(0)
    made = []
    for number, text in enumerate(TEXTS):
        features = cnn_features(model, tone(1.0 + 0.3 * number, 120 + 60 * number)).numpy()
        teacher = rng.normal(size=(len(features), len(vocabulary))).astype(np.float16)
        made.append(Example(features.astype(np.float16), vocabulary.encode(text), text, teacher))
    return made


def train(
    model: torch.nn.Module, examples: list[Example], vocabulary: Vocabulary, checkpoint: Path, **changes: object
) -> Progress:
    settings = {"settings": TRAIN, "budget": BUDGET, "lambda_distill": 0.5, **changes}
    objective = Objective(model, vocabulary.blank, DISTILL)
    return train_student(
        objective, examples, examples, vocabulary, "en", seed=0, checkpoint=checkpoint,
        accelerator=Accelerator(cpu=True), **settings,
    )  # fmt: skip


def trainable(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}


class KilledError(Exception):
    pass


@pytest.mark.parametrize("killed_at", [0, 2, 4])
def test_an_interrupted_run_ends_with_the_same_weights(
    student_folder: Path, examples: list[Example], vocabulary: Vocabulary, tmp_path: Path, killed_at: int
) -> None:
    def student() -> torch.nn.Module:
        return add_lora(load_student(student_folder, "nf4", CPU), LORA, seed=0)

    unbroken = student()
    expected = train(unbroken, examples, vocabulary, tmp_path / "unbroken.safetensors")

    def kill(point: dict[str, float]) -> None:
        if point["step"] == killed_at:
            raise KilledError

    checkpoint = tmp_path / "broken.safetensors"
    with pytest.raises(KilledError):
        train(student(), examples, vocabulary, checkpoint, on_point=kill)
    assert checkpoint.exists() == (killed_at > 2)  # killed before the checkpoint of its own step
    broken = student()
    found = train(broken, examples, vocabulary, checkpoint)
    assert [point["step"] for point in found.curve] == [0, 2, 4, 6]
    assert str(found.curve) == str(expected.curve)  # as text, since the first loss is NaN
    for name, weight in trainable(broken).items():
        assert torch.equal(weight, trainable(unbroken)[name]), name


def test_one_batch_can_be_overfitted(
    student_folder: Path, examples: list[Example], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    model = load_student(student_folder, "none", CPU)
    model.requires_grad_(True)
    model.freeze_feature_encoder()
    model.wav2vec2.masked_spec_embed.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    budget = Budget(head_steps=1, steps=250, batch_seconds=30, validate_every=50)
    settings = TRAIN.model_copy(update={"mask_time_prob": 0.0})
    progress = train(
        model, examples[:3], vocabulary, tmp_path / "state.safetensors",
        settings=settings, budget=budget, lambda_distill=0.0,
    )  # fmt: skip
    assert progress.curve[0]["validation_wer"] >= 1.0
    assert progress.best_wer == 0.0


def test_lambda_zero_is_ctc_alone(
    student_folder: Path, examples: list[Example], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    weights = []
    for kept, name in ((examples, "with"), ([Example(e.features, e.labels, e.text) for e in examples], "without")):
        model = add_lora(load_student(student_folder, "nf4", CPU), LORA, seed=0)
        train(model, kept, vocabulary, tmp_path / f"{name}.safetensors", lambda_distill=0.0)
        weights.append(trainable(model))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_patience_ends_training_and_the_best_weights_are_kept(
    student_folder: Path,
    examples: list[Example],
    vocabulary: Vocabulary,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wers = iter([0.9, 0.5, 0.7, 0.6, 0.4])
    monkeypatch.setattr("dqlora.training.validation_wer", lambda *_: next(wers))
    model = add_lora(load_student(student_folder, "nf4", CPU), LORA, seed=0)
    seen = {}
    progress = train(
        model, examples, vocabulary, tmp_path / "state.safetensors",
        settings=TRAIN.model_copy(update={"patience": 2}),
        budget=BUDGET.model_copy(update={"steps": 100}),
        on_point=lambda point: seen.update({point["step"]: trainable(model)}),
    )  # fmt: skip
    assert (progress.step, progress.best_step, progress.best_wer) == (6, 2, 0.5)
    assert all(torch.equal(weight, seen[2][name]) for name, weight in trainable(model).items())
    assert any(not torch.equal(weight, seen[2][name]) for name, weight in seen[6].items())


@pytest.mark.parametrize("adapt", ["lora", "full"])
def test_the_weights_kept_lie_between_the_base_and_the_trained_ones(
    student_folder: Path,
    examples: list[Example],
    vocabulary: Vocabulary,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    adapt: str,
) -> None:
    wers = iter(np.linspace(0.9, 0.1, 8))  # the last weights are the best
    monkeypatch.setattr("dqlora.training.validation_wer", lambda *_: next(wers))

    def weights(interpolation: float) -> list[torch.Tensor]:
        """Of the adapted linear layers, with what LoRA adds to them."""
        model = load_student(student_folder, "none", CPU)
        if adapt == "lora":
            model = add_lora(model, LORA, seed=0)
        else:
            model.requires_grad_(True)
            model.freeze_feature_encoder()
            model.wav2vec2.masked_spec_embed.requires_grad_(False)
        settings = TRAIN.model_copy(update={"interpolation": interpolation})
        train(model, examples, vocabulary, tmp_path / f"{interpolation}.safetensors", settings=settings)
        model = model.merge_and_unload() if adapt == "lora" else model
        layers = model.wav2vec2.encoder.layers
        return [getattr(layer.attention, name).weight.detach() for layer in layers for name in ("q_proj", "v_proj")]

    trained, between = weights(1.0), weights(0.25)
    base = load_student(student_folder, "none", CPU).wav2vec2.encoder.layers
    start = [getattr(layer.attention, name).weight for layer in base for name in ("q_proj", "v_proj")]
    for first, one, last in zip(start, between, trained, strict=True):
        assert not torch.equal(first, last)
        torch.testing.assert_close(one, first + 0.25 * (last - first), atol=1e-6, rtol=1e-4)


def test_a_diverged_run_says_what_to_lower(
    student_folder: Path, examples: list[Example], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    model = add_lora(load_student(student_folder, "none", CPU), LORA, seed=0)
    broken = [Example(np.full_like(e.features, np.nan), e.labels, e.text) for e in examples]
    with pytest.raises(UserError, match=r"diverged.*train\.learning_rate"):
        train(model, broken, vocabulary, tmp_path / "state.safetensors", lambda_distill=0.0)


def test_validation_is_the_same_in_any_batch_size(
    student_folder: Path, examples: list[Example], vocabulary: Vocabulary
) -> None:
    from dqlora.student import FromFeatures

    model = FromFeatures(load_student(student_folder, "none", CPU))
    wers = {validation_wer(model, examples, vocabulary, "en", longest) for longest in (50, 200, 10_000)}
    assert len(wers) == 1


def test_a_batch_is_padded_at_its_end(examples: list[Example]) -> None:
    batch = collate(examples)
    assert batch.frames.tolist() == [len(example.features) for example in examples]
    assert batch.features.shape[:2] == (4, int(batch.frames.max()))
    assert batch.teacher is not None and batch.teacher.shape[:2] == batch.features.shape[:2]
    assert batch.label_lengths.tolist() == [len(text) for text in TEXTS]


def test_the_learning_rate_warms_up_and_falls() -> None:
    factors = [warmup_cosine(step, 100, 0.1) for step in range(100)]
    assert factors[0] < 0.1
    assert max(factors) == pytest.approx(1.0) == factors[10]
    assert factors[-1] < 0.01
    assert all(math.isfinite(warmup_cosine(0, 1, share)) for share in (0.0, 0.5))
