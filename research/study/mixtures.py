"""Clips of folders of speech, clean and in noise, for the trials here."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.cpu import load_clips
from dqlora.data.audio import read_audio, to_float32, to_int16
from dqlora.data.mixing import mix_int16
from dqlora.evaluation.test_set import CLEAN
from dqlora.progress import ProgressBar
from dqlora.seeding import generator_for


@dataclass(frozen=True)
class Mixture:
    corpus: str
    condition: str  # clean, or an SNR
    reference: str
    samples: np.ndarray  # float32 [samples]


def mixtures(speech: list[Path], noise: Path, snr_db: tuple[float, ...], limit: int | None) -> Iterator[Mixture]:
    """Each clip clean, and at each SNR with one of the recordings.

    Parameters
    ----------
    speech
        folders with a metadata.csv, or Parquet files of a corpus' split.
    noise
        a folder of recordings.
    limit
        clips of each corpus, spread over it; None: all.
    """
    noises = [to_int16(read_audio(path)) for path in sorted(noise.iterdir())]
    for folder in speech:
        clips = list(zip(*load_clips(folder), strict=True))
        clips = clips[:: -(-len(clips) // limit)] if limit else clips
        for number, (clip, text) in enumerate(ProgressBar(clips, str(folder), unit=" clips")):
            yield Mixture(str(folder), CLEAN, text, to_float32(to_int16(clip)))
            for snr in snr_db:
                generator = generator_for(0, "trial", folder.name, number, snr)
                heard = mix_int16(to_int16(clip), noises[generator.integers(len(noises))], snr, generator)
                yield Mixture(str(folder), f"{snr:g} dB", text, to_float32(heard))
