"""Train every variant from the same base on the same clips, and note its errors on the same test clips.

python -m research.study.run [--compare targets] --steps 350 --finalist-steps 1000 --seed 0 --seed 1 --seed 2

Reads what the stages extract_features and train_teacher_head, and those before them, left for the preset. Each run is
one line of results.jsonl for each WiSE-FT alpha; those that stand there already are not made again: after a change of
code or data, name another file (--results). `python -m research.study.table` reads them.
"""

import itertools
import json
import multiprocessing
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer

from dqlora.config import Params, Paths, load_params
from dqlora.data.storage import read_jsonl
from dqlora.device import default_device
from dqlora.errors import UserError, run_stage
from dqlora.models.wav2vec2 import load_student
from dqlora.progress import ProgressBar
from research.study.losses import LossRunner
from research.study.runner import (
    Job,
    Runner,
    fingerprint_of,
    inputs_of_targets,
    job_of,
    make_test_features,
    targets_folder,
)
from research.study.table import RESULTS
from research.study.unlabelled import LABELS, LabelRunner
from research.study.variants import BASE, BUDGETS, FINALISTS, LOSSES, SETTINGS, VARIANTS, Variant

COMPARISONS = {"targets": VARIANTS, "settings": SETTINGS, "budgets": BUDGETS, "losses": LOSSES, "labels": LABELS}
Comparison = Literal["targets", "settings", "budgets", "losses", "labels"]
RUNNERS: dict[str, type[Runner]] = {"losses": LossRunner, "labels": LabelRunner}

_runner: Runner


def _start(make_runner: Callable[[], Runner], processes: int, gpus: int, counter: Any) -> None:
    """Spread the processes over the GPUs and the cores."""
    global _runner
    with counter.get_lock():
        number, counter.value = counter.value, counter.value + 1
    if gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[number % gpus]
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    _runner = make_runner()


def _make_targets(params_and_fingerprint: tuple[Params, str]) -> None:
    _runner.make_targets(*params_and_fingerprint)


def _run(job: Job) -> list[dict[str, Any]]:
    return _runner.run(job)


def _matches(name: str, patterns: list[str], variants: Mapping[str, Variant]) -> bool:
    """Whether one of the patterns is a variant's whole name, this one's, or else part of it."""
    return any(pattern == name or (pattern not in variants and pattern in name) for pattern in patterns)


def _jobs(
    names: list[str], steps: list[int], finalist_steps: list[int], seeds: list[int], variants: Mapping[str, Variant]
) -> list[Job]:
    """The longest first, so that no process is left alone with one."""
    params = load_params()
    finalists = [name for name in FINALISTS if name in names]
    runs = [(name, budget, seed) for budget, seed, name in itertools.product(steps, seeds, names)]
    runs += itertools.product(finalists, finalist_steps, seeds)
    return [job_of(params, *run, variants) for run in [*sorted(runs, key=lambda run: -run[1]), (BASE, 0, 0)]]


def phases(jobs: list[Job]) -> tuple[list[Job], list[Job]]:
    """The trainings, then what is made of the adapters that they leave."""
    later = ["mean_of" in job.loss for job in jobs]
    return [job for job, last in zip(jobs, later, strict=True) if not last], [*itertools.compress(jobs, later)]


def main(
    seed: Annotated[list[int], typer.Option(help="Seeds: one run of each variant for each.")],
    steps: Annotated[list[int] | None, typer.Option(help="Budgets: optimiser steps of every variant's run.")] = None,
    finalist_steps: Annotated[list[int] | None, typer.Option(help="More budgets, of the finalists alone.")] = None,
    preset: Annotated[str, typer.Option(help="Whose artifacts to train on.")] = "study",
    only: Annotated[list[str] | None, typer.Option(help="Variants of this name, or whose name holds it.")] = None,
    skip: Annotated[list[str] | None, typer.Option(help="Not these, likewise.")] = None,
    results: Annotated[Path, typer.Option(help="Where to note the runs.")] = RESULTS,
    processes: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 1,
    compare: Annotated[Comparison, typer.Option(help="What is compared.")] = "targets",
    labels: Annotated[Path | None, typer.Option(help="Whisper's transcripts: data/<preset>/pseudo_labels.")] = None,
) -> None:
    variants = COMPARISONS[compare]
    names = [
        name for name in variants if _matches(name, only or [""], variants) and not _matches(name, skip or [], variants)
    ]
    if not names:
        raise UserError(f"--only, --skip: no variant is left; they are: {'; '.join(variants)}")
    if not steps and not finalist_steps:
        raise UserError("nothing to run: give --steps, --finalist-steps or both")
    if compare == "labels" and not (labels and (labels / "train.jsonl").exists()):
        raise UserError(f"--labels: {labels}: no train.jsonl there; name what `dvc repro pseudo_label` wrote")
    results.parent.mkdir(parents=True, exist_ok=True)
    results.touch()
    rows = read_jsonl(results, "name another file (--results)")
    done = {(row["variant"], row["steps"], row["seed"]) for row in rows}
    jobs = _jobs(names, steps or [], finalist_steps or [], seed, variants)
    jobs = [job for job in jobs if "mean_of" not in job.loss or job.seed == seed[0]]  # of all the seeds
    jobs = [job for job in jobs if (job.variant, job.steps, job.seed) not in done]
    if not jobs:
        print(f"{results}: every run is there already")
        return
    paths = Paths(preset)
    make_test_features(load_student(paths.student, "none", default_device()), paths)
    runner = RUNNERS.get(compare, Runner)
    make_runner = partial(runner, preset, labels) if compare == "labels" else partial(runner, preset)
    distilled = {targets_folder(paths, params): params for job in jobs for params in runner.targets_of(job)}
    targets = [(params, fingerprint_of(*inputs_of_targets(paths, params))) for params in distilled.values()]
    context = multiprocessing.get_context("spawn")
    spread = (make_runner, processes, torch.cuda.device_count(), context.Value("i", 0))
    with context.Pool(processes, _start, spread) as pool, results.open("a", encoding="utf-8") as file:
        for _ in ProgressBar(pool.imap_unordered(_make_targets, targets), "targets", len(targets)):
            pass
        runs = (lines for phase in phases(jobs) for lines in pool.imap_unordered(_run, phase))
        for lines in ProgressBar(runs, "study", len(jobs), unit=" runs"):
            file.write("".join(json.dumps(line) + "\n" for line in lines))
            file.flush()


if __name__ == "__main__":
    run_stage(lambda: typer.run(main))
