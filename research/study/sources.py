"""Put the study's speech and noise into presets/study: the mini preset's corpus and a folder of real speech.

python -m research.study.sources SPEECH NOISE [--synthetic SYNTHETIC] [--elsewhere ELSEWHERE]

SPEECH       folder with train/, validation/, test/, each recordings with a metadata.csv (file_name,transcription)
ELSEWHERE    likewise, of other speech: only its test/ is used, to see what carries
NOISE        folder with train/ and test/, recordings
SYNTHETIC    more speech to train on: a folder of research.pretrain.synthesise
"""

import csv
import shutil
from pathlib import Path
from typing import Annotated

import pyarrow.parquet
import soundfile
import typer

from dqlora.data.audio import SAMPLE_RATE
from dqlora.data.storage import atomic_directory
from dqlora.errors import UserError, run_stage
from research.pretrain.data import Shards

MINI = Path("presets/mini/speech")
OUTPUT = Path("presets/study")


def mini_rows(split: str, output: Path) -> list[tuple[str, str]]:
    """Write the mini corpus' recordings; their file names and transcripts."""
    rows = pyarrow.parquet.read_table(MINI / split / "0000.parquet", columns=["audio", "raw_transcription"]).to_pylist()
    names = [f"mini-{Path(row['audio']['path']).name}" for row in rows]
    for name, row in zip(names, rows, strict=True):
        (output / name).write_bytes(row["audio"]["bytes"])
    return [(name, row["raw_transcription"]) for name, row in zip(names, rows, strict=True)]


def folder_rows(folder: Path, name: str, output: Path) -> list[tuple[str, str]]:
    """Copy a folder's recordings; their file names and transcripts."""
    table = folder / "metadata.csv"
    if not table.exists():
        raise UserError(f"{table}: no such file; the study's real speech needs train/, validation/ and test/ with one")
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    for row in rows:
        shutil.copyfile(folder / row["file_name"], output / f"{name}-{row['file_name']}")
    return [(f"{name}-{row['file_name']}", row["transcription"]) for row in rows]


def synthetic_rows(folder: Path, output: Path) -> list[tuple[str, str]]:
    """Write synthetic clips as recordings, numbered whatever the workers that made them; names and transcripts."""
    clips = Shards(folder).new()
    if not clips.texts:
        raise UserError(f"{folder}: no synthetic speech; research.pretrain.synthesise writes it")
    rows = []
    ordered = sorted(zip(clips.texts, clips.samples, strict=True), key=lambda clip: (clip[0], len(clip[1])))
    for number, (text, samples) in enumerate(ordered):
        rows.append((f"synthetic-{number:05d}.wav", text))  # FLAC takes three times as long
        soundfile.write(output / rows[-1][0], samples, SAMPLE_RATE)
    return rows


def main(
    speech: Annotated[Path, typer.Argument(help="Real speech: train/, validation/, test/ with a metadata.csv each.")],
    noise: Annotated[Path, typer.Argument(help="Noise recordings: train/, test/.")],
    synthetic: Annotated[
        Path | None, typer.Option(help="More training speech, of research.pretrain.synthesise.")
    ] = None,
    elsewhere: Annotated[Path | None, typer.Option(help="Other real speech: test/ with a metadata.csv.")] = None,
) -> None:
    with atomic_directory(OUTPUT) as folder:
        for split in ("train", "validation", "test"):
            output = folder / "speech" / split
            output.mkdir(parents=True)
            rows = mini_rows(split, output) + folder_rows(speech / split, speech.name, output)
            if synthetic and split == "train":
                rows += synthetic_rows(synthetic, output)
            if elsewhere and split == "test":
                rows += folder_rows(elsewhere / split, elsewhere.name, output)
            with (output / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([("file_name", "transcription"), *rows])
            print(f"{split}: {len(rows)} utterances")
        for split in ("train", "test"):
            if not (noise / split).is_dir():
                raise UserError(f"{noise / split}: no such folder; the study needs noise in train/ and test/")
            shutil.copytree(noise / split, folder / "noise" / split)


if __name__ == "__main__":
    run_stage(lambda: typer.run(main))
