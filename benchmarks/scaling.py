"""How time and disk grow with hours of speech, stage by stage: mixing, features, targets and training.

python -m benchmarks.scaling --hours 0.1 --hours 1 [--output FILE.json]

Each size is a corpus of clips of 10 s, cut out of the mini preset's speech and noise (after `dvc repro`), on which the
pipeline's own stages run in a temporary folder, from mix to train, the latter for a few steps. Takes some 1 GB of disk
an hour.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import yaml

from dqlora.data.audio import SAMPLE_RATE
from dqlora.data.storage import RaggedArray, RaggedArrayWriter, write_json
from dqlora.errors import UserError, run_stage
from dqlora.progress import ProgressBar

ROOT = Path(__file__).resolve().parents[1]
CLIP = 10  # seconds
DATA = ("clean", "noisy", "cnn_features", "teacher", "targets")
STAGES = ("mix", "extract_features", "encode_teacher", "make_targets", "train")
STEPS = 8


def write_corpus(source: Path, folder: Path, hours: float) -> None:
    """Clips of CLIP seconds: the source's, one after another, each time begun elsewhere. Texts fit any student."""
    clips = RaggedArray(source)
    whole = np.concatenate([clips[item["id"]] for item in clips.items])
    count, length = math.ceil(hours * 3600 / CLIP), CLIP * SAMPLE_RATE
    starts = np.random.default_rng(0).integers(0, len(whole) - length, count)
    with RaggedArrayWriter(folder, "int16") as out:
        for number, start in enumerate(starts):
            out.append(whole[start : start + length], id=f"clip{number}", text="A TEXT", transcript="a text")


def run(stage: str, folder: Path) -> float:
    """Seconds that a stage takes."""
    started = time.perf_counter()
    command = [sys.executable, "-m", f"stages.{stage}"]
    ended = subprocess.run(command, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True)
    if ended.returncode:
        raise UserError(f"{stage}: {(ended.stderr.decode().strip().splitlines() or ['no reason given'])[-1]}")
    return time.perf_counter() - started


def disk_mb(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


def measure(hours: float, models: Path, data: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as temporary:
        project = Path(temporary)
        shutil.copytree(ROOT / "presets", project / "presets")
        preset = yaml.safe_load((project / "presets/mini.yaml").read_text())
        preset["budget"] |= {"steps": STEPS, "validate_every": STEPS}
        (project / "presets/mini.yaml").write_text(yaml.safe_dump(preset))
        shutil.copy(ROOT / "params.yaml", project)
        for name in ("pretrained", "teacher_head"):
            shutil.copytree(models / name, project / "models/mini" / name)
        made = project / "data/mini"
        write_corpus(data / "clean/train", made / "clean/train", hours)
        for split in ("validation", "test"):
            write_corpus(data / "clean" / split, made / "clean" / split, 20 / 3600)
        shutil.copytree(data / "noise", made / "noise")
        found = {"hours": hours, **{f"{stage}_seconds": run(stage, project) for stage in STAGES}}
        report: dict[str, Any] = json.loads((project / "metrics/mini/curves/metrics.json").read_text())
        found |= {f"train_{name}": report[name] for name in ("rtfx", "peak_rss_mb", "peak_gpu_mb")}
        return found | {f"{name}_mb": disk_mb(made / name) for name in DATA}


def main(
    hours: Annotated[list[float], typer.Option(help="Sizes of the training corpus.")],
    run_of: Annotated[Path, typer.Option("--run", help="models/<preset> and data/<preset> of a finished run.")] = Path(
        "models/mini"
    ),
    output: Annotated[Path | None, typer.Option(help="JSON to write the table to as well.")] = None,
) -> None:
    data = run_of.parents[1] / "data" / run_of.name
    if not (data / "clean").is_dir() or not (run_of / "teacher_head").is_dir():
        raise UserError(f"{run_of}, {data}: no finished run; run `dvc repro`")
    rows = [measure(size, run_of.resolve(), data.resolve()) for size in ProgressBar(hours, "sizes", unit=" sizes")]
    print(f"| {' | '.join(name.replace('_', ' ') for name in rows[0])} |\n|{' --- |' * len(rows[0])}")
    for row in rows:
        print(f"| {' | '.join(f'{value:.3g}' for value in row.values())} |")
    if output:
        write_json(output, rows)


if __name__ == "__main__":
    run_stage(lambda: typer.run(main))
