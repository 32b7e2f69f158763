"""The whole experiment, stage by stage: seconds of this working tree beside those of another commit, in one run.

python -m benchmarks.experiment [--size mini|fleurs] [--against COMMIT] [--steps N] [--output FILE.json]

`mini` is the mini preset as it stands; `fleurs` has the fleurs preset's amounts without a network: clips of 5 to 15 s
joined of the mini preset's, synthetic noise, a student of wav2vec2-base's architecture and a teacher of whisper-base's,
both with random weights. Takes the mini preset's models (dvc repro fetch_models). Each stage is the process that DVC
would start. The two trees take turns, stage by stage, so that both see the same machine; where there are several GPUs,
they run side by side, each on one of them and on half of the cores.
"""

import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Annotated, Any

import numpy as np
import torch
import typer
import yaml

from dqlora.data.storage import rerun, write_json
from dqlora.errors import UserError, run_stage
from dqlora.progress import ProgressBar
from dqlora.seeding import generator_for

MINI_SPEECH, MINI_STUDENT = Path("presets/mini/speech"), Path("presets/mini/student")
TEACHER = Path("models/mini/pretrained/teacher")
SECONDS = (5.0, 15.0)  # of FLEURS' clips


def write_tree(folder: Path, commit: str | None) -> None:
    """The project's files at a commit, or as they lie in the working tree."""
    folder.mkdir()
    if commit:
        archive = subprocess.run(["git", "archive", commit], capture_output=True, check=False)
        if archive.returncode:
            raise UserError(f"--against: {commit}: no such commit")
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        return
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        capture_output=True,
        check=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if Path(name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(name, folder / name)


def write_speech(folder: Path, clips: dict[str, int]) -> None:
    """Splits of the mini preset's recordings joined to FLEURS' lengths, with a metadata.csv each."""
    import pyarrow.parquet
    import soundfile

    from dqlora.data.audio import SAMPLE_RATE, read_audio

    for split, wanted in clips.items():
        (folder / split).mkdir(parents=True)
        table = pyarrow.parquet.read_table(MINI_SPEECH / split, columns=["audio", "raw_transcription"])
        rows = table.to_pylist()
        recordings = [read_audio(row["audio"]["bytes"]) for row in rows]
        with (folder / split / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
            lines = csv.writer(file)
            lines.writerow(["file_name", "transcription"])
            for number in ProgressBar(range(wanted), f"make {split}", unit=" clips"):
                generator = generator_for(0, "experiment", split, number)
                least, samples, texts = generator.uniform(*SECONDS) * SAMPLE_RATE, [], [f"number {number} of {split}"]
                while sum(map(len, samples)) < least:
                    chosen = int(generator.integers(len(rows)))
                    samples.append(recordings[chosen])
                    texts.append(rows[chosen]["raw_transcription"])
                joined = np.concatenate(samples)[: int(SECONDS[1] * SAMPLE_RATE)]
                soundfile.write(folder / split / f"{number}.flac", joined, SAMPLE_RATE)
                lines.writerow([f"{number}.flac", " ".join(texts)])


def write_teacher(folder: Path) -> None:
    """Whisper of whisper-base's size, its weights random, everything else the mini preset's teacher's."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    shutil.copytree(TEACHER, folder)
    config = WhisperConfig.from_pretrained(TEACHER)
    config.d_model, config.num_hidden_layers = 512, 6
    config.encoder_layers = config.decoder_layers = 6
    config.encoder_attention_heads = config.decoder_attention_heads = 8
    config.encoder_ffn_dim = config.decoder_ffn_dim = 2048
    torch.manual_seed(0)
    WhisperForConditionalGeneration(config).save_pretrained(folder)


def write_student(folder: Path) -> None:
    """The configuration of wav2vec2-base, for `random:`, with the mini preset's vocabulary."""
    from transformers import Wav2Vec2Config

    shutil.copytree(MINI_STUDENT, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    tokens = json.loads((MINI_STUDENT / "vocab.json").read_text())
    Wav2Vec2Config(vocab_size=len(tokens), pad_token_id=0, architectures=["Wav2Vec2ForCTC"]).save_pretrained(folder)


def prepare(tree: Path, size: str, made: Path, steps: int | None) -> list[str]:
    """Have a tree run the experiment; the names of its stages, in their order."""
    path = tree / f"presets/{size}.yaml"
    preset: dict[str, Any] = yaml.safe_load(path.read_text())
    if size == "fleurs":
        preset["speech"]["path"] = str(made / "speech")
        preset["noise"]["path"] = "synthetic"
        preset["student"], preset["teacher"] = f"random:{made / 'student'}", str(made / "teacher")
    if steps:
        preset["budget"]["steps"] = steps
    path.write_text(yaml.safe_dump(preset, sort_keys=False))
    params = yaml.safe_load((tree / "params.yaml").read_text())
    (tree / "params.yaml").write_text(yaml.safe_dump(params | {"preset": size}, sort_keys=False))
    return list(yaml.safe_load((tree / "dvc.yaml").read_text())["stages"])


def run_one(tree: Path, stage: str, log: Path, half: int | None = None) -> float:
    """Seconds of a stage's process, on the GPU and the half of the cores of this number if one is given."""
    command, environment = [sys.executable, "-m", f"stages.{stage}"], dict(os.environ)
    if half is not None:
        cores = sorted(os.sched_getaffinity(0))[half::2]
        command = ["taskset", "--cpu-list", ",".join(map(str, cores)), *command]
        environment["CUDA_VISIBLE_DEVICES"] = str(half)
    started = time.perf_counter()
    with log.open("a") as output:
        ended = subprocess.run(command, cwd=tree, stdout=output, stderr=subprocess.STDOUT, env=environment, check=False)
    if ended.returncode:
        raise UserError(f"{tree.name}: {stage} failed:\n{log.read_text()[-2000:]}")
    return time.perf_counter() - started


def main(
    size: Annotated[str, typer.Option(help="mini | fleurs")] = "mini",
    against: Annotated[str, typer.Option(help="the commit to compare with")] = "HEAD~1",
    steps: Annotated[int | None, typer.Option(help="of training; the preset's if not given")] = None,
    output: Annotated[Path | None, typer.Option(help="file for the figures, JSON")] = None,
) -> None:
    if not TEACHER.exists():
        raise UserError(f"{TEACHER}: no such folder; {rerun('fetch_models')} with the mini preset")
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary) / "made"
        made.mkdir()
        if size == "fleurs":
            write_speech(made / "speech", yaml.safe_load(Path("presets/fleurs.yaml").read_text())["speech"]["clips"])
            write_teacher(made / "teacher")
            write_student(made / "student")
        trees = {"before": against, "now": None}
        stages: dict[str, list[str]] = {}
        for name, commit in trees.items():
            write_tree(made.parent / name, commit)
            stages[name] = prepare(made.parent / name, size, made, steps)
        seconds: dict[str, dict[str, float]] = {stage: {} for stage in (*stages["now"], *stages["before"])}
        bar, lock = ProgressBar(total=sum(map(len, stages.values())), desc="stages", unit=" stages"), Lock()

        def run(name: str, stage: str, half: int | None = None) -> None:
            if stage not in stages[name]:
                return
            took = run_one(made.parent / name, stage, made / f"{name}.log", half)
            with lock:
                seconds[stage][name] = took
                bar.update()
                if output:
                    write_json(output, {"size": size, "against": against, "seconds": seconds})

        def run_all(name: str, half: int) -> None:
            for stage in stages[name]:
                run(name, stage, half)

        if torch.cuda.device_count() > 1:
            with ThreadPoolExecutor(len(trees)) as pool:
                list(pool.map(run_all, trees, range(len(trees))))
        else:
            for number, stage in enumerate(seconds):
                for name in trees if number % 2 else reversed(trees):
                    run(name, stage)
        bar.close()
    print_table(seconds)


def print_table(seconds: dict[str, dict[str, float]]) -> None:
    whole = {name: sum(each.get(name, 0.0) for each in seconds.values()) for name in ("before", "now")}
    print(f"| {'stage':<20} | {'before s':>8} | {'now s':>8} | now / before |\n| --- | --- | --- | --- |")
    for stage, each in (*seconds.items(), ("all", whole)):
        before, now = each.get("before"), each.get("now")
        ratio = f"{now / before:.2f}" if before and now else ""
        columns = ["" if one is None else f"{one:.1f}" for one in (before, now)]
        print(f"| {stage:<20} | {columns[0]:>8} | {columns[1]:>8} | {ratio:>12} |")


if __name__ == "__main__":
    run_stage(lambda: typer.run(main))
