import itertools
import json
import math
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from dqlora.config import Budget, Distill, Lora, Train
from dqlora.data.batching import Batch, Example
from dqlora.data.text import Vocabulary
from dqlora.errors import UserError
from dqlora.models.lora import add_lora
from dqlora.models.wav2vec2 import EncoderCTC, cnn_features, load_student
from dqlora.training.loop import OnPoint, Plan, Progress, TrainingData, _check_skipped, train_student
from dqlora.training.objective import DistillationLoss
from dqlora.training.targets import make_target
from tests.conftest import ROOT, tone

CPU = torch.device("cpu")
LORA = Lora(r=4, alpha=8, dropout=0.1, target_modules=["q_proj", "k_proj", "v_proj", "out_proj"])
TRAIN = Train(
    warmup_ratio=0.1,
    weight_decay=0.0,
    gradient_clip=1.0,
    dropout=0.1,
    mask_time_prob=0.05,
    patience=99,
)
TARGET = make_target(Distill(target="whisper_logits", temperature=1.0, frames="all", layer=1))
BUDGET = Budget(steps=6, learning_rate=3e-3, wise_ft_alpha=1.0, batch_seconds=4, validate_every=2)
TEXTS = ["HELLO", "GOOD DAY", "YES", "ALL IS WELL"]


@pytest.fixture
def examples(student_folder: Path, vocabulary: Vocabulary) -> list[Example]:
    model = load_student(student_folder, "none", CPU)
    rng = np.random.default_rng(0)
    made = []
    for number, text in enumerate(TEXTS):
        features = cnn_features(model, tone(1.0 + 0.3 * number, 120 + 60 * number)).numpy()
        target = rng.normal(size=(len(features), len(vocabulary))).astype(np.float16)
        made.append(Example(features.astype(np.float16), vocabulary.encode(text), text, target))
    return made


def train(
    model: torch.nn.Module,
    examples: list[Example],
    vocabulary: Vocabulary,
    checkpoint: Path,
    settings: Train = TRAIN,
    budget: Budget = BUDGET,
    lambda_distill: float = 0.5,
    on_point: OnPoint = lambda point: None,
) -> Progress:
    loss = DistillationLoss(model, vocabulary.blank, TARGET, len(vocabulary), lambda_distill)
    data = TrainingData(examples, examples, vocabulary, "en")
    plan = Plan(settings, budget, seed=0)
    return train_student(loss, data, plan, checkpoint, Accelerator(cpu=True), on_point)


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
    budget = Budget(steps=250, learning_rate=3e-3, wise_ft_alpha=1.0, batch_seconds=30, validate_every=50)
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
    monkeypatch.setattr(TrainingData, "validation_wer", lambda *_: next(wers))
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
    monkeypatch.setattr(TrainingData, "validation_wer", lambda *_: next(wers))

    def weights(wise_ft_alpha: float) -> list[torch.Tensor]:
        """Of the adapted linear layers, with what LoRA adds to them."""
        model = load_student(student_folder, "none", CPU)
        if adapt == "lora":
            model = add_lora(model, LORA, seed=0)
        else:
            model.requires_grad_(True)
            model.freeze_feature_encoder()
            model.wav2vec2.masked_spec_embed.requires_grad_(False)
        budget = BUDGET.model_copy(update={"wise_ft_alpha": wise_ft_alpha})
        train(model, examples, vocabulary, tmp_path / f"{wise_ft_alpha}.safetensors", budget=budget)
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
    with pytest.raises(UserError, match=r"diverged.*budget\.learning_rate"):
        train(model, broken, vocabulary, tmp_path / "state.safetensors", lambda_distill=0.0)


