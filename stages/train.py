"""Distil-train the student on noisy speech: models/<preset>/adapter, metrics/train.json, curves.

On several GPUs: accelerate launch --num_processes 2 -m stages.train
"""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from dvclive import Live
from tqdm import tqdm

from dqlora.audio import SAMPLE_RATE, to_float32
from dqlora.batching import Example, bucketed_batches, made_ahead
from dqlora.config import Params, Paths, Preset, load_params, load_preset
from dqlora.distillation import OF_HEAD, OF_WHISPER, Targets
from dqlora.errors import SetAside, UserError, run_stage
from dqlora.objective import Objective
from dqlora.randomness import seed_torch
from dqlora.scoring import count_errors
from dqlora.storage import Packed, PackedWriter, whole_folder, write_json
from dqlora.student import (
    FromFeatures,
    add_lora,
    base_of,
    cnn_features,
    cnn_features_together,
    load_student,
    mean_entropy,
    pad_features,
    transcribe,
)
from dqlora.teacher_head import load_head
from dqlora.text import Vocabulary, frames_needed
from dqlora.training import peak_memory_mb, train_student

# of clips, padded, whose CNN features and targets are computed together; on the CPU each clip alone, so that it has the
# same to the last bit whatever others there are
SECONDS_AT_ONCE = {"cuda": 160, "cpu": 0}


