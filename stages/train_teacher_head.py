"""Train the head that reads letters out of the teacher's features: models/<preset>/teacher_head."""

import time

import torch
from tqdm import tqdm

from dqlora.audio import FRAMES_PER_SECOND
from dqlora.batching import endless_batches
from dqlora.config import Budget, Paths, load_params, load_preset
from dqlora.config import TeacherHead as HeadSettings
from dqlora.errors import SetAside, run_stage
from dqlora.losses import ctc_loss
from dqlora.randomness import seed_torch
from dqlora.scoring import count_errors
from dqlora.storage import Packed, whole_folder, write_json
from dqlora.student import pad_features
from dqlora.teacher import TeacherHead, save_head
from dqlora.text import Vocabulary, frames_needed
from dqlora.training import Example, collate, warmup_cosine


def load_examples(paths: Paths, split: str, vocabulary: Vocabulary, set_aside: SetAside) -> list[Example]:
    """The teacher's features of one split with their labels; texts that do not fit their frames are set aside."""
    features, clean = Packed(paths.teacher_features / split), Packed(paths.clean / split)
    examples = []
    for item in features.items:
        text = clean.item(item["utterance"])["text"]
        labels = vocabulary.encode(text)
        if frames_needed(labels) > item["length"]:
            set_aside.add(split, item["id"], "more letters than frames")
            continue
        examples.append(Example(features[item["id"]], labels, text))
    return examples


def train_head(
    head: TeacherHead, training: list[Example], blank: int, settings: HeadSettings, budget: Budget, seed: int
) -> None:
    device = next(head.parameters()).device
    optimiser = torch.optim.AdamW(head.parameters(), lr=settings.learning_rate, weight_decay=0.01)
    longest = round(budget.batch_seconds * FRAMES_PER_SECOND)
    batches = endless_batches([len(example.features) for example in training], longest, seed)
    head.train()
    with tqdm(range(budget.head_steps), "teacher head", unit=" step") as steps:
        for step in steps:
            batch = collate([training[position] for position in next(batches)], device)
            seed_torch(seed, "head", step)
            for group in optimiser.param_groups:
                group["lr"] = settings.learning_rate * warmup_cosine(step, budget.head_steps, settings.warmup_share)
            logits = head(batch.features, batch.frames)
            loss = ctc_loss(logits, batch.frames, batch.labels, batch.label_lengths, blank) / len(batch.frames)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
            if step % 20 == 0:
                steps.set_postfix(loss=f"{loss.item():.2f}")
    head.eval()


@torch.inference_mode()
def read(head: TeacherHead, examples: list[Example], vocabulary: Vocabulary) -> list[str]:
    """The head's greedy transcripts."""
    device = next(head.parameters()).device
    hypotheses = []
    for example in examples:
        features, frames = pad_features([example.features])
        logits = head(features.to(device).float(), frames.to(device))
        hypotheses.append(vocabulary.decode(logits[0].argmax(-1).tolist()))
    return hypotheses


def main() -> None:
    params = load_params()
    preset = load_preset(params.preset)
    paths = Paths(params.preset)
    vocabulary = Vocabulary.load(paths.student / "vocab.json")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    set_aside = SetAside()
    training = load_examples(paths, "train", vocabulary, set_aside)
    validation = load_examples(paths, "validation", vocabulary, set_aside)
    started = time.perf_counter()
    seed_torch(params.seed, "head")
    head = TeacherHead(training[0].features.shape[1], len(vocabulary), params.teacher_head).to(device)
    train_head(head, training, vocabulary.blank, params.teacher_head, preset.budget, params.seed)
    hypotheses = read(head, validation, vocabulary)
    errors = count_errors([example.text for example in validation], hypotheses, preset.speech.language)
    for example, hypothesis in list(zip(validation, hypotheses, strict=True))[:3]:
        print(f"  {example.text.lower()}\n  {hypothesis}")
    print(f"teacher head: validation WER {errors.wer:.1%}, CER {errors.cer:.1%}")
    with whole_folder(paths.teacher_head) as folder:
        save_head(head, params.teacher_head, errors.wer, folder)
        set_aside.write(folder)
    write_json(
        paths.metrics / "teacher.json",
        {
            "head": {"wer": errors.wer, "cer": errors.cer},
            "steps": preset.budget.head_steps,
            "seconds": time.perf_counter() - started,
            "set_aside": len(set_aside.items),
        },
    )


if __name__ == "__main__":
    run_stage(main)
