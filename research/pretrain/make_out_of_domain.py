"""Make the mini preset's speech and noise out of domain, which nothing that ships was trained, tuned or chosen on.

python -m research.pretrain.make_out_of_domain

Sentences are what people say at home (sentences.txt beside them), read by a voice and by accents that no student of
ours has heard. The noises are of other kinds than the synthetic ones that training mixes in.
"""

from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import soundfile

from dqlora.seeding import generator_for
from research.pretrain.make_mini_speech import FEATURES, MINI, SEED, check, encode_opus, make_clip
from research.pretrain.voices import SAMPLE_RATE, Voice

FOLDER = MINI / "out_of_domain"
VOICES = {
    "ked": Voice("festival", "ked_diphone", 0),
    "heart-gb": Voice("hibari", "gb", 1),
    "espeak-scotland": Voice("espeak", "en-gb-scotland", 0),
    "espeak-nyc": Voice("espeak", "en-us-nyc", 0),
}
NOISE_SECONDS = 15
RECORDINGS = 3  # of each category

Samples = np.ndarray


def smooth_walk(samples: int, rate: float, rng: np.random.Generator) -> Samples:
    """A random curve of unit variance, `rate` points a second, straight between them."""
    points = max(4, int(samples / SAMPLE_RATE * rate) + 3)
    return np.interp(np.linspace(0, points - 1.001, samples), np.arange(points), rng.standard_normal(points))


def coloured(samples: int, rng: np.random.Generator, low: float, high: float) -> Samples:
    """Noise of unit variance between two frequencies (Hz), with a smooth random spectrum of 4 dB."""
    frequency = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
    octave = np.log2(np.maximum(frequency, 60) / 60) / np.log2(8000 / 60)
    response = 10 ** (np.interp(octave, np.linspace(0, 1, 8), 4 * rng.standard_normal(8)) / 20)
    band = (frequency > low) & (frequency < high)
    noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(samples)) * response * band, samples)
    return noise / noise.std()


def engine(samples: int, rng: np.random.Generator) -> Samples:
    """Harmonics of a fundamental that drifts, over the road."""
    phase = 2 * np.pi * np.cumsum(rng.uniform(40, 110) * 2 ** (0.15 * smooth_walk(samples, 0.5, rng))) / SAMPLE_RATE
    tones = sum(
        np.sin(number * phase + 6.28 * rng.random()) / number ** rng.uniform(0.4, 1.0) for number in range(1, 25)
    )
    return tones / np.std(tones) + 0.7 * coloured(samples, rng, 50, 2500)


def dishes(samples: int, rng: np.random.Generator) -> Samples:
    """Ringing impacts at random times, a few objects."""
    noise = 0.05 * coloured(samples, rng, 60, 7000)
    time = np.arange(SAMPLE_RATE // 4) / SAMPLE_RATE
    objects = [
        [(rng.uniform(700, 6500), rng.uniform(0.01, 0.08), rng.uniform(0.2, 1)) for _ in range(6)] for _ in range(4)
    ]
    for start in rng.integers(0, samples - len(time), int(rng.uniform(3, 8) * samples / SAMPLE_RATE)):
        ring = sum(
            level * np.sin(2 * np.pi * tone * time) * np.exp(-time / decay)
            for tone, decay, level in objects[rng.integers(len(objects))]
        )
        noise[start : start + len(time)] += np.exp(0.6 * rng.standard_normal()) * ring
    return noise


def wind(samples: int, rng: np.random.Generator) -> Samples:
    """Low noise in gusts, a whistle above it."""
    gusts = np.exp(0.9 * smooth_walk(samples, 1.5, rng))
    return gusts * (coloured(samples, rng, 20, 500) + 0.3 * coloured(samples, rng, 500, 4000))


def melody(samples: int, rng: np.random.Generator) -> Samples:
    """Plucked notes of a minor scale over a bass."""
    noise = np.zeros(samples)
    beat = int(SAMPLE_RATE * rng.uniform(0.18, 0.4))
    scale = rng.uniform(180, 300) * 2 ** (np.array([0, 2, 3, 5, 7, 8, 10, 12]) / 12)
    for start in range(0, samples - 2 * beat, beat):
        time = np.arange(2 * beat) / SAMPLE_RATE
        for pitch, level in ((rng.choice(scale), 1.0), (scale[start // beat // 4 % 3] / 2, 0.6)):
            partials = sum(np.sin(2 * np.pi * pitch * number * time) / number**1.3 for number in range(1, 9))
            noise[start : start + 2 * beat] += level * partials * np.exp(-time / rng.uniform(0.1, 0.3))
    return noise


NOISES: dict[str, Callable[[int, np.random.Generator], Samples]] = {
    "engine": engine,
    "dishes": dishes,
    "wind": wind,
    "melody": melody,
}


def main() -> None:
    sentences = (FOLDER / "sentences.txt").read_text(encoding="utf-8").splitlines()
    rows = [
        make_clip("out_of_domain", number, name, voice, sentence)
        for number, (sentence, (name, voice)) in enumerate(zip(sentences, cycle(VOICES.items()), strict=False))
    ]
    path = FOLDER / "test" / "0000.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=FEATURES.arrow_schema), path)
    print(f"{len(rows)} clips, {check(rows):.1f} min, {path.stat().st_size / 1e6:.1f} MB: {', '.join(VOICES)}")
    noises = FOLDER / "noise"
    noises.mkdir(exist_ok=True)
    for category, make in NOISES.items():
        for number in range(RECORDINGS):
            noise = make(NOISE_SECONDS * SAMPLE_RATE, generator_for(SEED, "out_of_domain", category, number))
            file: Path = noises / f"{category}_{number}.ogg"
            file.write_bytes(encode_opus((0.5 * noise / np.abs(noise).max()).astype(np.float32)))
            soundfile.info(file)
    print(f"{len(NOISES) * RECORDINGS} noises of {NOISE_SECONDS} s: {', '.join(NOISES)}")


if __name__ == "__main__":
    main()
