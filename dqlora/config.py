"""What a user may set, read from params.yaml and presets/<preset>.yaml and checked before any work starts."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from dqlora.errors import UserError

Ratio = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(ge=1, strict=True)]
Decibels = Annotated[float, Field(ge=-30, le=60)]


def _iso_639(value: Any) -> Any:
    if not isinstance(value, str) or not re.fullmatch("[a-z]{2,3}", value):
        raise ValueError("should be a code of ISO 639, two or three small letters; Norwegian's in quotes")
    return value


Language = Annotated[str, BeforeValidator(_iso_639)]

OUT_OF_DOMAIN = "out_of_domain"  # the split of speech and of noise that is neither trained nor tested on


class Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Silence(Block):
    ratio: Annotated[float, Field(ge=0, le=1)]
    seconds: Annotated[float, Field(ge=0, le=10)]


class Mix(Block):
    copies: Positive
    snr_db: list[Decibels | Literal["clean"]] = Field(min_length=1)
    test_snr_db: list[Decibels] = Field(min_length=1)

    @model_validator(mode="after")
    def _no_repeats(self) -> "Mix":
        if len(set(self.test_snr_db)) < len(self.test_snr_db):
            raise ValueError("test_snr_db names one SNR twice")
        return self


class TeacherHead(Block):
    hidden: Annotated[int, Field(ge=16, multiple_of=4)]
    layers: Annotated[int, Field(ge=0, le=12)]
    dropout: Ratio
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    warmup_ratio: Ratio
    mask_ratio: Ratio
    frame_sync_weight: Annotated[float, Field(ge=0, le=100)]


class Student(Block):
    quantize: Literal["nf4", "none"]
    adapt: Literal["lora", "full"]

    @model_validator(mode="after")
    def _full_is_unquantised(self) -> "Student":
        if self.adapt == "full" and self.quantize != "none":
            raise ValueError("adapt: full trains the weights themselves and needs quantize: none")
        return self


# the linear layers of wav2vec 2.0, by the last part of their names in transformers
LINEAR_LAYERS = (
    "q_proj", "k_proj", "v_proj", "out_proj", "intermediate_dense", "output_dense", "projection", "lm_head",
)  # fmt: skip


def _linear_layer(value: Any) -> Any:
    if isinstance(value, str) and value.rpartition(".")[-1] not in LINEAR_LAYERS:
        raise ValueError(f"should be the end of a linear layer's name: one of {', '.join(LINEAR_LAYERS)}")
    return value


class Lora(Block):
    r: Annotated[int, Field(ge=1, le=256)]
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    dropout: Ratio
    target_modules: list[Annotated[str, BeforeValidator(_linear_layer)]] = Field(min_length=1)


class Distill(Block):
    target: str  # a name in training/targets.py
    temperature: Annotated[float, Field(gt=0, le=20)]
    frames: Literal["all", "nonblank", "around_nonblank"]
    layer: Annotated[int, Field(ge=1, le=48)]


class Train(Block):
    warmup_ratio: Ratio
    weight_decay: Annotated[float, Field(ge=0, le=1)]
    gradient_clip: Annotated[float, Field(gt=0)]
    dropout: Ratio
    mask_time_prob: Ratio
    patience: Positive


class Gate(Block):
    quantile: Ratio


class Lm(Block):
    order: Annotated[int, Field(ge=2, le=5)]
    prune: Ratio


def _split(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return [] if value == "none" else [part.strip() for part in value.split(",") if part.strip()]


class Decode(Block):
    hotwords: Annotated[list[str], BeforeValidator(_split)]
    method: Literal["beam", "greedy"]
    beam_width: Annotated[int, Field(ge=1, le=1000)]
    hotword_weight: Annotated[float, Field(ge=0, le=100)]


Threshold = Annotated[float, Field(ge=0)] | Literal["none"]
Probability = Annotated[float, Field(ge=0, le=1)] | Literal["none"]


class PseudoLabel(Block):
    """What a transcript of the teacher's must be like to be learnt from; each is switched off by none."""

    hallucinations: Annotated[list[str], BeforeValidator(_split)]
    log_probability: Annotated[float, Field(le=0)] | Literal["none"]
    no_speech: Probability
    compression_ratio: Threshold
    language: Probability
    repeats: Positive | Literal["none"]
    second: Literal["faster", "student", "none"]
    wer: Threshold


class Evaluate(Block):
    bootstrap_draws: Annotated[int, Field(ge=100, le=1_000_000)]


class SplitSizes(Block):
    train: Positive
    validation: Positive
    test: Positive


class Speech(Block):
    path: str
    language: Language
    clips: SplitSizes


class NoiseSizes(Block):
    train: Positive
    test: Positive


class Noise(Block):
    path: str
    recordings: NoiseSizes
    seconds: Annotated[float, Field(ge=1, le=600)]


class OutOfDomain(Block):
    speech: str
    noise: str
    language: Language
    clips: Positive


def _as_list(value: Any) -> Any:
    return [] if value == "none" else [value] if isinstance(value, str) else value


class LanguageModel(Block):
    model: str
    text: Annotated[list[str], BeforeValidator(_as_list)]


