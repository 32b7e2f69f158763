"""Evaluate base student, distilled student and teacher on the same clips: metrics/evaluate.json, plots, predictions."""

import csv
import json
from functools import partial
from pathlib import Path
from typing import Any

from dqlora.config import Paths, load_params, load_preset
from dqlora.data.storage import atomic_directory, read_jsonl, rerun, write_json
from dqlora.data.text import Vocabulary
from dqlora.device import default_device
from dqlora.errors import UserError, run_stage
from dqlora.evaluation.metrics import metrics_of, relative_wer_reduction, score, summed, wer_by
from dqlora.evaluation.profiling import peak_memory_mb, transcribe_timed
from dqlora.evaluation.test_set import CLEAN, test_clips
from dqlora.models.gate import load_distilled
from dqlora.models.wav2vec2 import EncoderCTC, load_student, transcribe

SYSTEMS = ("base", "distilled", "teacher")


def teacher_transcripts(path: Path, rows: list[dict[str, Any]]) -> list[str]:
    """What `transcribe_teacher` wrote of the clips that `rows` name."""
    way_out = rerun("transcribe_teacher")
    texts = {(line["id"], line["condition"]): line["teacher"] for line in read_jsonl(path, way_out)}
    try:
        return [texts[row["id"], row["condition"]] for row in rows]
    except KeyError as error:
        raise UserError(f"{path}: lacks {' at '.join(error.args[0])}; {way_out}") from None


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    params = load_params()
    language = load_preset(params.preset).speech.language
    paths = Paths(params.preset)
    device = default_device()
    vocabulary = Vocabulary.load(paths.student / "vocab.json")
    rows, clips = test_clips(paths)
    teacher_texts = teacher_transcripts(paths.teacher_transcripts / "test.jsonl", rows)

    distilled = load_distilled(paths.student, paths.adapter, params.student.quantize, device)
    distilled_texts, rtf = transcribe_timed(partial(transcribe, distilled, vocabulary), clips, "distilled student")
    memory = peak_memory_mb()  # of the distilled student: nothing else has been loaded yet
    adapter_mb = sum(file.stat().st_size for file in paths.adapter.glob("*.safetensors")) / 1e6
    del distilled
    base = EncoderCTC(load_student(paths.student, params.student.quantize, device))
    base_texts, _ = transcribe_timed(partial(transcribe, base, vocabulary), clips, "base student")
    for row, before, after, teacher in zip(rows, base_texts, distilled_texts, teacher_texts, strict=True):
        row |= {"base": before, "distilled": after, "teacher": teacher}

    errors = {system: score(rows, system, language) for system in SYSTEMS}
    noisy = {system: summed([one for name, one in errors[system].items() if name != CLEAN]) for system in SYSTEMS}
    draws, seed = params.evaluate.bootstrap_draws, params.seed
    metrics: dict[str, Any] = {system: metrics_of(errors[system]) for system in SYSTEMS}
    metrics["wer_reduction"] = {
        "noisy": relative_wer_reduction(noisy["base"], noisy["distilled"], draws, seed),
        "clean": relative_wer_reduction(errors["base"][CLEAN], errors["distilled"][CLEAN], draws, seed),
    }
    metrics |= {"rtf": rtf, **memory, "adapter_mb": adapter_mb}
    with atomic_directory(paths.metrics / "test") as folder:
        write_csv(folder / "wer_by_snr.csv", wer_by(rows, "snr_db", SYSTEMS, language))
        write_csv(folder / "wer_by_noise.csv", wer_by(rows, "category", SYSTEMS, language))
        with (folder / "predictions.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_json(paths.metrics / "evaluate.json", metrics)
    for system in SYSTEMS:
        print(
            f"{system:>9}: clean WER {metrics[system]['clean']['wer']:.1%}, noisy {metrics[system]['noisy']['wer']:.1%}"
        )
    noise = metrics["wer_reduction"]["noisy"]
    print(f"noisy WER {noise['relative']:.1%} lower than base [{noise['ci_low']:.1%}, {noise['ci_high']:.1%}]")


if __name__ == "__main__":
    run_stage(main)
