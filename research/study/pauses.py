"""Words that a student writes in pauses, and by what they could be told from those that are said.

python -m research.study.pauses SPEECH... --noise NOISE [--model FOLDER] [--snr-db 10]

Clips of each SPEECH are joined with pauses of 0.5 to 20 s, as `benchmarks.transcription` does, clean and in noise, and
transcribed as `dqlora transcribe` does, but for the words that it drops. A stretch is what is transcribed at once.
Prints, for each rule and threshold, the WER once the words below it are dropped, and how many of these stand in pauses,
in clips, and were right.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import soundfile
import typer

from benchmarks.cpu import load_clips
from benchmarks.transcription import join
from dqlora.data.audio import FRAME_HOP, SAMPLE_RATE, read_audio, stream_audio, to_float32, to_int16
from dqlora.data.text import spell_out
from dqlora.device import default_device
from dqlora.errors import quieten_libraries, run_stage
from dqlora.evaluation.metrics import count_errors
from dqlora.progress import ProgressBar
from dqlora.seeding import generator_for
from dqlora.transcription.recogniser import Recogniser, load_recogniser
from dqlora.transcription.segmentation import DETECTOR_HOP, WINDOW, pieces, speech_probabilities
from dqlora.transcription.words import Frame, Word, text_of, words_of
from research.study.confidence import right_words

EDGE = 0.5  # s around a clip in which a word still belongs to it
THRESHOLDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.3)
SURE = 0.9  # probability of speech


@dataclass(frozen=True)
class Found:
    """A word with what is known of it."""

    word: Word
    stretch: int
    speech: float  # Silero's probability of speech, the mean over the word


def transcribe(recogniser: Recogniser, recording: np.ndarray) -> list[Found]:
    file = io.BytesIO()
    soundfile.write(file, to_int16(recording), SAMPLE_RATE, format="WAV", subtype="PCM_16")
    file.seek(0)
    windows = (recording[start : start + WINDOW] for start in range(0, len(recording), WINDOW))
    speech = np.concatenate([speech_probabilities(window) for window in windows])
    found = []
    for number, piece in enumerate(ProgressBar(pieces(stream_audio(file)[1]), "stretches")):
        token_ids, confidences = recogniser.path(to_float32(to_int16(piece.samples)), piece.sound)
        for first, last in piece.own:
            own = slice(first - piece.first_frame, None if last is None else last - piece.first_frame)
            frames = map(Frame, token_ids[own].tolist(), confidences[own].tolist())
            for word in words_of(frames, recogniser.vocabulary):
                shift = first * FRAME_HOP / SAMPLE_RATE
                moved = Word(word.text, word.start + shift, word.end + shift, word.confidence)
                at = slice(
                    int(moved.start * SAMPLE_RATE / DETECTOR_HOP), int(moved.end * SAMPLE_RATE / DETECTOR_HOP) + 1
                )
                found.append(Found(moved, number, float(speech[at].mean())))
    return found


class Recording:
    """One joined recording, its words, and the clip that each stands nearest to."""

    def __init__(self, begins: np.ndarray, ends: np.ndarray, texts: list[str], found: list[Found]):
        self.texts, self.found = texts, found
        middles = np.array([(each.word.start + each.word.end) / 2 for each in found])
        self.nearest = np.searchsorted((ends[:-1] + begins[1:]) / 2, middles)
        inside = [
            begins[at] - EDGE < middle < ends[at] + EDGE for at, middle in zip(self.nearest, middles, strict=True)
        ]
        self.in_pause = ~np.array(inside, bool)
        self.right = np.zeros(len(found), bool)
        for at, text in enumerate(texts):
            own = np.flatnonzero(self.nearest == at)
            self.right[own] = right_words(spell_out(text, "en"), " ".join(found[each].word.text for each in own))

    def word_edits(self, kept: np.ndarray) -> int:
        hypotheses = [
            text_of([self.found[each].word for each in np.flatnonzero((self.nearest == at) & kept)])
            for at in range(len(self.texts))
        ]
        return int(count_errors(self.texts, hypotheses, "en").word_edits.sum())

    def of_stretch(self, values: np.ndarray, reduce: Callable[[np.ndarray], float]) -> np.ndarray:
        """For each word, its stretch's value."""
        stretch = np.array([each.stretch for each in self.found])
        return np.array([reduce(values[stretch == own]) for own in stretch])


