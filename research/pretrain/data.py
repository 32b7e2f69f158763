"""Training clips in one long tensor, test clips as they are."""

import csv
import json
import zlib
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import pyarrow.parquet
import torch
from torch import Tensor
from torch.nn import functional as F

from dqlora.data.audio import read_audio, to_int16
from dqlora.data.text import BadText, Vocabulary, spell_out
from research.pretrain.voices import SAMPLE_RATE

# the clips, from the shortest on, in order of length: those up to each quantile share one row length
BUCKETS = (0.15, 0.35, 0.55, 0.75, 0.88, 0.95, 0.985, 0.995, 1.0)
SLACK = 1.1  # a row's length relative to its longest clip's, so that clips may be slowed down
MAX_SECONDS = 20.0


@dataclass
class Clips:
    """Clips and what is said in them; `samples` are int16 arrays."""

    texts: list[str]
    samples: list[np.ndarray]


class Shards:
    """The shards that `synthesise` writes into a folder, each given once, every `world`-th to one process."""

    def __init__(self, folder: Path, rank: int = 0, world: int = 1):
        self._folder, self._rank, self._world = folder, rank, world
        self._read: set[Path] = set()

    def new(self) -> Clips:
        clips = Clips([], [])
        for path in sorted(set(self._folder.glob("*.json")) - self._read):
            self._read.add(path)
            if zlib.crc32(path.name.encode()) % self._world == self._rank:
                entries = json.loads(path.read_text())
                audio = np.load(path.with_suffix(".npy"), mmap_mode="r")
                ends = np.cumsum([entry["samples"] for entry in entries])
                clips.texts += [entry["text"] for entry in entries]
                clips.samples += np.split(audio, ends[:-1])
        return clips


def read_folder(folder: Path) -> Clips:
    """An audio folder with metadata.csv (file_name,transcription)."""
    rows = list(csv.DictReader((folder / "metadata.csv").open(encoding="utf-8")))
    with ThreadPool() as pool:
        samples = pool.map(lambda row: to_int16(read_audio(folder / row["file_name"])), rows)
    return Clips([row["transcription"] for row in rows], samples)


def read_parquet(path: Path) -> Clips:
    """A file in FLEURS' schema."""
    rows = pyarrow.parquet.read_table(path, columns=["audio", "transcription"]).to_pylist()
    return Clips([row["transcription"] for row in rows], [to_int16(read_audio(row["audio"]["bytes"])) for row in rows])


def read_tests(tests: list[str]) -> dict[str, Clips]:
    """Each NAME=PATH, a Parquet file or an audio folder."""
    paths = {name: Path(path) for name, path in (test.split("=") for test in tests)}
    return {name: read_folder(path) if path.is_dir() else read_parquet(path) for name, path in paths.items()}


@dataclass
class Encoded:
    """Clips as training takes them: int16 samples, labels, and how often an epoch draws each."""

    samples: list[Tensor]
    labels: list[Tensor]
    repeats: int


def spelt(clips: Clips, vocabulary: Vocabulary) -> Clips:
    """The clips with their texts in the vocabulary's letters, without those that it cannot write for certain."""
    found = Clips([], [])
    for text, samples in zip(clips.texts, clips.samples, strict=True):
        with suppress(BadText):
            found.texts.append(vocabulary.fit(spell_out(text, "en")))
            found.samples.append(samples)
    return found


def encode(clips: Clips, vocabulary: Vocabulary, repeats: int) -> Encoded:
    clips = spelt(clips, vocabulary)
    labels = [torch.tensor(vocabulary.encode(text)) for text in clips.texts]
    return Encoded([torch.from_numpy(np.array(each)) for each in clips.samples], labels, repeats)


class Speech:
    """Training clips, drawn in batches of a few fixed shapes.

    Attributes
    ----------
    audio
        int16 [all samples], on the device
    labels
        int64 [clips, most labels], padded with zeros, on the device
    starts, counts, label_counts
        int64 [clips], on the CPU
    """

    def __init__(self, sources: list[Encoded], device: torch.device):
        self.audio = torch.empty(0, dtype=torch.int16, device=device)
        self.labels = torch.empty(0, 0, dtype=torch.int64, device=device)
        self.counts = torch.empty(0, dtype=torch.int64)
        self.label_counts = torch.empty(0, dtype=torch.int64)
        self.repeats = np.empty(0, int)
        for source in sources:
            self.add(source)
        self.edges = np.quantile(np.repeat(self.seconds, self.repeats), BUCKETS)

    def add(self, clips: Encoded) -> None:
        """More clips. Those longer than the longest row are never drawn."""
        if not clips.samples:
            return
        counts = torch.tensor([len(samples) for samples in clips.samples])
        drawn = np.where(counts <= MAX_SECONDS * SAMPLE_RATE, clips.repeats, 0)
        self.repeats = np.concatenate([self.repeats, drawn])
        self.audio = torch.cat([self.audio, torch.cat(clips.samples).to(self.audio.device)])
        self.counts = torch.cat([self.counts, counts])
        self.starts = self.counts.cumsum(0) - self.counts
        self.seconds = self.counts.numpy() / SAMPLE_RATE
        self.label_counts = torch.cat([self.label_counts, torch.tensor([len(each) for each in clips.labels])])
        rows = [self.labels, torch.nn.utils.rnn.pad_sequence(clips.labels, True).to(self.labels.device)]
        most = max(part.shape[1] for part in rows)
        self.labels = torch.cat([F.pad(part, (0, most - part.shape[1])) for part in rows])

    def hours(self) -> float:
        return float((self.seconds * self.repeats).sum() / 3600)

    def shapes(self, batch_seconds: float) -> list[tuple[int, int]]:
        """Clips of a batch and samples of a row, for each bucket, the shortest first."""
        rows = [edge * SLACK for edge in self.edges]
        return [(max(1, int(batch_seconds / seconds)), int(seconds * SAMPLE_RATE)) for seconds in rows]

    def epoch(self, batch_seconds: float, rng: np.random.Generator) -> list[tuple[Tensor, int]]:
        """Batches in random order: clip numbers, int64 [clips], and the row length in samples."""
        clips = np.repeat(np.arange(len(self.repeats)), self.repeats)
        bucket = np.searchsorted(self.edges, self.seconds[clips] - 1e-6)  # the longest may be one too many
        batches = []
        for number, (size, samples) in enumerate(self.shapes(batch_seconds)):
            members = rng.permutation(clips[bucket == number])
            for first in range(0, max(1, len(members) - size + 1), size):  # what does not fill a batch is left out
                batches.append((torch.from_numpy(members[first : first + size]), samples))
        return [batches[i] for i in rng.permutation(len(batches)) if len(batches[i][0])]
