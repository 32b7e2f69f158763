"""Frames of student and teacher that are nearest in time."""

from typing import Any

import numpy as np

from dqlora.data.audio import FRAMES_PER_SECOND
from dqlora.models.wav2vec2 import frame_centre


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
