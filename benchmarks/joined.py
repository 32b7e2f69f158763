"""Whether a long recording is transcribed as its pieces are.

python -m benchmarks.joined FOLDER --minutes 60

FOLDER holds recordings and a metadata.csv. Its clips and the mini corpus' test clips, in random order, again and again,
with pauses of 0.5 to 1.5 s, all in faint noise. The pieces are cut out of the recording. Prints the WER between the two
transcripts, and of each.
"""

import io
from pathlib import Path
from typing import Annotated

import numpy as np
import soundfile
import torch
import typer
from tqdm import tqdm

from dqlora.data.audio import SAMPLE_RATE
from dqlora.data.text import spell_out
from dqlora.errors import quieten_libraries, run_stage
from dqlora.evaluation.metrics import count_errors
from dqlora.seeding import generator_for
from dqlora.transcription.recogniser import load_recogniser, transcribe_file
from dqlora.transcription.words import text_of
from research.pretrain.data import read_folder, read_parquet

GAPS = (0.5, 1.5)  # s
NOISE = 0.002  # -54 dBFS


def flac(samples: np.ndarray) -> io.BytesIO:
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    file.seek(0)
    return file


def main(
    folder: Annotated[Path, typer.Argument(help="Audio folder with metadata.csv.")],
    minutes: Annotated[float, typer.Option(help="Length of the recording.")] = 60.0,
    model: Annotated[str, typer.Option(help="As dqlora transcribe takes it.")] = "presets/mini/student",
    noise: Annotated[float, typer.Option(help="Standard deviation of white noise, full scale 1.")] = NOISE,
) -> None:
    quieten_libraries()
    rng = generator_for(0, "joined")
    sources = [read_parquet(Path("presets/mini/speech/test/0000.parquet")), read_folder(folder)]
    texts = [spell_out(text, "en") for source in sources for text in source.texts]
    clips = [samples / np.float32(32768) for source in sources for samples in source.samples]
    order = rng.permutation(len(clips))
    parts, spans, references, position = [], [], [], 0
    while position < minutes * 60 * SAMPLE_RATE:
        number = order[len(spans) % len(clips)]
        gap = round(rng.uniform(*GAPS) * SAMPLE_RATE)
        parts += [np.zeros(gap, np.float32), clips[number]]
        spans.append((position + gap, position + gap + len(clips[number])))
        references.append(texts[number])
        position = spans[-1][1]
    recording = 0.8 * np.concatenate([*parts, np.zeros(SAMPLE_RATE // 2, np.float32)])
    recording += noise * rng.standard_normal(len(recording)).astype(np.float32)

    recogniser = load_recogniser(model, torch.device("cpu"))
    whole = text_of(transcribe_file(recogniser, flac(recording)))
    pieces = [
        text_of(transcribe_file(recogniser, flac(recording[first:last]))) for first, last in tqdm(spans, unit=" pieces")
    ]
    joined = " ".join(pieces)
    print("| WER % | |\n| --- | --- |")
    print(f"| whole against {len(pieces)} pieces | {100 * count_errors([joined], [whole], 'en').wer:.2f} |")
    print(f"| pieces | {100 * count_errors(references, pieces, 'en').wer:.2f} |")
    print(f"| whole | {100 * count_errors([' '.join(references)], [whole], 'en').wer:.2f} |")


if __name__ == "__main__":
    run_stage(lambda: typer.run(main))
