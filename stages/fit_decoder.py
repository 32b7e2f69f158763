"""How the students' frames become words, tuned on the validation clips: models/<preset>/decoder.json."""

import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from dqlora.config import Decode, Paths, load_params, load_preset
from dqlora.data.audio import to_float32
from dqlora.data.storage import RaggedArray, write_json
from dqlora.data.text import Vocabulary
from dqlora.device import default_device
from dqlora.errors import run_stage
from dqlora.evaluation.metrics import Errors, count_errors
from dqlora.models.decoding import BeamSearch, Weights, fit_hotwords, greedy
from dqlora.models.gate import load_distilled
from dqlora.models.language_model import language_model_in
from dqlora.models.wav2vec2 import clip_logits
from dqlora.progress import ProgressBar

ALPHAS = (0.1, 0.2, 0.35, 0.5, 0.7, 1.0)
UNKNOWNS = (-2.0, -4.0, -7.0, -10.0)  # nats
BETAS = (0.0, 0.5, 1.0, 2.0)  # nats
CLIPS = 400  # of either kind, spread evenly over them: more do not change the choice


class Clips:
    """The distilled student's logits of validation clips, clean and noisy, and the errors in what is made of them."""

    def __init__(self, paths: Paths, language: str, quantize: str):
        self.vocabulary, self.language = Vocabulary.load(paths.student / "vocab.json"), language
        student = load_distilled(paths.student, paths.adapter, quantize, default_device()).eval()
        clean, noisy = RaggedArray(paths.clean / "validation"), RaggedArray(paths.noisy / "validation")
        self.references, self.logits = {}, {}
        for kind, clips in (("clean", clean), ("noisy", noisy)):
            items = clips.items[:: -(-len(clips.items) // CLIPS)]
            self.references[kind] = [clean.item(item.get("utterance", item["id"]))["transcript"] for item in items]
            self.logits[kind] = [
                clip_logits(student, to_float32(clips[item["id"]]))
                for item in ProgressBar(items, f"distilled student transcribes, {kind}", unit=" clips")
            ]

    def errors(self, transcript: Callable[[np.ndarray], str]) -> dict[str, Errors]:
        return {
            kind: count_errors(references, list(map(transcript, self.logits[kind])), self.language)
            for kind, references in self.references.items()
        }


def relative(errors: dict[str, Errors], greedily: dict[str, Errors]) -> float:
    """Word edits over those of greedy decoding, the mean of clean and noisy clips, each with one edit more than it has.

    So that neither is paid for with the other, and a few clean clips without an error do not decide all.
    """
    ratios = [(errors[kind].word_edits.sum() + 1) / (greedily[kind].word_edits.sum() + 1) for kind in errors]
    return float(np.mean(ratios))


def tune(clips: Clips, greedily: dict[str, Errors], language_model: Path, beam_width: int) -> tuple[float, Weights]:
    """The weights of the fewest errors, and their ratio: alpha and the price of an unknown word, then beta."""

    def best(candidates: list[Weights], name: str) -> tuple[float, Weights]:
        tried = []
        for weights in ProgressBar(candidates, name, unit=" settings"):
            search = BeamSearch(clips.vocabulary, language_model, weights, beam_width)
            tried.append((relative(clips.errors(search.words), greedily), weights))
        return min(tried, key=lambda pair: pair[0])  # the first of equal ones

    _, chosen = best([Weights(alpha, 1.0, unknown) for alpha in ALPHAS for unknown in UNKNOWNS], "alpha, unknown")
    return best([replace(chosen, beta=beta) for beta in BETAS], "beta")


def settings_of(decode: Decode, language: str) -> dict[str, Any]:
    return {"language": language, "hotwords": decode.hotwords, "hotword_weight": decode.hotword_weight}


def main() -> None:
    params = load_params()
    language = load_preset(params.preset).speech.language
    paths = Paths(params.preset)
    fit_hotwords(params.decode.hotwords, Vocabulary.load(paths.student / "vocab.json"), language)
    language_model = language_model_in(paths.lm)
    settings: dict[str, Any] = {"method": "greedy", **settings_of(params.decode, language)}
    if params.decode.method == "beam" and language_model:
        clips = Clips(paths, language, params.student.quantize)
        greedily = clips.errors(lambda logits: clips.vocabulary.decode(greedy(logits).tolist()))
        ratio, weights = tune(clips, greedily, language_model, params.decode.beam_width)
        print(f"{weights}: {1 - ratio:.1%} fewer errors than greedily, the mean of clean and noisy validation clips")
        if ratio < 1:
            settings |= {
                "method": "beam",
                "language_model": os.path.relpath(language_model, paths.decoder.parent),
                "beam_width": params.decode.beam_width,
                "weights": asdict(weights),
            }
    write_json(paths.decoder, settings)
    print(f"decoding: {settings['method']}")


if __name__ == "__main__":
    run_stage(main)
