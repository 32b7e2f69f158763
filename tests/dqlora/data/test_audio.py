import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from dqlora.data.audio import SAMPLE_RATE, BadAudio, check_speech, read_audio, stream_audio, to_float32, to_int16
from tests.conftest import RATE, cut_data_chunk, tone, wav_bytes

SPEECH = tone(2.0)


def ogg(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE, format="OGG", subtype="OPUS")
    return file.getvalue()


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (b"", "empty file"),
        (b"this is no recording, it is a text", "not readable as audio"),
        (wav_bytes(SPEECH[:0]), "no samples"),
        (cut_data_chunk(wav_bytes(SPEECH)), "truncated"),
        (ogg(SPEECH)[:3000], "truncated"),
        (wav_bytes(np.full(8000, np.nan, np.float32), subtype="FLOAT"), "NaN"),
        (wav_bytes(np.where(np.arange(32000) == 9, np.inf, SPEECH).astype(np.float32), subtype="FLOAT"), "NaN"),
        (wav_bytes(np.zeros(32000, np.float32)), "silent"),
        (wav_bytes(np.clip(20 * SPEECH, -1, 1)), "clipped"),
        (wav_bytes(tone(0.1)), "0.10 s, shorter"),
        (wav_bytes(tone(60.0)), "60.0 s, longer"),
    ],
)
def test_bad_audio_is_named(file: bytes, reason: str) -> None:
    with pytest.raises(BadAudio, match=reason):
        check_speech(read_audio(file))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(BadAudio, match="no such file"):
        read_audio(tmp_path / "missing.wav")
    with pytest.raises(BadAudio, match="cannot be read"):
        read_audio(tmp_path)


@pytest.mark.parametrize("rate", [8_000, 16_000, 48_000])
@pytest.mark.parametrize("channels", [1, 2, 10])
def test_any_rate_and_channels(rate: int, channels: int) -> None:
    time = np.arange(2 * rate) / rate
    sine = (0.3 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    samples = read_audio(wav_bytes(np.stack([sine] * channels, axis=1), rate))
    assert samples.dtype == np.float32
    assert len(samples) == 2 * SAMPLE_RATE
    spectrum = np.abs(np.fft.rfft(samples))
    assert abs(np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE)[spectrum.argmax()] - 440) < 1
    assert np.abs(samples).max() == pytest.approx(0.3, abs=0.01)


def test_int16_round_trip_is_within_half_a_step() -> None:
    assert np.abs(to_float32(to_int16(SPEECH)) - SPEECH).max() <= 0.5 / 32768 + 1e-9
    assert to_int16(np.array([1.0, -1.0])).tolist() == [32767, -32768]


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (16_000, 2), (44_100, 1), (48_000, 10)])
def test_a_stream_is_the_recording(rate: int, channels: int) -> None:
    samples = soxr.resample(tone(25.0), RATE, rate)
    file = io.BytesIO()
    soundfile.write(file, np.stack([samples] * channels, axis=1), rate, format="WAV")
    seconds, stream = stream_audio(file)
    found = np.concatenate(list(stream))
    expected = read_audio(file.getvalue())
    assert seconds == pytest.approx(25.0, abs=1e-3)
    assert len(found) == pytest.approx(len(expected), abs=2)
    np.testing.assert_allclose(found[: len(expected)][1000:-1000], expected[: len(found)][1000:-1000], atol=2e-3)


def test_a_stream_of_unknown_length_is_read_to_its_end() -> None:
    """As a program writes it into a pipe, where it cannot go back to fill in the lengths."""
    file = bytearray(wav_bytes(tone(3.0)))
    file[4:8] = file[40:44] = b"\xff" * 4
    _, stream = stream_audio(io.BytesIO(bytes(file)))
    assert sum(map(len, stream)) == 3 * RATE
