"""Noise recordings: folders of them, and synthetic ones."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path, PurePath

import numpy as np

from dqlora.data.audio import SAMPLE_RATE
from dqlora.data.folders import SPLIT_NAMES, WHAM_SPLITS, as_text, files_below, is_audio
from dqlora.data.storage import existing_folder
from dqlora.errors import UserError
from dqlora.seeding import generator_for

TEST_RATIO = 1 / 3  # of a folder of recordings without splits of its own
# The split that is tested on is the first of these that a folder has.
HELD_OUT = ("test", "eval", "validation")
SPLITS = SPLIT_NAMES | WHAM_SPLITS
BESIDE_SPLIT = {"noise", "noises", "audio", "wav", "set", "data"}  # words of a split's folder: noise_train, train-set
# A channel of a recording, anywhere in a name: ch01, x_mic2, x_L_3, x (left).
CHANNEL = re.compile(
    r"(?:^|[-_. (\[]+)(?:(?:ch|chan|channel|mic)[-_. ]?\d+|l|r|left|right)(?:[)\]]|(?=$|[-_. ]))", re.IGNORECASE
)
# Ends of names: a number (office_2, fan12, x_3_1, x (2)), and separators
NUMBER = re.compile(r"[-_. ]*\(?\d+\)?$|[-_. ]+$|^[-_. ]+")
# github.com/karolpiczak/ESC-50: fold-clip-take-class, 1-100032-A-0.wav
ESC_50 = re.compile(r"[1-5]-(?P<recording>\d+)-[A-Z]-(?P<target>\d+)")
ESC_50_CLASSES = re.findall(
    r"\w+",
    "dog rooster pig cow frog cat hen insects sheep crow rain sea_waves crackling_fire crickets chirping_birds "
    "water_drops wind pouring_water toilet_flush thunderstorm crying_baby sneezing clapping breathing coughing "
    "footsteps laughing brushing_teeth snoring drinking_sipping door_wood_knock mouse_click keyboard_typing "
    "door_wood_creaks can_opening washing_machine vacuum_cleaner clock_alarm clock_tick glass_breaking helicopter "
    "chainsaw siren car_horn engine train church_bells airplane fireworks hand_saw",
)
# urbansounddataset.weebly.com: recording-class-occurrence-slice, 101415-3-0-2.wav
URBAN_SOUND = re.compile(r"(?P<recording>\d+)-(?P<target>\d)-\d+-\d+")
URBAN_SOUND_CLASSES = re.findall(
    r"\w+",
    "air_conditioner car_horn children_playing dog_bark drilling engine_idling gun_shot jackhammer siren street_music",
)
TALKERS = 6  # voices in babble: enough that no single one can be followed


@dataclass(frozen=True)
class Recording:
    """One noise recording in a file."""

    id: str
    category: str
    path: Path


def category_of(path: PurePath) -> str:
    """The kind of noise that a recording's path names.

    It is the file's name without its number and its channel (AirConditioner_3.wav is AirConditioner), or its folder's
    name where nothing is left of it (DKITCHEN/ch01.wav is DKITCHEN); for a file of ESC-50 or UrbanSound8K, the name of
    the class whose number stands in it.

    Parameters
    ----------
    path
        relative to the folder of all recordings.
    """
    for pattern, classes in ((ESC_50, ESC_50_CLASSES), (URBAN_SOUND, URBAN_SOUND_CLASSES)):
        if (match := pattern.fullmatch(path.stem)) and int(match["target"]) < len(classes):
            return classes[int(match["target"])]
    name, shorter = "", CHANNEL.sub("", path.stem)
    while shorter != name:
        name, shorter = shorter, NUMBER.sub("", shorter)
    folders = (folder.name for folder in path.parents if CHANNEL.sub("", folder.name))
    return name or next(folders, path.stem)


def group_of(path: PurePath) -> str:
    """What all parts of one recording have in common: its channels, or the slices that were cut of it."""
    for pattern in (ESC_50, URBAN_SOUND):
        if match := pattern.fullmatch(path.stem):
            return match["recording"]
    return "/".join(filter(None, (CHANNEL.sub("", part) for part in path.with_suffix("").parts)))


def find_recordings(folder: Path, seed: int) -> dict[str, list[Recording]]:
    """The recordings below `folder`, by split, the categories in turn.

    Its own splits are taken where folders are named after them, in whatever depth; else a seeded hash of the name
    decides, the same for all channels of a recording.

    Raises
    ------
    UserError
        if there is no such folder, or one of the splits would be empty.
    """
    folder = existing_folder(folder, "noise.path", "give a folder of recordings, or `synthetic`")

    def drawn(name: str) -> bytes:
        return hashlib.sha256(f"{seed}:{name}".encode()).digest()

    if own := _own_splits(folder):
        splits = {split: _recordings(folder, paths, own_splits=True) for split, paths in own.items()}
    else:
        groups: dict[str, list[Recording]] = defaultdict(list)
        for recording in _recordings(folder, list(chain(*_by_split(folder).values())), own_splits=False):
            groups[group_of(PurePath(recording.id))].append(recording)
        if len(groups) == 1:
            [[first, *others]] = groups.values()
            parts = f" and {len(others)} more channels or parts of it" if others else ""
            raise UserError(
                f"noise.path: {folder}: one recording alone ({first.id}{parts}), and training and test share none; "
                "put at least two"
            )
        by_hash = [groups[name] for name in sorted(groups, key=drawn)]
        tests = max(1, round(len(by_hash) * TEST_RATIO))
        splits = {"train": list(chain(*by_hash[tests:])), "test": list(chain(*by_hash[:tests]))}
    for split, recordings in splits.items():
        if not recordings:
            raise UserError(f"noise.path: {folder}: no recordings to {split} on; put at least two, or train/ and test/")
        by_category: dict[str, list[Recording]] = defaultdict(list)
        for recording in sorted(recordings, key=lambda recording: drawn(recording.id)):
            by_category[recording.category].append(recording)
        turns = zip_longest(*(by_category[category] for category in sorted(by_category, key=drawn)))
        splits[split] = [recording for recording in chain(*turns) if recording]
    return splits


def test_recordings(folder: Path) -> list[Recording]:
    """The recordings below `folder`, or of its test split where it has one; UserError where there is no folder."""
    folder = existing_folder(folder, "out_of_domain.noise", "give a folder of recordings, or `out_of_domain: none`")
    found = _by_split(folder)
    has_test = "test" in found
    return _recordings(folder, found["test"] if has_test else list(chain(*found.values())), own_splits=has_test)


def unused_files(folder: Path) -> list[str]:
    """Files below `folder` whose names are not those of recordings."""
    return sorted(name for name in files_below(folder) if not is_audio(name))


def outside_splits(folder: Path) -> list[str]:
    """Recordings below a folder with splits of its own that are in none that is used."""
    if not (own := _own_splits(folder)):
        return []
    found = set(chain(*_by_split(folder).values())) - set(chain(*own.values()))
    return sorted(str(path.relative_to(folder)) for path in found)


def _own_splits(folder: Path) -> dict[str, list[Path]]:
    """Recordings to train and test on by the names of their folders; nothing where those do not name both."""
    found = _by_split(folder)
    held_out = next((split for split in HELD_OUT if split in found), None)
    return {"train": found["train"], "test": found[held_out]} if held_out and "train" in found else {}


def _by_split(folder: Path) -> dict[str, list[Path]]:
    """All recordings below `folder` by the split that their folders name; those of none under an empty name."""
    found: dict[str, list[Path]] = {}
    for place in folder.iterdir():
        if place.is_dir() and (split := split_of_noise(place.name)):
            found[split] = []  # a split that is empty is one still
    for name in map(Path, filter(is_audio, files_below(folder))):
        at = _split_at(name.parent.parts)
        found.setdefault("" if at is None else split_of_noise(name.parts[at]), []).append(folder / name)
    return found


def _split_at(parts: tuple[str, ...]) -> int | None:
    return next((at for at, part in enumerate(parts) if split_of_noise(part)), None)


def split_of_noise(name: str) -> str:
    """The split that a folder of noise is named after, empty for other names: noise_train is, train_station is not."""
    words = set(re.split(r"[-_. ]+", name.lower())) - BESIDE_SPLIT
    return SPLITS.get(words.pop(), "") if len(words) == 1 else ""


def _recordings(folder: Path, paths: list[Path], own_splits: bool) -> list[Recording]:
    """Named from `folder`, without the folder of their split unless two would have one name."""
    paths = sorted(paths)
    names = [path.relative_to(folder) for path in paths]
    if own_splits:
        within = [_without_split(name) for name in names]
        names = within if len(set(within)) == len(within) else names
    return [
        Recording(as_text(str(name)), as_text(category_of(name)), path) for name, path in zip(names, paths, strict=True)
    ]


def _without_split(name: Path) -> Path:
    at = _split_at(name.parts[:-1])
    return name if at is None else Path(*name.parts[:at], *name.parts[at + 1 :])


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
    noise = SYNTHETIC[category](samples, generator, voices)
    return (0.5 * noise / np.abs(noise).max()).astype(np.float32)


def synthetic_recordings(
    split: str, count: int, seconds: float, seed: int, voices: list[np.ndarray]
) -> Iterator[tuple[str, str, np.ndarray]]:
    """`count` recordings as (id, category, float32 [samples]), the categories in turn."""
    for number in range(count):
        category = list(SYNTHETIC)[number % len(SYNTHETIC)]
        recording = f"{split}-{category}-{number // len(SYNTHETIC)}"
        generator = generator_for(seed, "noise", recording)
        yield recording, category, synthetic_noise(category, round(seconds * SAMPLE_RATE), generator, voices)


def _coloured(samples: int, generator: np.random.Generator, slope: float) -> np.ndarray:
    """Noise whose power falls as 1 / f^slope above 20 Hz."""
    spectrum = np.fft.rfft(generator.standard_normal(samples))
    frequency = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
    return np.fft.irfft(spectrum * np.maximum(frequency, 20.0) ** (-slope / 2), samples)


def _hum(samples: int, generator: np.random.Generator, voices: list[np.ndarray]) -> np.ndarray:
    """Mains hum: 50 or 60 Hz and its harmonics, at random phases and falling levels, over faint white noise."""
    time = np.arange(samples) / SAMPLE_RATE
    mains = generator.choice([50.0, 60.0])
    harmonics = range(1, int(generator.integers(8, 40)))
    falling = generator.uniform(0.3, 1.2)
    tones = sum(np.sin(2 * np.pi * (mains * n * time + generator.random())) / n**falling for n in harmonics)
    return tones + 0.05 * generator.standard_normal(samples)


def _clicks(samples: int, generator: np.random.Generator, voices: list[np.ndarray]) -> np.ndarray:
    """Clicks at random times, 2 to 15 a second, each a decaying burst of 1 to 20 ms, over faint pink noise."""
    noise = 0.02 * _unit(_coloured(samples, generator, slope=1.0))
    for start in generator.integers(0, samples, int(generator.uniform(2, 15) * samples / SAMPLE_RATE) + 1):
        decay = generator.uniform(0.001, 0.02) * SAMPLE_RATE
        length = min(int(5 * decay), samples - start)
        burst = generator.standard_normal(length) * np.exp(-np.arange(length) / decay)
        noise[start : start + length] += generator.uniform(0.3, 1.0) * burst
    return noise


def _modulated(samples: int, generator: np.random.Generator, voices: list[np.ndarray]) -> np.ndarray:
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


# By category: samples, generator and voices, as `synthetic_noise` gets them, to noise [samples] of any level.
SYNTHETIC: dict[str, Callable[[int, np.random.Generator, list[np.ndarray]], np.ndarray]] = {
    "white": lambda samples, generator, voices: generator.standard_normal(samples),
    "pink": lambda samples, generator, voices: _coloured(samples, generator, slope=1.0),
    "brown": lambda samples, generator, voices: _coloured(samples, generator, slope=2.0),
    "hum": _hum,
    "clicks": _clicks,
    "modulated": _modulated,
    "babble": _babble,
}
