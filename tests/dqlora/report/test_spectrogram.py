"""The picture of a spectrogram, read back."""

import struct
import zlib

import numpy as np
import pytest

from dqlora.report.spectrogram import COLUMNS, grey_png, spectrogram
from tests.conftest import RATE


@pytest.mark.parametrize("frequency", [500, 2000, 7000])
def test_a_tone_is_loudest_at_its_frequency_and_time(frequency: int) -> None:
    time = np.arange(2 * RATE) / RATE
    samples = np.where(time < 1, np.sin(2 * np.pi * frequency * time), 0).astype(np.float32)
    levels = spectrogram(samples)
    rows, columns = levels.shape
    loudest, at = np.unravel_index(levels.argmax(), levels.shape)
    assert (rows - 1 - loudest) * 8000 / (rows - 1) == pytest.approx(frequency, abs=20)
    assert at < columns / 2
    assert levels.max() == 255 and levels[:, -columns // 3 :].max() == 0


@pytest.mark.parametrize("samples", [10, 400, 401, 30 * RATE])
def test_any_length_has_a_picture_of_at_most_so_many_columns(samples: int) -> None:
    levels = spectrogram(np.random.default_rng(0).standard_normal(samples).astype(np.float32))
    assert 1 <= levels.shape[1] <= COLUMNS and levels.dtype == np.uint8
    assert spectrogram(np.zeros(samples, np.float32)).max() == 0


def test_a_png_has_the_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7)).astype(np.uint8)
    file = grey_png(pixels)
    assert file[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(file):
        (length,) = struct.unpack(">I", file[at : at + 4])
        kind, data = file[at + 4 : at + 8], file[at + 8 : at + 8 + length]
        assert struct.unpack(">I", file[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + data)
        chunks[kind] = data
        at += 12 + length
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    assert struct.unpack(">II", chunks[b"IHDR"][:8]) == (7, 5)
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(5, 8)
    np.testing.assert_array_equal(rows[:, 1:], pixels)
    assert not rows[:, 0].any()
