"""Training clips in one long tensor, test clips as they are."""

import csv
import json
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import pyarrow.parquet
import torch
from torch import Tensor

from dqlora.audio import read_audio, to_int16
from dqlora.text import Vocabulary, spell_out
from pretrain.voices import SAMPLE_RATE

BUCKETS = (
    0.15,
    0.35,
    0.55,
    0.75,
    0.88,
    0.95,
    0.985,
    0.995,
    1.0,
)  # shares of the clips, from the shortest on, that share one row length
SLACK = 1.1  # a row's length relative to its longest clip's, so that clips may be slowed down
MAX_SECONDS = 20.0


@dataclass
class Clips:
    """Clips and their words, as read; `samples` are int16 arrays."""

    texts: list[str]
    samples: list[np.ndarray]


def read_synthetic(folder: Path) -> Clips:
    """The shards that pretrain.synthesise wrote."""
    clips = Clips([], [])
    for path in sorted(folder.glob("*.json")):
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


class Speech:
    """Training clips on the device, drawn in batches of a few fixed shapes.

    Attributes
    ----------
    audio
        int16 [all samples]
    starts, counts
        int64 [clips]
    labels
        int64 [clips, most labels], padded with zeros; `label_counts` int64 [clips]
    """

    def __init__(self, sources: list[tuple[Clips, int]], vocabulary: Vocabulary, device: torch.device):
        texts = [text for clips, _ in sources for text in clips.texts]
        samples = [each for clips, _ in sources for each in clips.samples]
        repeats = np.repeat([repeat for _, repeat in sources], [len(clips.texts) for clips, _ in sources])
        encoded = [vocabulary.encode(vocabulary.fit(spell_out(text, "en"))) for text in texts]
        counts = np.array([len(each) for each in samples])
        self.repeats = np.where(counts <= MAX_SECONDS * SAMPLE_RATE, repeats, 0)
        self.seconds = counts / SAMPLE_RATE
        self.audio = torch.empty(counts.sum(), dtype=torch.int16, device=device)
        for part, each in zip(self.audio.split(counts.tolist()), samples, strict=True):
            part.copy_(torch.from_numpy(np.array(each)))
        self.counts = torch.from_numpy(counts).to(device)
        self.starts = self.counts.cumsum(0) - self.counts
        self.label_counts = torch.tensor([len(each) for each in encoded], device=device)
        self.labels = torch.nn.utils.rnn.pad_sequence([torch.tensor(each) for each in encoded], True).to(device)
        self.edges = np.quantile(np.repeat(self.seconds, self.repeats), BUCKETS)

    def hours(self) -> float:
        return float((self.seconds * self.repeats).sum() / 3600)

    def epoch(self, batch_seconds: float, rng: np.random.Generator) -> list[tuple[Tensor, int]]:
        """Batches in random order: clip numbers, int64 [clips], and the row length in samples."""
        clips = np.repeat(np.arange(len(self.repeats)), self.repeats)
        bucket = np.searchsorted(self.edges, self.seconds[clips] - 1e-6)
        batches = []
        for number, edge in enumerate(self.edges):
            row_seconds = edge * SLACK
            size = max(1, int(batch_seconds / row_seconds))
            members = rng.permutation(clips[bucket == number])
            for first in range(0, max(1, len(members) - size + 1), size):  # what does not fill a batch is left out
                batches.append((torch.from_numpy(members[first : first + size]), int(row_seconds * SAMPLE_RATE)))
        return [batches[i] for i in rng.permutation(len(batches)) if len(batches[i][0])]
