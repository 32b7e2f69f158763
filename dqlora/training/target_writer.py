"""The distillation targets of a training set, computed once, before training."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dqlora.data.batching import inference_batches
from dqlora.data.storage import RaggedArray, RaggedArrayWriter
from dqlora.data.text import Vocabulary
from dqlora.models.wav2vec2 import base_of, cnn_features_batch
from dqlora.progress import ProgressBar
from dqlora.training.targets import Clip, Sources, Target


class TargetWriter:
    """Makes the targets of a split's clean speech.

    Parameters
    ----------
    vocabulary
        the student's.
    clean
        the clean speech, int16, its index with each clip's `text`.
    whisper
        the teacher's features of its input audio, if the target uses them. An item for each utterance; or for each
        mixture, where its input audio is the mixtures: each then has a target of its own.
    """

    def __init__(
        self, target: Target, sources: Sources, vocabulary: Vocabulary, clean: RaggedArray, whisper: RaggedArray | None
    ):
        self.target, self.sources, self.vocabulary = target, sources, vocabulary
        self.clean, self.whisper = clean, whisper
        self._model = sources.base.model

    @torch.inference_mode()
    def of(self, items: list[tuple[str, str]]) -> list[np.ndarray]:
        """Targets, float16 [student frames, width] each, of (item, utterance) ids, made as one batch."""
        base = base_of(self._model)
        cnn = cnn_features_batch(self._model, [self.clean[utterance] for _, utterance in items])
        clips = [
            Clip(features, self.vocabulary.encode(self.clean.item(utterance)["text"]), self._whisper(item, base.device))
            for features, (item, utterance) in zip(cnn, items, strict=True)
        ]
        return [target.half().cpu().numpy() for target in self.target.make(clips, self.sources)]

    def _whisper(self, item: str, device: torch.device) -> Tensor | None:
        return None if self.whisper is None else torch.from_numpy(np.array(self.whisper[item])).to(device)

    def write(self, folder: Path) -> None:
        """Write the target of each utterance, or of each item of the teacher's features."""
        base = base_of(self._model)
        index = (self.clean if self.whisper is None else self.whisper).items
        items = [(item["id"], item.get("utterance", item["id"])) for item in index]
        width = self.target.width(base.config, 0 if self.whisper is None else self.whisper.values.shape[1])
        with (
            RaggedArrayWriter(folder, "float16", width) as out,
            ProgressBar(total=len(items), desc="targets", unit=" clips") as bar,
        ):
            for batch in self._batches(items, base.device):
                for (item, _), target in zip(batch, self.of(batch), strict=True):
                    out.append(target, id=item)
                bar.update(len(batch))

    def _batches(self, items: list[tuple[str, str]], device: torch.device) -> Iterator[list[tuple[str, str]]]:
        lengths = [self.clean.item(utterance)["length"] for _, utterance in items]
        for positions in inference_batches(lengths, device):
            yield [items[position] for position in positions]
