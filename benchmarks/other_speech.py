"""Whether a run's gain carries to speech that it was not adapted to, scored as `evaluate` does.

python -m benchmarks.other_speech SPEECH... --noise NOISE [--run FOLDER] [--output JSON]

Each SPEECH is a folder of recordings with a metadata.csv, NOISE a folder of recordings. Prints WER in % of base and
distilled student decoded greedily, of both as the run decodes (_lm), and of the distilled one adapted to each clip,
clean and at 10, 5 and 0 dB (each clip with DRAWS recordings); and how much lower it is, distilled than base, greedily
and as the run decodes, by that decoder, and by adapting, in noise and clean, with the 95 % interval of a paired
bootstrap over sentences.
"""

from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.cpu import load_clips
from dqlora.data.audio import read_audio, to_float32, to_int16
from dqlora.data.mixing import mix_int16
from dqlora.data.storage import write_json
from dqlora.device import default_device, map_on_cores
from dqlora.errors import quieten_libraries, run_stage
from dqlora.evaluation.metrics import score, wer_reductions
from dqlora.evaluation.results import in_words
from dqlora.models.decoding import greedy
from dqlora.models.run import base_of_run, newest_run
from dqlora.models.wav2vec2 import EncoderCTC, load_student
from dqlora.progress import ProgressBar
from dqlora.seeding import generator_for
from dqlora.transcription.recogniser import Recogniser, load_recogniser

CONDITIONS: dict[str, float | None] = {"clean": None, "10 dB": 10.0, "5 dB": 5.0, "0 dB": 0.0}
DRAWS = 2  # mixtures of each clip and SNR
BOOTSTRAP = 10_000


def measure(speech: Path, noises: list[np.ndarray], systems: dict[str, Recogniser]) -> list[dict[str, Any]]:
    """The transcripts of each system: rows of condition, reference, base, base_lm, distilled, …_lm, adapted."""
    clips, texts = load_clips(speech)

    def transcribed(numbered: tuple[int, tuple[np.ndarray, str]]) -> list[dict[str, Any]]:
        number, (clip, text) = numbered
        rows = []
        for condition, snr_db in CONDITIONS.items():
            for draw in range(DRAWS if snr_db is not None else 1):
                generator = generator_for(0, "other speech", number, condition, draw)
                noise = to_int16(noises[generator.integers(len(noises))])
                heard = to_float32(mix_int16(to_int16(clip), noise, snr_db, generator))
                row: dict[str, Any] = {"condition": condition, "reference": text}
                for name, system in systems.items():
                    logits = system.logits(heard)
                    decoders = {name: system.decoder if name == "adapted" else greedy}
                    if name != "adapted" and system.decoder is not greedy:
                        decoders[f"{name}_lm"] = system.decoder
                    row |= {
                        named: system.vocabulary.decode(decoder(logits).tolist()) for named, decoder in decoders.items()
                    }
                rows.append(row)
        return rows

    numbered = enumerate(zip(clips, texts, strict=True))
    found = map_on_cores(transcribed, numbered, systems["distilled"].device)
    return list(chain.from_iterable(ProgressBar(found, speech.name, len(clips), unit=" clips")))


def main(
    speech: Annotated[list[Path], typer.Argument(help="Folders with metadata.csv.")],
    noise: Annotated[Path, typer.Option(help="A folder of noise recordings.")],
    run: Annotated[Path | None, typer.Option(help="A run's adapter folder; else the newest run.")] = None,
    language: Annotated[str, typer.Option(help="How transcripts are scored.")] = "en",
    output: Annotated[Path | None, typer.Option(help="JSON to write the figures to.")] = None,
) -> None:
    quieten_libraries()
    adapter = run or newest_run()
    student, quantize = base_of_run(adapter)
    device = default_device()
    base = EncoderCTC(load_student(student, quantize, device))
    distilled = load_recogniser(str(adapter), device)
    systems = {
        "base": Recogniser(base, distilled.vocabulary, distilled.decoder),
        "distilled": distilled,
        "adapted": load_recogniser(str(adapter), device, adapt=True),
    }
    noises = [read_audio(path) for path in sorted(noise.iterdir())]
    if distilled.decoder is greedy:
        names, compared = ["base", "distilled", "adapted"], [("base", "distilled"), ("distilled", "adapted")]
    else:
        names = ["base", "base_lm", "distilled", "distilled_lm", "adapted"]
        compared = [("base", "distilled"), ("base_lm", "distilled_lm"), ("distilled", "distilled_lm")]
        compared.append(("distilled_lm", "adapted"))
    heads = [f"{after} than {before}, {kind}" for before, after in compared for kind in ("noisy", "clean")]
    print(f"| | {' | '.join([*CONDITIONS, *heads])} |\n|{' --- |' * (len(CONDITIONS) + len(heads) + 1)}")
    found: dict[str, Any] = {}
    for folder in speech:
        rows = measure(folder, noises, systems)
        errors = {name: score(rows, name, language) for name in names}
        reductions = {
            f"{after} than {before}, {kind}": reduction
            for before, after in compared
            for kind, reduction in wer_reductions(errors[before], errors[after], BOOTSTRAP, 0).items()
        }
        corpus = f"{folder.parent.name}/{folder.name}"
        found[corpus] = {name: {at: one.wer for at, one in errors[name].items()} for name in names} | reductions
        cells = [" → ".join(f"{100 * errors[name][at].wer:.1f}" for name in names) for at in CONDITIONS]
        cells += map(in_words, reductions.values())
        print(f"| {corpus} | {' | '.join(cells)} |", flush=True)
    if output:
        write_json(output, found)


if __name__ == "__main__":
    run_stage(lambda: typer.run(main))
