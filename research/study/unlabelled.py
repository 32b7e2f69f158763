"""What Whisper's transcripts bring beside people's, on speakers whom the student has never heard.

`research.study.run --compare labels --labels FOLDER`: the preset's recordings have people's transcripts; the folder is
what `pseudo_label` wrote of the same recordings without them (data/<preset>/pseudo_labels).
"""

from pathlib import Path
from typing import Any

import torch

from dqlora.data.batching import Batch
from dqlora.data.labels import labelled
from dqlora.data.storage import RaggedArray, read_jsonl
from dqlora.seeding import generator_for
from dqlora.training.objective import DistillationLoss
from dqlora.training.targets import Target
from research.study.runner import Job, Runner
from research.study.variants import DEFAULT, DEFAULT_CTC, Variant

FEATURES_ONLY = "features only, no labels"
LABELS: dict[str, Variant] = {
    FEATURES_ONLY: {**DEFAULT, "labels": "filtered"},
    "Whisper's labels, unfiltered": {**DEFAULT_CTC, "labels": "unfiltered"},
    "Whisper's labels": {**DEFAULT_CTC, "labels": "filtered"},
    "Whisper's labels and features": {**DEFAULT, "labels": "filtered"},
    "a tenth people's labels, the rest Whisper's": {**DEFAULT_CTC, "labels": "tenth"},
    "people's labels": DEFAULT_CTC,
    "people's labels and features": DEFAULT,
}
TENTH = 0.1


class FeaturesOnly(DistillationLoss):
    """The distance alone."""

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        ctc, distance = super().forward(batch)
        return 0 * ctc, distance


class LabelRunner(Runner):
    """Trains on labels by whom the variant says. Without people's, training is stopped by Whisper's too."""

    def __init__(self, preset: str, labels: Path):
        super().__init__(preset)
        self._whisper = {
            split: {label["id"]: label for label in read_jsonl(labels / f"{split}.jsonl", "`pseudo_label` writes it")}
            for split in ("train", "validation")
        }

    def clips(self, job: Job, split: str) -> RaggedArray:
        clips = labelled(self.paths, split)
        items = (self._label(item, self._whisper[split], job.labels) for item in clips.items)
        return clips.with_items([item for item in items if item])

    def _label(self, item: dict[str, Any], labels: dict[str, dict[str, Any]], by: str) -> dict[str, Any] | None:
        """The clip as this variant has it; None if it goes without a label."""
        if by == "human" or (by == "tenth" and generator_for(0, "tenth", item["id"]).random() < TENTH):
            return item
        label = labels[item["id"]]
        if not (label["text"] if by == "unfiltered" else label["kept"]):
            return None
        return item | {"text": label["text"], "transcript": label["transcript"]}

    def loss_of(self, job: Job, model: torch.nn.Module, target: Target | None, width: int) -> DistillationLoss:
        kind = FeaturesOnly if job.variant == FEATURES_ONLY else DistillationLoss
        return kind(model, self.vocabulary.blank, target, width, job.params.lambda_distill)
