"""What Whisper's transcripts bring beside people's, on speakers whom the student has never heard.

python -m research.study.unlabelled LABELS --preset study --seed 0 --steps 350

The preset's recordings have people's transcripts. LABELS is what `pseudo_label` wrote of the same recordings without
them (data/<preset>/pseudo_labels). Adds to --results as `research.study.run` does; `research.study.table` reads it.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from dqlora.config import Paths, load_params
from dqlora.data.batching import Batch
from dqlora.data.labels import labelled
from dqlora.data.storage import RaggedArray, read_jsonl
from dqlora.device import default_device
from dqlora.errors import UserError, run_stage
from dqlora.models.wav2vec2 import load_student
from dqlora.progress import ProgressBar
from dqlora.seeding import generator_for
from dqlora.training.objective import DistillationLoss
from dqlora.training.targets import Target
from research.study.runner import (
    Job,
    Runner,
    fingerprint_of,
    inputs_of_targets,
    job_of,
    make_test_features,
)
from research.study.variants import BASE, DEFAULT, Variant

CTC: Variant = {**DEFAULT, "lambda_distill": 0.0}
FEATURES_ONLY = "features only, no labels"
# whose labels, and what changes
VARIANTS: dict[str, tuple[str, Variant]] = {
    FEATURES_ONLY: ("filtered", DEFAULT),
    "Whisper's labels, unfiltered": ("unfiltered", CTC),
    "Whisper's labels": ("filtered", CTC),
    "Whisper's labels and features": ("filtered", DEFAULT),
    "a tenth people's labels, the rest Whisper's": ("tenth", CTC),
    "people's labels": ("human", CTC),
    "people's labels and features": ("human", DEFAULT),
}
TENTH = 0.1


class FeaturesOnly(DistillationLoss):
    """The distance alone."""

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        ctc, distance = super().forward(batch)
        return 0 * ctc, distance


class LabelRunner(Runner):
    """Trains on labels by whom the variant says. Without people's, training is stopped by Whisper's too."""

    def __init__(self, preset: str, labels: Path):
        super().__init__(preset)
        self._whisper = {
            split: {label["id"]: label for label in read_jsonl(labels / f"{split}.jsonl", "`pseudo_label` writes it")}
            for split in ("train", "validation")
        }

    def clips(self, job: Job, split: str) -> RaggedArray:
        clips, by = labelled(self.paths, split), VARIANTS[job.variant][0]
        items = (self._label(item, self._whisper[split], by) for item in clips.items)
        return clips.with_items([item for item in items if item])

    def _label(self, item: dict[str, Any], labels: dict[str, dict[str, Any]], by: str) -> dict[str, Any] | None:
        """The clip as this variant has it; None if it goes without a label."""
        if by == "human" or (by == "tenth" and generator_for(0, "tenth", item["id"]).random() < TENTH):
            return item
        label = labels[item["id"]]
        if not (label["text"] if by == "unfiltered" else label["kept"]):
            return None
        return item | {"text": label["text"], "transcript": label["transcript"]}

    def loss_of(self, job: Job, model: torch.nn.Module, target: Target | None, width: int) -> DistillationLoss:
        kind = FeaturesOnly if job.variant == FEATURES_ONLY else DistillationLoss
        return kind(model, self.vocabulary.blank, target, width, job.params.lambda_distill)


def main(
    labels: Annotated[Path, typer.Argument(help="Whisper's transcripts: data/<preset>/pseudo_labels.")],
    seed: Annotated[list[int], typer.Option(help="Seeds: one run of each variant for each.")],
    preset: Annotated[str, typer.Option(help="Whose artifacts to train on.")] = "study",
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps of a run.")] = 350,
    results: Annotated[Path, typer.Option(help="Where to note the runs.")] = Path("data/study/unlabelled.jsonl"),
) -> None:
    if not (labels / "train.jsonl").exists():
        raise UserError(f"{labels}: no train.jsonl in it; name the pseudo_labels that `dvc repro pseudo_label` wrote")
    params, paths = load_params(), Paths(preset)
    make_test_features(load_student(paths.student, "none", default_device()), paths)
    runner = LabelRunner(preset, labels)
    changes = {name: variant for name, (_, variant) in VARIANTS.items()}
    jobs = [job_of(params, name, steps, each, changes) for each in seed for name in VARIANTS]
    for job in jobs:
        if job.params.lambda_distill:  # once: what is there and of the same inputs stays
            runner.make_targets(job.params, fingerprint_of(*inputs_of_targets(paths, job.params)))
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a", encoding="utf-8") as file:
        for job in ProgressBar([job_of(params, BASE, 0, 0), *jobs], "labels", len(jobs) + 1, unit=" runs"):
            file.write("".join(json.dumps(line) + "\n" for line in runner.run(job)))
            file.flush()


if __name__ == "__main__":
    run_stage(lambda: typer.run(main))
