"""Train every variant from the same base on the same clips, and note its errors on the same test clips.

python -m study.run --steps 350 --finalist-steps 1000 --seed 0 --seed 1 --seed 2

Reads what the stages up to train_teacher_head left for the preset. Each run is one line of results.jsonl for each
share of its update that is kept; those that stand there already are not made again: after a change of code or data,
name another file (--results). `python -m study.table` reads them.
"""

import functools
import itertools
import json
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from accelerate import Accelerator
from tqdm import tqdm

from dqlora.audio import FRAMES_PER_SECOND, to_float32
from dqlora.batching import Example
from dqlora.config import Budget, Params, Paths, load_params, load_preset
from dqlora.errors import SetAside, UserError, run_stage
from dqlora.objective import Objective
from dqlora.randomness import seed_torch
from dqlora.scoring import count_errors
from dqlora.storage import Packed, PackedWriter, whole_folder
from dqlora.student import FromFeatures, base_of, cnn_features, load_student
from dqlora.testset import test_clips
from dqlora.text import Vocabulary
from dqlora.training import interpolated, read_batched, train_student
from stages.train import (
    adapt,
    cache_cnn_features,
    cache_targets,
    entropies,
    fingerprint,
    is_made_from,
    load_examples,
    target_name,
    write_cnn_features,
)
from study.variants import COMMON, FINALISTS, INTERPOLATIONS, VARIANTS, Variant, at_interpolation

BASE = "base, unadapted"
RESULTS = Path("data/study/results.jsonl")
VALIDATIONS = 5  # a run; it keeps the weights of the best
Job = tuple[str, int, int]  # variant, steps, seed


def changed(params: Params, variant: Variant, seed: int) -> Params:
    """params.yaml with what every variant changes, then this one's, then the seed."""
    values = params.model_dump()
    for name, value in {**COMMON, **variant, "seed": seed}.items():
        *blocks, last = name.split(".")
        functools.reduce(dict.__getitem__, blocks, values)[last] = value
    return Params.model_validate(values)


def cache_test_features(model: torch.nn.Module, paths: Paths) -> None:
    """CNN features of every clip of the test, with its row of the index, and of the clean validation clips."""
    folder = tested_features(paths)
    current = fingerprint(paths.student, paths.noisy / "test", paths.clean / "test", paths.clean / "validation")
    if is_made_from(folder, current):
        return
    rows, clips = test_clips(paths)
    with whole_folder(folder) as temporary:
        write_cnn_features(model, Packed(paths.clean / "validation"), temporary / "validation")
        with PackedWriter(temporary / "test", "float16", base_of(model).config.conv_dim[-1]) as out:
            for number, (row, clip) in enumerate(zip(tqdm(rows, "student's CNN test"), clips, strict=True)):
                features = cnn_features(model, to_float32(clip)).cpu().numpy()
                out.append(features, **row | {"utterance": row["id"], "id": number})
        (temporary / "made_from").write_text(current)


def tested_features(paths: Paths) -> Path:
    return paths.checkpoints / "study_test"


def targets_folder(paths: Paths, params: Params) -> Path:
    return paths.checkpoints / "study_targets" / target_name(params)


class Runner:
    """One process that trains variants one after another."""

    def __init__(self, preset: str):
        self.params = load_params().model_copy(update={"preset": preset})
        self.preset, self.paths = load_preset(preset), Paths(preset)
        self.accelerator = Accelerator()
        self.device = self.accelerator.device
        self.vocabulary = Vocabulary.load(self.paths.student / "vocab.json")
        self.cnn = {split: Packed(self.paths.cnn_features / split) for split in ("train", "validation")}
        self.test, self.clean = (Packed(tested_features(self.paths) / name) for name in ("test", "validation"))

    def examples(self, split: str, targets: Packed | None) -> list[Example]:
        return load_examples(self.paths, split, self.cnn[split], self.vocabulary, targets, SetAside())

    def make_targets(self, params: Params) -> None:
        model = load_student(self.paths.student, params.student.quantize, self.device)
        cache_targets(targets_folder(self.paths, params), model, self.paths, params, self.vocabulary, self.device)

    def score(self, model: torch.nn.Module) -> dict[str, Any]:
        """Word edits and words of each test clip, as `by_condition` has them."""
        longest = round(self.preset.budget.batch_seconds * FRAMES_PER_SECOND)
        test = self.test
        texts = read_batched(model, [test[item["id"]] for item in test.items], self.vocabulary, longest)
        errors = count_errors([item["reference"] for item in test.items], texts, "en")
        return self.by_condition(np.stack([errors.word_edits, errors.words], axis=1).tolist())

    def by_condition(self, values: list[Any]) -> dict[str, dict[str, list[Any]]]:
        """One value of each test clip, by corpus and condition, utterances in the same order."""
        table: dict[str, dict[str, list[Any]]] = {}
        for item, value in zip(self.test.items, values, strict=True):
            corpus = item["utterance"].partition("-")[0]
            table.setdefault(corpus, {}).setdefault(item["condition"], []).append(value)
        return table

    def sureness(self, base: FromFeatures) -> dict[str, Any]:
        """How unsure the base is of each test clip, and up to where it reads one itself, as stages.train sets it."""
        test, validation = (
            entropies(base, [clips[item["id"]] for item in clips.items]) for clips in (self.test, self.clean)
        )
        limit = float(np.quantile(validation, self.params.train.base_reads))
        return {"entropies": self.by_condition(test), "entropy_limit": limit}

    def run(self, job: Job) -> list[dict[str, Any]]:
        """Train once; one result for each share of the update that is kept."""
        name, steps, seed = job
        started = time.perf_counter()
        params = changed(self.params, VARIANTS.get(name, {}), seed)
        model = load_student(self.paths.student, params.student.quantize, self.device)
        result: dict[str, Any] = {"variant": name, "steps": steps, "seed": seed}
        if name == BASE:
            objective = Objective(model, self.vocabulary.blank, params.distill)
            return [result | {"errors": self.score(objective.student)} | self.sureness(objective.student)]
        targets = Packed(targets_folder(self.paths, params)) if params.lambda_distill else None
        model = adapt(model, params)
        seed_torch(seed, "objective")
        width = targets.values.shape[1] if targets is not None else None
        objective = Objective(model, self.vocabulary.blank, params.distill, width)
        budget = Budget(
            head_steps=0,
            steps=steps,
            batch_seconds=self.preset.budget.batch_seconds,
            validate_every=steps // VALIDATIONS,
        )
        trainable = {name: weight for name, weight in objective.named_parameters() if weight.requires_grad}
        start = {name: weight.detach().clone() for name, weight in trainable.items()}
        with tempfile.TemporaryDirectory() as temporary:
            progress = train_student(
                objective,
                self.examples("train", targets),
                self.examples("validation", None),
                self.vocabulary,
                self.preset.speech.language,
                params.train,
                budget,
                params.lambda_distill,
                seed,
                Path(temporary) / "state.safetensors",
                self.accelerator,
            )
        result |= {"best_step": progress.best_step, "curve": progress.curve, "seconds": time.perf_counter() - started}
        result["trainable"] = sum(weight.numel() for weight in trainable.values())
        end = {name: weight.detach().clone() for name, weight in trainable.items()}
        results = []
        for share in INTERPOLATIONS:
            with torch.no_grad():
                for key, weight in trainable.items():
                    weight.copy_(interpolated(key, start[key], end[key], share))
            results.append(result | {"variant": at_interpolation(name, share), "errors": self.score(objective.student)})
        return results