def fingerprint(*parts: object) -> str:
    """SHA-256 over values and over the contents of folders (given as Path)."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            for file in sorted(file for file in part.rglob("*") if file.is_file()):
                with file.open("rb") as content:
                    digest.update(hashlib.file_digest(content, "sha256").digest())
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()[:16]


def is_made_from(folder: Path, current: str) -> bool:
    """Whether `folder` is there and was made from the inputs that have this fingerprint."""
    return (folder / "made_from").exists() and (folder / "made_from").read_text() == current


def cache_cnn_features(model: torch.nn.Module, paths: Paths) -> None:
    """CNN features of the noisy training and validation clips: the CNN is frozen, so they are computed once.

    Kept beside the checkpoints from run to run, until the student or the clips change.
    """
    folder = paths.cnn_features
    current = fingerprint(paths.student, paths.noisy / "train", paths.noisy / "validation")
    if is_made_from(folder, current):
        return
    with whole_folder(folder) as temporary:
        for split in ("train", "validation"):
            write_cnn_features(model, Packed(paths.noisy / split), temporary / split)
        (temporary / "made_from").write_text(current)


def write_cnn_features(model: torch.nn.Module, clips: Packed, folder: Path) -> None:
    """CNN features of clips, float16 [frames, conv_dim], in any order."""
    base = base_of(model)
    batches = together([item["length"] for item in clips.items], base.device)

    def features_of(batch: list[int]) -> list[torch.Tensor]:
        return cnn_features_together(model, [clips[clips.items[position]["id"]] for position in batch])

    with (
        PackedWriter(folder, "float16", base.config.conv_dim[-1]) as out,
        tqdm(total=len(clips), desc=f"student's CNN {folder.name}", unit=" clips") as bar,
    ):
        for batch, made in zip(batches, made_ahead(features_of, iter(batches), base.device), strict=True):
            for position, features in zip(batch, made, strict=True):
                out.append(features.half().cpu().numpy(), id=clips.items[position]["id"])
            bar.update(len(batch))


def together(lengths: list[int], device: torch.device) -> list[list[int]]:
    """Positions of clips in batches of like length, given the samples of each."""
    longest = SECONDS_AT_ONCE[device.type] * SAMPLE_RATE
    return bucketed_batches(lengths, longest, seed=0, epoch=0, jitter=0.0)


def target_name(params: Params) -> str:
    """What the settings say of the targets, apart from what they are made of."""
    settings, parts = params.distill, [params.distill.target, params.student.quantize]
    parts += [f"layer {settings.layer}"] if settings.target == "base_features" else []
    parts += [f"seed {params.seed}"] if settings.target == "notebook" else []
    return ", ".join(parts)


def cache_targets(
    folder: Path, model: torch.nn.Module, paths: Paths, params: Params, vocabulary: Vocabulary, device: torch.device
) -> None:
    """What the student is to learn at each frame of the training clips, float16 [frames, width], computed once.

    A target is made on the clean speech, has the utterance's id and serves all its mixtures; only where Whisper hears
    the mixture, each has its own. Kept in `folder` until something that it depends on changes.
    """
    settings = params.distill
    of_whisper, of_head = settings.target in OF_WHISPER, settings.target in OF_HEAD
    heard_by_teacher = paths.heard_by_teacher(params.teacher_input if of_whisper else "clean") / "train"
    current = fingerprint(
        target_name(params),
        *dict.fromkeys((paths.student, paths.clean / "train", heard_by_teacher)),  # each once
        *([paths.teacher_features / "train"] if of_whisper else []),
        *([paths.teacher_head] if of_head else []),
    )
    if is_made_from(folder, current):
        return
    base = FromFeatures(model, settings.layer if settings.target == "base_features" else None)
    heard = Packed(paths.teacher_features / "train") if of_whisper else None
    head: torch.nn.Module | None = None
    if of_head:
        head = load_head(paths.teacher_head, device)[0]
    elif heard is not None and settings.target == "notebook":
        seed_torch(params.seed, "notebook")
        head = torch.nn.Linear(heard.values.shape[1], model.config.vocab_size).to(device)
    make = Targets(settings, base, vocabulary.blank, head)
    clean = Packed(paths.clean / "train")

    items = Packed(heard_by_teacher).items
    utterances = [item.get("utterance", item["id"]) for item in items]

    def targets_of(batch: list[int]) -> list[np.ndarray]:
        cnn = cnn_features_together(model, [clean[utterances[position]] for position in batch])
        ids = [items[position]["id"] for position in batch]
        rows = [] if heard is None else [torch.from_numpy(np.array(heard[each])).to(device) for each in ids]
        return make(cnn, rows, [vocabulary.encode(clean.item(utterances[position])["text"]) for position in batch])

    batches = together([clean.item(utterance)["length"] for utterance in utterances], device)
    with whole_folder(folder) as temporary:
        with (
            PackedWriter(temporary, "float16", targets_of([0])[0].shape[1]) as out,
            tqdm(total=len(items), desc="distillation targets", unit=" clips") as bar,
        ):
            for batch in batches:
                for position, target in zip(batch, targets_of(batch), strict=True):
                    out.append(target, id=items[position]["id"])
                bar.update(len(batch))
        (temporary / "made_from").write_text(current)


def load_examples(
    paths: Paths, split: str, cnn: Packed, vocabulary: Vocabulary, targets: Packed | None, set_aside: SetAside
) -> list[Example]:
    """One example a noisy clip; texts that do not fit their frames are set aside, never cut."""
    clean = Packed(paths.clean / split)
    examples = []
    for item in Packed(paths.noisy / split).items:
        text = clean.item(item["utterance"])["text"]
        labels = vocabulary.encode(text)
        features = cnn[item["id"]]
        if frames_needed(labels) > len(features):
            set_aside.add(split, item["id"], "more letters than frames")
            continue
        target = None
        if targets is not None:
            target = targets[item["id"] if item["id"] in targets else item["utterance"]]
        examples.append(Example(features, labels, text, target))
    if not examples:
        raise UserError(f"{paths.noisy / split}: every transcript has more letters than its audio has frames")
    return examples


def adapt(model: Any, params: Params) -> Any:
    """The student with what is to be trained of it: LoRA adapters, or every weight but the CNN's."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = params.train.dropout
        elif isinstance(getattr(module, "dropout", None), float):  # attention's
            module.dropout = params.train.dropout
    if params.student.adapt == "lora":
        return add_lora(model, params.lora, params.seed)
    model.requires_grad_(True)
    model.freeze_feature_encoder()
    model.wav2vec2.masked_spec_embed.requires_grad_(False)
    return model


@torch.inference_mode()
def entropies(student: FromFeatures, clips: Sequence[torch.Tensor | np.ndarray]) -> list[float]:
    """How unsure a student is of each clip, CNN features [frames, conv_dim]: mean entropy in nats per frame."""
    student.eval()
    device = base_of(student.model).device
    padded = ((features.to(device), frames.to(device)) for features, frames in (pad_features([clip]) for clip in clips))
    return [mean_entropy(student(features, frames), frames).item() for features, frames in padded]


