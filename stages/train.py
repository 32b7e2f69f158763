"""Distil-train the student on noisy speech: models/<preset>/adapter, metrics/<preset>/train.json, curves.

On several GPUs: accelerate launch --num_processes 2 -m stages.train
"""

import math
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from dvclive import Live

from dqlora.config import Paths, load_params, load_preset
from dqlora.data.labels import labelled
from dqlora.data.origin import ORIGIN, amount_used
from dqlora.data.storage import (
    RaggedArray,
    atomic_directory,
    fingerprint,
    loaded_sources,
    read_json,
    rerun,
    write_json,
)
from dqlora.data.text import Vocabulary
from dqlora.errors import Rejected, run_stage
from dqlora.evaluation.profiling import peak_memory_mb
from dqlora.models.lora import adapt, save_adapted
from dqlora.models.wav2vec2 import base_of, load_student
from dqlora.seeding import seed_torch
from dqlora.training.examples import load_examples
from dqlora.training.loop import Plan, Progress, TrainingData, train_student
from dqlora.training.objective import DistillationLoss
from dqlora.training.targets import make_target


class Curves:
    """Writes the points of the curve where DVC plots them."""

    def __init__(self, folder: Path):
        self._live = Live(str(folder), save_dvc_exp=False, dvcyaml=None, monitor_system=False)

    def __call__(self, point: dict[str, float]) -> None:
        self._live.step = int(point["step"])
        for name in ("train_loss", "validation_wer"):
            if math.isfinite(point[name]):
                self._live.log_metric(name, point[name])

    def close(self, costs: dict[str, float]) -> None:
        """Write what differs from run to run to metrics.json beside the points, which neither DVC nor git tracks."""
        self._live.summary |= costs
        self._live.end()


def load_data(paths: Paths, language: str, targets: RaggedArray | None, rejected: Rejected) -> TrainingData:
    """The clips of both splits; only those to train on have a target."""
    vocabulary = Vocabulary.load(paths.student / "vocab.json")
    training, validation = (
        load_examples(
            split,
            noisy=RaggedArray(paths.noisy / split),
            clean=labelled(paths, split),
            features=RaggedArray(paths.cnn_features / split),
            targets=targets if split == "train" else None,
            vocabulary=vocabulary,
            rejected=rejected,
        )
        for split in ("train", "validation")
    )
    return TrainingData(training, validation, vocabulary, language)


def checkpoint_path(paths: Paths, *settings: object) -> Path:
    """Named by settings, inputs and code, so that the checkpoint of others is never taken up."""
    inputs = [paths.student, paths.targets]  # the CNN features follow from student, clips and code
    for split in ("train", "validation"):
        inputs += [paths.clean / split / "index.jsonl", paths.pseudo_labels / f"{split}.jsonl", paths.noisy / split]
    return paths.checkpoints / f"{fingerprint(*settings, *inputs, *loaded_sources())}.safetensors"


def training_metrics(progress: Progress, model: torch.nn.Module, rejected: Rejected) -> dict[str, Any]:
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    trainable = sum(weight.numel() for weight in weights)
    return {
        "steps": progress.step,
        "best_step": progress.best_step,
        "skipped_steps": len(progress.skipped),
        "trainable_parameters": trainable,
        "trainable_ratio": trainable / base_of(model).num_parameters(),
        "best_validation_wer": progress.best_wer,
        "rejected": {"total": len(rejected.items), **rejected.counts()},
    }


def origins_and_amounts(paths: Paths, rejected: Rejected) -> dict[str, Any]:
    """What the adapter was made of: base, speech and noise, and how much of each split was used."""
    amounts = {}
    for split in ("train", "validation"):
        left_out = {name for of, name, _ in rejected.items if of == split}
        amounts[split] = amount_used(labelled(paths, split), RaggedArray(paths.noisy / split), left_out)
    return {
        "base": read_json(paths.student / ORIGIN, rerun("fetch_models")) | {"digest": fingerprint(paths.student)},
        "speech": read_json(paths.clean / ORIGIN, rerun("fetch_speech")),
        "noise": read_json(paths.noise / ORIGIN, rerun("fetch_noise")),
        "used": amounts,
    }


def main() -> None:
    params = load_params()
    preset = load_preset(params.preset)
    paths = Paths(params.preset)
    accelerator = Accelerator()
    torch.use_deterministic_algorithms(accelerator.device.type == "cpu")
    # filling costs a tenth of the step and hides nothing here
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

    target = make_target(params.distill) if params.lambda_distill else None
    targets = RaggedArray(paths.targets) if target else None
    rejected = Rejected()
    data = load_data(paths, preset.speech.language, targets, rejected)
    plan = Plan(params.train, preset.budget, params.seed)

    model = load_student(paths.student, params.student.quantize, accelerator.device)
    model = adapt(model, params.student.adapt, params.lora, params.train.dropout, params.seed)
    seed_torch(params.seed, "objective")
    width = targets.values.shape[1] if targets is not None else 0
    loss = DistillationLoss(model, data.vocabulary.blank, target, width, params.lambda_distill)

    settings = (plan, data.language, params.student, params.lora, params.distill, params.lambda_distill)
    checkpoint = checkpoint_path(paths, *settings)
    curves = Curves(paths.metrics / "curves") if accelerator.is_main_process else None
    progress = train_student(loss, data, plan, checkpoint, accelerator, curves or (lambda point: None))
    accelerator.end_training()
    if curves is None:
        return
    if progress.skipped:
        print(f"skipped, since their gradient was not finite: steps {', '.join(map(str, progress.skipped))}")
    blocks = {"lora": params.lora, "distill": params.distill, "train": params.train, "budget": preset.budget}
    with atomic_directory(paths.adapter) as folder:
        save_adapted(model, folder)
        run = {
            "student": str(paths.student),
            "quantize": params.student.quantize,
            "adapt": params.student.adapt,
            "language": data.language,
            "seed": params.seed,
            "lambda_distill": params.lambda_distill,
            "learns_from": None if target is None else "teacher" if target.uses_whisper else "base",
            "steps": progress.step,
            "best_step": progress.best_step,
            **{name: block.model_dump() for name, block in blocks.items()},
            **origins_and_amounts(paths, rejected),
        }
        write_json(folder / "run.json", run)
        rejected.write(folder)
    write_json(paths.metrics / "train.json", training_metrics(progress, model, rejected))
    curves.close({"seconds": progress.seconds, "rtfx": progress.audio_seconds / progress.seconds, **peak_memory_mb()})
    checkpoint.unlink(missing_ok=True)


if __name__ == "__main__":
    run_stage(main)
