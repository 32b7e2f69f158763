"""Noise recordings: folders of them, and synthetic ones."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dqlora.data.audio import AUDIO_SUFFIXES, SAMPLE_RATE
from dqlora.data.storage import existing_folder
from dqlora.errors import UserError
from dqlora.seeding import generator_for

SYNTHETIC = ("white", "pink", "brown", "hum", "clicks", "modulated", "babble")
TEST_RATIO = 1 / 3  # of a folder of recordings without train/ and test/
TALKERS = 6  # voices in babble: enough that no single one can be followed


@dataclass(frozen=True)
class Recording:
    """One noise recording in a file."""

    id: str
    category: str
    path: Path


def category_of(path: Path) -> str:
    """The kind of noise by the file's name, without its number: AirConditioner_3.wav is AirConditioner."""
    return path.stem.rstrip("0123456789").rstrip("-_ ") or path.stem


def find_recordings(folder: Path, seed: int) -> dict[str, list[Recording]]:
    """The recordings below `folder`, by split.

    train/ and test/ are the splits where they exist; else a seeded hash of the name decides.

    Raises
    ------
    UserError
        if there is no such folder, or one of the splits would be empty.
    """
    existing_folder(folder, "noise.path", "give a folder of recordings, or `synthetic`")
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        splits = {split: _recordings(folder / split) for split in ("train", "test")}
    else:
        by_hash = sorted(_recordings(folder), key=lambda item: hashlib.sha256(f"{seed}:{item.id}".encode()).digest())
        tests = max(1, round(len(by_hash) * TEST_RATIO))
        splits = {"train": by_hash[tests:], "test": by_hash[:tests]}
    for split, recordings in splits.items():
        if not recordings:
            raise UserError(f"noise.path: {folder}: no recordings to {split} on; put at least two, or train/ and test/")
    return splits


def _recordings(folder: Path) -> list[Recording]:
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in AUDIO_SUFFIXES)
    return [Recording(str(file.relative_to(folder)), category_of(file), file) for file in files]


def synthetic_noise(
    category: str, samples: int, generator: np.random.Generator, voices: list[np.ndarray]
) -> np.ndarray:
    """One recording of synthetic noise, float32 [samples] at 16 kHz, peak 0.5.

    Parameters
    ----------
    category
        one of SYNTHETIC.
    voices
        utterances, float32 [any length], of which babble is mixed.
    """
    make = {
        "white": lambda: generator.standard_normal(samples),
        "pink": lambda: _coloured(samples, generator, slope=1.0),
        "brown": lambda: _coloured(samples, generator, slope=2.0),
        "hum": lambda: _hum(samples, generator),
        "clicks": lambda: _clicks(samples, generator),
        "modulated": lambda: _modulated(samples, generator),
        "babble": lambda: _babble(samples, generator, voices),
    }[category]
    noise = make()
    return (0.5 * noise / np.abs(noise).max()).astype(np.float32)


def synthetic_recordings(
    split: str, count: int, seconds: float, seed: int, voices: list[np.ndarray]
) -> Iterator[tuple[str, str, np.ndarray]]:
    """`count` recordings as (id, category, float32 [samples]), the categories in turn."""
    for number in range(count):
        category = SYNTHETIC[number % len(SYNTHETIC)]
        recording = f"{split}-{category}-{number // len(SYNTHETIC)}"
        generator = generator_for(seed, "noise", recording)
        yield recording, category, synthetic_noise(category, round(seconds * SAMPLE_RATE), generator, voices)


def _coloured(samples: int, generator: np.random.Generator, slope: float) -> np.ndarray:
    """Noise whose power falls as 1 / f^slope above 20 Hz."""
    spectrum = np.fft.rfft(generator.standard_normal(samples))
    frequency = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
    return np.fft.irfft(spectrum * np.maximum(frequency, 20.0) ** (-slope / 2), samples)


def _hum(samples: int, generator: np.random.Generator) -> np.ndarray:
    """Mains hum: 50 or 60 Hz and its harmonics, at random phases and falling levels, over faint white noise."""
    time = np.arange(samples) / SAMPLE_RATE
    mains = generator.choice([50.0, 60.0])
    harmonics = range(1, int(generator.integers(8, 40)))
    falling = generator.uniform(0.3, 1.2)
    tones = sum(np.sin(2 * np.pi * (mains * n * time + generator.random())) / n**falling for n in harmonics)
    return tones + 0.05 * generator.standard_normal(samples)


def _clicks(samples: int, generator: np.random.Generator) -> np.ndarray:
    """Clicks at random times, 2 to 15 a second, each a decaying burst of 1 to 20 ms, over faint pink noise."""
    noise = 0.02 * _unit(_coloured(samples, generator, slope=1.0))
    for start in generator.integers(0, samples, int(generator.uniform(2, 15) * samples / SAMPLE_RATE) + 1):
        decay = generator.uniform(0.001, 0.02) * SAMPLE_RATE
        length = min(int(5 * decay), samples - start)
        burst = generator.standard_normal(length) * np.exp(-np.arange(length) / decay)
        noise[start : start + length] += generator.uniform(0.3, 1.0) * burst
    return noise


def _modulated(samples: int, generator: np.random.Generator) -> np.ndarray:
    """Pink noise whose level swings at 0.5 to 8 Hz, as of machines and passing cars."""
    time = np.arange(samples) / SAMPLE_RATE
    swing = 1 + generator.uniform(0.6, 1.0) * np.sin(
        2 * np.pi * (generator.uniform(0.5, 8) * time + generator.random())
    )
    return _coloured(samples, generator, slope=generator.uniform(0.5, 1.5)) * swing


def _babble(samples: int, generator: np.random.Generator, voices: list[np.ndarray]) -> np.ndarray:
    """TALKERS streams of utterances at equal level, each started at a random place, summed."""
    if not voices:
        raise UserError("noise.path: synthetic: babble needs utterances to mix; the split has none")
    noise = np.zeros(samples)
    for _ in range(TALKERS):
        stream: list[np.ndarray] = []
        while sum(map(len, stream)) < samples:
            stream.append(_unit(voices[generator.integers(len(voices))]))
        noise += np.roll(np.concatenate(stream)[:samples], generator.integers(samples))
    return noise


def _unit(samples: np.ndarray) -> np.ndarray:
    """Scaled to a root mean square of 1."""
    return samples / np.sqrt(np.mean(np.square(samples, dtype=np.float64)))