def not_finite_at(steps: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of these training steps is NaN."""
    forward, count = DistillationLoss.forward, itertools.count()

    def broken(self: DistillationLoss, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        ctc, distance = forward(self, batch)
        return ctc * (math.nan if next(count) in steps else 1.0), distance

    monkeypatch.setattr(DistillationLoss, "forward", broken)


def test_a_step_without_a_finite_gradient_is_skipped_and_counted(
    student_folder: Path,
    examples: list[Example],
    vocabulary: Vocabulary,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, weights = add_lora(load_student(student_folder, "none", CPU), LORA, seed=0), []
    not_finite_at({3}, monkeypatch)
    progress = train(
        model, examples, vocabulary, tmp_path / "state.safetensors",
        budget=BUDGET.model_copy(update={"validate_every": 1}),
        settings=TRAIN.model_copy(update={"patience": 100}),
        on_point=lambda point: weights.append(trainable(model)),
    )  # fmt: skip
    assert progress.skipped == [3] and progress.step == BUDGET.steps
    unchanged = [all(torch.equal(a[name], b[name]) for name in a) for a, b in itertools.pairwise(weights)]
    assert unchanged == [False, False, False, True, False, False]
    assert all(weight.isfinite().all() for weight in trainable(model).values())


@pytest.mark.parametrize(
    ("skipped", "steps", "ends"),
    [([], 100, False), ([4], 6, False), ([2, 4], 6, True), ([5, 7], 200, False), ([5, 7, 9], 200, True),
     (list(range(40, 50)), 5000, True), ([*range(40, 49), 50], 5000, False)],
)  # fmt: skip
def test_how_many_skipped_steps_end_a_run(skipped: list[int], steps: int, ends: bool) -> None:
    plan = Plan(TRAIN, BUDGET.model_copy(update={"steps": steps}), seed=0)
    with pytest.raises(UserError, match=f"the first is step {skipped[0]}") if ends else nullcontext():
        _check_skipped(skipped, plan)


def test_validation_is_the_same_in_any_batch_size(
    student_folder: Path, examples: list[Example], vocabulary: Vocabulary
) -> None:
    model = EncoderCTC(load_student(student_folder, "none", CPU))
    data = TrainingData([], examples, vocabulary, "en")
    wers = {data.validation_wer(model, longest) for longest in (50, 200, 10_000)}
    assert len(wers) == 1


PROGRAM = """
import json, sys
import numpy as np, torch
from pathlib import Path
from accelerate import Accelerator
from dqlora.config import Budget, Distill, Lora, Train
from dqlora.data.batching import Example
from dqlora.data.text import Vocabulary
from dqlora.models.lora import add_lora
from dqlora.models.wav2vec2 import cnn_features, load_student
from dqlora.training.loop import Plan, TrainingData, train_student
from dqlora.training.objective import DistillationLoss
from dqlora.training.targets import make_target

torch.set_num_threads(1)
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
accelerator = Accelerator(cpu=True)
model = load_student(folder, "nf4", accelerator.device)
vocabulary = Vocabulary.load(folder / "vocab.json")
rng = np.random.default_rng(0)
examples = []
for number, text in enumerate(["HELLO", "GOOD DAY", "YES", "ALL IS WELL", "NO"]):
    features = cnn_features(model, rng.normal(size=16000 + 3000 * number).astype(np.float32)).numpy()
    target = rng.normal(size=(len(features), 32)).astype(np.float16)
    examples.append(Example(features.astype(np.float16), vocabulary.encode(text), text, target))
model = add_lora(
    model, Lora(r=4, alpha=8, dropout=0.0, target_modules=["q_proj", "k_proj", "v_proj", "out_proj"]), seed=0
)
for module in model.modules():
    if isinstance(module, torch.nn.Dropout):
        module.p = 0.0
    if hasattr(module, "dropout") and isinstance(module.dropout, float):
        module.dropout = 0.0
target = make_target(Distill(target="whisper_logits", temperature=1.0, frames="all", layer=1))
settings = Train(
    warmup_ratio=0.1, weight_decay=0.0, gradient_clip=1.0, dropout=0.0, mask_time_prob=0.3,
    patience=99,
)
progress = train_student(
    DistillationLoss(model, vocabulary.blank, target, 32, lambda_distill=0.5),
    TrainingData(examples, examples, vocabulary, "en"),
    Plan(settings, Budget(steps=6, learning_rate=1e-2, wise_ft_alpha=1.0, batch_seconds=3, validate_every=1), seed=0),
    out.with_suffix(".safetensors"),
    accelerator,
)
if accelerator.is_main_process:
    losses = [point["train_loss"] for point in progress.curve[1:]]
    out.write_text(json.dumps({"processes": accelerator.num_processes, "losses": losses}))
"""


def test_two_processes_have_the_loss_curve_of_one(student_folder: Path, tmp_path: Path) -> None:
    """At the same global batch."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    curves = []
    for processes in (1, 2):
        out = tmp_path / f"{processes}.json"
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command = [*launch, str(program), str(student_folder), str(out)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr[-2000:]
        found = json.loads(out.read_text())
        assert found["processes"] == processes  # `accelerate launch --cpu` would start one, whatever it is asked for
        curves.append(found["losses"])
    assert len(curves[0]) == 6
    assert curves[0][-1] < curves[0][0]
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)
