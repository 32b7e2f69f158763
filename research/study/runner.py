"""One run of the study: what all runs share, a run's training, and its scores."""

import functools
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from dqlora.config import Budget, Params, Paths, load_preset
from dqlora.data.audio import FRAMES_PER_SECOND, to_float32
from dqlora.data.batching import Example
from dqlora.data.labels import labelled
from dqlora.data.storage import RaggedArray, RaggedArrayWriter, atomic_directory, fingerprint, loaded_sources
from dqlora.data.text import Vocabulary
from dqlora.errors import Rejected
from dqlora.evaluation.metrics import count_errors
from dqlora.evaluation.test_set import test_clips
from dqlora.models.gate import entropies
from dqlora.models.lora import adapt
from dqlora.models.teacher_head import load_head
from dqlora.models.wav2vec2 import EncoderCTC, base_of, cnn_features, load_student, transcribe_batch
from dqlora.progress import ProgressBar
from dqlora.seeding import seed_torch
from dqlora.training.examples import load_examples
from dqlora.training.loop import Plan, TrainingData, train_student, wise_ft
from dqlora.training.objective import DistillationLoss
from dqlora.training.precompute import write_cnn_features
from dqlora.training.target_writer import TargetWriter
from dqlora.training.targets import Sources, Target, make_target
from research.study.variants import ALPHAS, BASE, COMMON, VARIANTS, Variant, at_alpha

VALIDATIONS = 5  # a run; it keeps the weights of the best


@dataclass(frozen=True)
class Job:
    variant: str
    steps: int
    seed: int
    params: Params
    learning_rate: float
    batch_seconds: float | None = None  # the preset's
    loss: Mapping[str, Any] = field(default_factory=dict)  # terms of losses.JointLoss
    labels: str = "human"  # whose: human | tenth | filtered | unfiltered, as unlabelled.LabelRunner has them


def job_of(params: Params, variant: str, steps: int, seed: int, of: Mapping[str, Variant] = VARIANTS) -> Job:
    """params.yaml with what every variant changes, then this one's, then the seed."""
    changes = COMMON | of.get(variant, {}) | {"seed": seed}
    learning_rate, batch_seconds = changes.pop("budget.learning_rate"), changes.pop("budget.batch_seconds", None)
    loss, labels = changes.pop("loss", {}), changes.pop("labels", "human")
    values = params.model_dump()
    for name, value in changes.items():
        *blocks, last = name.split(".")
        functools.reduce(dict.__getitem__, blocks, values)[last] = value
    return Job(variant, steps, seed, Params.model_validate(values), learning_rate, batch_seconds, loss, labels)


def shared(paths: Paths) -> Path:
    """The folder of what runs share."""
    return paths.targets.with_name("study")


def make_once(folder: Path, inputs: str, write: Callable[[Path], None]) -> None:
    """Have `write` fill a folder, unless it is there and was made from the inputs and code of this fingerprint."""
    kept = folder / "fingerprint"
    if kept.exists() and kept.read_text() == inputs:
        return
    with atomic_directory(folder) as temporary:
        write(temporary)
        (temporary / "fingerprint").write_text(inputs)


@functools.cache
def contents(folder: Path) -> str:
    return fingerprint(folder)


def fingerprint_of(*folders: Path) -> str:
    """Of the folders' contents and of the code. Taken in one process: each may have imported other modules."""
    return fingerprint(*map(contents, folders), *loaded_sources(), Path(__file__))


def make_test_features(model: torch.nn.Module, paths: Paths) -> None:
    """CNN features of every clip of the test, with its row of the index, and of the clean validation clips."""
    inputs = fingerprint_of(paths.student, paths.noisy / "test", paths.clean / "test", paths.clean / "validation")

    def write(folder: Path) -> None:
        write_cnn_features(model, labelled(paths, "validation"), folder / "validation")
        rows, clips = test_clips(paths)
        with RaggedArrayWriter(folder / "test", "float16", base_of(model).config.conv_dim[-1]) as out:
            for number, (row, clip) in enumerate(zip(ProgressBar(rows, "student's CNN test"), clips, strict=True)):
                features = cnn_features(model, to_float32(clip)).cpu().numpy()
                out.append(features, **row | {"utterance": row["id"], "id": number})

    make_once(shared(paths) / "test_features", inputs, write)


def targets_folder(paths: Paths, params: Params) -> Path:
    target = make_target(params.distill)
    parts = [params.distill.target, params.student.quantize]
    parts += [f"layer {target.base_layer}"] if target.base_layer else []
    parts += [f"seed {params.seed}"] if target.seeded else []
    return shared(paths) / "targets" / ", ".join(parts)


def inputs_of_targets(paths: Paths, params: Params) -> list[Path]:
    target = make_target(params.distill)
    return [
        paths.student,
        paths.clean / "train",
        *([paths.teacher_features / "train"] if target.uses_whisper else []),
        *([paths.teacher_head] if target.uses_head else []),
    ]


