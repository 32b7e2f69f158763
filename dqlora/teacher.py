"""The teacher: a frozen Whisper. Its encoder gives features, its decoder transcripts, a head on the encoder letters."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer

from dqlora.audio import FRAMES_PER_SECOND, SAMPLE_RATE
from dqlora.config import TeacherHead as HeadSettings
from dqlora.errors import UserError
from dqlora.storage import write_json
from dqlora.student import frame_centre


class Teacher:
    """Whisper out of a safetensors folder, frozen."""

    def __init__(self, folder: Path, device: torch.device):
        # bf16 on a GPU; fp32 on the CPU, where half precision is slow and rounds differently from machine to machine
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        try:
            self.model = WhisperForConditionalGeneration.from_pretrained(
                folder, dtype=dtype, device_map={"": device}, use_safetensors=True, local_files_only=True
            )
            self._extractor = WhisperFeatureExtractor.from_pretrained(folder, local_files_only=True)
            self._tokenizer = WhisperTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"{folder}: cannot be loaded as a Whisper model ({reason})") from None
        self.model.requires_grad_(False).eval()

    @property
    def width(self) -> int:
        return self.model.config.d_model

    def _log_mel(self, clips: list[np.ndarray]) -> Tensor:
        """Log-mel spectrogram [clips, 80 or 128, 3000] of clips padded to Whisper's window of 30 s."""
        inputs = self._extractor(clips, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        return inputs.to(self.model.device, self.model.dtype)

    @torch.inference_mode()
    def encode(self, clips: list[np.ndarray]) -> list[np.ndarray]:
        """Encoder features of each clip, float16 [ceil(50 seconds), width]; the padding's frames are dropped.

        Parameters
        ----------
        clips
            float32 [samples] each, at 16 kHz, at most 30 s.
        """
        hidden = self.model.model.encoder(self._log_mel(clips)).last_hidden_state
        counts = (math.ceil(FRAMES_PER_SECOND * len(clip) / SAMPLE_RATE) for clip in clips)
        return [rows[:count].half().cpu().numpy() for rows, count in zip(hidden, counts, strict=True)]

    @torch.inference_mode()
    def transcribe(self, clips: list[np.ndarray], language: str) -> list[str]:
        """Greedy transcripts of clips, float32 [samples] at 16 kHz, at most 30 s."""
        multilingual = (
            {"language": language, "task": "transcribe"}
            if getattr(self.model.generation_config, "is_multilingual", False)
            else {}
        )
        tokens = self.model.generate(
            self._log_mel(clips), num_beams=1, do_sample=False, max_new_tokens=200, **multilingual
        )
        return [text.strip() for text in self._tokenizer.batch_decode(tokens, skip_special_tokens=True)]


def aligned_frames(student_config: Any, student_frames: int, teacher_frames: int) -> np.ndarray:
    """The teacher's frame nearest in time to each of the student's, int64 [student_frames].

    A student frame is centred on its receptive field, 12.5 ms after the hop starts. A Whisper frame is centred on
    the hop's start: its STFT is centred, and both convolutions are symmetric. So frame i of the student lies
    nearest to frame i + 1 of the teacher.
    """
    centres = np.array([frame_centre(student_config, frame) for frame in range(student_frames)])
    nearest = np.rint(centres * FRAMES_PER_SECOND).astype(np.int64)
    return np.minimum(nearest, teacher_frames - 1)


class TeacherHead(nn.Module):
    """Reads the student's letters out of the teacher's features: convolution, transformer layers, linear."""

    def __init__(self, width: int, vocabulary: int, settings: HeadSettings):
        super().__init__()
        self.mask_share = settings.mask_share
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
        if self.training and self.mask_share:
            hidden = hidden * _spans_kept(hidden, self.mask_share)
        hidden = self.convolution(hidden.transpose(1, 2)).transpose(1, 2)
        hidden = self.dropout(nn.functional.gelu(hidden))
        for layer in self.layers:
            hidden = layer(hidden, src_key_padding_mask=padding)
        return self.letters(hidden)


def _spans_kept(hidden: Tensor, share: float, span: int = 10) -> Tensor:
    """1 where a frame is kept, 0 in masked spans of `span` frames that cover about `share`. [batch, longest, 1]."""
    starts = (torch.rand(hidden.shape[:2], device=hidden.device) < share / span).float()
    covered = nn.functional.max_pool1d(nn.functional.pad(starts, (span - 1, 0)), span, stride=1)
    return 1.0 - covered[..., None]


def save_head(head: TeacherHead, settings: HeadSettings, validation_wer: float, folder: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in head.state_dict().items()}, folder / "head.safetensors")
    shape = {"width": head.norm.normalized_shape[0], "vocabulary": head.letters.out_features}
    write_json(folder / "config.json", {**shape, "settings": settings.model_dump(), "validation_wer": validation_wer})


def load_head(folder: Path, device: torch.device) -> tuple[TeacherHead, float]:
    """The head that `save_head` wrote, frozen, and its validation WER."""
    try:
        config = json.loads((folder / "config.json").read_text())
        head = TeacherHead(config["width"], config["vocabulary"], HeadSettings(**config["settings"]))
        head.load_state_dict(load_file(folder / "head.safetensors"))
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder}: unreadable teacher head ({error}); run `dvc repro train_teacher_head`") from None
    return head.requires_grad_(False).eval().to(device), config["validation_wer"]
