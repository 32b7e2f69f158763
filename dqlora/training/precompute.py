"""What is computed once, before training: the frozen CNN's features, in batches of clips of like length."""

from pathlib import Path

from torch import Tensor, nn

from dqlora.data.batching import inference_batches, prefetch
from dqlora.data.storage import RaggedArray, RaggedArrayWriter
from dqlora.device import map_on_cores
from dqlora.models.wav2vec2 import base_of, cnn_features_batch
from dqlora.progress import ProgressBar


def write_cnn_features(model: nn.Module, clips: RaggedArray, folder: Path) -> None:
    """Write the CNN features of clips, float16 [frames, conv_dim] each, in any order."""
    base = base_of(model)
    batches = inference_batches([item["length"] for item in clips.items], base.device)

    def features_of(batch: list[int]) -> list[Tensor]:
        return cnn_features_batch(model, [clips[clips.items[position]["id"]] for position in batch])

    with (
        RaggedArrayWriter(folder, "float16", base.config.conv_dim[-1]) as out,
        ProgressBar(total=len(clips), desc=f"student's CNN {folder.name}", unit=" clips") as bar,
    ):
        made = (map_on_cores if base.device.type == "cpu" else prefetch)(features_of, iter(batches), base.device)
        for batch, rows in zip(batches, made, strict=True):
            for position, features in zip(batch, rows, strict=True):
                out.append(features.half().cpu().numpy(), id=clips.items[position]["id"])
            bar.update(len(batch))
