"""A spectrogram as a picture: levels of frequencies over time, as a grey PNG."""

import struct
import zlib

import numpy as np

from dqlora.data.audio import SAMPLE_RATE

WINDOW = SAMPLE_RATE // 40  # samples: 25 ms, as of Whisper's log-mel spectrogram
HOP = SAMPLE_RATE // 100  # samples: 10 ms
COLUMNS = 1200  # at most: as many as a wide page has pixels
RANGE = 60.0  # dB below the loudest that are still seen


def spectrogram(samples: np.ndarray) -> np.ndarray:
    """Levels, uint8 [frequencies, columns], of float32 [samples] at 16 kHz.

    The top row is 8 kHz, the bottom one 0 Hz; 255 is the loudest, 0 is RANGE dB below it, or less.
    """
    samples = np.pad(samples, (0, max(0, WINDOW - len(samples))))
    hop = max(HOP, -(-(len(samples) - WINDOW + 1) // COLUMNS))
    windows = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::hop]
    power = np.abs(np.fft.rfft(windows * np.hanning(WINDOW))) ** 2
    level = 10 * np.log10(np.maximum(power / max(power.max(), 1e-12), 10 ** (-RANGE / 10)))  # dB, from -RANGE to 0
    return np.rint(255 * (1 + level / RANGE)).astype(np.uint8).T[::-1]


def grey_png(pixels: np.ndarray) -> bytes:
    """A PNG file (W3C 2003) of grey pixels, uint8 [rows, columns]."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows, columns = pixels.shape
    unfiltered = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0)  # 8 bits a pixel, grey, not interlaced
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(unfiltered)) + chunk(b"IEND", b"")
    )
