"""The training loop of the teacher's head."""

from collections.abc import Sequence

import torch

from dqlora.config import TeacherHead as HeadSettings
from dqlora.data.audio import FRAMES_PER_SECOND
from dqlora.data.batching import Example, collate, endless_batches
from dqlora.models.teacher_head import TeacherHead
from dqlora.progress import ProgressBar
from dqlora.seeding import seed_torch
from dqlora.training.losses import ctc_loss, kl_divergence
from dqlora.training.schedule import warmup_cosine


def train_head(
    head: TeacherHead,
    training: Sequence[Example],
    blank: int,
    settings: HeadSettings,
    steps: int,
    batch_seconds: float,
    seed: int,
) -> None:
    """Train by CTC, and at first also towards the student's logits on the clean speech (`Example.target`).

    CTC alone leaves the head its own timing: it peaks a frame or two before the student does, and its KL then pulls the
    student's peaks apart. The weight of the KL, `settings.frame_sync_weight`, falls linearly to 0 over the first half.
    """
    device = next(head.parameters()).device
    optimiser = torch.optim.AdamW(head.parameters(), lr=settings.learning_rate, weight_decay=0.01)
    longest = round(batch_seconds * FRAMES_PER_SECOND)
    batches = endless_batches([len(example.features) for example in training], longest, seed)
    head.train()
    with ProgressBar(range(steps), "teacher head", unit=" steps") as bar:
        for step in bar:
            batch = collate([training[position] for position in next(batches)]).to(device)
            seed_torch(seed, "head", step)
            for group in optimiser.param_groups:
                group["lr"] = settings.learning_rate * warmup_cosine(step, steps, settings.warmup_ratio)
            frames = batch.frames.to(device)
            logits = head(batch.features.float(), frames)
            loss = ctc_loss(logits, batch.frames, batch.labels, batch.label_lengths, blank) / len(batch.frames)
            frame_sync = settings.frame_sync_weight * max(0.0, 1 - 2 * step / steps)
            if frame_sync and batch.target is not None:
                kl = kl_divergence(logits, batch.target, frames) / frames.sum()
                (loss + frame_sync * kl).backward()
            else:
                loss.backward()
            torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
            if step % 20 == 0:
                bar.set_postfix(loss=f"{loss.item():.2f}")
    head.eval()
