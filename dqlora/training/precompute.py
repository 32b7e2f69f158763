"""What is computed once, before training: the frozen CNN's features, in batches of clips of like length."""

from pathlib import Path

import torch
from torch import Tensor, nn

from dqlora.data.audio import SAMPLE_RATE
from dqlora.data.batching import bucketed_batches, prefetch
from dqlora.data.storage import RaggedArray, RaggedArrayWriter
from dqlora.models.wav2vec2 import base_of, cnn_features_batch
from dqlora.progress import ProgressBar

# s of padded audio a batch; on the CPU each clip alone, so that it has the same to the last bit
# whatever others there are
BATCH_SECONDS = {"cuda": 160, "cpu": 0}


def buckets(lengths: list[int], device: torch.device) -> list[list[int]]:
    """Positions of clips in batches of like length, given the samples of each."""
    return bucketed_batches(lengths, BATCH_SECONDS[device.type] * SAMPLE_RATE, seed=0, epoch=0, jitter=0.0)


def write_cnn_features(model: nn.Module, clips: RaggedArray, folder: Path) -> None:
    """Write the CNN features of clips, float16 [frames, conv_dim] each, in any order."""
    base = base_of(model)
    batches = buckets([item["length"] for item in clips.items], base.device)

    def features_of(batch: list[int]) -> list[Tensor]:
        return cnn_features_batch(model, [clips[clips.items[position]["id"]] for position in batch])

    with (
        RaggedArrayWriter(folder, "float16", base.config.conv_dim[-1]) as out,
        ProgressBar(total=len(clips), desc=f"student's CNN {folder.name}", unit=" clips") as bar,
    ):
        for batch, made in zip(batches, prefetch(features_of, iter(batches), base.device), strict=True):
            for position, features in zip(batch, made, strict=True):
                out.append(features.half().cpu().numpy(), id=clips.items[position]["id"])
            bar.update(len(batch))
