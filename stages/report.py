"""Write the report, one page to look at and listen to: metrics/<preset>/report.html."""

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np

from dqlora.config import OUT_OF_DOMAIN, Paths, load_params, load_preset
from dqlora.data.storage import RaggedArray, atomic_write, read_json, read_jsonl, rerun
from dqlora.errors import UserError, run_stage
from dqlora.evaluation.results import Row, out_of_domain_in_words
from dqlora.report.charts import Curve
from dqlora.report.render import Example, Inputs, Labels, RunSettings, render
from dqlora.seeding import generator_for

EXAMPLES = 10  # labels that are shown of those kept, and of those rejected


def read_metrics(path: Path, stage: str) -> dict[str, Any]:
    """A metrics file; empty where it is missing, which the page then says."""
    return read_json(path, rerun(stage)) if path.exists() else {}


def read_curve(path: Path) -> Curve:
    """(step, value) of each line of a curve that DVCLive wrote; empty where it is missing."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        points = [(int(line["step"]), float(line[path.stem])) for line in csv.DictReader(file, delimiter="\t")]
    return [(step, value) for step, value in points if math.isfinite(value)]


def read_rejected(paths: Paths) -> list[tuple[str, str, str, str]]:
    """What each stage rejected, and why: stage, split, id, reason."""
    folders = {
        "fetch_speech": paths.clean,
        "pseudo_label": paths.pseudo_labels,
        "fetch_noise": paths.noise,
        "train_teacher_head": paths.teacher_head,
        "train": paths.adapter,
        "build_lm": paths.lm,
    }
    items = []
    for stage, folder in folders.items():
        if (folder / "rejected.csv").exists():
            with (folder / "rejected.csv").open(encoding="utf-8", newline="") as file:
                items += [(stage, line["split"], line["id"], line["reason"]) for line in csv.DictReader(file)]
    return items


def read_labels(paths: Paths, seed: int) -> Labels:
    """What the teacher transcribed: how much, and some clips that were kept and some that were rejected."""
    counts = read_metrics(paths.metrics / "pseudo_label.json", "pseudo_label")
    kept: list[Example] = []
    rejected: list[Example] = []
    for split in counts:
        clips = RaggedArray(paths.clean / split)
        for line in read_jsonl(paths.pseudo_labels / f"{split}.jsonl", rerun("pseudo_label")):
            (kept if line["kept"] else rejected).append((split, line, clips[line["id"]]))
    for same in (kept, rejected):
        generator_for(seed, "labels").shuffle(same)
    return Labels(counts, kept[:EXAMPLES], rejected[:EXAMPLES])


class Sounds:
    """The clean and the noisy clip of a noisy prediction, int16 [samples] each."""

    def __init__(self, paths: Paths):
        self._clean, self._noisy = RaggedArray(paths.clean / "test"), RaggedArray(paths.noisy / "test")
        self._mixtures = {(item["utterance"], item["snr_db"]): item["id"] for item in self._noisy.items}

    def __call__(self, row: Row) -> tuple[np.ndarray, np.ndarray]:
        mixture = self._mixtures.get((row["id"], row["snr_db"]))
        if mixture is None or row["id"] not in self._clean:
            raise UserError(
                f"predictions.jsonl: {row['id']} at {row['condition']} has no audio; run `dvc repro evaluate`"
            )
        return self._clean[row["id"]], self._noisy[mixture]


def main() -> None:
    params = load_params()
    paths = Paths(params.preset)
    curves = paths.metrics / "curves" / "plots" / "metrics"
    record = read_json(paths.metrics / "test" / "record.json", rerun("evaluate"))
    inputs = Inputs(
        settings=RunSettings(
            preset=params.preset,
            seed=params.seed,
            lambda_distill=params.lambda_distill,
            teacher_input=params.teacher_input,
            quantize=params.student.quantize,
            adapt=params.student.adapt,
            rank=params.lora.r,
            target=params.distill.target,
            gate_quantile=params.gate.quantile,
            gated=record["entropy_threshold"] is not None,
            language=load_preset(params.preset).speech.language,
            bootstrap_draws=params.evaluate.bootstrap_draws,
        ),
        evaluate=read_json(paths.metrics / "evaluate.json", rerun("evaluate")),
        costs=read_metrics(paths.costs, "profile"),
        export=read_metrics(paths.metrics / "export.json", "export"),
        train=read_metrics(paths.metrics / "train.json", "train"),
        teacher=read_metrics(paths.metrics / "teacher.json", "train_teacher_head"),
        loss=read_curve(curves / "train_loss.tsv"),
        validation_wer=read_curve(curves / "validation_wer.tsv"),
        predictions=read_jsonl(paths.metrics / "test" / "predictions.jsonl", rerun("evaluate")),
        rejected=read_rejected(paths),
        labels=read_labels(paths, params.seed),
        noise_recordings=(record["used"]["noise_recordings"], record["noise"]["test"]["recordings"]),
    )
    page = render(inputs, Sounds(paths))
    output = paths.metrics / "report.html"
    atomic_write(output, page)
    print(f"{output}: {len(page.encode()) / 1e6:.1f} MB, open it in a browser")
    if OUT_OF_DOMAIN in inputs.evaluate:
        print(out_of_domain_in_words(inputs.evaluate[OUT_OF_DOMAIN]))


if __name__ == "__main__":
    run_stage(main)
