"""Train the head that the mini preset starts from: it predicts the student's tokens from Whisper's
features of clean speech.

python -m research.pretrain.head --synthetic FOLDER:1 --real FOLDER:4 --test name=PATH --teacher FOLDER --out FOLDER \\
    --steps 4000

--teacher is a Whisper folder, as the stage fetch_models leaves it under models/mini/pretrained/teacher.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dqlora.config import load_params
from dqlora.data.batching import Example, length_mask, pad_waves
from dqlora.data.text import Vocabulary, frames_needed
from dqlora.device import default_device
from dqlora.evaluation.metrics import count_errors
from dqlora.models.alignment import student_frames_at
from dqlora.models.teacher_head import TeacherHead, save_head, transcribe_head
from dqlora.models.wav2vec2 import load_student, normalise_waves
from dqlora.models.whisper import Teacher
from dqlora.progress import ProgressBar
from dqlora.seeding import seed_torch
from dqlora.training.head_loop import train_head
from research.pretrain.data import Clips, Shards, read_folder, read_tests, spelt
from research.pretrain.train import STUDENT

SEED = 0
BATCH_SIZE = 64
BATCH_SECONDS = 480  # of audio, padding counted


def encode(teacher: Teacher, samples: list[np.ndarray]) -> list[np.ndarray]:
    """The teacher's features of each clip, float16 [frames, width]."""
    features: list[np.ndarray] = []
    for start in ProgressBar(range(0, len(samples), BATCH_SIZE), "teacher", unit=" batches", mininterval=5):
        features += teacher.encode(samples[start : start + BATCH_SIZE])
    return features


@torch.inference_mode()
def frame_sync_targets(samples: list[np.ndarray], frames: list[int], device: torch.device) -> list[Tensor]:
    """The student's logits on each clip, float16, at the teacher's frames."""
    model = load_student(STUDENT, "none", device)
    targets: list[Tensor] = [torch.empty(0)] * len(samples)
    order = sorted(range(len(samples)), key=lambda number: len(samples[number]))
    for start in ProgressBar(range(0, len(order), BATCH_SIZE), "student", unit=" batches", mininterval=5):
        batch = order[start : start + BATCH_SIZE]
        clips = [samples[number] for number in batch]
        lengths = torch.tensor([len(clip) for clip in clips], device=device)
        waves = pad_waves(clips, device)
        mask = length_mask(lengths, waves.shape[1]).long()
        logits = model(normalise_waves(waves, lengths), attention_mask=mask).logits
        counts = model._get_feat_extract_output_lengths(lengths)
        for number, rows, count in zip(batch, logits, counts.tolist(), strict=True):
            nearest = student_frames_at(model.config, count, frames[number])
            targets[number] = rows[torch.from_numpy(nearest).to(device)].half().cpu()
    return targets


def examples(clips: Clips, teacher: Teacher, vocabulary: Vocabulary, with_targets: bool) -> list[Example]:
    clips = spelt(clips, vocabulary)
    features = encode(teacher, clips.samples)
    targets: list[Tensor | None] = [None] * len(features)
    if with_targets:
        targets = list(frame_sync_targets(clips.samples, [len(rows) for rows in features], teacher.model.device))
    made = [
        Example(rows, vocabulary.encode(text), text, target)
        for rows, text, target in zip(features, clips.texts, targets, strict=True)
    ]
    return [example for example in made if frames_needed(example.labels) <= len(example.features)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--synthetic", nargs="+", required=True, help="FOLDER:REPEATS, folders that synthesise wrote")
    parser.add_argument("--real", nargs="*", default=[], help="FOLDER:REPEATS, audio folders with metadata.csv")
    parser.add_argument("--test", nargs="+", required=True, help="NAME=PATH, a Parquet file or an audio folder")
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    args = parser.parse_args()

    torch.set_float32_matmul_precision("high")
    settings = load_params().teacher_head
    vocabulary = Vocabulary.load(STUDENT / "vocab.json")
    teacher = Teacher(args.teacher, default_device())
    training: list[Example] = []
    for path, repeats in (source.split(":") for source in args.synthetic):
        training += examples(Shards(Path(path)).new(), teacher, vocabulary, True) * int(repeats)
    for path, repeats in (source.split(":") for source in args.real):
        training += examples(read_folder(Path(path)), teacher, vocabulary, True) * int(repeats)
    print(f"{len(training)} clips, {sum(len(example.features) for example in training) / 50 / 3600:.1f} h", flush=True)

    seed_torch(SEED, "head")
    head = TeacherHead(teacher.width, len(vocabulary), settings).to(teacher.model.device)
    train_head(head, training, vocabulary.blank, settings, args.steps, BATCH_SECONDS, SEED)
    print("| test | clips | WER % | CER % |\n| --- | --- | --- | --- |")
    table = {}
    for name, clips in read_tests(args.test).items():
        tests = examples(clips, teacher, vocabulary, False)
        errors = count_errors([example.text for example in tests], transcribe_head(head, tests, vocabulary), "en")
        table[name] = {"wer": errors.wer, "cer": errors.cer}
        print(f"| {name} | {len(tests)} | {100 * errors.wer:.1f} | {100 * errors.cer:.1f} |", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    save_head(head, next(iter(table.values()))["wer"], args.out)  # the first test should be validation speech
    weights = args.out / "head.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(weights).items()}, weights)
    (args.out / "wer.json").write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
