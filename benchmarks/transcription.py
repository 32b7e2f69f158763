"""Whether `dqlora transcribe` makes more errors than the model it runs, clip by clip and on one long recording.

python -m benchmarks.transcription [SPEECH...] --noise NOISE

Each SPEECH is a folder of recordings with a metadata.csv; the mini corpus' test clips are always there. NOISE is a
folder of recordings; without it, only clean speech is measured. Prints WER in % of

- each clip transcribed whole, as `evaluate` does, and by the command's own path;
- all clips in random order, joined with pauses of 0.5 to 20 s through which the clips' noise goes on (silence, where
  they are clean), by the command's path. Each word counts for the clip that it stands nearest to.

All three hear the same samples of a clip; last stands how much lower the joined WER is than that of whole clips, with
the interval of a paired bootstrap over sentences. A draw is an order of the clips, their pauses and their noise; what a
clip draws depends on its folder's name and its place there. Without SPEECH a joined recording has 13 minutes.
"""

import io
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import soundfile
import typer

from benchmarks.cpu import load_clips
from dqlora.data.audio import SAMPLE_RATE, read_audio, to_float32, to_int16
from dqlora.data.mixing import fit_noise, power
from dqlora.device import default_device, map_on_cores
from dqlora.errors import quieten_libraries, run_stage
from dqlora.evaluation.metrics import count_errors, per_sentence, relative_wer_reduction
from dqlora.evaluation.results import in_words
from dqlora.progress import ProgressBar
from dqlora.seeding import generator_for, seed_for
from dqlora.transcription.recogniser import Recogniser, load_recogniser, transcribe_file
from dqlora.transcription.words import Word, text_of

PAUSE = (0.5, 20.0)  # s
BOOTSTRAP = 10_000  # draws
FADE = SAMPLE_RATE // 4  # samples in which one noise gives way to the next


