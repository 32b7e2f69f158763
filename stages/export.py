"""Export the distilled student and score it again: models/<preset>/exported, metrics/<preset>/export.json."""

import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from dqlora.config import Paths, load_params, load_preset
from dqlora.data.audio import to_float32
from dqlora.data.storage import atomic_directory, read_jsonl, rerun, write_json
from dqlora.data.text import Vocabulary
from dqlora.device import CPU, default_device, map_on_cores
from dqlora.errors import run_stage
from dqlora.evaluation.metrics import metrics_of, score, wer_reductions
from dqlora.evaluation.sample import sample_utterances
from dqlora.evaluation.test_set import test_clips
from dqlora.models.export import OnnxStudent, size_mb, write_exports
from dqlora.models.gate import entropy_threshold
from dqlora.models.wav2vec2 import EncoderCTC, load_student, transcribe
from dqlora.progress import ProgressBar

ALLOWED = 0.005  # of WER that an export may differ from the student it was made of
UTTERANCES = 50  # of the test set: on a CPU, all of a large one take longer than the training on a GPU


def main() -> None:
    params = load_params()
    language = load_preset(params.preset).speech.language
    paths = Paths(params.preset)
    vocabulary = Vocabulary.load(paths.student / "vocab.json")
    rows = read_jsonl(paths.metrics / "test" / "predictions.jsonl", rerun("evaluate"))
    rows, clips = sample_utterances(rows, test_clips(paths)[1], UTTERANCES)

    with atomic_directory(paths.exported) as folder:
        write_exports(paths.student, paths.adapter, params.student.quantize, folder)
    always_adapted = {"merged"} if entropy_threshold(paths.adapter) is not None else set()
    merged = EncoderCTC(load_student(paths.exported / "merged", "none", default_device()))
    onnx = OnnxStudent(paths.exported / "onnx")
    students: dict[str, tuple[torch.device, Callable[[np.ndarray], str]]] = {
        "merged": (default_device(), partial(transcribe, merged, vocabulary)),
        "onnx": (CPU, lambda samples: vocabulary.decode(onnx.token_ids(samples).tolist())),
    }
    of_adapter = score(rows, "distilled", language)
    adapter = metrics_of(of_adapter)
    metrics = {}
    for name, (device, run) in students.items():
        texts = map_on_cores(run, map(to_float32, clips), device)
        for row, text in zip(
            rows, ProgressBar(texts, f"{name} transcribes", unit=" clips", total=len(clips)), strict=True
        ):
            row[name] = text
        errors = score(rows, name, language)
        found = metrics_of(errors)
        differences = {
            condition: found[condition]["wer"] - adapter[condition]["wer"] for condition in ("clean", "noisy")
        }
        metrics[name] = {
            "clean": found["clean"],
            "noisy": found["noisy"],
            "wer_difference": differences,
            "size_mb": size_mb(paths.exported / name),
        }
        print(
            f"{name:>6}: {metrics[name]['size_mb']:.1f} MB, clean WER {found['clean']['wer']:.1%}, "
            f"noisy {found['noisy']['wer']:.1%}{', the adapter always on' if name in always_adapted else ''}"
        )
        reductions = wer_reductions(of_adapter, errors, params.evaluate.bootstrap_draws, params.seed)
        differs = any(
            abs(differences[condition]) > ALLOWED and not reduction.get("ci_low", 0) <= 0 <= reduction.get("ci_high", 0)
            for condition, reduction in reductions.items()
        )
        if differs and name not in always_adapted:
            print(f"warning: {name} differs from the student by more than {ALLOWED:.1%} WER", file=sys.stderr)
    write_json(paths.metrics / "export.json", metrics)


if __name__ == "__main__":
    run_stage(main)
