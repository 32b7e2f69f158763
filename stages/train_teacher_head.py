"""Train the head that predicts the student's tokens from Whisper's features: models/<preset>/teacher_head."""

import torch
from transformers import Wav2Vec2Config

from dqlora.config import Paths, load_params, load_preset
from dqlora.config import TeacherHead as HeadSettings
from dqlora.data.audio import to_float32
from dqlora.data.batching import Example
from dqlora.data.labels import labelled
from dqlora.data.storage import RaggedArray, atomic_directory, write_json
from dqlora.data.text import Vocabulary, frames_needed
from dqlora.device import default_device
from dqlora.errors import Rejected, UserError, run_stage
from dqlora.evaluation.metrics import count_errors
from dqlora.models.alignment import student_frames_at
from dqlora.models.teacher_head import TeacherHead, load_head, save_head, transcribe_head
from dqlora.models.wav2vec2 import EncoderCTC, cnn_features, load_student
from dqlora.progress import ProgressBar
from dqlora.seeding import seed_torch
from dqlora.training.head_loop import train_head


def base_logits(paths: Paths, quantize: str, device: torch.device) -> dict[str, torch.Tensor]:
    """The base student's logits on each clean training clip, at the teacher's frames."""
    model = load_student(paths.student, quantize, device)
    student = EncoderCTC(model)
    features, clean = RaggedArray(paths.teacher_features / "train"), labelled(paths, "train")
    lengths = {item["utterance"]: item["length"] for item in features.items}
    targets = {}
    with torch.inference_mode():
        for name, length in ProgressBar(lengths.items(), "student transcribes clean speech", unit=" clips"):
            cnn = cnn_features(model, to_float32(clean[name]))
            logits = student(cnn[None], torch.tensor([len(cnn)], device=device))[0]
            targets[name] = logits[student_frames_at(model.config, len(cnn), length)].half().cpu()
    return targets


def load_examples(
    paths: Paths, split: str, vocabulary: Vocabulary, targets: dict[str, torch.Tensor], rejected: Rejected
) -> list[Example]:
    """The teacher's features of one split with their labels; texts that do not fit their frames are rejected.

    Raises
    ------
    UserError
        if no example is left.
    """
    features, clean = RaggedArray(paths.teacher_features / split), labelled(paths, split)
    examples = []
    for item in features.items:
        text = clean.item(item["utterance"])["text"]
        labels = vocabulary.encode(text)
        if frames_needed(labels) > item["length"]:
            rejected.add(split, item["id"], "more labels than frames")
            continue
        examples.append(Example(features[item["id"]], labels, text, targets.get(item["utterance"])))
    if not examples:
        raise UserError(
            f"{paths.clean / split}: every transcript has more labels than its audio has frames; check the transcripts "
            "of speech.path"
        )
    return examples


def start_head(paths: Paths, settings: HeadSettings, width: int, vocabulary: int, device: torch.device) -> TeacherHead:
    """The head that the preset starts from, or a new one."""
    if not paths.pretrained_head.exists():
        return TeacherHead(width, vocabulary, settings).to(device)
    head = load_head(paths.pretrained_head, device)[0].requires_grad_(True)
    if (head.width, head.vocabulary) != (width, vocabulary):
        raise UserError(
            f"{paths.pretrained_head}: predicts {head.vocabulary} tokens from features of width {head.width}; the "
            f"student has {vocabulary} and the teacher {width}: set the preset's teacher_head.path: scratch"
        )
    return head


def main() -> None:
    params = load_params()
    preset = load_preset(params.preset)
    paths = Paths(params.preset)
    settings, steps = params.teacher_head, preset.teacher_head.steps
    vocabulary = Vocabulary.load(paths.student / "vocab.json")
    tokens = Wav2Vec2Config.from_pretrained(paths.student).vocab_size  # some students write more than vocab.json lists
    device = default_device()
    rejected = Rejected()
    targets = base_logits(paths, params.student.quantize, device) if settings.frame_sync_weight and steps else {}
    training = load_examples(paths, "train", vocabulary, targets, rejected)
    validation = load_examples(paths, "validation", vocabulary, {}, rejected)
    seed_torch(params.seed, "head")
    head = start_head(paths, settings, training[0].features.shape[1], tokens, device)
    train_head(head, training, vocabulary.blank, settings, steps, preset.budget.batch_seconds, params.seed)
    hypotheses = transcribe_head(head, validation, vocabulary)
    errors = count_errors([example.text for example in validation], hypotheses, preset.speech.language)
    for example, hypothesis in list(zip(validation, hypotheses, strict=True))[:3]:
        print(f"  said:  {example.text.lower()}\n  heard: {hypothesis}")
    untrained = "" if steps or paths.pretrained_head.exists() else " (untrained: the preset's teacher_head.steps is 0)"
    print(f"teacher head: validation WER {errors.wer:.1%}, CER {errors.cer:.1%}{untrained}")
    with atomic_directory(paths.teacher_head) as folder:
        save_head(head, errors.wer, folder)
        rejected.write(folder)
    write_json(
        paths.metrics / "teacher.json",
        {
            "head": {"wer": errors.wer, "cer": errors.cer},
            "steps": steps,
            "rejected": len(rejected.items),
        },
    )


if __name__ == "__main__":
    run_stage(main)
