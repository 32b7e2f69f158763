"""How the students' frames become words, tuned on the validation clips: models/<preset>/decoder.json."""

import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from dqlora.config import Decode, Paths, load_params, load_preset
from dqlora.data.audio import to_float32
from dqlora.data.labels import labelled
from dqlora.data.storage import RaggedArray, write_json
from dqlora.data.text import Vocabulary
from dqlora.device import default_device, map_on_cores
from dqlora.errors import run_stage
from dqlora.evaluation.metrics import Errors, count_errors
from dqlora.evaluation.test_set import CLEAN
from dqlora.models.decoding import BeamSearch, Weights, fit_hotwords, greedy
from dqlora.models.gate import load_distilled
from dqlora.models.language_model import language_model_in
from dqlora.models.wav2vec2 import clip_logits
from dqlora.progress import ProgressBar

ALPHAS = (0.1, 0.2, 0.35, 0.5, 0.7, 1.0)
BETAS = (0.0, 1.0, 2.0)  # nats, times alpha; above, noise becomes words, most of all in another domain than the text
UNKNOWNS = (-4.0, -7.0, -10.0)  # nats; below, even what is heard clearly is made a known word


class Clips:
    """The distilled student's logits of validation clips by condition, clean or an SNR, and the errors made of them."""

    def __init__(self, paths: Paths, language: str, quantize: str):
        self.vocabulary, self.language = Vocabulary.load(paths.student / "vocab.json"), language
        self.references: dict[str, list[str]] = defaultdict(list)
        self.logits: dict[str, list[np.ndarray]] = defaultdict(list)
        device = default_device()
        student = load_distilled(paths.student, paths.adapter, quantize, device).eval()
        clean, noisy = labelled(paths, "validation"), RaggedArray(paths.noisy / "validation")
        clips = [(item["id"], CLEAN, clean[item["id"]]) for item in clean.items]
        clips += [(item["utterance"], f"{item['snr_db']:g} dB", noisy[item["id"]]) for item in noisy.items]
        found = map_on_cores(lambda clip: clip_logits(student, to_float32(clip[-1])), clips, device)
        progress = ProgressBar(clips, "distilled student transcribes", unit=" clips")
        for (utterance, condition, _), logits in zip(progress, found, strict=True):
            self.references[condition].append(clean.item(utterance)["transcript"])
            self.logits[condition].append(logits)

    def errors(self, transcript: Callable[[np.ndarray], str]) -> dict[str, Errors]:
        return {
            condition: count_errors(references, list(map_on_cores(transcript, self.logits[condition])), self.language)
            for condition, references in self.references.items()
        }


def relative(errors: dict[str, Errors], greedily: dict[str, Errors]) -> float:
    """Word edits over those of greedy decoding, the mean of the conditions, each with one edit more than it has.

    So that clean speech does not pay for noisy speech, and few clips without an error do not decide all.
    """
    ratios = [(errors[at].word_edits.sum() + 1) / (greedily[at].word_edits.sum() + 1) for at in greedily]
    return float(np.mean(ratios))


def tune(clips: Clips, greedily: dict[str, Errors], language_model: Path, beam_width: int) -> tuple[float, Weights]:
    """The weights in the middle of the fewest errors, and the ratio of these to greedy decoding's.

    Of each setting the mean with its neighbours counts: few clips make single settings lucky.
    """
    grid = [(alpha, alpha * beta, unknown) for alpha, beta, unknown in product(ALPHAS, BETAS, UNKNOWNS)]
    ratios = []
    for setting in ProgressBar(grid, "weights", unit=" settings"):
        search = BeamSearch(clips.vocabulary, language_model, Weights(*setting), beam_width)
        ratios.append(relative(clips.errors(search.words), greedily))
    smooth = np.array(ratios).reshape(len(ALPHAS), len(BETAS), len(UNKNOWNS))
    for axis in range(smooth.ndim):
        padded = np.pad(smooth, [(int(axis == each),) * 2 for each in range(smooth.ndim)], mode="edge")
        smooth = np.lib.stride_tricks.sliding_window_view(padded, 3, axis).mean(-1)
    best = int(smooth.argmin())
    return ratios[best], Weights(*grid[best])


def settings_of(decode: Decode, language: str) -> dict[str, Any]:
    return {"language": language, **decode.model_dump(include={"beam_width", "hotwords", "hotword_weight"})}


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
        print(
            f"beam search with alpha {weights.alpha:g}, beta {weights.beta:g}, unknown {weights.unknown:g}: "
            f"{1 - ratio:.1%} fewer errors than greedily, the mean of clean and each SNR"
        )
        if ratio < 1:
            settings |= {
                "method": "beam",
                "language_model": os.path.relpath(language_model, paths.decoder.parent),
                "weights": asdict(weights),
            }
    write_json(paths.decoder, settings)
    print(f"decoding: {settings['method']}")


if __name__ == "__main__":
    run_stage(main)
