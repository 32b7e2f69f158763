"""The teacher: a frozen Whisper. Its encoder gives features, its decoder transcripts."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer

from dqlora.audio import FRAMES_PER_SECOND, SAMPLE_RATE
from dqlora.errors import UserError
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
        device = str(self.model.device)
        inputs = self._extractor(clips, sampling_rate=SAMPLE_RATE, return_tensors="pt", device=device).input_features
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


def student_frames_at(student_config: Any, student_frames: int, teacher_frames: int) -> np.ndarray:
    """The student's frame nearest in time to each of the teacher's, int64 [teacher_frames]."""
    centres = np.array([frame_centre(student_config, frame) for frame in range(student_frames)])
    times = np.arange(teacher_frames) / FRAMES_PER_SECOND
    return np.abs(times[:, None] - centres).argmin(axis=1)
