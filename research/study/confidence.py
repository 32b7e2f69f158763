"""Which measure of confidence tells a student's right words from its wrong ones.

python -m research.study.confidence SPEECH... --noise NOISE [--model FOLDER]

Prints the AUC of each measure: the probability that a right word has a higher confidence than a wrong one. A word is
right if it is aligned with the same word of the reference. A word's confidence is the mean (or the least) over its
frames, with the blanks between its letters or without, of

- path: the log probability of the decoder's token,
- best: that of the best token,
- entropy: `frame_confidence`.
"""

from collections import defaultdict
from pathlib import Path
from typing import Annotated

import jiwer
import numpy as np
import typer

from dqlora.data.text import Vocabulary, spell_out
from dqlora.device import default_device
from dqlora.errors import quieten_libraries, run_stage
from dqlora.models.decoding import Decoder, greedy, log_softmax
from dqlora.transcription.confidence import frame_confidence
from dqlora.transcription.recogniser import load_recogniser
from research.study.mixtures import mixtures

SNR_DB = (10.0, 5.0, 0.0)


def auc(right: np.ndarray, wrong: np.ndarray) -> float:
    """The probability that one of `right` is larger than one of `wrong`, ties counted half (Mann and Whitney)."""
    wrong = np.sort(wrong)
    below = np.searchsorted(wrong, right, "left") + np.searchsorted(wrong, right, "right")
    return float(below.mean() / (2 * len(wrong)))


def spans(path: np.ndarray, vocabulary: Vocabulary) -> list[list[int]]:
    """The frames of each word's letters."""
    words: list[list[int]] = [[]]
    for frame, token in enumerate(path.tolist()):
        name = vocabulary.name(token)
        if name == " ":
            words.append([])
        elif name:
            words[-1].append(frame)
    return [word for word in words if word]


def right_words(reference: str, hypothesis: str) -> list[bool]:
    """Of each word of the hypothesis, whether it is aligned with the same word."""
    right = [False] * len(hypothesis.split())
    if reference and hypothesis:
        for chunk in jiwer.process_words(reference, hypothesis).alignments[0]:
            if chunk.type == "equal":
                right[chunk.hyp_start_idx : chunk.hyp_end_idx] = [True] * (chunk.hyp_end_idx - chunk.hyp_start_idx)
    return right


def measures(logits: np.ndarray, path: np.ndarray, vocabulary: Vocabulary) -> dict[str, list[float]]:
    """The confidence of each word by each measure."""
    log_probs = log_softmax(logits)
    found = defaultdict(list)
    of_frame = {
        "path": log_probs[np.arange(len(path)), path],
        "best": log_probs.max(-1),
        "entropy": frame_confidence(logits),
    }
    for word in spans(path, vocabulary):
        inside = slice(word[0], word[-1] + 1)
        for name, values in of_frame.items():
            found[f"{name}, letters"].append(float(values[word].mean()))
            found[f"{name}, letters and blanks"].append(float(values[inside].mean()))
            found[f"{name}, least"].append(float(values[word].min()))
    return found


def main(
    speech: Annotated[list[Path], typer.Argument(help="Folders with metadata.csv, or Parquet files.")],
    noise: Annotated[Path, typer.Option(help="A folder of noise recordings.")],
    model: Annotated[str, typer.Option(help="As dqlora transcribe takes it.")] = "presets/mini/student",
    limit: Annotated[int | None, typer.Option(help="Clips of each.")] = None,
) -> None:
    quieten_libraries()
    recogniser = load_recogniser(model, default_device())
    decoders: dict[str, Decoder] = {"greedy": greedy}
    if recogniser.decoder is not greedy:
        decoders["beam"] = recogniser.decoder
    scores: dict[tuple[str, str, bool], list[float]] = defaultdict(list)
    for one in mixtures(speech, noise, SNR_DB, limit):
        logits = recogniser.logits(one.samples)
        for name, decoder in decoders.items():
            path = decoder(logits)
            right = right_words(spell_out(one.reference, "en"), recogniser.vocabulary.decode(path.tolist()))
            for measure, values in measures(logits, path, recogniser.vocabulary).items():
                for value, is_right in zip(values, right, strict=True):
                    scores[name, measure, is_right].append(value)
    print(f"| measure | {' | '.join(decoders)} |\n|{' --- |' * (1 + len(decoders))}")
    for measure in dict.fromkeys(measure for _, measure, _ in scores):
        cells = [auc(*(np.array(scores[name, measure, right]) for right in (True, False))) for name in decoders]
        print(f"| {measure} | {' | '.join(f'{cell:.3f}' for cell in cells)} |")
    counts = [
        f"{len(scores[n, 'path, letters', True])} right, {len(scores[n, 'path, letters', False])} wrong"
        for n in decoders
    ]
    print(f"| words | {' | '.join(counts)} |")


if __name__ == "__main__":
    run_stage(lambda: typer.run(main))
