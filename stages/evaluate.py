"""Evaluate base student, distilled student and teacher on the same clips: metrics/evaluate.json, plots, predictions."""

import csv
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from dqlora.audio import SAMPLE_RATE, to_float32
from dqlora.config import Params, Paths, load_params, load_preset
from dqlora.errors import run_stage
from dqlora.scoring import Errors, count_errors, relative_gain, summed
from dqlora.storage import Packed, whole_folder, write_json
from dqlora.student import load_adapted, load_student, transcribe
from dqlora.teacher import Teacher
from dqlora.text import Vocabulary
from dqlora.training import peak_memory_mb

SYSTEMS = ("base", "distilled", "teacher")
CLEAN = "clean"
TEACHER_CLIPS_AT_ONCE = {"cuda": 64, "cpu": 8}


def test_clips(paths: Paths) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """Every test utterance clean and at every SNR: rows (id, condition, reference, ...) and int16 [samples] each."""
    clean, noisy = Packed(paths.clean / "test"), Packed(paths.noisy / "test")
    rows, clips = [], []
    for item in clean.items:
        rows.append({"id": item["id"], "condition": CLEAN, "reference": item["transcript"]})
        clips.append(clean[item["id"]])
    for item in noisy.items:
        condition = f"{item['snr_db']:g} dB"
        heard = {key: item[key] for key in ("snr_db", "noise", "category")}
        reference = clean.item(item["utterance"])["transcript"]
        rows.append({"id": item["utterance"], "condition": condition, "reference": reference, **heard})
        clips.append(noisy[item["id"]])
    return rows, clips


def transcribe_all(
    model: torch.nn.Module, vocabulary: Vocabulary, clips: list[np.ndarray], name: str
) -> tuple[list[str], float]:
    """Transcripts one clip at a time, and RTF: seconds of computing per second of audio, the first clip's aside."""
    transcribe(model, vocabulary, to_float32(clips[0]))
    started = time.perf_counter()
    texts = [
        transcribe(model, vocabulary, to_float32(clip)) for clip in tqdm(clips, f"{name} transcribes", unit=" clips")
    ]
    return texts, (time.perf_counter() - started) / (sum(map(len, clips)) / SAMPLE_RATE)


def teacher_transcribes(folder: Path, clips: list[np.ndarray], language: str, device: torch.device) -> list[str]:
    teacher = Teacher(folder, device)
    at_once = TEACHER_CLIPS_AT_ONCE[device.type]
    texts: list[str] = []
    with tqdm(total=len(clips), desc="teacher transcribes", unit=" clips") as progress:
        for start in range(0, len(clips), at_once):
            texts += teacher.transcribe([to_float32(clip) for clip in clips[start : start + at_once]], language)
            progress.update(len(clips[start : start + at_once]))
    return texts


def score(
    rows: list[dict[str, Any]], params: Params, language: str
) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """Metrics, and rows of WER by SNR and by noise category for the plots."""
    conditions = list(dict.fromkeys(row["condition"] for row in rows))
    metrics: dict[str, Any] = {}
    by_snr, by_noise = [], []
    noisy_errors: dict[str, Errors] = {}
    clean_errors: dict[str, Errors] = {}
    for system in SYSTEMS:
        errors = {}
        for condition in conditions:
            chosen = [row for row in rows if row["condition"] == condition]
            errors[condition] = count_errors(
                [row["reference"] for row in chosen], [row[system] for row in chosen], language
            )
        noisy = [errors[condition] for condition in conditions if condition != CLEAN]
        noisy_errors[system], clean_errors[system] = summed(noisy), errors[CLEAN]
        metrics[system] = {
            "clean": {"wer": errors[CLEAN].wer, "cer": errors[CLEAN].cer},
            "noisy": {
                "wer": float(np.mean([one.wer for one in noisy])),
                "cer": float(np.mean([one.cer for one in noisy])),
            },
            "snr": {
                condition.removesuffix(" dB"): {"wer": errors[condition].wer, "cer": errors[condition].cer}
                for condition in conditions
                if condition != CLEAN
            },
        }
        by_snr += [{"system": system, "condition": condition, "wer": errors[condition].wer} for condition in conditions]
        categories = defaultdict(list)
        for row in rows:
            if row["condition"] != CLEAN:
                categories[row["category"]].append(row)
        for category, chosen in sorted(categories.items()):
            references = [row["reference"] for row in chosen]
            category_errors = count_errors(references, [row[system] for row in chosen], language)
            by_noise.append({"system": system, "category": category, "clips": len(chosen), "wer": category_errors.wer})
    draws = params.evaluate.bootstrap_draws
    metrics["gain"] = {
        "noisy": relative_gain(noisy_errors["base"], noisy_errors["distilled"], draws, params.seed),
        "clean": relative_gain(clean_errors["base"], clean_errors["distilled"], draws, params.seed),
    }
    return metrics, by_snr, by_noise


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

    distilled = load_adapted(paths.student, paths.adapter, params.student.quantize, device)
    distilled_texts, rtf = transcribe_all(distilled, vocabulary, clips, "distilled student")
    memory = peak_memory_mb()  # of the distilled student: nothing else has been loaded yet
    adapter_mb = sum(file.stat().st_size for file in paths.adapter.glob("*.safetensors")) / 1e6
    del distilled
    base_texts, _ = transcribe_all(
        load_student(paths.student, params.student.quantize, device), vocabulary, clips, "base student"
    )
    teacher_texts = teacher_transcribes(paths.teacher, clips, language, device)
    for row, base, better, teacher in zip(rows, base_texts, distilled_texts, teacher_texts, strict=True):
        row |= {"base": base, "distilled": better, "teacher": teacher}

    metrics, by_snr, by_noise = score(rows, params, language)
    metrics |= {"rtf": rtf, "memory_mb": memory["device"] or memory["rss"], "adapter_mb": adapter_mb}
    with whole_folder(paths.metrics / "test") as folder:
        write_csv(folder / "wer_by_snr.csv", by_snr)
        write_csv(folder / "wer_by_noise.csv", by_noise)
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