class Licences(Block):
    """As they stand in the model card that `dqlora push` writes."""

    student: str
    teacher: str
    speech: str
    noise: str
    text: str  # of lm.text, or of lm.model


class PretrainedHead(Block):
    path: str
    steps: Annotated[int, Field(ge=0, strict=True)]


class Budget(Block):
    steps: Positive
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    wise_ft_alpha: Annotated[float, Field(gt=0, le=1)]
    batch_seconds: Annotated[float, Field(ge=1, allow_inf_nan=False)]
    validate_every: Positive


class Preset(Block):
    """One file of presets/: where speech, noise and models come from, and how much of them."""

    speech: Speech
    noise: Noise
    out_of_domain: OutOfDomain | Literal["none"]
    lm: LanguageModel
    student: str
    teacher: str
    teacher_head: PretrainedHead
    licences: Licences
    budget: Budget


class Params(Block):
    """params.yaml."""

    preset: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
    seed: Annotated[int, Field(ge=0, lt=2**32, strict=True)]
    lambda_distill: Annotated[float, Field(ge=0, le=100)]
    teacher_input: Literal["clean", "noisy"]
    silence: Silence
    mix: Mix
    teacher_head: TeacherHead
    student: Student
    lora: Lora
    distill: Distill
    train: Train
    gate: Gate
    pseudo_label: PseudoLabel
    lm: Lm
    decode: Decode
    evaluate: Evaluate


# how pydantic tells, within a parameter's place, which of the kinds it may be of is meant
KINDS = ("constrained", "literal", OutOfDomain.__name__)


class Paths:
    """Where the stages of one preset leave their artifacts, below `root`."""

    def __init__(self, preset: str, root: Path = Path()):
        data, models = root / "data" / preset, root / "models" / preset
        self.checksums = root / "presets" / f"{preset}.sha256"  # of what was downloaded; belongs into git
        self.clean = data / "clean"
        self.pseudo_labels = data / "pseudo_labels"
        self.teacher_labels = data / "teacher_labels"  # what the teacher has transcribed so far; no output
        self.noise = data / "noise"
        self.noisy = data / "noisy"
        self.downloads = data / "downloads"
        self.teacher_features = data / "teacher"
        self.cnn_features = data / "cnn_features"  # of the student
        self.targets = data / "targets"
        self.teacher_transcripts = data / "teacher_transcripts"
        self.student = models / "pretrained" / "student"
        self.teacher = models / "pretrained" / "teacher"
        self.pretrained_head = models / "pretrained" / "teacher_head"  # where the preset starts from one
        self.teacher_head = models / "teacher_head"
        self.adapter = models / "adapter"
        self.exported = models / "exported"
        self.gate = models / "gate.json"
        self.lm = models / "lm"
        self.decoder = models / "decoder.json"
        self.checkpoints = models / "checkpoints"
        self.metrics = root / "metrics" / preset
        self.costs = self.metrics / "costs.json"


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Read and check params.yaml.

    Raises
    ------
    UserError
        naming the file, the parameter, its value and what is allowed.
    """
    return _load(Params, path)


def load_preset(name: str, folder: Path = Path("presets")) -> Preset:
    """Read and check presets/<name>.yaml; raises UserError as `load_params` does."""
    path = folder / f"{name}.yaml"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise UserError(f"params.yaml: preset: there is no {path}; known presets: {known}")
    return _load(Preset, path)


def _load(model: type[Any], path: Path) -> Any:
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run from the project's root") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected parameters by name, found {type(values).__name__}")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError("; ".join(_explain(model, path, error.errors()))) from None


def _explain(model: type[BaseModel], path: Path, errors: Iterable[Any]) -> Iterator[str]:
    """Each wrong parameter as `file: parameter: what is wrong`, with the names that would be right.

    What may be of several kinds, a number or none, has an error of each kind; they become one.
    """
    wrong = defaultdict(list)
    for error in errors:
        wrong[tuple(part for part in error["loc"] if not str(part).startswith(KINDS))].append(error)
    for location, found in wrong.items():
        if any(len(other) > len(location) and other[: len(location)] == location for other in wrong):
            continue  # that is wrong within a block
        name, value = ".".join(map(str, location)), found[0]["input"]
        if found[0]["type"] == "extra_forbidden":
            message = f"unknown parameter; known here: {', '.join(_block(model, location[:-1]).model_fields)}"
        elif found[0]["type"] == "missing":
            message = "missing"
        else:
            first, *others = (
                f"Input should be a block of {', '.join(_block(model, location).model_fields)}"
                if each["type"] == "model_type"
                else each["msg"].removeprefix("Value error, ").split(", unable")[0]
                for each in found
            )
            message = " or ".join([first, *(other.removeprefix("Input should be ") for other in others)])
            message += "" if isinstance(value, dict) else f" (got {value!r})"
        yield f"{path}: {name}: {message}"


def _block(model: Any, location: Sequence[str]) -> Any:
    for part in location:
        annotation = model.model_fields[part].annotation
        model = next(kind for kind in (annotation, *get_args(annotation)) if hasattr(kind, "model_fields"))
    return model
