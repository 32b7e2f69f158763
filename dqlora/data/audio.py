"""Audio in arrays: float32 in [-1, 1], 16 kHz, mono; int16 on disk."""

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

SAMPLE_RATE = 16_000  # samples per second: wav2vec 2.0 and Whisper both hear 16 kHz
FRAME_HOP = 320  # samples from one frame to the next, of the student's CNN and of Whisper's encoder
FRAMES_PER_SECOND = SAMPLE_RATE // FRAME_HOP  # 50
MAX_SECONDS = 30.0  # Whisper's window
MIN_SECONDS = 0.3  # shorter than the shortest word in the corpora seen here
SILENCE_PEAK = 1e-3  # -60 dBFS: nothing that a listener would take for speech
AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".w64"}  # libsndfile reads them
BLOCK_SECONDS = 10  # of a long recording, decoded at a time
OGG_PAGE = 27 + 255 + 255 * 255  # bytes of the largest page (RFC 3533)
CLIPPED_RATIO = 0.01  # ratio of samples at full scale above which a recording counts as clipped


class BadAudio(ValueError):
    """A recording that cannot be used; the message is the reason, in a few words."""


def read_audio(source: Path | bytes) -> np.ndarray:
    """Decode a recording of any format, rate and channel count that libsndfile reads.

    Parameters
    ----------
    source
        A file's path, or a file's bytes.

    Returns
    -------
    float32 array [samples], 16 kHz, channels averaged.

    Raises
    ------
    BadAudio
        missing, empty, truncated, unreadable, or with samples that are not finite.
    """
    if isinstance(source, Path):
        try:
            source = source.read_bytes()
        except FileNotFoundError:
            raise BadAudio("no such file") from None
        except OSError as error:
            raise BadAudio(f"cannot be read ({error.strerror})") from None
    if not source:
        raise BadAudio("empty file")
    if _is_cut_off(io.BytesIO(source)):
        raise BadAudio("truncated file")
    try:
        channels, rate = soundfile.read(io.BytesIO(source), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise BadAudio(_unreadable(error)) from None
    if len(channels) == 0:
        raise BadAudio("no samples")
    if not np.isfinite(channels).all():
        raise BadAudio("NaN or infinite samples")
    return to_16khz(channels.mean(axis=1), rate)


def stream_audio(file: BinaryIO) -> tuple[float, Iterator[np.ndarray]]:
    """Decode a recording of any length, a few seconds at a time.

    Parameters
    ----------
    file
        open and seekable; of any format, rate and channel count that libsndfile reads.

    Returns
    -------
    Its length in seconds, and an iterator over float32 [samples], 16 kHz, channels averaged.

    Raises
    ------
    BadAudio
        empty, truncated, unreadable or, while it is read, with samples that are not finite.
    """
    if not file.seek(0, io.SEEK_END):
        raise BadAudio("empty file")
    if _is_cut_off(file):
        raise BadAudio("truncated file")
    file.seek(0)
    try:
        sound = soundfile.SoundFile(file)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise BadAudio(_unreadable(error)) from None
    if sound.frames == 0:
        raise BadAudio("no samples")
    return sound.frames / sound.samplerate, _blocks(sound)


def _blocks(sound: soundfile.SoundFile) -> Iterator[np.ndarray]:
    resampler = soxr.ResampleStream(sound.samplerate, SAMPLE_RATE, 1, dtype="float32")
    while True:
        try:
            channels = sound.read(BLOCK_SECONDS * sound.samplerate, dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, RuntimeError) as error:
            raise BadAudio(_unreadable(error)) from None
        if not np.isfinite(channels).all():
            raise BadAudio("NaN or infinite samples")
        last = len(channels) < BLOCK_SECONDS * sound.samplerate
        mono = np.ascontiguousarray(channels.mean(axis=1))
        yield mono if sound.samplerate == SAMPLE_RATE else resampler.resample_chunk(mono, last=last)
        if last:
            return


def _unreadable(error: Exception) -> str:
    return f"not readable as audio ({str(error).rstrip('.').split(': ')[-1]})"


def to_16khz(samples: np.ndarray, rate: int) -> np.ndarray:
    """Resample float32 [samples] from `rate` (Hz) to 16 kHz."""
    if rate == SAMPLE_RATE:
        return np.ascontiguousarray(samples, np.float32)
    return soxr.resample(samples, rate, SAMPLE_RATE).astype(np.float32)


def check_speech(samples: np.ndarray) -> None:
    """Raise BadAudio if 16 kHz speech is too short, too long, silent or clipped."""
    seconds = len(samples) / SAMPLE_RATE
    if seconds < MIN_SECONDS:
        raise BadAudio(f"{seconds:.2f} s, shorter than {MIN_SECONDS} s")
    if seconds > MAX_SECONDS:
        raise BadAudio(f"{seconds:.1f} s, longer than the teacher's window of {MAX_SECONDS:.0f} s")
    check_sound(samples)


def check_sound(samples: np.ndarray) -> None:
    """Raise BadAudio if a recording is empty, silent or clipped."""
    peak = np.abs(samples).max(initial=0.0)
    if peak < SILENCE_PEAK:
        raise BadAudio("silent")
    clipped = np.mean(np.abs(samples) >= 0.999)
    if clipped > CLIPPED_RATIO:
        raise BadAudio(f"clipped ({clipped:.0%} of its samples at full scale)")


def to_int16(samples: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)


def to_float32(samples: np.ndarray) -> np.ndarray:
    return samples.astype(np.float32) / 32768.0


def _is_cut_off(file: BinaryIO) -> bool:
    """Whether a WAV or Ogg file ends before its own header says it does (libsndfile reads such a file in silence)."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(12)
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        while len(chunk := file.read(8)) == 8:
            name, length = chunk[:4], struct.unpack("<I", chunk[4:])[0]
            if name == b"data":
                return length != 0xFFFFFFFF and file.tell() + length > size  # 0xFFFFFFFF: streamed, length unknown
            file.seek(length + length % 2, io.SEEK_CUR)
        return True
    if head[:4] == b"OggS":
        file.seek(max(0, size - OGG_PAGE))
        tail = file.read()
        last_page = tail.rfind(b"OggS")
        if last_page + 27 > len(tail):
            return True
        segments = tail[last_page + 26]
        end = last_page + 27 + segments + sum(tail[last_page + 27 : last_page + 27 + segments])
        is_last = bool(tail[last_page + 5] & 4)  # RFC 3533: header type flag 0x04, last page of the stream
        return end > len(tail) or not is_last
    return False
