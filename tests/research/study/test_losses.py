"""The other terms of the study against plain computations, and a run with each."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dqlora.config import Lora, Paths, load_params
from dqlora.data.batching import Example, collate
from dqlora.models.lora import add_lora
from dqlora.models.wav2vec2 import base_of, load_student
from research.study import run
from research.study.losses import (
    LossRunner,
    SideBySide,
    consistency,
    correlation_loss,
    mean_of_adapters,
    paired,
    variance_loss,
)
from research.study.runner import Job, job_of, make_test_features
from research.study.variants import LOSSES, Variant

from .test_study import study_project  # noqa: F401


def test_consistency_is_the_mean_of_both_divergences_of_speech() -> None:
    logits = torch.randn(4, 5, 7, generator=torch.Generator().manual_seed(0))
    frames = torch.tensor([5, 2])
    expected = 0.0
    for clip, count in enumerate(frames.tolist()):
        for frame in range(count):
            p, q = logits[clip, frame].softmax(-1), logits[clip + 2, frame].softmax(-1)
            expected += 0.5 * float((p * (p / q).log()).sum() + (q * (q / p).log()).sum())
    assert float(consistency(logits, frames)) == pytest.approx(expected, rel=1e-5)
    assert float(consistency(logits[:2].repeat(2, 1, 1), frames)) == pytest.approx(0, abs=1e-6)


def test_each_view_is_drawn_to_the_other_as_it_stands() -> None:
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    consistency(logits, torch.tensor([3])).backward()
    p = logits.detach().softmax(-1)
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, 0.5 * (p - p.flip(0)))  # KL(q || p)'s gradient is p - q


def test_correlation_and_variance_of_known_features() -> None:
    generator, frames = torch.Generator().manual_seed(0), torch.tensor([400, 300])
    features = torch.randn(2, 400, 6, generator=generator)
    same, other = (float(correlation_loss(features, each, frames)) for each in (features, torch.randn(2, 400, 6)))
    assert same < 0.01 * other and other == pytest.approx(700, rel=0.2)  # 1 a frame where nothing is correlated
    flat = torch.zeros(2, 400, 6)
    assert float(variance_loss(flat, frames)) == pytest.approx(700, rel=0.05)
    assert float(variance_loss(3 * features, frames)) < 100
    copied = (3 * features[..., :1]).expand(-1, -1, 6)
    assert float(variance_loss(copied, frames)) > 10 * float(variance_loss(3 * features, frames))
    beyond = features.clone()
    beyond[1, 300:] = 99
    assert float(correlation_loss(beyond, features, frames)) == pytest.approx(same, rel=1e-4, abs=1e-4)


def test_mixtures_are_paired_within_their_utterance() -> None:
    rows = [np.full((3, 2), value, np.float16) for value in range(6)]
    examples = [Example(row, [1], "a", None) for row in rows]
    batch = collate(paired(examples, copies=3))
    pairs = [(int(clip[0, 0]), int(clip[0, 2])) for clip in batch.features]
    assert pairs == [(0, 1), (1, 2), (2, 0), (3, 4), (4, 5), (5, 3)]
    assert SideBySide(rows[0], rows[1]).shape == (3, 4)


def test_the_mean_of_adapters_is_the_mean_of_their_updates(student_folder: Path) -> None:
    lora = Lora(r=4, alpha=8, dropout=0.0, target_modules=["q_proj", "output_dense"])
    params = load_params().model_copy(update={"lora": lora})
    adapters, deltas = [], []
    for seed in (0, 1):
        model = add_lora(load_student(student_folder, "none", torch.device("cpu")), lora, seed)
        torch.manual_seed(seed)
        weights = {name: torch.randn_like(each) for name, each in model.named_parameters() if "lora_" in name}
        adapters.append({f"student.model.{name}": weight for name, weight in weights.items()})
        deltas.append(
            [2 * weights[name.replace("lora_A", "lora_B")] @ weights[name] for name in weights if "_A" in name]
        )
    merged = mean_of_adapters(
        load_student(student_folder, "none", torch.device("cpu")), Job("mean", 1, 0, params, 1e-3), adapters
    )
    plain = dict(base_of(load_student(student_folder, "none", torch.device("cpu"))).named_parameters())
    found = dict(merged.merge_and_unload().named_parameters())
    names = [name.split("base_model.model.")[1].replace(".lora_A.default", "") for name in weights if "_A" in name]
    for name, one, other in zip(names, *deltas, strict=True):
        torch.testing.assert_close(found[name] - plain[name], (one + other) / 2, rtol=1e-3, atol=1e-3)


def test_every_loss_trains(study_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.chdir(study_project)
    small = {"lora.r": 2, "distill.layer": 1, "budget.batch_seconds": 8}
    variants: dict[str, Variant] = {}
    for name, variant in LOSSES.items():
        variants[name] = {**variant, **small}
        if "layers" in variant.get("loss", {}):
            variants[name]["loss"] = {"layers": (1, 2)}
    monkeypatch.setitem(run.COMPARISONS, "losses", variants)
    runner_of_targets: dict[str, Job] = {}
    params = load_params()
    make_test_features(
        load_student(study_project / "models/tiny/pretrained/student", "none", torch.device("cpu")), Paths("tiny")
    )
    runner = LossRunner("tiny")
    for name in variants:
        job = job_of(params, name, 1, 0, variants)
        for each in runner.targets_of(job):
            runner.make_targets(each, "same")
        runner_of_targets[name] = job
    for job in [each for phase in run.phases(list(runner_of_targets.values())) for each in phase]:
        rows = runner.run(job)
        assert len(rows) == 4 and np.sum(rows[0]["errors"]["test"]["clean"]) > 0
        if "curve" in rows[0]:
            assert np.isfinite(rows[0]["curve"][-1]["train_loss"])
