"""Evaluate base student, distilled student and teacher on the same clips: metrics/<preset>, predictions.

Both students are decoded greedily, and once more, as `base_lm` and `distilled_lm`, where the run decodes otherwise.
"""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dqlora.config import OUT_OF_DOMAIN, Paths, load_params, load_preset
from dqlora.data.batching import inference_batches, pad_features
from dqlora.data.labels import labelled
from dqlora.data.origin import ORIGIN, amount_used
from dqlora.data.storage import (
    RaggedArray,
    atomic_directory,
    fingerprint,
    read_json,
    read_jsonl,
    rerun,
    write_json,
)
from dqlora.data.text import Vocabulary
from dqlora.device import default_device, map_on_cores
from dqlora.errors import UserError, run_stage
from dqlora.evaluation.metrics import metrics_of, score, wer_by, wer_reductions
from dqlora.evaluation.results import in_words, out_of_domain_in_words
from dqlora.evaluation.test_set import test_clips
from dqlora.models.decoding import Decoder, decoder_settings, greedy, load_decoder
from dqlora.models.gate import GatedStudent, entropy_threshold, load_distilled
from dqlora.models.wav2vec2 import EncoderCTC, base_of, cnn_features_batch, load_student
from dqlora.progress import ProgressBar


def teacher_transcripts(path: Path, rows: list[dict[str, Any]]) -> list[str]:
    """What `transcribe_teacher` wrote of the clips that `rows` name."""
    way_out = rerun("transcribe_teacher")
    texts = {(line["id"], line["condition"]): line["teacher"] for line in read_jsonl(path, way_out)}
    try:
        return [texts[row["id"], row["condition"]] for row in rows]
    except KeyError as error:
        raise UserError(f"{path}: lacks {' at '.join(error.args[0])}; {way_out}") from None


def transcribe_all(
    base: EncoderCTC,
    distilled: EncoderCTC,
    vocabulary: Vocabulary,
    clips: list[np.ndarray],
    decoders: dict[str, Decoder],
) -> list[dict[str, str]]:
    """Both students' transcripts of int16 [samples] by each decoder, named by the student's name and the decoder's."""
    device = base_of(base.model).device

    @torch.inference_mode()
    def transcribed(batch: list[int]) -> list[dict[str, str]]:
        features, frames = pad_features(cnn_features_batch(base.model, [clips[position] for position in batch]))
        frames = frames.to(device)
        if isinstance(distilled, GatedStudent):
            both = distilled.with_base(features, frames)
        else:
            both = base(features, frames), distilled(features, frames)
        logits = {name: rows.float().cpu().numpy() for name, rows in zip(("base", "distilled"), both, strict=True)}
        return [
            {
                name + suffix: vocabulary.decode(decoder(rows[row, :count]).tolist())
                for name, rows in logits.items()
                for suffix, decoder in decoders.items()
            }
            for row, count in enumerate(frames.tolist())
        ]

    texts: list[dict[str, str]] = [{} for _ in clips]
    batches = inference_batches(list(map(len, clips)), device)
    with ProgressBar(total=len(clips), desc="students transcribe", unit=" clips") as progress:
        for batch, found in zip(batches, map_on_cores(transcribed, batches, device), strict=True):
            for position, text in zip(batch, found, strict=True):
                texts[position] = text
            progress.update(len(batch))
    return texts


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def summary_of(metrics: dict[str, Any]) -> dict[str, Any]:
    """What experiments are compared by: WERs, and how much lower than its base's the student's is in noise.

    Rounded as it is shown, to 0.1 %: names and digits are few, so that they fit 120 columns beside an experiment's name
    and one parameter.
    """

    def rounded(ratio: float) -> float:  # as :.1% writes it
        return float(f"{100 * ratio:.1f}e-2")

    def wers(system: str) -> dict[str, float]:
        return {condition: rounded(metrics[system][condition]["wer"]) for condition in ("clean", "noisy")}

    gain = metrics["wer_reduction"]["noisy"]
    summary = {"base": wers("base"), **wers("distilled")}
    short = {"relative": "gain", "ci_low": "low", "ci_high": "high"}
    summary |= {short[name]: rounded(value) for name, value in gain.items()}
    if "distilled_lm" in metrics:
        summary["lm"] = wers("distilled_lm")
    if OUT_OF_DOMAIN in metrics:
        summary[OUT_OF_DOMAIN] = rounded(metrics[OUT_OF_DOMAIN]["wer_reduction"]["noisy"]["relative"])
    return summary


