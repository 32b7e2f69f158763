"""From a student's logits to its tokens: the best of each frame, or those of the words that a beam search finds."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dqlora.data.storage import read_json, rerun
from dqlora.data.text import BadText, Vocabulary, spell_out
from dqlora.errors import UserError

Decoder = Callable[[np.ndarray], np.ndarray]  # token ids int64 [frames] of logits float32 [frames, vocabulary]

DECODER = "decoder.json"  # beside a run's adapter folder, or in an export: how its frames become words
BEAM_WIDTH = 24  # as in params.yaml, for what is no run's
GREEDY: dict[str, Any] = {
    "method": "greedy", "language_model": None, "weights": {}, "beam_width": BEAM_WIDTH, "hotwords": [],
    "hotword_weight": 10.0, "language": "en",
}  # fmt: skip


def greedy(logits: np.ndarray) -> np.ndarray:
    """The best token of each frame."""
    return logits.argmax(-1)


@dataclass(frozen=True)
class Weights:
    """Of a beam search, in nats but for alpha."""

    alpha: float = 0.0
    beta: float = 0.0
    unknown: float = 0.0


class BeamSearch:
    """CTC prefix beam search (Hannun et al. 2014) for the words that maximise

    `ln p(words | frames) + alpha ln p(words) + beta |words| + unknown |unknown words| + weight |hot words|`,

    p(words) that of an n-gram model. It answers with the most probable path of these words through the frames, so that
    whatever takes a greedy path takes it.

    Parameters
    ----------
    language_model
        an ARPA file, or KenLM's binary form of one, its words in the vocabulary's case; None: hot words alone count.
    beam_width
        transcripts held at a time.
    hotwords
        as the vocabulary writes them.
    hotword_weight
        nats.

    Raises
    ------
    UserError
        if the language model cannot be read.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        language_model: Path | None,
        weights: Weights,
        beam_width: int = BEAM_WIDTH,
        hotwords: Sequence[str] = (),
        hotword_weight: float = 0.0,
    ):
        from ctc_beam_decoder import build_ctcdecoder

        self.vocabulary = vocabulary
        self._options: dict[str, Any] = {
            "beam_width": beam_width,
            "hotwords": list(hotwords),
            "hotword_weight": hotword_weight,
        }
        tokens = range(len(vocabulary))
        self._silent = [token for token in tokens if not vocabulary.name(token) and token != vocabulary.blank]
        # as the library takes them: blank is empty, and what writes nothing a letter of no script
        labels = ["" if at == vocabulary.blank else vocabulary.name(at) or chr(0xF0000 + at) for at in tokens]
        try:
            # of an ARPA file the library finds the words itself; without them each would be unknown until it ends
            words = words_of_binary(language_model) if language_model and language_model.suffix == ".bin" else None
            with _silent_stderr():  # KenLM tells how it reads
                self._search = build_ctcdecoder(
                    labels,
                    language_model,
                    unigrams=words,
                    alpha=weights.alpha,
                    beta=weights.beta,
                    unk_score_offset=weights.unknown,
                )
        except (OSError, ValueError, RuntimeError):  # KenLM's own name a line of its source
            raise UserError(
                f"{language_model}: cannot be read as a language model, an ARPA file or KenLM's .bin: is it there, and "
                "whole? Give another, or decode.method: greedy"
            ) from None

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        return align(log_softmax(logits), self.vocabulary.encode(self.words(logits)), self.vocabulary.blank)

    def words(self, logits: np.ndarray) -> str:
        """The words alone, as the vocabulary writes them, joined by a space."""
        log_probs = log_softmax(logits)
        log_probs[:, self._silent] = -100
        return self._search.decode(log_probs, **self._options) if len(log_probs) else ""


def words_of_binary(path: Path) -> list[str]:
    """The words of an n-gram model in KenLM's binary form, which stand at its end.

    Raises
    ------
    UserError
        if it was built without them.
    """
    content = path.read_bytes()
    start = content.rfind(b"<unk>\0")
    if start < 0:
        raise UserError(
            f"{path}: no language model with its words, or cut short; build it without -v, or give the .arpa"
        )
    return content[start:].decode("utf-8", "replace").split("\0")[:-1]


