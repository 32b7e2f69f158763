"""Export the distilled student and measure it again: models/<preset>/exported/{merged,onnx}, metrics/export.json."""

import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from dqlora.config import Paths, load_params, load_preset
from dqlora.errors import run_stage
from dqlora.export import OnnxStudent, size_mb, write_exports
from dqlora.storage import read_jsonl, whole_folder, write_json
from dqlora.student import FromFeatures, entropy_limit, load_student, transcribe
from dqlora.testset import test_clips
from dqlora.text import Vocabulary
from stages.evaluate import metrics_of, score, transcribe_all

ALLOWED = 0.005  # of WER that an export may differ from the student it was made of


def main() -> None:
    params = load_params()
    language = load_preset(params.preset).speech.language
    paths = Paths(params.preset)
    vocabulary = Vocabulary.load(paths.student / "vocab.json")
    rows = read_jsonl(paths.metrics / "test" / "predictions.jsonl", "evaluate")
    _, clips = test_clips(paths)

    with whole_folder(paths.exported) as folder:
        write_exports(paths.student, paths.adapter, params.student.quantize, folder)
    always_adapted = {"merged"} if entropy_limit(paths.adapter) is not None else set()
    merged = FromFeatures(load_student(paths.exported / "merged", "none", torch.device("cpu")))
    onnx = OnnxStudent(paths.exported / "onnx")
    readers: dict[str, Callable[[np.ndarray], str]] = {
        "merged": partial(transcribe, merged, vocabulary),
        "onnx": lambda samples: vocabulary.decode(onnx.symbols(samples).tolist()),
    }
    adapter = metrics_of(score(rows, "distilled", language))
    metrics = {}
    for name, read in readers.items():
        texts, rtf = transcribe_all(read, clips, name)
        for row, text in zip(rows, texts, strict=True):
            row[name] = text
        found = metrics_of(score(rows, name, language))
        differences = {
            condition: found[condition]["wer"] - adapter[condition]["wer"] for condition in ("clean", "noisy")
        }
        metrics[name] = {
            "clean": found["clean"],
            "noisy": found["noisy"],
            "wer_difference": differences,
            "size_mb": size_mb(paths.exported / name),
            "rtf": rtf,
        }
        print(
            f"{name:>6}: {metrics[name]['size_mb']:.1f} MB, clean WER {found['clean']['wer']:.1%}, "
            f"noisy {found['noisy']['wer']:.1%}{', the adapter reading all' if name in always_adapted else ''}"
        )
        if name not in always_adapted and max(map(abs, differences.values())) > ALLOWED:
            print(f"warning: {name} differs from the student by more than {ALLOWED:.1%} WER", file=sys.stderr)
    write_json(paths.metrics / "export.json", metrics)


if __name__ == "__main__":
    run_stage(main)
