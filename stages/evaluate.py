"""Evaluate base student, distilled student and teacher on the same clips: metrics/evaluate.json, plots, predictions."""

import csv
import json
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from dqlora.audio import SAMPLE_RATE, to_float32
from dqlora.config import Paths, load_params, load_preset
from dqlora.errors import UserError, run_stage
from dqlora.results import CLEAN
from dqlora.scoring import Errors, count_errors, relative_gain, summed
from dqlora.storage import read_jsonl, whole_folder, write_json
from dqlora.student import FromFeatures, load_reader, load_student, transcribe
from dqlora.testset import test_clips
from dqlora.text import Vocabulary
from dqlora.training import peak_memory_mb

SYSTEMS = ("base", "distilled", "teacher")


def transcribe_all(read: Callable[[np.ndarray], str], clips: list[np.ndarray], name: str) -> tuple[list[str], float]:
    """Transcripts one clip at a time, and RTF: seconds of computing per second of audio, after a first clip unmeasured.

    `read` gives the text of float32 [samples].
    """
    read(to_float32(clips[0]))
    started = time.perf_counter()
    texts = [read(to_float32(clip)) for clip in tqdm(clips, f"{name} transcribes", unit=" clips")]
    return texts, (time.perf_counter() - started) / (sum(map(len, clips)) / SAMPLE_RATE)


def teacher_transcripts(path: Path, rows: list[dict[str, Any]]) -> list[str]:
    """What `transcribe_teacher` wrote of the clips that `rows` name."""
    texts = {(line["id"], line["condition"]): line["teacher"] for line in read_jsonl(path, "transcribe_teacher")}
    try:
        return [texts[row["id"], row["condition"]] for row in rows]
    except KeyError as error:
        raise UserError(f"{path}: lacks {' at '.join(error.args[0])}; run `dvc repro transcribe_teacher`") from None


def score(rows: list[dict[str, Any]], system: str, language: str) -> dict[str, Errors]:
    """Errors of one system by condition, its utterances in the same order under each."""
    chosen: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        chosen[row["condition"]].append(row)
    return {
        condition: count_errors([row["reference"] for row in same], [row[system] for row in same], language)
        for condition, same in chosen.items()
    }


def metrics_of(errors: dict[str, Errors]) -> dict[str, Any]:
    """WER and CER of one system: clean, at each SNR, and their mean over the SNRs."""
    by_snr = {
        condition.removesuffix(" dB"): {"wer": one.wer, "cer": one.cer}
        for condition, one in errors.items()
        if condition != CLEAN
    }
    return {
        "clean": {"wer": errors[CLEAN].wer, "cer": errors[CLEAN].cer},
        "noisy": {name: float(np.mean([one[name] for one in by_snr.values()])) for name in ("wer", "cer")},
        "snr": by_snr,
    }


def wer_by(rows: list[dict[str, Any]], key: str, language: str) -> list[dict[str, Any]]:
    """WER of each system over the noisy clips that share a value of `key`, a row each."""
    table = []
    for value in sorted({row[key] for row in rows if key in row}):
        same = [row for row in rows if row.get(key) == value]
        references = [row["reference"] for row in same]
        wers = {name: count_errors(references, [row[name] for row in same], language).wer for name in SYSTEMS}
        table.append({key: value, "clips": len(same), **wers})
    return table


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    params = load_params()
    language = load_preset(params.preset).speech.language
    paths = Paths(params.preset)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vocabulary = Vocabulary.load(paths.student / "vocab.json")
    rows, clips = test_clips(paths)
    teacher_texts = teacher_transcripts(paths.teacher_transcripts / "test.jsonl", rows)

    distilled = load_reader(paths.student, paths.adapter, params.student.quantize, device)
    distilled_texts, rtf = transcribe_all(partial(transcribe, distilled, vocabulary), clips, "distilled student")
    memory = peak_memory_mb()  # of the distilled student: nothing else has been loaded yet
    adapter_mb = sum(file.stat().st_size for file in paths.adapter.glob("*.safetensors")) / 1e6
    del distilled
    base = FromFeatures(load_student(paths.student, params.student.quantize, device))
    base_texts, _ = transcribe_all(partial(transcribe, base, vocabulary), clips, "base student")
    for row, before, after, heard in zip(rows, base_texts, distilled_texts, teacher_texts, strict=True):
        row |= {"base": before, "distilled": after, "teacher": heard}

    errors = {system: score(rows, system, language) for system in SYSTEMS}
    noisy = {system: summed([one for name, one in errors[system].items() if name != CLEAN]) for system in SYSTEMS}
    draws, seed = params.evaluate.bootstrap_draws, params.seed
    metrics: dict[str, Any] = {system: metrics_of(errors[system]) for system in SYSTEMS}
    metrics["gain"] = {
        "noisy": relative_gain(noisy["base"], noisy["distilled"], draws, seed),
        "clean": relative_gain(errors["base"][CLEAN], errors["distilled"][CLEAN], draws, seed),
    }
    metrics |= {"rtf": rtf, "memory_mb": memory["device"] or memory["rss"], "adapter_mb": adapter_mb}
    with whole_folder(paths.metrics / "test") as folder:
        write_csv(folder / "wer_by_snr.csv", wer_by(rows, "snr_db", language))
        write_csv(folder / "wer_by_noise.csv", wer_by(rows, "category", language))
        with (folder / "predictions.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_json(paths.metrics / "evaluate.json", metrics)
    for system in SYSTEMS:
        print(
            f"{system:>9}: clean WER {metrics[system]['clean']['wer']:.1%}, noisy {metrics[system]['noisy']['wer']:.1%}"
        )
    gain = metrics["gain"]["noisy"]
    print(f"noisy WER {gain['wer_relative']:.1%} lower than base [{gain['ci_low']:.1%}, {gain['ci_high']:.1%}]")


if __name__ == "__main__":
    run_stage(main)
