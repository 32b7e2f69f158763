"""Make the mini preset's speech: sentences.txt read by synthetic voices, as Parquet files in FLEURS' schema.

python -m research.pretrain.make_mini_speech
"""

import io
import re
from itertools import cycle
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import soundfile
from datasets import Audio, ClassLabel, Features, Value

from dqlora.data.text import spell_out
from dqlora.seeding import generator_for
from research.pretrain.voices import SAMPLE_RATE, TEST_VOICES, TRAIN_VOICES, Voice, synthesise

MINI = Path("presets/mini")
SEED = 0
SENTENCES = {"train": 220, "validation": 30, "test": 50}
SPEED = (0.85, 1.15)  # relative to the voice's own, drawn for each clip
PITCH = (0.92, 1.10)
BIT_RATE = 22_000  # bit/s of Opus, enough for 16 kHz mono speech
SECONDS = (0.3, 20.0)  # what a clip may last
LANGUAGE = {"lang_id": 19, "language": "English", "lang_group_id": 0}  # FLEURS' numbers for en_us

FEATURES = Features(
    {
        "id": Value("int32"),
        "num_samples": Value("int32"),
        "path": Value("string"),
        "audio": Audio(sampling_rate=SAMPLE_RATE),
        "transcription": Value("string"),
        "raw_transcription": Value("string"),
        "gender": ClassLabel(names=["male", "female", "other"]),
        "lang_id": Value("int64"),
        "language": Value("string"),
        "lang_group_id": Value("int64"),
    }
)


def split_sentences(sentences: list[str]) -> dict[str, list[int]]:
    """Sentence numbers of each split, drawn at random; none stands in two."""
    order = generator_for(SEED, "splits").permutation(len(sentences)).tolist()
    return {split: [order.pop() for _ in range(count)] for split, count in SENTENCES.items()}


def make_clip(split: str, number: int, reader: str, voice: Voice, sentence: str) -> dict:
    """One row: the sentence as read by a voice at a speed and pitch drawn from the clip's name."""
    name = f"{split}-{number:04d}-{reader}.ogg"
    rng = generator_for(SEED, name)
    # Voices read digits each in their own way: spell them as training targets are spelt.
    spoken = re.sub(r"\d+", lambda digits: spell_out(digits[0], "en"), sentence)
    samples = synthesise(voice, spoken, speed=rng.uniform(*SPEED), pitch=rng.uniform(*PITCH))
    return {
        "id": number,
        "num_samples": len(samples),
        "path": name,
        "audio": {"bytes": encode_opus(samples), "path": name},
        "transcription": re.sub(r"[^\w' ]", "", sentence).lower(),
        "raw_transcription": sentence,
        "gender": voice.gender,
        **LANGUAGE,
    }


def encode_opus(samples: np.ndarray) -> bytes:
    """Ogg Opus; libsndfile maps a compression level of 0..1 to 250..6 kbit/s a channel."""
    buffer = io.BytesIO()
    level = (250_000 - BIT_RATE) / (250_000 - 6_000)
    soundfile.write(buffer, samples, SAMPLE_RATE, format="OGG", subtype="OPUS", compression_level=level)
    return buffer.getvalue()


def check(rows: list[dict]) -> float:
    """Decode every clip and refuse a bad one; the minutes of all together."""
    for row in rows:
        samples, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]))
        good = rate == SAMPLE_RATE and np.isfinite(samples).all() and 0.3 < np.abs(samples).max() < 1
        if not good or not SECONDS[0] <= len(samples) / rate <= SECONDS[1]:
            raise SystemExit(f"{row['path']} is not a sound clip: {len(samples)} samples at {rate} Hz")
    return sum(row["num_samples"] for row in rows) / SAMPLE_RATE / 60


def main() -> None:
    sentences = (MINI / "sentences.txt").read_text(encoding="utf-8").splitlines()
    print("| split | clips | minutes | MB | voices |\n| --- | --- | --- | --- | --- |")
    for split, numbers in split_sentences(sentences).items():
        voices = TRAIN_VOICES if split == "train" else TEST_VOICES
        rows = [
            make_clip(split, number, reader, voice, sentences[number])
            for number, (reader, voice) in zip(numbers, cycle(voices.items()), strict=False)
        ]
        rows.sort(key=lambda row: row["id"])
        minutes = check(rows)
        path = MINI / "speech" / split / "0000.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=FEATURES.arrow_schema), path)
        print(f"| {split} | {len(rows)} | {minutes:.1f} | {path.stat().st_size / 1e6:.1f} | {', '.join(voices)} |")


if __name__ == "__main__":
    main()
