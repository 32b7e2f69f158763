"""How well a teacher head transcribes a preset's clips, and how often it peaks in the same frame as the base student.

python -m research.study.frame_sync --preset mini

Reads what the stages up to train_teacher_head left. A peak is a frame whose best token is not the blank and differs
from the frame's before; it matches if the head's best token in that frame, `shift` frames on, is the same.
"""

from typing import Annotated

import numpy as np
import torch
import typer

from dqlora.config import Paths
from dqlora.data.audio import to_float32
from dqlora.data.labels import labelled
from dqlora.data.storage import RaggedArray
from dqlora.data.text import Vocabulary
from dqlora.device import default_device
from dqlora.errors import run_stage
from dqlora.evaluation.metrics import count_errors
from dqlora.models.alignment import aligned_frames
from dqlora.models.teacher_head import load_head
from dqlora.models.wav2vec2 import EncoderCTC, cnn_features, load_student
from dqlora.progress import ProgressBar

SHIFTS = range(-2, 3)  # frames


def matched(base: np.ndarray, head: np.ndarray, blank: int, shift: int) -> tuple[int, int]:
    """How many of the base student's peaks the head has too, and how many there are. Both int64 [frames]."""
    previous = np.concatenate([[blank], base[:-1]])
    peaks = np.flatnonzero((base != blank) & (base != previous))
    moved = (peaks + shift).clip(0, len(head) - 1)
    return int((head[moved] == base[peaks]).sum()), len(peaks)


@torch.inference_mode()
def main(preset: Annotated[str, typer.Option(help="Whose artifacts to read.")] = "study") -> None:
    paths = Paths(preset)
    device = default_device()
    vocabulary = Vocabulary.load(paths.student / "vocab.json")
    model = load_student(paths.student, "none", device)
    student, (head, _) = EncoderCTC(model), load_head(paths.teacher_head, device)
    print(
        "| split | clips | base WER % | head WER % | peaks matched at a shift of " + " | ".join(map(str, SHIFTS)) + " |"
    )
    print("|" + " --- |" * (4 + len(SHIFTS)))
    for split in ("train", "validation"):
        clean, whisper = labelled(paths, split), RaggedArray(paths.teacher_features / split)
        transcripts: dict[str, list[str]] = {"base": [], "head": []}
        matches = np.zeros((len(SHIFTS), 2), int)
        for item in ProgressBar(clean.items, split):
            cnn = cnn_features(model, to_float32(clean[item["id"]]))
            base = student(cnn[None], torch.tensor([len(cnn)], device=device))[0].argmax(-1).cpu().numpy()
            features = torch.from_numpy(np.array(whisper[item["id"]])).to(device)
            rows = head.clip_logits(features).argmax(-1).cpu().numpy()
            transcripts["base"].append(vocabulary.decode(base.tolist()))
            transcripts["head"].append(vocabulary.decode(rows.tolist()))
            rows = rows[aligned_frames(model.config, len(base), len(rows))]
            matches += [matched(base, rows, vocabulary.blank, shift) for shift in SHIFTS]
        references = [item["text"] for item in clean.items]
        wers = [f"{100 * count_errors(references, texts, 'en').wer:.1f}" for texts in transcripts.values()]
        ratios = [f"{100 * hits / peaks:.0f} %" for hits, peaks in matches]
        print(f"| {' | '.join([split, str(len(clean)), *wers, *ratios])} |")


if __name__ == "__main__":
    run_stage(lambda: typer.run(main))
