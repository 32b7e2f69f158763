"""Train the head that reads letters out of the teacher's features: models/<preset>/teacher_head."""

import time

import torch
from tqdm import tqdm

from dqlora.audio import to_float32
from dqlora.batching import Example
from dqlora.config import Paths, load_params, load_preset
from dqlora.config import TeacherHead as HeadSettings
from dqlora.errors import SetAside, UserError, run_stage
from dqlora.randomness import seed_torch
from dqlora.scoring import count_errors
from dqlora.storage import Packed, whole_folder, write_json
from dqlora.student import FromFeatures, cnn_features, load_student
from dqlora.teacher import student_frames_at
from dqlora.teacher_head import TeacherHead, load_head, read, save_head, train_head
from dqlora.text import Vocabulary, frames_needed


def clock_targets(paths: Paths, quantize: str, device: torch.device) -> dict[str, torch.Tensor]:
    """The base student's logits on each clean training clip, at the teacher's frames."""
    model = load_student(paths.student, quantize, device)
    student = FromFeatures(model)
    features, clean = Packed(paths.teacher_features / "train"), Packed(paths.clean / "train")
    lengths = {item["utterance"]: item["length"] for item in features.items}
    targets = {}
    with torch.inference_mode():
        for name, length in tqdm(lengths.items(), "student reads clean speech", unit=" clips"):
            cnn = cnn_features(model, to_float32(clean[name]))
            logits = student(cnn[None], torch.tensor([len(cnn)], device=device))[0]
            targets[name] = logits[student_frames_at(model.config, len(cnn), length)].half().cpu()
    return targets


def load_examples(
    paths: Paths, split: str, vocabulary: Vocabulary, targets: dict[str, torch.Tensor], set_aside: SetAside
) -> list[Example]:
    """The teacher's features of one split with their labels; texts that do not fit their frames are set aside."""
    features, clean = Packed(paths.teacher_features / split), Packed(paths.clean / split)
    examples = []
    for item in features.items:
        text = clean.item(item["utterance"])["text"]
        labels = vocabulary.encode(text)
        if frames_needed(labels) > item["length"]:
            set_aside.add(split, item["id"], "more letters than frames")
            continue
        examples.append(Example(features[item["id"]], labels, text, targets.get(item["utterance"])))
    return examples


def start_head(paths: Paths, settings: HeadSettings, width: int, symbols: int, device: torch.device) -> TeacherHead:
    """The head that the preset starts from, or a new one."""
    if not paths.pretrained_head.exists():
        return TeacherHead(width, symbols, settings).to(device)
    head = load_head(paths.pretrained_head, device)[0].requires_grad_(True)
    if (head.width, head.symbols) != (width, symbols):
        raise UserError(
            f"{paths.pretrained_head}: reads {head.symbols} symbols out of features of width {head.width}; the student "
            f"has {symbols} and the teacher {width}: set the preset's teacher_head: scratch"
        )
    return head


def main() -> None:
    params = load_params()
    preset = load_preset(params.preset)
    paths = Paths(params.preset)
    settings, steps = params.teacher_head, preset.budget.head_steps
    vocabulary = Vocabulary.load(paths.student / "vocab.json")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    set_aside = SetAside()
    targets = clock_targets(paths, params.student.quantize, device) if settings.clock and steps else {}
    training = load_examples(paths, "train", vocabulary, targets, set_aside)
    validation = load_examples(paths, "validation", vocabulary, {}, set_aside)
    started = time.perf_counter()
    seed_torch(params.seed, "head")
    head = start_head(paths, settings, training[0].features.shape[1], len(vocabulary), device)
    train_head(head, training, vocabulary.blank, settings, steps, preset.budget.batch_seconds, params.seed)
    hypotheses = read(head, validation, vocabulary)
    errors = count_errors([example.text for example in validation], hypotheses, preset.speech.language)
    for example, hypothesis in list(zip(validation, hypotheses, strict=True))[:3]:
        print(f"  {example.text.lower()}\n  {hypothesis}")
    print(f"teacher head: validation WER {errors.wer:.1%}, CER {errors.cer:.1%}")
    with whole_folder(paths.teacher_head) as folder:
        save_head(head, errors.wer, folder)
        set_aside.write(folder)
    write_json(
        paths.metrics / "teacher.json",
        {
            "head": {"wer": errors.wer, "cer": errors.cer},
            "steps": steps,
            "seconds": time.perf_counter() - started,
            "set_aside": len(set_aside.items),
        },
    )


if __name__ == "__main__":
    run_stage(main)