def rules(recording: Recording) -> dict[str, np.ndarray]:
    """The confidence by which words are to be dropped, [words] each."""
    words = np.array([each.word.confidence for each in recording.found])
    speech = np.array([each.speech for each in recording.found])
    around = np.pad(words, 1, mode="edge")
    return {
        "word": words,
        "word, where speech is not sure": np.where(speech < SURE, words, 1),
        "highest of word and neighbours": np.maximum(words, np.maximum(around[:-2], around[2:])),
        "mean of stretch": recording.of_stretch(words, np.mean),
        "highest of stretch": recording.of_stretch(words, np.max),
    }


def main(
    speech: Annotated[list[Path], typer.Argument(help="Folders with metadata.csv, or Parquet files.")],
    noise: Annotated[Path, typer.Option(help="A folder of noise recordings.")],
    model: Annotated[str, typer.Option(help="As dqlora transcribe takes it.")] = "presets/mini/student",
    snr_db: Annotated[float, typer.Option(help="Of speech to that noise.")] = 10.0,
    limit: Annotated[int | None, typer.Option(help="Clips of each.")] = None,
) -> None:
    quieten_libraries()
    recogniser = load_recogniser(model, default_device())
    noises = [read_audio(path) for path in sorted(noise.iterdir())]
    corpora = [list(zip(*load_clips(folder), strict=True)) for folder in speech]
    clips = [each for corpus in corpora for each in (corpus[:: -(-len(corpus) // limit)] if limit else corpus)]
    for condition, used in {"clean": [], f"{snr_db:g} dB": noises}.items():
        order = generator_for(0, "pauses", condition).permutation(len(clips))
        generators = [generator_for(0, "pauses", condition, at) for at in order]
        joined, begins = join([clips[at][0] for at in order], used, snr_db, generators)
        ends = begins + [len(clips[at][0]) for at in order]
        texts = [clips[at][1] for at in order]
        recording = Recording(begins / SAMPLE_RATE, ends / SAMPLE_RATE, texts, transcribe(recogniser, joined))
        whole = [
            recogniser.vocabulary.decode(recogniser.token_ids(joined[begin:end]).tolist())
            for begin, end in zip(begins, ends, strict=True)
        ]
        errors = count_errors(texts, whole, "en")
        words = int(errors.words.sum())
        everything = np.ones(len(recording.found), bool)
        print(
            f"\n{condition}: {len(texts)} clips, {len(joined) / SAMPLE_RATE / 60:.0f} min; each whole "
            f"{errors.wer:.1%}, joined {recording.word_edits(everything) / words:.1%}; "
            f"{recording.in_pause.sum()} words in pauses, {(~recording.in_pause).sum()} in clips, "
            f"{recording.right.sum()} right\n"
        )
        print("| rule | threshold | WER % | of pauses | of clips | right |\n|" + " --- |" * 6)
        for rule, values in rules(recording).items():
            for threshold in THRESHOLDS:
                dropped = values < threshold
                if dropped.any():
                    counts = [
                        (dropped & which).sum() for which in (recording.in_pause, ~recording.in_pause, recording.right)
                    ]
                    wer = 100 * recording.word_edits(~dropped) / words
                    print(f"| {rule} | {threshold} | {wer:.2f} | {' | '.join(map(str, counts))} |", flush=True)


if __name__ == "__main__":
    run_stage(lambda: typer.run(main))