class Runner:
    """Trains and scores variants, one after another."""

    def __init__(self, preset: str):
        self.preset, self.paths = load_preset(preset), Paths(preset)
        self.accelerator = Accelerator()
        self.device = self.accelerator.device
        self.vocabulary = Vocabulary.load(self.paths.student / "vocab.json")
        self.test, self.clean_validation = (
            RaggedArray(shared(self.paths) / "test_features" / split) for split in ("test", "validation")
        )

    @staticmethod
    def targets_of(job: Job) -> list[Params]:
        """What each of the targets that a job needs is made with."""
        return [job.params] if job.params.lambda_distill else []

    def keep_weights(self, job: Job, weights: dict[str, torch.Tensor]) -> None:
        """Called with what a run has trained."""

    def make_targets(self, params: Params, inputs: str) -> None:
        make_once(targets_folder(self.paths, params), inputs, functools.partial(self._write_targets, params))

    def _write_targets(self, params: Params, folder: Path) -> None:
        target = make_target(params.distill)
        model = load_student(self.paths.student, params.student.quantize, self.device)
        head = load_head(self.paths.teacher_head, self.device)[0] if target.uses_head else None
        sources = Sources(EncoderCTC(model, target.base_layer), self.vocabulary.blank, params.seed, head)
        whisper = RaggedArray(self.paths.teacher_features / "train") if target.uses_whisper else None
        clean = labelled(self.paths, "train")
        TargetWriter(target, sources, self.vocabulary, clean, whisper).write(folder)

    def run(self, job: Job) -> list[dict[str, Any]]:
        """The lines that a run adds to the results: one for each WiSE-FT alpha."""
        model = load_student(self.paths.student, job.params.student.quantize, self.device)
        result: dict[str, Any] = {"variant": job.variant, "steps": job.steps, "seed": job.seed}
        if job.variant == BASE:
            base = EncoderCTC(model)
            return [result | {"errors": self._errors(base), **self._gate(base, job.params.gate.quantile)}]
        return [result | found for found in self._trained(job, model)]

    def _trained(self, job: Job, model: torch.nn.Module) -> list[dict[str, Any]]:
        """How training went, and the errors at each alpha."""
        started, params = time.perf_counter(), job.params
        target = make_target(params.distill) if params.lambda_distill else None
        targets = RaggedArray(targets_folder(self.paths, params)) if target else None
        model = adapt(model, params.student.adapt, params.lora, params.train.dropout, params.seed)
        seed_torch(params.seed, "objective")
        width = targets.values.shape[1] if targets is not None else 0
        loss = self.loss_of(job, model, target, width)
        trainable = {name: weight for name, weight in loss.named_parameters() if weight.requires_grad}
        start = {name: weight.detach().clone() for name, weight in trainable.items()}
        training, validation = self.examples(job, "train", targets), self.examples(job, "validation", None)
        data = TrainingData(training, validation, self.vocabulary, self.preset.speech.language)
        budget = Budget(
            steps=job.steps,
            learning_rate=job.learning_rate,
            wise_ft_alpha=1.0,  # what is scored are all of ALPHAS
            batch_seconds=job.batch_seconds or self.preset.budget.batch_seconds,
            validate_every=max(1, job.steps // VALIDATIONS),
        )
        with tempfile.TemporaryDirectory() as temporary:
            checkpoint = Path(temporary) / "state.safetensors"
            progress = train_student(loss, data, Plan(params.train, budget, params.seed), checkpoint, self.accelerator)
        result = {
            "best_step": progress.best_step,
            "curve": progress.curve,
            "skipped": len(progress.skipped),
            "seconds": time.perf_counter() - started,
            "trainable": sum(weight.numel() for weight in trainable.values()),
        }
        end = {name: weight.detach().clone() for name, weight in trainable.items()}
        self.keep_weights(job, end)
        results = []
        for alpha in ALPHAS:
            with torch.no_grad():
                for name, weight in trainable.items():
                    weight.copy_(wise_ft(name, start[name], end[name], alpha))
            results.append({**result, "variant": at_alpha(job.variant, alpha), "errors": self._errors(loss.student)})
        return results

    def loss_of(self, job: Job, model: torch.nn.Module, target: Target | None, width: int) -> DistillationLoss:
        return DistillationLoss(model, self.vocabulary.blank, target, width, job.params.lambda_distill)

    def clips(self, job: Job, split: str) -> RaggedArray:
        """The clips of a split with their labels."""
        return labelled(self.paths, split)

    def examples(self, job: Job, split: str, targets: RaggedArray | None) -> list[Example]:
        clean, noisy = self.clips(job, split), RaggedArray(self.paths.noisy / split)
        return load_examples(
            split,
            noisy=noisy.with_items([item for item in noisy.items if item["utterance"] in clean]),
            clean=clean,
            features=RaggedArray(self.paths.cnn_features / split),
            targets=targets,
            vocabulary=self.vocabulary,
            rejected=Rejected(),
        )

    def _errors(self, student: EncoderCTC) -> dict[str, dict[str, list[Any]]]:
        """Word edits and words of each test clip."""
        longest = round(self.preset.budget.batch_seconds * FRAMES_PER_SECOND)
        features = [self.test[item["id"]] for item in self.test.items]
        texts = transcribe_batch(student, features, self.vocabulary, longest)
        references = [item["reference"] for item in self.test.items]
        errors = count_errors(references, texts, self.preset.speech.language)
        return self._by_condition(np.stack([errors.word_edits, errors.words], axis=1).tolist())

    def _gate(self, base: EncoderCTC, quantile: float) -> dict[str, Any]:
        """The base's entropy of each test clip, and up to which it is certain, as stage fit_gate sets it."""
        test, validation = (
            entropies(base, [clips[item["id"]] for item in clips.items]) for clips in (self.test, self.clean_validation)
        )
        return {
            "entropies": self._by_condition(test),
            "entropy_threshold": float(np.quantile(validation, quantile)),
        }

    def _by_condition(self, values: list[Any]) -> dict[str, dict[str, list[Any]]]:
        """One value of each test clip, by corpus and condition, utterances in the same order."""
        table: dict[str, dict[str, list[Any]]] = {}
        for item, value in zip(self.test.items, values, strict=True):
            corpus = item["utterance"].partition("-")[0]
            table.setdefault(corpus, {}).setdefault(item["condition"], []).append(value)
        return table
