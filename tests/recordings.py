"""One sound in every container that tests read."""

import io
import struct
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
import soundfile
import soxr

from tests.conftest import RATE, tone

SECONDS = 3.0
SOUND = tone(SECONDS)
LIBSNDFILE = {  # format, subtype, rate, channels
    "wav": ("WAV", "PCM_16", 16_000, 1),
    "wav 8 bit": ("WAV", "PCM_U8", 8_000, 1),
    "wav 24 bit": ("WAV", "PCM_24", 44_100, 2),
    "wav 32 bit": ("WAV", "PCM_32", 48_000, 1),
    "wav float": ("WAV", "FLOAT", 96_000, 1),
    "wav double": ("WAV", "DOUBLE", 16_000, 1),
    "wav mu-law": ("WAV", "ULAW", 8_000, 1),
    "wav extensible": ("WAVEX", "PCM_16", 48_000, 6),
    "rf64": ("RF64", "PCM_16", 16_000, 1),
    "w64": ("W64", "PCM_16", 11_025, 1),
    "aiff": ("AIFF", "PCM_16", 44_100, 1),
    "aiff float": ("AIFF", "FLOAT", 16_000, 1),
    "au": ("AU", "PCM_16", 16_000, 1),
    "caf": ("CAF", "PCM_16", 16_000, 1),
    "caf alac": ("CAF", "ALAC_16", 16_000, 1),
    "w64 adpcm": ("W64", "MS_ADPCM", 16_000, 1),
    "voc": ("VOC", "PCM_16", 16_000, 1),
    "sph": ("NIST", "PCM_16", 16_000, 1),
    "flac": ("FLAC", "PCM_16", 16_000, 1),
    "flac 24 bit": ("FLAC", "PCM_24", 96_000, 2),
    "vorbis": ("OGG", "VORBIS", 44_100, 2),
    "opus": ("OGG", "OPUS", 48_000, 1),
    "mp3": ("MP3", None, 44_100, 1),
    "mp3 48 kHz vbr": ("MP3", None, 48_000, 1),
    "mp3 8 kHz": ("MP3", None, 8_000, 1),
}
FFMPEG = {
    "m4a": ("ipod", "aac"),
    "webm": ("webm", "libopus"),
    "aac": ("adts", "aac"),
    "mkv": ("matroska", "pcm_s16le"),
    "mka mp3": ("matroska", "libmp3lame"),
    "avi": ("avi", "pcm_s16le"),
}
CONTAINERS = [*LIBSNDFILE, *FFMPEG]


@cache
def recording(container: str, seconds: float = SECONDS) -> bytes:
    """SOUND, or its beginning, in a file's bytes."""
    sound = SOUND[: round(seconds * RATE)]
    if container in FFMPEG:
        return _by_ffmpeg(sound, *FFMPEG[container])
    layout, subtype, rate, channels = LIBSNDFILE[container]
    samples = soxr.resample(sound, RATE, rate)
    file = io.BytesIO()
    options = {"bitrate_mode": "VARIABLE", "compression_level": 0.3} if "vbr" in container else {}
    soundfile.write(file, np.stack([samples] * channels, axis=1), rate, format=layout, subtype=subtype, **options)
    return file.getvalue()


def with_video(layout: str, codec: str, pictures: str = "mpeg4") -> bytes:
    """SOUND beside a black picture, 25 times a second."""
    return _by_ffmpeg(SOUND, layout, codec, pictures)


def _by_ffmpeg(sound: np.ndarray, layout: str, codec: str, pictures: str = "") -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder, "sound")
        with av.open(path, "w", format=layout) as container:
            stream = container.add_stream(codec, rate=44_100 if layout == "flv" else 48_000, layout="mono")
            if pictures:
                video = container.add_stream(pictures, rate=25, width=64, height=64, pix_fmt="yuv420p")
                for picture in [*(av.VideoFrame(64, 64, "yuv420p") for _ in range(round(25 * SECONDS))), None]:
                    container.mux(video.encode(picture))
            frame = av.AudioFrame.from_ndarray(soxr.resample(sound, RATE, 48_000)[None], format="fltp", layout="mono")
            frame.sample_rate = 48_000
            resampler = av.AudioResampler(stream.format, stream.layout, stream.rate)
            for part in [*resampler.resample(frame), *resampler.resample(None), None]:
                container.mux(stream.encode(part))
        return path.read_bytes()


def without_xing(mp3: bytes) -> bytes:
    """An MP3 file without its first frame, in which its length stands."""
    head = struct.unpack(">I", mp3[:4])[0]
    kbps = [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320][head >> 12 & 15]
    rate = [44_100, 48_000, 32_000][head >> 10 & 3]
    return mp3[144_000 * kbps // rate + (head >> 9 & 1) :]


def with_length(wav: bytes, length: int) -> bytes:
    """A WAV file with another length of its data chunk in the header."""
    at = wav.index(b"data") + 4
    return wav[:at] + struct.pack("<I", length) + wav[at + 4 :]


def of_unknown_length(flac: bytes) -> bytes:
    """As a program writes it to a pipe: total samples 0 in STREAMINFO."""
    return flac[:21] + bytes([flac[21] & 0xF0]) + bytes(4) + flac[26:]