_runner: Runner


def _start(preset: str, processes: int, counter: Any) -> None:
    """Spread the processes over the GPUs and the cores."""
    global _runner
    with counter.get_lock():
        number, counter.value = counter.value, counter.value + 1
    gpus = int(os.environ["STUDY_GPUS"])
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(number % gpus)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    _runner = Runner(preset)


def _make_targets(params: Params) -> None:
    _runner.make_targets(params)


def _run(job: Job) -> list[dict[str, Any]]:
    return _runner.run(job)


def _matches(name: str, patterns: list[str]) -> bool:
    """Whether one of the patterns is a variant's whole name, this one's, or else part of it."""
    return any(pattern == name or (pattern not in VARIANTS and pattern in name) for pattern in patterns)


def main(
    seed: Annotated[list[int], typer.Option(help="Seeds: one run of each variant for each.")],
    steps: Annotated[list[int] | None, typer.Option(help="Budgets: optimiser steps of every variant's run.")] = None,
    finalist_steps: Annotated[list[int] | None, typer.Option(help="More budgets, of the finalists alone.")] = None,
    preset: Annotated[str, typer.Option(help="Whose artifacts to train on.")] = "study",
    only: Annotated[list[str] | None, typer.Option(help="Variants of this name, or whose name holds it.")] = None,
    skip: Annotated[list[str] | None, typer.Option(help="Not these, likewise.")] = None,
    results: Annotated[Path, typer.Option(help="Where to note the runs.")] = RESULTS,
    processes: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 1,
) -> None:
    names = [name for name in VARIANTS if _matches(name, only or [""]) and not _matches(name, skip or [])]
    if not names:
        raise UserError(f"--only, --skip: no variant is left; they are: {'; '.join(VARIANTS)}")
    if not steps and not finalist_steps:
        raise UserError("nothing to run: give --steps, --finalist-steps or both")
    finalists = [name for name in FINALISTS if name in names]
    # the longest first, so that no process is left alone with one
    jobs: list[Job] = [(name, budget, number) for budget, number, name in itertools.product(steps or [], seed, names)]
    jobs += itertools.product(finalists, finalist_steps or [], seed)
    jobs = [*sorted(jobs, key=lambda job: -job[1]), (BASE, 0, 0)]
    results.parent.mkdir(parents=True, exist_ok=True)
    results.touch()
    rows = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    done = {(row["variant"], row["steps"], row["seed"]) for row in rows}
    jobs = [job for job in jobs if job not in done]
    paths = Paths(preset)
    model = load_student(paths.student, "none", torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    cache_cnn_features(model, paths)
    cache_test_features(model, paths)
    os.environ["STUDY_GPUS"] = str(torch.cuda.device_count())
    context = multiprocessing.get_context("spawn")
    with (
        context.Pool(processes, _start, (preset, processes, context.Value("i", 0))) as pool,
        results.open("a", encoding="utf-8") as file,
    ):
        wanted = [changed(load_params(), VARIANTS.get(name, {}), number) for name, _, number in jobs]
        targets = {target_name(params): params for params in wanted if params.lambda_distill}
        for _ in tqdm(pool.imap_unordered(_make_targets, targets.values()), "targets", len(targets)):
            pass
        for made in tqdm(pool.imap_unordered(_run, jobs), "study", len(jobs), unit=" run"):
            file.write("".join(json.dumps(row) + "\n" for row in made))
            file.flush()


if __name__ == "__main__":
    run_stage(lambda: typer.run(main))