def warn_of_weak_teacher(model: torch.nn.Module, vocabulary: Vocabulary, paths: Paths, preset: Preset) -> None:
    """Say so where the teacher's head reads clean speech worse than the student does: it can then only hurt."""
    _, head_wer = load_head(paths.teacher_head, torch.device("cpu"))
    clean = Packed(paths.clean / "validation")
    student = FromFeatures(model)
    hypotheses = [transcribe(student, vocabulary, to_float32(clean[item["id"]])) for item in clean.items]
    student_wer = count_errors([item["text"] for item in clean.items], hypotheses, preset.speech.language).wer
    print(f"clean validation WER: teacher's head {head_wer:.1%}, student {student_wer:.1%}")
    if head_wer > student_wer:
        print(
            "warning: the teacher's head reads clean speech worse than the student does, so distilling it can only "
            "hurt; raise budget.head_steps or the amount of speech, or set lambda_distill: 0",
            file=sys.stderr,
        )


def main() -> None:
    params = load_params()
    preset = load_preset(params.preset)
    paths = Paths(params.preset)
    accelerator = Accelerator()
    torch.use_deterministic_algorithms(accelerator.device.type == "cpu")
    torch.utils.deterministic.fill_uninitialized_memory = False  # costs a tenth of the step, hides nothing here
    vocabulary = Vocabulary.load(paths.student / "vocab.json")
    model = load_student(paths.student, params.student.quantize, accelerator.device)
    with accelerator.main_process_first():
        cache_cnn_features(model, paths)
    cnn = {split: Packed(paths.cnn_features / split) for split in ("train", "validation")}

    targets: Packed | None = None
    if params.lambda_distill > 0:
        letters = params.distill.target in ("whisper_letters", "both_letters")
        if accelerator.is_main_process and params.teacher_input == "clean" and letters:
            warn_of_weak_teacher(model, vocabulary, paths, preset)
        with accelerator.main_process_first():
            cache_targets(paths.targets, model, paths, params, vocabulary, accelerator.device)
        targets = Packed(paths.targets)
    set_aside = SetAside()
    training = load_examples(paths, "train", cnn["train"], vocabulary, targets, set_aside)
    validation = load_examples(paths, "validation", cnn["validation"], vocabulary, None, set_aside)

    model = adapt(model, params)
    trainable = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    total = model.num_parameters()
    width = targets.values.shape[1] if targets is not None else None
    seed_torch(params.seed, "objective")
    objective = Objective(model, vocabulary.blank, params.distill, width)
    run = fingerprint(params, preset.budget, paths.student, paths.noisy, paths.teacher_head, paths.teacher_features)
    checkpoint = paths.checkpoints / f"{run}.safetensors"
    live = (
        Live(str(paths.metrics / "curves"), save_dvc_exp=False, dvcyaml=None, monitor_system=False)
        if accelerator.is_main_process
        else None
    )

    def log(point: dict[str, float]) -> None:
        if live is not None:
            live.step = int(point["step"])
            for name in ("train_loss", "validation_wer"):
                if np.isfinite(point[name]):
                    live.log_metric(name, point[name])

    progress = train_student(
        objective,
        training,
        validation,
        vocabulary,
        preset.speech.language,
        params.train,
        preset.budget,
        params.lambda_distill,
        params.seed,
        checkpoint,
        accelerator,
        on_point=log,
    )
    accelerator.end_training()
    if live is None:
        return
    run_settings: dict[str, Any] = {"student": str(paths.student), "quantize": params.student.quantize}
    if params.student.adapt == "lora" and params.train.base_reads:
        clean = Packed(paths.clean / "validation")
        heard = [cnn_features(model, to_float32(clean[item["id"]])) for item in clean.items]
        with model.disable_adapter():
            unsure = entropies(FromFeatures(model), heard)
        run_settings["entropy_limit"] = float(np.quantile(unsure, params.train.base_reads))
    with whole_folder(paths.adapter) as folder:
        model.save_pretrained(folder)
        write_json(folder / "run.json", run_settings)
        set_aside.write(folder)
    peak = peak_memory_mb()
    write_json(
        paths.metrics / "train.json",
        {
            "steps": progress.step,
            "best_step": progress.best_step,
            "seconds": progress.seconds,
            "audio_seconds_per_second": progress.audio_seconds / progress.seconds,
            "trainable_parameters": trainable,
            "trainable_share": trainable / total,
            "peak_memory_mb": peak,
            "best_validation_wer": progress.best_wer,
            "set_aside": {"total": len(set_aside.items), **set_aside.counts()},
        },
    )
    live.end()
    checkpoint.unlink(missing_ok=True)


if __name__ == "__main__":
    run_stage(main)
