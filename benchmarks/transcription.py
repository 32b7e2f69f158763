"""Whether `dqlora transcribe` makes more errors than the model it runs, clip by clip and on one long recording.

python -m benchmarks.transcription [SPEECH...] --noise NOISE

Each SPEECH is a folder of recordings with a metadata.csv; the mini corpus' test clips are always there. NOISE is a
folder of recordings; without it, only clean speech is measured. Prints WER in % of

- each clip transcribed whole, as `evaluate` does, and by the command's own path;
- all clips, as loud as each other and in random order, joined with pauses of 0.5 to 20 s that the clips' own noise
  fills (silence, where they are clean): by the command's path, each word counted for the clip that it stands
  nearest to, and beside it the same clips whole.
"""

import io
from pathlib import Path
from typing import Annotated

import numpy as np
import soundfile
import typer
from tqdm import tqdm

from benchmarks.cpu import load_clips
from dqlora.data.audio import SAMPLE_RATE, read_audio, to_float32, to_int16
from dqlora.data.mixing import fit_noise, power
from dqlora.device import default_device
from dqlora.errors import quieten_libraries, run_stage
from dqlora.evaluation.metrics import count_errors
from dqlora.seeding import generator_for
from dqlora.transcription.recogniser import Recogniser, load_recogniser, transcribe_file
from dqlora.transcription.words import Word, text_of

PAUSE = (0.5, 20.0)  # s
LEVEL = 0.03  # root mean square of a clip, full scale 1


def transcribe(recogniser: Recogniser, samples: np.ndarray) -> list[Word]:
    file = io.BytesIO()
    soundfile.write(file, to_int16(samples), SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return transcribe_file(recogniser, file)


def in_pauses(
    clips: list[np.ndarray], noises: list[np.ndarray], snr_db: float, rng: np.random.Generator
) -> list[tuple[np.ndarray, int]]:
    """Each clip with half a pause on either side, all in one noise if there are `noises`, and where the clip begins."""
    parts = []
    for clip in clips:
        clip = clip * np.float32(min(LEVEL / np.sqrt(power(clip)), 1 / np.abs(clip).max()))
        before, after = (round(seconds * SAMPLE_RATE) for seconds in rng.uniform(*PAUSE, 2) / 2)
        part = np.pad(clip, (before, after))
        if noises:
            noise = fit_noise(noises[rng.integers(len(noises))], len(part), rng)
            gain = np.sqrt(power(clip) / power(noise[before : before + len(clip)]) / 10 ** (snr_db / 10))
            part = part + np.float32(min(gain, 1 / np.abs(noise).max())) * noise
        parts.append((to_float32(to_int16(part)), before))
    return parts


def main(
    speech: Annotated[list[Path] | None, typer.Argument(help="Folders with metadata.csv.")] = None,
    noise: Annotated[Path | None, typer.Option(help="A folder of noise recordings.")] = None,
    snr_db: Annotated[float, typer.Option(help="Of speech to that noise.")] = 10.0,
    model: Annotated[str, typer.Option(help="As dqlora transcribe takes it.")] = "presets/mini/student",
    language: Annotated[str, typer.Option(help="How transcripts are scored.")] = "en",
    clips: Annotated[int | None, typer.Option(help="So many of each folder; else all.")] = None,
) -> None:
    quieten_libraries()
    recogniser = load_recogniser(model, default_device())
    noises = [read_audio(path) for path in sorted(noise.iterdir())] if noise else []
    corpora = {str(folder or "mini"): load_clips(folder) for folder in [None, *(speech or [])]}
    samples = [each for folder, _ in corpora.values() for each in folder[:clips]]
    texts = [each for _, folder in corpora.values() for each in folder[:clips]]
    names = [name for name, (folder, _) in corpora.items() for _ in folder[:clips]]

    def wer(hypotheses: list[str], name: str | None = None) -> str:
        chosen = [at for at in range(len(texts)) if name in (None, names[at])]
        errors = count_errors([texts[at] for at in chosen], [hypotheses[at] for at in chosen], language)
        return f"{100 * errors.wer:.1f}"

    print("| | clips | whole | transcribe | joined |\n| --- | --- | --- | --- | --- |")
    for condition, used in {"clean": [], f"{snr_db:g} dB": noises}.items():
        if condition != "clean" and not used:
            continue
        rng = generator_for(0, "transcription", condition)
        parts = in_pauses(samples, used, snr_db, rng)
        alone = [part[begin : begin + len(clip)] for (part, begin), clip in zip(parts, samples, strict=True)]
        progress = tqdm(alone, condition, unit=" clips", disable=None, leave=False)
        whole = [recogniser.vocabulary.decode(recogniser.token_ids(clip).tolist()) for clip in progress]
        single = [text_of(transcribe(recogniser, clip)) for clip in alone]
        order = rng.permutation(len(parts))
        ends = np.cumsum([len(parts[at][0]) for at in order]) / SAMPLE_RATE
        words = transcribe(recogniser, np.concatenate([parts[at][0] for at in order]))
        nearest = np.searchsorted(ends, [(word.start + word.end) / 2 for word in words])
        joined = [""] * len(parts)
        for place, at in enumerate(order):
            joined[at] = text_of([word for word, near in zip(words, nearest, strict=True) if near == place])
        for name in corpora:
            row = " | ".join(wer(each, name) for each in (whole, single, joined))
            print(f"| {name}, {condition} | {names.count(name)} | {row} |", flush=True)
        row = " | ".join(wer(each) for each in (whole, single, joined))
        print(f"| all, {condition}, joined {ends[-1] / 60:.0f} min | {len(parts)} | {row} |", flush=True)


if __name__ == "__main__":
    run_stage(lambda: typer.run(main))
