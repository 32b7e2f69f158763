"""Whisper weights out of CTranslate2's `model.bin`, written as a transformers folder.

The format is the one that `ModelSpec.save` of CTranslate2 (github.com/OpenNMT/CTranslate2, python/ctranslate2/specs/
model_spec.py) writes and src/models/model.cc reads, all little-endian:

    u32 version, string specification, u32 revision,
    u32 count, then for each variable: string name, u8 rank, u32 × rank sizes, u8 type, u32 bytes, data,
    u32 count, then for each alias: string name, string variable

where a string is its u16 length, which counts a trailing NUL, and its bytes.
"""

import re
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)
from transformers.models.whisper.modeling_whisper import sinusoids

from dqlora.data.storage import read_json
from dqlora.errors import UserError

VERSION = 6
WAY_OUT = "it belongs to the CTranslate2 model beside it: fetch both again"
TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
HEAD_SIZE = 64  # of every Whisper model, where a file does not say how many heads there are
SOURCE_POSITIONS = 1500  # encoder frames in Whisper's window of 30 s
FIRST_MULTILINGUAL_VOCABULARY = 51865  # OpenAI's own test: the .en models have one token fewer

# CTranslate2's module within a layer or a side → the transformers modules that its rows are stacked from
MODULES = {
    "conv1": ("conv1",),
    "conv2": ("conv2",),
    "embeddings": ("embed_tokens",),
    "position_encodings": ("embed_positions",),
    "layer_norm": ("layer_norm",),
    "self_attention/layer_norm": ("self_attn_layer_norm",),
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "attention/layer_norm": ("encoder_attn_layer_norm",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "ffn/layer_norm": ("final_layer_norm",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
}
PARAMETERS = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias", "encodings": "weight"}
VARIABLE = re.compile(r"(?P<side>encoder|decoder)/(?:layer_(?P<layer>\d+)/)?(?P<module>.+)/(?P<parameter>\w+)")


def read_model(path: Path) -> tuple[str, dict[str, np.ndarray]]:
    """Read every variable of a `model.bin`.

    Returns
    -------
    specification : str
        Name of the model's kind, e.g. ``WhisperSpec``.
    variables : dict of str to np.ndarray
        In the type that the file holds; an alias stands beside the variable that it names and shares its memory.

    Raises
    ------
    UserError
        If the file is missing, cut short, damaged, or of another version.
    """
    try:
        with path.open("rb") as file:
            (version,) = _unpack(file, "I")
            if version != VERSION:
                raise UserError(
                    f"{path}: version {version} of CTranslate2's format, only {VERSION} is read; "
                    "convert the model with CTranslate2 4"
                )
            specification, _revision = _string(file), _unpack(file, "I")
            variables = dict(_variable(file) for _ in range(*_unpack(file, "I")))
            for _ in range(*_unpack(file, "I")):
                alias, target = _string(file), _string(file)
                variables[alias] = variables[target]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; name a folder with a CTranslate2 model in it") from None
    except (EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path}: cut short or damaged ({error}); fetch it again") from None
    return specification, variables


def convert_whisper(source: Path, output: Path) -> None:
    """Write CTranslate2's Whisper in `source` as a transformers folder: fp16 safetensors, configs, tokenizer.

    Parameters
    ----------
    source
        Folder with ``model.bin``, ``config.json`` and ``tokenizer.json``.
    output
        Folder that `WhisperForConditionalGeneration` and `WhisperProcessor` load.

    Raises
    ------
    UserError
        If a file is missing or damaged, is no Whisper, or holds quantised weights.
    """
    specification, variables = read_model(source / "model.bin")
    if specification != "WhisperSpec":
        raise UserError(f"{source / 'model.bin'}: holds a {specification}, not Whisper; name a Whisper model")
    if any(name.endswith("/weight_scale") for name in variables):
        raise UserError(f"{source / 'model.bin'}: its weights are quantised to int8; name a float16 conversion")
    conversion = read_json(source / "config.json", WAY_OUT)
    tokenizer = read_json(source / "tokenizer.json", WAY_OUT)
    tokens = {token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])}

    try:
        weights = _transformers_weights(variables)
        config = _config(variables, weights, tokens)
        generation = _generation_config(config, conversion, tokens)
        model = WhisperForConditionalGeneration(config)
        model.load_state_dict(weights)
    except (KeyError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{source}: not a whole Whisper model ({reason}); name a conversion by CTranslate2 4") from None

    model.generation_config = generation
    model.half().save_pretrained(output)
    WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(output)
    WhisperTokenizer.from_pretrained(source, pad_token="<|endoftext|>").save_pretrained(output)


def _transformers_weights(variables: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Rename, and unstack the projections. Whisper's keys have no bias: CTranslate2 stacks zeros in its place."""
    weights = {}
    for name, value in variables.items():
        match = VARIABLE.fullmatch(name)
        if match is None or match["module"] not in MODULES:
            continue  # settings, alignment heads, and the output projection, which is the embedding
        layer = f"layers.{match['layer']}." if match["layer"] else ""
        modules = MODULES[match["module"]]
        for module, part in zip(modules, np.split(value, len(modules)), strict=True):
            key = f"model.{match['side']}.{layer}{module}.{PARAMETERS[match['parameter']]}"
            if not key.endswith("k_proj.bias"):
                weights[key] = torch.from_numpy(part.astype(np.float32))
    width = weights["model.encoder.conv1.weight"].shape[0]
    weights.setdefault("model.encoder.embed_positions.weight", sinusoids(SOURCE_POSITIONS, width))
    weights["proj_out.weight"] = weights["model.decoder.embed_tokens.weight"]
    return weights


def _config(
    variables: dict[str, np.ndarray], weights: dict[str, torch.Tensor], tokens: dict[str, int]
) -> WhisperConfig:
    width, mel_bins, _ = weights["model.encoder.conv1.weight"].shape
    size: dict[str, int] = {}
    for side in ("encoder", "decoder"):
        size[f"{side}_layers"] = sum(
            bool(re.fullmatch(rf"model\.{side}\.layers\.\d+\.fc1\.weight", k)) for k in weights
        )
        size[f"{side}_ffn_dim"] = weights[f"model.{side}.layers.0.fc1.weight"].shape[0]
        size[f"{side}_attention_heads"] = int(variables.get(f"{side}/num_heads", width // HEAD_SIZE))
    end = tokens["<|endoftext|>"]
    return WhisperConfig(
        **size,
        d_model=width,
        num_mel_bins=mel_bins,
        vocab_size=weights["proj_out.weight"].shape[0],
        max_source_positions=weights["model.encoder.embed_positions.weight"].shape[0],
        max_target_positions=weights["model.decoder.embed_positions.weight"].shape[0],
        decoder_start_token_id=tokens["<|startoftranscript|>"],
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )


def _generation_config(config: WhisperConfig, conversion: dict[str, Any], tokens: dict[str, int]) -> GenerationConfig:
    """What openai/whisper-* on the hub carry, without their forced ids, which `generate` works out itself."""
    multilingual = config.vocab_size >= FIRST_MULTILINGUAL_VOCABULARY
    generation = GenerationConfig(
        decoder_start_token_id=config.decoder_start_token_id,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        max_length=config.max_target_positions,
        suppress_tokens=conversion["suppress_ids"],
        begin_suppress_tokens=conversion["suppress_ids_begin"],
        is_multilingual=multilingual,
        no_timestamps_token_id=tokens["<|notimestamps|>"],
        prev_sot_token_id=tokens["<|startofprev|>"],
        max_initial_timestamp_index=50,  # 1 s
        return_timestamps=False,
        alignment_heads=conversion.get("alignment_heads"),
    )
    if multilingual:
        languages = set(conversion["lang_ids"])
        generation.lang_to_id = {token: id for token, id in tokens.items() if id in languages}
        generation.task_to_id = {task: tokens[f"<|{task}|>"] for task in ("transcribe", "translate")}
    return generation


def _unpack(file: BinaryIO, format: str) -> tuple[int, ...]:
    return struct.unpack(f"<{format}", _read(file, struct.calcsize(f"<{format}")))


def _string(file: BinaryIO) -> str:
    return _read(file, *_unpack(file, "H")).rstrip(b"\0").decode()


def _variable(file: BinaryIO) -> tuple[str, np.ndarray]:
    name = _string(file)
    shape = _unpack(file, "I" * _unpack(file, "B")[0])
    kind, size = _unpack(file, "BI")
    return name, np.frombuffer(_read(file, size), np.dtype(TYPES[kind]).newbyteorder("<")).reshape(shape)


def _read(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise EOFError("it ends early")
    return data
