"""Mix speech and noise: data/<preset>/noisy/{train,validation,test,out_of_domain}.

Train: `copies` versions of each utterance at SNRs drawn from a list. The others: every utterance at every SNR of a
fixed grid, validation with training noise, test and out of domain with noise that training never hears.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from dqlora.config import OUT_OF_DOMAIN, Mix, Paths, load_params
from dqlora.data.labels import labelled
from dqlora.data.mixing import mix_int16
from dqlora.data.storage import RaggedArray, RaggedArrayWriter, atomic_directory
from dqlora.errors import run_stage
from dqlora.progress import ProgressBar
from dqlora.seeding import generator_for

NOISE_SPLIT = {"train": "train", "validation": "train", "test": "test", OUT_OF_DOMAIN: OUT_OF_DOMAIN}
Version = tuple[dict[str, Any], np.ndarray]  # fields of the index, int16 [samples]


_open = cache(RaggedArray)  # once a process


def versions_of(utterance: str, split: str, settings: Mix, seed: int, clean: Path, noise: Path) -> list[Version]:
    """All versions of one utterance; a function of the seed and the utterance's id alone."""
    speech = _open(clean)[utterance]
    recordings = _open(noise)
    if split == "train":
        drawn = [(copy, generator_for(seed, "mix", utterance, copy)) for copy in range(settings.copies)]
        plan = [
            (f"{utterance}#{copy}", settings.snr_db[rng.integers(len(settings.snr_db))], rng) for copy, rng in drawn
        ]
    else:  # the same cut of the same recording at every SNR, so that only the level differs along the grid
        plan = [
            (f"{utterance}@{snr:g}dB", snr, generator_for(seed, "mix", split, utterance))
            for snr in settings.test_snr_db
        ]
    versions = []
    for name, drawn_snr, rng in plan:
        snr_db = None if drawn_snr == "clean" else float(drawn_snr)
        recording = recordings.items[rng.integers(len(recordings))]
        fields = {"id": name, "utterance": utterance, "snr_db": snr_db}
        fields |= {"noise": recording["id"], "category": recording["category"]} if snr_db is not None else {}
        versions.append((fields, mix_int16(speech, recordings[recording["id"]], snr_db, rng)))
    return versions


def mix_split(split: str, settings: Mix, seed: int, paths: Paths, workers: int) -> Iterator[Version]:
    clean, noise = paths.clean / split, paths.noise / NOISE_SPLIT[split]
    utterances = [item["id"] for item in labelled(paths, split).items]
    mix_one = partial(versions_of, split=split, settings=settings, seed=seed, clean=clean, noise=noise)
    with ProcessPoolExecutor(workers) as pool:
        clips = pool.map(mix_one, utterances, chunksize=8)
        for versions in ProgressBar(clips, f"mix {split}", len(utterances), unit=" clips"):
            yield from versions


def main(workers: Annotated[int, typer.Option(min=1, help="Processes to mix in.")] = os.cpu_count() or 1) -> None:
    params = load_params()
    paths = Paths(params.preset)
    with atomic_directory(paths.noisy) as folder:
        for split in NOISE_SPLIT:
            with RaggedArrayWriter(folder / split, "int16") as out:
                for fields, samples in mix_split(split, params.mix, params.seed, paths, workers):
                    out.append(samples, **fields)


if __name__ == "__main__":
    run_stage(lambda: typer.run(main))
