"""What a shorter window of Whisper changes: its features, the head's WER on them, and the time to encode.

python -m benchmarks.window [SPEECH] [--run models/mini]

Encodes the mini corpus' test clips, and those of SPEECH, a folder with metadata.csv, in windows of their own length and
some silence (dqlora.models.whisper.MARGIN), and in the whole window of 30 s. Needs a run (dvc repro).
"""

import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from benchmarks.cpu import load_clips
from dqlora.data.batching import Example
from dqlora.data.text import Vocabulary
from dqlora.device import default_device
from dqlora.errors import UserError, run_stage
from dqlora.evaluation.metrics import count_errors, relative_wer_reduction
from dqlora.models import whisper
from dqlora.models.teacher_head import load_head, transcribe_head
from dqlora.models.whisper import WINDOW, Teacher

DRAWS, SEED = 10_000, 0  # of the bootstrap


def change(features: np.ndarray, whole: np.ndarray) -> tuple[float, float]:
    """Mean over frames of the relative change and of the cosine."""
    one, other = torch.from_numpy(features).float(), torch.from_numpy(whole).float()
    relative = (one - other).norm(dim=-1) / other.norm(dim=-1)
    return relative.mean().item(), torch.cosine_similarity(one, other, dim=-1).mean().item()


def main(
    speech: Annotated[Path | None, typer.Argument(help="A folder with metadata.csv, beside the mini corpus.")] = None,
    run: Annotated[Path, typer.Option(help="models/<preset>, after `dvc repro`.")] = Path("models/mini"),
    margin: Annotated[list[float] | None, typer.Option(help="Seconds of silence behind a clip.")] = None,
) -> None:
    if not (run / "teacher_head").is_dir():
        raise UserError(f"{run}/teacher_head: no such folder; run `dvc repro`")
    device = default_device()
    teacher, (head, _) = Teacher(run / "pretrained/teacher", device), load_head(run / "teacher_head", device)
    vocabulary = Vocabulary.load(run / "pretrained/student/vocab.json")
    clips, texts = load_clips(None)
    if speech is not None:
        more = load_clips(speech)
        clips, texts = clips + more[0], texts + more[1]
    seconds, errors = {}, {}
    whole: list[np.ndarray] = []
    print(f"{len(clips)} clips, {sum(map(len, clips)) / 16_000:.0f} s")
    print("| margin, s | features' change | cosine | head's WER | higher than in the whole window | s |")
    print("| --- | --- | --- | --- | --- | --- |")
    for size in [float(WINDOW), *(margin or [2.0, 4.0])]:
        whisper.MARGIN = size
        started = time.perf_counter()
        features = teacher.encode(clips)
        seconds[size] = time.perf_counter() - started
        whole = whole or features
        changes = np.mean([change(*pair) for pair in zip(features, whole, strict=True)], axis=0)
        examples = [Example(rows, [], text) for rows, text in zip(features, texts, strict=True)]
        errors[size] = count_errors(texts, transcribe_head(head, examples, vocabulary), "en")
        reduction = relative_wer_reduction(errors[float(WINDOW)], errors[size], DRAWS, SEED)
        interval = f"[{-100 * reduction['ci_high']:.1f}, {-100 * reduction['ci_low']:.1f}]"
        print(
            f"| {size:g} | {changes[0]:.1%} | {changes[1]:.3f} | {errors[size].wer:.1%} | "
            f"{-reduction['relative']:.1%} {interval} | {seconds[size]:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    run_stage(lambda: typer.run(main))