class HotWords:
    """Listens for names and terms: a transcript changes only where one of them is found.

    Parameters
    ----------
    otherwise
        decodes what holds none of them.
    search
        the same with a bonus for them.
    """

    def __init__(self, hotwords: Sequence[str], vocabulary: Vocabulary, otherwise: Decoder, search: BeamSearch):
        self.vocabulary, self.otherwise, self.search = vocabulary, otherwise, search
        self.hotwords = [f" {vocabulary.lower(word)} " for word in hotwords]

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        found = self.search(logits)
        text = f" {self.vocabulary.decode(found.tolist())} "
        return found if any(word in text for word in self.hotwords) else self.otherwise(logits)


def decoder_settings(folder: Path) -> dict[str, Any]:
    """What a folder's decoder.json says; greedy where there is none."""
    path = folder / DECODER
    return GREEDY | (read_json(path, rerun("fit_decoder"), ["method"]) if path.exists() else {})


def load_decoder(folder: Path, vocabulary: Vocabulary, hotwords: Sequence[str] = ()) -> Decoder:
    """How a run or an export decodes: as its decoder.json says, which the stage `fit_decoder` wrote; else greedily.

    Parameters
    ----------
    folder
        with the decoder.json; it names the language model relative to itself.
    hotwords
        names and terms to listen for beside those of the run, as people write them.

    Raises
    ------
    UserError
        if the language model cannot be read, or the vocabulary cannot write a hot word.
    """
    settings = decoder_settings(folder)
    words = fit_hotwords([*settings["hotwords"], *hotwords], vocabulary, settings["language"])
    model = folder / settings["language_model"] if settings["language_model"] else None
    weights, width = Weights(**settings["weights"]), settings["beam_width"]
    decoder = greedy if settings["method"] == "greedy" else BeamSearch(vocabulary, model, weights, width)
    if not words:
        return decoder
    search = BeamSearch(vocabulary, model, weights, width, words, settings["hotword_weight"])
    return HotWords(words, vocabulary, decoder, search)


def fit_hotwords(hotwords: Sequence[str], vocabulary: Vocabulary, language: str) -> list[str]:
    """As the vocabulary writes them. Raises UserError for the first that it cannot write."""
    fitted = []
    for word in hotwords:
        try:
            fitted.append(vocabulary.fit(spell_out(word, language)))
        except BadText as reason:
            raise UserError(f"hot word {word!r}: {reason}; spell it in the student's letters") from None
    return fitted


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """float32 [frames, vocabulary]."""
    shifted = logits.astype(np.float32) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def align(log_probs: np.ndarray, tokens: Sequence[int], blank: int) -> np.ndarray:
    """The most probable path of `tokens` through the frames (Viterbi; Graves et al. 2006): token ids int64 [frames].

    Parameters
    ----------
    log_probs
        [frames, vocabulary]; at least `frames_needed(tokens)` frames.
    """
    states = np.full(2 * len(tokens) + 1, blank)  # a blank before, between and after the tokens
    states[1::2] = tokens
    skip = np.full(len(states), -np.inf)  # 0: may be reached past the blank before it, from a token that differs
    skip[2:][(states[2:] != blank) & (states[2:] != states[:-2])] = 0
    padded = np.full(len(states) + 2, -np.inf)  # scores, behind two states that are never reached
    padded[2] = 0
    stayed, stepped, skipped = padded[2:], padded[1:-1], padded[:-2]
    has_stepped, has_skipped = np.zeros((2, len(log_probs), len(states)), dtype=bool)
    for frame, emitted in enumerate(log_probs[:, states]):
        two_back = skipped + skip
        best = np.maximum(stayed, stepped)
        np.greater(stepped, stayed, out=has_stepped[frame])
        np.greater(two_back, best, out=has_skipped[frame])
        padded[2:] = np.maximum(best, two_back) + emitted
    path = np.empty(len(log_probs), dtype=np.int64)
    state = len(states) - 1 - int(len(states) > 1 and padded[-2] > padded[-1])
    for frame in range(len(log_probs) - 1, -1, -1):
        path[frame] = states[state]
        state -= 2 if has_skipped[frame, state] else int(has_stepped[frame, state])
    return path


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Nothing that a library in C++ prints there is seen."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