def measure(rows: list[dict[str, Any]], systems: list[str], language: str, draws: int, seed: int) -> dict[str, Any]:
    """WER and CER of each system, clean and in noise; how much lower the distilled one's is, and with the model."""
    errors = {system: score(rows, system, language) for system in systems}
    metrics: dict[str, Any] = {system: metrics_of(errors[system]) for system in systems}
    compared = {"wer_reduction": ("base", "distilled")}
    if "distilled_lm" in systems:
        compared["wer_reduction_with_lm"] = ("base_lm", "distilled_lm")
        compared["lm_wer_reduction"] = ("distilled", "distilled_lm")
    for name, (before, after) in compared.items():
        metrics[name] = wer_reductions(errors[before], errors[after], draws, seed)
    return metrics


def record_of(paths: Paths, metrics: dict[str, Any], language: str, draws: int, seed: int) -> dict[str, Any]:
    """What was measured, of which adapter behind which gate, and how its intervals are drawn: for the model card."""
    record = {
        "adapter": fingerprint(paths.adapter),
        "entropy_threshold": entropy_threshold(paths.adapter),
        "decoder": decoder_settings(paths.decoder.parent),
        "language": language,
        "bootstrap_draws": draws,
        "seed": seed,
        "teacher": read_json(paths.teacher / ORIGIN, rerun("fetch_models")),
        "speech": read_json(paths.clean / ORIGIN, rerun("fetch_speech")),
        "noise": read_json(paths.noise / ORIGIN, rerun("fetch_noise")),
        "used": amount_used(labelled(paths, "test"), RaggedArray(paths.noisy / "test")),
        "metrics": metrics,
    }
    if OUT_OF_DOMAIN in metrics:
        clean, noise = paths.clean / OUT_OF_DOMAIN, paths.noise / OUT_OF_DOMAIN
        record[OUT_OF_DOMAIN] = {
            "speech": read_json(clean / ORIGIN, rerun("fetch_speech")),
            "noise": read_json(noise / ORIGIN, rerun("fetch_noise")),
            "used": amount_used(RaggedArray(clean), RaggedArray(paths.noisy / OUT_OF_DOMAIN)),
        }
    return record


def main() -> None:
    params = load_params()
    language = load_preset(params.preset).speech.language
    paths = Paths(params.preset)
    device = default_device()
    vocabulary = Vocabulary.load(paths.student / "vocab.json")
    rows, clips = test_clips(paths)
    others, other_clips = test_clips(paths, OUT_OF_DOMAIN)
    for row, teacher in zip(rows, teacher_transcripts(paths.teacher_transcripts / "test.jsonl", rows), strict=True):
        row["teacher"] = teacher

    distilled = load_distilled(paths.student, paths.adapter, params.student.quantize, device)
    decoder = load_decoder(paths.decoder.parent, vocabulary)
    decoders: dict[str, Decoder] = {"": greedy}
    if decoder is not greedy:
        decoders["_lm"] = decoder
    if isinstance(distilled, GatedStudent):
        base = distilled.base
    else:
        base = EncoderCTC(load_student(paths.student, params.student.quantize, device))
    texts = transcribe_all(base, distilled, vocabulary, clips + other_clips, decoders)
    for row, found in zip(rows + others, texts, strict=True):
        row |= found
    adapter_mb = sum(file.stat().st_size for file in paths.adapter.glob("*.safetensors")) / 1e6

    draws, seed = params.evaluate.bootstrap_draws, params.seed
    students = list(texts[0])
    systems = [*students, "teacher"]
    metrics = measure(rows, systems, language, draws, seed) | {"adapter_mb": adapter_mb}
    if others:
        metrics[OUT_OF_DOMAIN] = measure(others, students, language, draws, seed)
    with atomic_directory(paths.metrics / "test") as folder:
        write_csv(folder / "wer_by_snr.csv", wer_by(rows, "snr_db", systems, language))
        write_csv(folder / "wer_by_noise.csv", wer_by(rows, "category", systems, language))
        for name, predictions in (("predictions", rows), (OUT_OF_DOMAIN, others)):
            with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in predictions)
        write_json(folder / "record.json", record_of(paths, metrics, language, draws, seed))
    write_json(paths.metrics / "evaluate.json", metrics)
    write_json(paths.metrics / "summary.json", summary_of(metrics))
    for system in systems:
        clean, mixed = (metrics[system][condition]["wer"] for condition in ("clean", "noisy"))
        print(f"{system:>12}: WER clean {clean:.1%}, noisy {mixed:.1%}")
    if any("labelled_by" in item for item in labelled(paths, "test").items):
        print(
            "warning: errors are counted against Whisper's transcripts: no test clip has a human one", file=sys.stderr
        )
    print(f"noisy WER {in_words(metrics['wer_reduction']['noisy'])} than the base's")
    if "wer_reduction_with_lm" in metrics:
        print(f"both with the language model: noisy WER {in_words(metrics['wer_reduction_with_lm']['noisy'])}")
    if OUT_OF_DOMAIN in metrics:
        print(out_of_domain_in_words(metrics[OUT_OF_DOMAIN]))


if __name__ == "__main__":
    run_stage(main)
