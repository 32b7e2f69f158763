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
from dqlora.evaluation.metrics import count_errors
from dqlora.models.decoding import BeamSearch, Weights, fit_hotwords, greedy
from dqlora.models.gate import load_distilled
from dqlora.models.language_model import language_model_in
from dqlora.models.wav2vec2 import clip_logits
from dqlora.progress import ProgressBar

ALPHAS = (0.1, 0.2, 0.35, 0.5, 0.7, 1.0)
UNKNOWNS = (-2.0, -4.0, -7.0, -10.0)  # nats
BETAS = (0.0, 0.5, 1.0, 2.0)  # nats
CLIPS = 400  # of the validation mixtures, spread evenly over them: more do not change the choice


class Clips:
    """The distilled student's logits of the noisy validation clips, and how many words a decoder gets wrong."""

    def __init__(self, paths: Paths, language: str, quantize: str):
        self.vocabulary, self.language = Vocabulary.load(paths.student / "vocab.json"), language
        clean, noisy = RaggedArray(paths.clean / "validation"), RaggedArray(paths.noisy / "validation")
        items = noisy.items[:: -(-len(noisy.items) // CLIPS)]
        student = load_distilled(paths.student, paths.adapter, quantize, default_device()).eval()
        self.references = [clean.item(item["utterance"])["transcript"] for item in items]
        self.logits = [
            clip_logits(student, to_float32(noisy[item["id"]]))
            for item in ProgressBar(items, "distilled student transcribes", unit=" clips")
        ]

    def wer(self, transcript: Callable[[np.ndarray], str]) -> float:
        return count_errors(self.references, [transcript(logits) for logits in self.logits], self.language).wer


def tune(clips: Clips, language_model: Path, beam_width: int) -> tuple[Weights, float]:
    """The weights of the lowest WER, and that WER: alpha and the price of an unknown word together, then beta."""

    def wer_of(weights: Weights) -> float:
        search = BeamSearch(clips.vocabulary, language_model, weights, beam_width)
        return clips.wer(lambda logits: clips.vocabulary.lower(search.words(logits)))

    def best(candidates: list[Weights], name: str) -> tuple[float, Weights]:
        tried = [(wer_of(each), each) for each in ProgressBar(candidates, name, unit=" settings")]
        return min(tried, key=lambda pair: pair[0])  # the first of equal ones

    _, chosen = best([Weights(alpha, 1.0, unknown) for alpha in ALPHAS for unknown in UNKNOWNS], "alpha, unknown")
    wer, chosen = best([replace(chosen, beta=beta) for beta in BETAS], "beta")
    return chosen, wer


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
        without = clips.wer(lambda logits: clips.vocabulary.decode(greedy(logits).tolist()))
        weights, wer = tune(clips, language_model, params.decode.beam_width)
        print(f"validation WER, noisy: greedy {without:.1%}, with the language model {wer:.1%} ({weights})")
        if wer < without:
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
