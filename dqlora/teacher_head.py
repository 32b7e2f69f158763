"""The head that reads the student's letters out of the teacher's features: the model, its training, its file."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from dqlora.audio import FRAMES_PER_SECOND
from dqlora.batching import Example, collate, endless_batches
from dqlora.config import TeacherHead as HeadSettings
from dqlora.errors import UserError
from dqlora.losses import ctc_loss, kl_divergence
from dqlora.randomness import seed_torch
from dqlora.storage import write_json
from dqlora.student import pad_features, time_mask
from dqlora.text import Vocabulary
from dqlora.training import warmup_cosine


class TeacherHead(nn.Module):
    """Reads the student's letters out of the teacher's features: convolution, transformer layers, linear."""

    def __init__(self, width: int, vocabulary: int, settings: HeadSettings):
        super().__init__()
        self.width, self.symbols, self.settings = width, vocabulary, settings
        self.norm = nn.LayerNorm(width)
        self.convolution = nn.Conv1d(width, settings.hidden, kernel_size=5, padding=2)
        self.dropout = nn.Dropout(settings.dropout)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                settings.hidden,
                nhead=4,
                dim_feedforward=4 * settings.hidden,
                dropout=settings.dropout,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(settings.layers)
        )
        self.letters = nn.Linear(settings.hidden, vocabulary)

    def forward(self, features: Tensor, frames: Tensor) -> Tensor:
        """Logits [batch, longest, vocabulary].

        Parameters
        ----------
        features
            [batch, longest, width], padded.
        frames
            int64 [batch], how many of each are speech.
        """
        padding = torch.arange(features.shape[1], device=features.device) >= frames[:, None]  # [batch, longest]
        hidden = self.norm(features).masked_fill(padding[..., None], 0.0)
        if self.training and self.settings.mask_share:
            masked = time_mask(hidden.shape[0], hidden.shape[1], self.settings.mask_share).to(hidden.device)
            hidden = hidden.masked_fill(masked[..., None], 0.0)
        hidden = self.convolution(hidden.transpose(1, 2)).transpose(1, 2)
        hidden = self.dropout(nn.functional.gelu(hidden))
        for layer in self.layers:
            hidden = layer(hidden, src_key_padding_mask=padding)
        return self.letters(hidden)


def save_head(head: TeacherHead, validation_wer: float, folder: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in head.state_dict().items()}, folder / "head.safetensors")
    shape = {"width": head.width, "vocabulary": head.symbols}
    config = {**shape, "settings": head.settings.model_dump(), "validation_wer": validation_wer}
    write_json(folder / "config.json", config)


def load_head(folder: Path, device: torch.device) -> tuple[TeacherHead, float]:
    """The head that `save_head` wrote, frozen, and its validation WER."""
    try:
        config = json.loads((folder / "config.json").read_text())
        head = TeacherHead(config["width"], config["vocabulary"], HeadSettings(**config["settings"]))
        head.load_state_dict(load_file(folder / "head.safetensors"))  # float16 is widened
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder}: unreadable teacher head ({error})") from None
    return head.float().requires_grad_(False).eval().to(device), config["validation_wer"]


def train_head(
    head: TeacherHead,
    training: Sequence[Example],
    blank: int,
    settings: HeadSettings,
    steps: int,
    batch_seconds: float,
    seed: int,
) -> None:
    """Train by CTC, and at first also towards the student's letters on the clean speech (`Example.teacher`).

    CTC alone leaves the head its own clock: it peaks a frame or two before the student does, and its KL then pulls
    the student's peaks apart. The weight of the KL, `settings.clock`, falls linearly to 0 over the first half.
    """
    device = next(head.parameters()).device
    optimiser = torch.optim.AdamW(head.parameters(), lr=settings.learning_rate, weight_decay=0.01)
    longest = round(batch_seconds * FRAMES_PER_SECOND)
    batches = endless_batches([len(example.features) for example in training], longest, seed)
    head.train()
    with tqdm(range(steps), "teacher head", unit=" step") as bar:
        for step in bar:
            batch = collate([training[position] for position in next(batches)]).to(device)
            seed_torch(seed, "head", step)
            for group in optimiser.param_groups:
                group["lr"] = settings.learning_rate * warmup_cosine(step, steps, settings.warmup_share)
            frames = batch.frames.to(device)
            logits = head(batch.features.float(), frames)
            loss = ctc_loss(logits, batch.frames, batch.labels, batch.label_lengths, blank) / len(batch.frames)
            clock = settings.clock * max(0.0, 1 - 2 * step / steps)
            if clock and batch.teacher is not None:
                kl = kl_divergence(logits, batch.teacher, frames) / frames.sum()
                (loss + clock * kl).backward()
            else:
                loss.backward()
            torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
            if step % 20 == 0:
                bar.set_postfix(loss=f"{loss.item():.2f}")
    head.eval()


@torch.inference_mode()
def head_logits(head: TeacherHead, features: Tensor) -> Tensor:
    """Logits [frames, vocabulary] of one clip's features [frames, width]."""
    return head(features[None].float(), torch.tensor([len(features)], device=features.device))[0]


def read(head: TeacherHead, examples: Sequence[Example], vocabulary: Vocabulary) -> list[str]:
    """The head's greedy transcripts."""
    device = next(head.parameters()).device
    features = (pad_features([example.features])[0][0].to(device) for example in examples)
    return [vocabulary.decode(head_logits(head, rows).argmax(-1).tolist()) for rows in features]
