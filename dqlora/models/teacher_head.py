"""The teacher's head: predicts the student's tokens from the teacher's features. The model and its file."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dqlora.config import TeacherHead as HeadSettings
from dqlora.data.batching import Example, length_mask, pad_features
from dqlora.data.storage import read_json, write_json
from dqlora.data.text import Vocabulary
from dqlora.errors import UserError
from dqlora.models.wav2vec2 import draw_time_mask


class TeacherHead(nn.Module):
    """The student's tokens from the teacher's features: convolution, transformer layers, linear."""

    def __init__(self, width: int, vocabulary: int, settings: HeadSettings):
        super().__init__()
        self.width, self.vocabulary, self.settings = width, vocabulary, settings
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
        padding = ~length_mask(frames, features.shape[1])  # [batch, longest]
        hidden = self.norm(features).masked_fill(padding[..., None], 0.0)
        if self.training and self.settings.mask_ratio:
            time_mask = draw_time_mask(hidden.shape[0], hidden.shape[1], self.settings.mask_ratio).to(hidden.device)
            hidden = hidden.masked_fill(time_mask[..., None], 0.0)
        hidden = self.convolution(hidden.transpose(1, 2)).transpose(1, 2)
        hidden = self.dropout(nn.functional.gelu(hidden))
        for layer in self.layers:
            hidden = layer(hidden, src_key_padding_mask=padding)
        return self.letters(hidden)

    @torch.inference_mode()
    def clip_logits(self, features: Tensor) -> Tensor:
        """Logits [frames, vocabulary] of one clip's features [frames, width]."""
        return self(features[None].float(), torch.tensor([len(features)], device=features.device))[0]


def save_head(head: TeacherHead, validation_wer: float, folder: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in head.state_dict().items()}, folder / "head.safetensors")
    config = {
        "width": head.width,
        "vocabulary": head.vocabulary,
        "settings": head.settings.model_dump(),
        "validation_wer": validation_wer,
    }
    write_json(folder / "config.json", config)


def load_head(folder: Path, device: torch.device) -> tuple[TeacherHead, float]:
    """The head that `save_head` wrote, frozen, and its validation WER."""
    try:
        config = read_json(folder / "config.json", "give the folder of a whole teacher head")
        head = TeacherHead(config["width"], config["vocabulary"], HeadSettings(**config["settings"]))
        head.load_state_dict(load_file(folder / "head.safetensors"))  # float16 is widened
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder}: unreadable teacher head ({error})") from None
    return head.float().requires_grad_(False).eval().to(device), config["validation_wer"]


def transcribe_head(head: TeacherHead, examples: Sequence[Example], vocabulary: Vocabulary) -> list[str]:
    """The head's greedy transcripts."""
    device = next(head.parameters()).device
    features = (pad_features([example.features])[0][0].to(device) for example in examples)
    return [vocabulary.decode(head.clip_logits(rows).argmax(-1).tolist()) for rows in features]
