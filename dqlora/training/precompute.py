"""What is computed once, before training: the frozen CNN's features, in batches of clips of like length."""

from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dqlora.data.batching import fetched, inference_batches, once_the_next_began
from dqlora.data.storage import RaggedArray, RaggedArrayWriter
from dqlora.device import map_on_cores
from dqlora.models.wav2vec2 import base_of, cnn_features_batch
from dqlora.progress import ProgressBar


def write_cnn_features(model: nn.Module, clips: RaggedArray, folder: Path) -> None:
    """Write the CNN features of clips, float16 [frames, conv_dim] each, in any order."""
    base = base_of(model)
    batches = inference_batches([item["length"] for item in clips.items], base.device)

    def features_of(batch: list[int]) -> tuple[list[int], Callable[[], np.ndarray]]:
        rows = cnn_features_batch(model, [clips[clips.items[position]["id"]] for position in batch])
        return [len(row) for row in rows], fetched(torch.cat(rows).half())

    with (
        RaggedArrayWriter(folder, "float16", base.config.conv_dim[-1]) as out,
        ProgressBar(total=len(clips), desc=f"student's CNN {folder.name}", unit=" clips") as bar,
    ):
        made = once_the_next_began(map_on_cores(features_of, batches, base.device))
        for batch, (counts, values) in zip(batches, made, strict=True):
            rows = np.split(values(), list(accumulate(counts))[:-1])
            for position, features in zip(batch, rows, strict=True):
                out.append(features, id=clips.items[position]["id"])
            bar.update(len(batch))
