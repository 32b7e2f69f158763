"""Evaluate base student, distilled student and teacher on the same clips: metrics/<preset>, predictions.

Both students are decoded greedily, and once more, as `base_lm` and `distilled_lm`, where the run decodes otherwise.
"""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from dqlora.config import Paths, load_params, load_preset
from dqlora.data.audio import to_float32
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
from dqlora.device import default_device
from dqlora.errors import UserError, run_stage
from dqlora.evaluation.metrics import metrics_of, relative_wer_reduction, score, summed, wer_by
from dqlora.evaluation.test_set import CLEAN, test_clips
from dqlora.models.decoding import Decoder, decoder_settings, greedy, load_decoder
from dqlora.models.gate import entropy_threshold, load_distilled
from dqlora.models.wav2vec2 import EncoderCTC, clip_logits, load_student
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
    student: EncoderCTC,
    vocabulary: Vocabulary,
    clips: list[np.ndarray],
    name: str,
    decoders: dict[str, Decoder],
) -> list[dict[str, str]]:
    """By each decoder, named by the student's name and the decoder's: transcripts of int16 [samples], a clip a time."""
    progress = ProgressBar(clips, f"{name} student transcribes", unit=" clips")
    found = (clip_logits(student, to_float32(clip)) for clip in progress)
    return [
        {name + suffix: vocabulary.decode(decoder(logits).tolist()) for suffix, decoder in decoders.items()}
        for logits in found
    ]


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def summary_of(metrics: dict[str, Any]) -> dict[str, Any]:
    """What experiments are compared by: WER of base and distilled, and how much lower it is in noise."""
    noisy = metrics["wer_reduction"]["noisy"]
    systems = [name for name in ("base", "distilled", "distilled_lm") if name in metrics]
    wer = {one: {name: metrics[name][one]["wer"] for name in systems} for one in ("clean", "noisy")}
    return wer | {"wer_reduction": noisy["relative"], "ci_low": noisy["ci_low"], "ci_high": noisy["ci_high"]}


def record_of(paths: Paths, language: str, draws: int, seed: int) -> dict[str, Any]:
    """What was measured, of which adapter behind which gate, and how its intervals are drawn: for the model card."""
    return {
        "adapter": fingerprint(paths.adapter),
        "entropy_threshold": entropy_threshold(paths.adapter),
        "decoder": decoder_settings(paths.decoder.parent),
        "language": language,
        "bootstrap_draws": draws,
        "seed": seed,
        "teacher": read_json(paths.teacher / ORIGIN, rerun("fetch_models")),
        "speech": read_json(paths.clean / ORIGIN, rerun("fetch_speech")),
        "noise": read_json(paths.noise / ORIGIN, rerun("fetch_noise")),
        "used": amount_used(RaggedArray(paths.clean / "test"), RaggedArray(paths.noisy / "test")),
    }


def main() -> None:
    params = load_params()
    language = load_preset(params.preset).speech.language
    paths = Paths(params.preset)
    device = default_device()
    vocabulary = Vocabulary.load(paths.student / "vocab.json")
    rows, clips = test_clips(paths)
    teacher_texts = teacher_transcripts(paths.teacher_transcripts / "test.jsonl", rows)

    distilled = load_distilled(paths.student, paths.adapter, params.student.quantize, device)
    decoder = load_decoder(paths.decoder.parent, vocabulary)
    decoders: dict[str, Decoder] = {"": greedy}
    if decoder is not greedy:
        decoders["_lm"] = decoder
    distilled_texts = transcribe_all(distilled, vocabulary, clips, "distilled", decoders)
    adapter_mb = sum(file.stat().st_size for file in paths.adapter.glob("*.safetensors")) / 1e6
    base = EncoderCTC(load_student(paths.student, params.student.quantize, device))
    base_texts = transcribe_all(base, vocabulary, clips, "base", decoders)
    for row, base_text, distilled_text, teacher in zip(rows, base_texts, distilled_texts, teacher_texts, strict=True):
        row |= {**base_text, **distilled_text, "teacher": teacher}

    systems = [*base_texts[0], *distilled_texts[0], "teacher"]
    errors = {system: score(rows, system, language) for system in systems}
    noisy = {system: summed([one for name, one in errors[system].items() if name != CLEAN]) for system in systems}
    draws, seed = params.evaluate.bootstrap_draws, params.seed
    metrics: dict[str, Any] = {system: metrics_of(errors[system]) for system in systems}
    compared = {"wer_reduction": ("base", "distilled")}
    if "distilled_lm" in systems:
        compared["lm_wer_reduction"] = ("distilled", "distilled_lm")
    for name, (before, after) in compared.items():
        metrics[name] = {
            "noisy": relative_wer_reduction(noisy[before], noisy[after], draws, seed),
            "clean": relative_wer_reduction(errors[before][CLEAN], errors[after][CLEAN], draws, seed),
        }
    metrics["adapter_mb"] = adapter_mb
    with atomic_directory(paths.metrics / "test") as folder:
        write_csv(folder / "wer_by_snr.csv", wer_by(rows, "snr_db", systems, language))
        write_csv(folder / "wer_by_noise.csv", wer_by(rows, "category", systems, language))
        with (folder / "predictions.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_json(folder / "record.json", record_of(paths, language, draws, seed))
    write_json(paths.metrics / "evaluate.json", metrics)
    write_json(paths.metrics / "summary.json", summary_of(metrics))
    for system in systems:
        clean, mixed = (metrics[system][condition]["wer"] for condition in ("clean", "noisy"))
        print(f"{system:>12}: WER clean {clean:.1%}, noisy {mixed:.1%}")
    noise = metrics["wer_reduction"]["noisy"]
    print(f"noisy WER {noise['relative']:.1%} lower than base [{noise['ci_low']:.1%}, {noise['ci_high']:.1%}]")


if __name__ == "__main__":
    run_stage(main)