def transcribe(recogniser: Recogniser, samples: np.ndarray) -> list[Word]:
    file = io.BytesIO()
    soundfile.write(file, to_int16(samples), SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return transcribe_file(recogniser, file)


def both_ways(recogniser: Recogniser, clip: np.ndarray) -> tuple[str, str]:
    """The transcripts of a clip, float32 [samples], by the model and by the command."""
    whole = recogniser.vocabulary.decode(recogniser.token_ids(clip).tolist())
    return whole, text_of(transcribe(recogniser, clip))


def join(
    clips: list[np.ndarray], noises: list[np.ndarray], snr_db: float, generators: list[np.random.Generator]
) -> tuple[np.ndarray, np.ndarray]:
    """One recording of all clips with pauses around each, and where in it each clip begins (samples).

    A clip's generator draws what belongs to it, the last one's the last pause too. If there are `noises`, one goes
    through a clip and the pause before it, at a gain that the clip's SNR sets, and fades into the next one in the pause
    after it.
    """
    pauses = [round(rng.uniform(*PAUSE) * SAMPLE_RATE) for rng in [*generators, generators[-1]]]
    ends = np.cumsum([pause + len(clip) for pause, clip in zip(pauses, clips, strict=False)])
    begins = ends - [len(clip) for clip in clips]
    joined = np.zeros(ends[-1] + pauses[-1], np.float32)
    ramp = np.linspace(0, 1, FADE, dtype=np.float32)
    for clip, pause, begin, end, rng in zip(clips, pauses, begins, ends, generators, strict=False):
        joined[begin:end] += clip
        if noises:
            noise = fit_noise(noises[rng.integers(len(noises))], pause + len(clip) + FADE, rng)
            gain = np.sqrt(power(clip) / power(noise[pause:-FADE]) / 10 ** (snr_db / 10))
            noise = np.float32(min(gain, 1 / np.abs(noise).max())) * noise
            noise[:FADE] *= ramp
            noise[-FADE:] *= ramp[::-1]
            joined[begin - pause : end + FADE] += noise
    return to_float32(to_int16(joined)), begins


@dataclass(frozen=True)
class Clip:
    """float32 [samples] and its text; `ids` are its folder's name and its place there."""

    corpus: str
    ids: tuple[str, int]
    samples: np.ndarray
    text: str


def load(folder: Path | None, limit: int | None) -> list[Clip]:
    """The first clips of a folder with a metadata.csv; without one, the mini corpus' test clips."""
    corpus = str(folder or "mini")
    name = "/".join(Path(corpus).resolve().parts[-2:]) if folder else corpus
    clips = list(zip(*load_clips(folder), strict=True))[:limit]
    return [Clip(corpus, (name, at), *clip) for at, clip in enumerate(clips)]


def three_ways(
    recogniser: Recogniser, clips: list[Clip], noises: list[np.ndarray], snr_db: float, draw: str
) -> list[tuple[str, str, str]]:
    """The transcripts of each clip: whole, by the command, and by the command from one recording of all clips."""
    order = sorted(range(len(clips)), key=lambda at: seed_for(0, "order", *clips[at].ids, draw))
    generators = [generator_for(0, "joined", *clips[at].ids, draw) for at in order]
    recording, begins = join([clips[at].samples for at in order], noises, snr_db, generators)
    ends = begins + [len(clips[at].samples) for at in order]
    heard = [recording[begin:end] for begin, end in zip(begins, ends, strict=True)]
    alone = map_on_cores(partial(both_ways, recogniser), heard, recogniser.device)
    found = dict(zip(order, ProgressBar(alone, draw, len(order), leave=False), strict=True))
    words = transcribe(recogniser, recording)
    nearest = np.searchsorted(
        (ends[:-1] + begins[1:]) / 2, [(word.start + word.end) / 2 * SAMPLE_RATE for word in words]
    )
    joined = {
        at: text_of([word for word, near in zip(words, nearest, strict=True) if near == place])
        for place, at in enumerate(order)
    }
    return [(*found[at], joined[at]) for at in range(len(clips))]


def main(
    speech: Annotated[list[Path] | None, typer.Argument(help="Folders with metadata.csv.")] = None,
    noise: Annotated[Path | None, typer.Option(help="A folder of noise recordings.")] = None,
    snr_db: Annotated[float, typer.Option(help="Of speech to that noise.")] = 10.0,
    model: Annotated[str, typer.Option(help="As dqlora transcribe takes it.")] = "presets/mini/student",
    language: Annotated[str, typer.Option(help="How transcripts are scored.")] = "en",
    limit: Annotated[int | None, typer.Option("--clips", help="So many of each folder; else all.")] = None,
    draws: Annotated[int, typer.Option(min=1, help="Joined recordings, each of all clips.")] = 1,
) -> None:
    quieten_libraries()
    recogniser = load_recogniser(model, default_device())
    noises = [read_audio(path) for path in sorted(noise.iterdir())] if noise else []
    clips = [clip for folder in [None, *(speech or [])] for clip in load(folder, limit)]

    def row(heard: list[tuple[Clip, tuple[str, str, str]]]) -> str:
        references = [clip.text for clip, _ in heard]
        errors = [
            count_errors(references, list(each), language) for each in zip(*(found for _, found in heard), strict=True)
        ]
        whole, _, joined = (per_sentence(each, references, "en") for each in errors)
        reduction = in_words(relative_wer_reduction(whole, joined, BOOTSTRAP, 0))
        return " | ".join([str(len(heard)), *(f"{100 * each.wer:.1f}" for each in errors), reduction])

    print("| | clips | whole | transcribe | joined | joined than whole |\n|" + " --- |" * 6)
    for condition, used in {"clean": [], f"{snr_db:g} dB": noises}.items():
        if condition != "clean" and not used:
            continue
        found = [three_ways(recogniser, clips, used, snr_db, f"{condition}, {draw}") for draw in range(draws)]
        heard = [pair for each in found for pair in zip(clips, each, strict=True)]
        for corpus in dict.fromkeys(clip.corpus for clip in clips):
            print(
                f"| {corpus}, {condition} | {row([pair for pair in heard if pair[0].corpus == corpus])} |", flush=True
            )
        print(f"| all, {condition} | {row(heard)} |", flush=True)


if __name__ == "__main__":
    run_stage(lambda: typer.run(main))
