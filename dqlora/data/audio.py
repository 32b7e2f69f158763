"""Audio in arrays: float32 in [-1, 1], 16 kHz, mono; int16 on disk."""

import io
import re
import struct
import zlib
from collections.abc import Iterator
from itertools import chain, groupby, pairwise
from pathlib import Path
from typing import Any, BinaryIO, cast

import av
import numpy as np
import soundfile
import soxr

from dqlora.errors import BadAudio

SAMPLE_RATE = 16_000  # samples per second: wav2vec 2.0 and Whisper both hear 16 kHz
FRAME_HOP = 320  # samples from one frame to the next, of the student's CNN and of Whisper's encoder
FRAMES_PER_SECOND = SAMPLE_RATE // FRAME_HOP  # 50
MAX_SECONDS = 30.0  # Whisper's window
MIN_SECONDS = 0.3  # shorter than the shortest word in the corpora seen here
SILENCE_PEAK = 1e-3  # -60 dBFS: nothing that a listener would take for speech
QUIET_PEAK = 0.02  # -34 dBFS: 16 bits leave nine to a sound whose peak is lower, and its voice is not detected
RAISED_PEAK = 0.5  # to which such a sound is scaled
CLIPPED_RATIO = 0.01  # ratio of samples at full scale above which a recording counts as clipped
BLOCK_SECONDS = 10  # of a long recording, decoded at a time
LOUDEST = 2.0**32  # of floating-point samples: some are written in the range of 32-bit integers
STRAY = 1e-4  # ratio of samples that may be louder than what is taken for a recording's peak: clicks, damaged ones
RATES = (2_000, 400_000)  # samples per second: what lies outside is a damaged header
SLACK_SECONDS = 0.05  # a length in a header may be wrong by this much: less than a phone lasts
REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
OGG_PAGE = 27 + 255 + 255 * 255  # bytes of the largest page (RFC 3533)
OGG_HEADER = 27  # bytes of a page before its table of segments (RFC 3533)
TRAILER_BYTES = 2048  # of a WebM file that does not say its length, after its last packet: an index, tags
TRIMMED_FRAMES = 4  # of MP3: an encoder's delay and padding, which its header has players leave out, are shorter
OPPOSED = -0.3  # correlation of two channels below which one is taken as the other with its poles swapped

# FFmpeg's demuxers that hold the sound themselves; its playlists, which open other files and addresses, are none
CONTAINERS = "aac,aiff,amr,ape,asf,au,avi,caf,flac,flv,matroska,mov,mp3,mpegts,nistsphere,ogg,rm,tta,voc,w64,wav,wv"
AUDIO_SUFFIXES = {
    *(".wav", ".wave", ".rf64", ".w64", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2", ".aiff", ".aif", ".aifc"),
    *(".au", ".snd", ".caf", ".sph", ".voc", ".m4a", ".mp4", ".aac", ".webm", ".mka", ".mkv", ".3gp", ".amr", ".wma"),
}

CODEC_OPTIONS = {
    "flac": {"err_detect": "crccheck"},
    "caf": {"flags2": "skip_manual"},  # or the end of ALAC is left out twice
}

# Of files made of chunks, by their first bytes: where the first chunk begins, how its header is laid out (name,
# length), how much of its header the length counts, and to how many bytes a chunk is padded
CHUNKS = {
    b"RIFF": (12, struct.Struct("<4sI"), 0, 2),  # WAV
    b"RF64": (12, struct.Struct("<4sI"), 0, 2),
    b"RIFX": (12, struct.Struct(">4sI"), 0, 2),  # WAV, its highest bytes first
    b"FORM": (12, struct.Struct(">4sI"), 0, 2),  # AIFF
    b"caff": (8, struct.Struct(">4sq"), 0, 1),
    b"riff": (40, struct.Struct("<16sQ"), 24, 8),  # W64
}
VOC = b"Creative Voice File\x1a"
EBML, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"  # of Matroska and WebM: the header, and all that follows it
UNCOMPRESSED = (1, 3, 6, 7, 0xFFFE)  # of WAV's codings: integer, float, A-law, mu-law, extensible
# Lengths that stand for "unknown" in what was written to a pipe, where no program can go back to fill in the real one:
# sox 0x7ffff000, arecord 0x7fffff00, others 0x80000000, 0xffffffff, -1 or 0
UNKNOWN_LENGTHS = (range(-1, 1), range(0x7FFF0000, 0x80000001), range(0xFFFF0000, 0x100000000))
SLACK_BYTES = 128  # by which a chunk's length may be too large: some count the header in


def read_audio(source: Path | bytes) -> np.ndarray:
    """Decode a recording of any format, rate and channel count that FFmpeg reads.

    Parameters
    ----------
    source
        A file's path, or a file's bytes.

    Returns
    -------
    float32 array [samples], 16 kHz, channels averaged as in `stream_audio`.

    Raises
    ------
    BadAudio
        missing, or as `stream_audio`.
    """
    if isinstance(source, Path):
        try:
            with source.open("rb") as file:
                return np.concatenate([*stream_audio(file)[1]])
        except FileNotFoundError:
            raise BadAudio("no such file") from None
        except OSError as error:
            raise BadAudio(f"cannot be read ({error.strerror})") from None
    return np.concatenate([*stream_audio(io.BytesIO(source))[1]])


def stream_audio(file: BinaryIO) -> tuple[float | None, Iterator[np.ndarray]]:
    """Decode a recording of any length, a few seconds at a time, to its very end.

    Parameters
    ----------
    file
        open and seekable; of any format, rate and channel count that FFmpeg reads.

    Returns
    -------
    Its length in seconds as its header has it, None where it does not say, and an iterator over float32 [samples],
    16 kHz. The channels are averaged; one that is another with its poles swapped is swapped back, or the two would
    cancel. Floating-point samples beyond full scale, as of a file in the range of integers, are scaled by their peak.

    Raises
    ------
    BadAudio
        empty, truncated, unreadable or, while it is read, damaged, shorter than its header says, without samples, or
        with samples that are not finite.
    """
    size = file.seek(0, io.SEEK_END)
    if not size:
        raise BadAudio("empty file")
    if tag := min(size, _id3_bytes(file)):
        file, size = cast(BinaryIO, _Part(file, tag, size)), size - tag
    starts, runs_on = _chunk_layout(file, size)
    starts = starts or _ogg_layout(file, size) or [0]
    _check_blocks(file, size)
    parts = [_Part(file, start, end) for start, end in pairwise([*starts, size])]
    seconds = _open(parts[0], runs_on).seconds
    frames = chain.from_iterable(_frames(part, runs_on) for part in parts)
    return seconds if len(parts) == 1 else None, _blocks(frames)


Frame = tuple[int, np.ndarray]  # samples per second, and float32 [samples, channels] in [-1, 1]


class _Part(io.RawIOBase):
    """Bytes `start` to `end` of an open file, as a file: files that were joined are decoded one after another."""

    def __init__(self, file: BinaryIO, start: int, end: int):
        self._file, self._start, self._size, self._at = file, start, end - start, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._start + self._at)
        content = self._file.read(min(len(buffer), max(0, self._size - self._at)))
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


def _open(file: _Part, ignore_length: bool) -> "_Libsndfile | _FFmpeg":
    """With FFmpeg, unless libsndfile reads it better.

    FFmpeg decodes Opus at 48 kHz only, and to resample that changes speech of 16 kHz; it takes the bytes of RIFX in the
    wrong order.
    """
    file.seek(0)
    head = file.read(OGG_HEADER + 255)
    file.seek(0)
    if b"OpusHead" in head or head[:4] == b"RIFX":
        return _Libsndfile(file)
    return _FFmpeg(file, ignore_length)


def _frames(file: _Part, ignore_length: bool) -> Iterator[Frame]:
    """The frames of one file, scaled by their peak where it is beyond full scale and nothing was lost by that."""
    sound = _open(file, ignore_length)
    if not sound.has_headroom:
        yield from sound.frames()
        return
    peak = 1.0
    for (rate, _), run in _runs(sound.frames()):
        for block in _batched(run, BLOCK_SECONDS * rate):
            with np.errstate(invalid="ignore"):  # such values are found later
                peak = max(peak, float(np.quantile(np.abs(block), 1 - STRAY)))
    peak = peak if peak < LOUDEST else 1.0
    for rate, frame in _open(file, ignore_length).frames():
        yield rate, frame / np.float32(peak)


class _Libsndfile:
    """One file, opened with libsndfile."""

    def __init__(self, file: _Part):
        try:
            self._sound = soundfile.SoundFile(file)
        except (soundfile.LibsndfileError, RuntimeError) as error:
            raise BadAudio(_unreadable(error)) from None
        self.seconds = self._sound.frames / self._sound.samplerate
        self.has_headroom = self._sound.subtype in ("FLOAT", "DOUBLE")

    def frames(self) -> Iterator[Frame]:
        done, block = 0, BLOCK_SECONDS * self._sound.samplerate
        try:
            while len(channels := self._sound.read(block, dtype="float32", always_2d=True)):
                done += len(channels)
                yield self._sound.samplerate, channels
        except (soundfile.LibsndfileError, RuntimeError) as error:
            raise BadAudio(_unreadable(error)) from None
        if done < self._sound.frames - SLACK_SECONDS * self._sound.samplerate:
            raise BadAudio(f"damaged file ({done / self._sound.samplerate:.1f} of {self.seconds:.1f} s)")


class _FFmpeg:
    """The first audio stream of one file, opened with FFmpeg.

    FFmpeg reads what it can and says nothing of the rest, so that what comes out is held to what the header promises.
    """

    def __init__(self, file: _Part, ignore_length: bool):
        has_frame_count = _has_frame_count(file)
        file.seek(0)
        options = {"format_whitelist": CONTAINERS, "ignore_length": str(int(ignore_length))}
        try:
            self._container = av.open(file, "r", options=options, metadata_errors="replace")
        except (av.FFmpegError, ValueError) as error:
            raise BadAudio(_unreadable(error)) from None
        if not self._container.streams.audio:
            raise BadAudio("no audio in the file")
        self._stream = self._container.streams.audio[0]
        if self._stream.codec_context is None:
            raise BadAudio("encoded in a way that FFmpeg does not know")
        self._format = self._container.format.name
        codec = self._stream.codec_context
        codec.options = CODEC_OPTIONS.get(self._format, {})
        self.has_headroom = codec.codec.lossless and str(codec.format and codec.format.name)[:3] in ("flt", "dbl")
        seconds = None if ignore_length else self._declared(has_frame_count)
        self.seconds = seconds if seconds and seconds < self._container.size else None  # no coding is that sparse

    def _declared(self, has_frame_count: bool) -> float | None:
        """Seconds in the header, None where it has none and FFmpeg's are an estimate from the bit rate."""
        if self._format == "mp3" and not has_frame_count:
            return None
        if self._format in ("aac", "amr", "mpegts"):
            return None
        if self._stream.duration and self._stream.time_base:
            return float(self._stream.duration * self._stream.time_base)
        if self._container.duration and len(self._container.streams) == 1:
            return self._container.duration / av.time_base
        return None

    def frames(self) -> Iterator[Frame]:
        done = coded = longest = 0.0  # s: decoded, in the packets, in one of them
        largest = packet_end = 0  # bytes of a packet that was decoded; where the last packet ends
        expected = failed = None
        try:
            for packet in self._container.demux(self._stream):
                if failed:
                    raise BadAudio(f"damaged or truncated file (at {done:.1f} s)")
                seconds = float((packet.duration or 0) * packet.time_base)
                coded, longest = coded + seconds, max(longest, seconds)
                packet_end = max(packet_end, (packet.pos or 0) + packet.size)
                try:
                    frames = packet.decode()
                except av.FFmpegError:
                    failed = packet
                    continue
                largest = max(largest, packet.size)
                for frame in frames:
                    if self._format in ("ogg", "flac") and frame.pts is not None:
                        start = frame.pts * float(frame.time_base or 0)
                        if expected is not None and start > expected + SLACK_SECONDS:
                            raise BadAudio(f"damaged file ({start - expected:.1f} s missing at {done:.1f} s)")
                        expected = start + frame.samples / frame.sample_rate
                    done += frame.samples / frame.sample_rate
                    yield frame.sample_rate, _float32(frame)
        except (av.FFmpegError, ValueError) as error:
            raise error if isinstance(error, BadAudio) else BadAudio(_unreadable(error)) from None
        heard, slack = done, SLACK_SECONDS
        if "matroska" in self._format:
            heard = max(done, coded)  # its header counts what a decoder leaves out at the ends
        if self._format == "avi":
            slack += longest  # its header counts whole packets
        if self.seconds is not None and heard < self.seconds - slack:
            raise BadAudio(f"truncated file ({done:.1f} of {self.seconds:.1f} s)")
        if self._format == "mp3" and coded - done > TRIMMED_FRAMES * longest:
            raise BadAudio(f"damaged file ({coded - done:.1f} s are left out)")
        is_unmeasured = self.seconds is None and "matroska" in self._format and not self._container.streams.video
        if is_unmeasured and packet_end < self._container.size - TRAILER_BYTES:
            raise BadAudio(f"damaged file (at {done:.1f} s)")
        # the last frame of MP3 and AAC that were broken off is no fault; what is larger than a frame has lost others
        if failed and (self._format not in ("mp3", "aac") or failed.size > largest):
            raise BadAudio(f"damaged or truncated file (at {done:.1f} s)")


def _runs(frames: Iterator[Frame]) -> Iterator[tuple[tuple[int, int], Iterator[np.ndarray]]]:
    """Stretches of one sample rate and number of channels, and float32 [samples, channels] of each."""
    for key, run in groupby(frames, lambda frame: (frame[0], frame[1].shape[1])):
        yield key, (frame for _, frame in run)


def _blocks(frames: Iterator[Frame]) -> Iterator[np.ndarray]:
    """float32 [samples], 16 kHz, of some seconds each."""
    total = 0
    for (rate, channels), run in _runs(frames):
        if not RATES[0] <= rate <= RATES[1]:
            raise BadAudio(f"a sample rate of {rate} Hz")
        resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
        signs = np.ones(channels, np.float32)
        for block in _batched(run, BLOCK_SECONDS * rate):
            if not (np.abs(block) < LOUDEST).all():
                raise BadAudio("NaN or infinite samples")
            signs = _aligned(block, signs)
            mono = np.ascontiguousarray((block * signs).mean(axis=1))
            total += len(mono)
            yield mono if rate == SAMPLE_RATE else resampler.resample_chunk(mono)
        if rate != SAMPLE_RATE:
            yield resampler.resample_chunk(np.empty(0, np.float32), last=True)
    if not total:
        raise BadAudio("no samples")


def _batched(frames: Iterator[np.ndarray], samples: int) -> Iterator[np.ndarray]:
    """float32 [samples or a little more, channels], until the frames end."""
    held: list[np.ndarray] = []
    for frame in frames:
        held.append(frame)
        if sum(map(len, held)) >= samples:
            yield np.concatenate(held)
            held = []
    if held:
        yield np.concatenate(held)


def _float32(frame: av.AudioFrame) -> np.ndarray:
    """float32 [samples, channels] in [-1, 1]."""
    values = frame.to_ndarray()
    values = values.T if frame.format.is_planar else values.reshape(-1, frame.layout.nb_channels)
    if values.dtype == np.uint8:
        return (values.astype(np.float32) - 128) / 128
    scale = 2.0 ** (8 * values.itemsize - 1) if np.issubdtype(values.dtype, np.integer) else 1.0
    with np.errstate(over="ignore", invalid="ignore"):  # such values are found later
        return values.astype(np.float32) / np.float32(scale)


def _aligned(block: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Signs, float32 [channels], by which no channel of float32 [samples, channels] is opposed to the loudest one."""
    if block.shape[1] == 1:
        return before
    power = np.square(block, dtype=np.float64).sum(axis=0)
    loudest = int(power.argmax())
    products = block.T @ block[:, loudest]
    signs = np.where(products < OPPOSED * np.sqrt(power * power[loudest]), -1, 1).astype(np.float32)
    return signs if signs @ before >= 0 else -signs  # no jump from one block to the next


def _unreadable(error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"not readable as audio ({reason}); if it is a recording, convert it: ffmpeg -i FILE out.wav"


def _chunk_layout(file: BinaryIO, size: int) -> tuple[list[int], bool]:
    """Of a WAV, AIFF, CAF or W64 file: where each of the files joined in it begins, and whether to read on to its end.

    Raises
    ------
    BadAudio
        if it ends before its own header says it does.
    """
    file.seek(0)
    head = file.read(12)
    kind = head[:4]
    if kind not in CHUNKS or (kind[:1] in b"RF" and head[8:12] not in (b"WAVE", b"AIFF", b"AIFC")):
        return [], False
    position, header, counted, padding = CHUNKS[kind]
    starts = [0]
    sound = long_length = None  # bytes of the sound chunk, and those that RF64 gives it elsewhere
    after_sound = False
    while position < size:
        file.seek(position)
        raw = file.read(header.size)
        name, length = header.unpack(raw.ljust(header.size, b"\0"))
        begin = position + header.size
        end = begin + max(0, length - counted)
        if after_sound:
            after_sound = False
            if not name[:4].strip().isalnum() or end > size + SLACK_BYTES:
                if kind in (b"RIFF", b"RF64", b"RIFX") or not sound:
                    return starts, True
                if size - position > SLACK_BYTES:
                    raise BadAudio("sound beyond the length in its header")
                break
            if not sound:
                raise BadAudio("no samples")
            if name in (b"RIFF", b"RIFX", b"FORM"):
                starts.append(position)
                position, sound = begin + 4, None
                continue
        if name == b"fmt ":
            _check_wav_format(file.read(16), ">" if kind == b"RIFX" else "<")
        if name == b"ds64":
            long_length = int.from_bytes(file.read(16)[8:], "little")
        if name[:4] in (b"data", b"SSND"):
            if sound is not None:
                raise BadAudio("two chunks of samples, of which programs read one; write it again with one")
            if kind == b"RF64" and length == 0xFFFFFFFF and long_length:
                length, end = long_length, begin + long_length
            if length and any(length in unknown for unknown in UNKNOWN_LENGTHS):
                return starts, True
            if end > size + SLACK_BYTES:
                raise BadAudio("truncated file")
            sound, after_sound = length - counted, True
        position = end + -length % padding
        if end < position <= size:
            file.seek(end)
            position = end if file.read(1) != b"\0" else position  # not padded after all
    if sound is None:
        raise BadAudio("truncated file")
    return starts, False


def _check_wav_format(chunk: bytes, order: str) -> None:
    """Raise BadAudio if uncompressed sound's `fmt ` chunk contradicts itself: nobody can tell which number is right."""
    if len(chunk) < 16:
        raise BadAudio("truncated file")
    coding, channels, rate, bytes_per_second, block, bits = struct.unpack(order + "HHIIHH", chunk)
    if coding in UNCOMPRESSED and (bytes_per_second not in (0, rate * block) or channels * bits > 8 * block):
        raise BadAudio(
            f"contradictory header ({rate} Hz, {channels} channels, {bits} bits, {bytes_per_second} bytes per second); "
            "if it sounds right, convert it: ffmpeg -i FILE out.wav"
        )


def _check_blocks(file: BinaryIO, size: int) -> None:
    """Raise BadAudio if an AVI, Matroska, WebM, VOC or FLV file ends before its outermost blocks say it does."""
    file.seek(0)
    head, end = file.read(64), 0
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        length = int.from_bytes(head[4:8], "little")
        end = 0 if any(length in unknown for unknown in UNKNOWN_LENGTHS) else 8 + length - SLACK_BYTES
    elif head.startswith(EBML):
        length, begin = _ebml_number(head, len(EBML))
        file.seek(begin + length)
        segment = file.read(12)
        length, begin = _ebml_number(segment, len(SEGMENT))
        end = file.tell() - len(segment) + begin + length if segment.startswith(SEGMENT) else 0
    elif head.startswith((VOC, b"FLV")):
        is_voc = head.startswith(VOC)
        end, overhead = (26, 4) if is_voc else (13, 15)
        while end + 4 <= size:
            file.seek(end)
            block = file.read(4)
            if is_voc and not block[0]:
                break
            end += overhead + int.from_bytes(block[1:], "little" if is_voc else "big")
    if end > size:
        raise BadAudio("truncated file")


def _ebml_number(content: bytes, at: int) -> tuple[int, int]:
    """A length of EBML and where it ends (RFC 8794, section 4); 0 for one that is unknown, all of its bits set."""
    width = 9 - content[at].bit_length() if len(content) > at else 1
    value = int.from_bytes(content[at : at + width]) & ((1 << 7 * width) - 1)
    return (0 if value == (1 << 7 * width) - 1 else value), at + width


def _ogg_layout(file: BinaryIO, size: int) -> list[int]:
    """Where each of the Ogg files joined in one begins (RFC 3533, "chaining"), none where it is no Ogg file.

    Raises
    ------
    BadAudio
        if it ends within a page, or a page is not the one that was written: FFmpeg leaves it out.
    """
    file.seek(0)
    if file.read(4) != b"OggS":
        return []
    starts: list[int] = []
    position, was_first = 0, False
    while position < size:
        file.seek(position)
        page = file.read(OGG_HEADER + 255)
        if page[:4] != b"OggS":
            if b"OggS" in page + file.read(OGG_PAGE):
                raise BadAudio(f"damaged file (at byte {position})")
            break
        segments = page[OGG_HEADER - 1] if len(page) >= OGG_HEADER else 0
        end = position + OGG_HEADER + segments + sum(page[OGG_HEADER : OGG_HEADER + segments])
        if end > size:
            raise BadAudio("truncated file")
        file.seek(position)
        if _ogg_checksum(file.read(end - position)) != page[22:26]:
            raise BadAudio(f"damaged file (at byte {position})")
        is_first = bool(page[5] & 2)
        if is_first and not was_first:
            starts.append(position)
        position, was_first = end, is_first
    return starts


def _ogg_checksum(page: bytes) -> bytes:
    """CRC 32 by 0x04c11db7, the highest bit first (RFC 3533); zlib's is the same with the lowest bit first."""
    reflected = (page[:22] + bytes(4) + page[26:]).translate(REVERSED_BITS)
    checksum = zlib.crc32(reflected, 0xFFFFFFFF) ^ 0xFFFFFFFF
    return checksum.to_bytes(4, "big").translate(REVERSED_BITS)


def _id3_bytes(file: BinaryIO) -> int:
    """Length of the ID3 tag before the sound, of MP3 and of other formats (ID3v2, section 3.1: 7 bits a byte)."""
    file.seek(0)
    if (tag := file.read(10))[:3] != b"ID3":
        return 0
    return 10 + sum((byte & 0x7F) << shift for byte, shift in zip(tag[6:], (21, 14, 7, 0), strict=False))


def _has_frame_count(file: _Part) -> bool:
    """Whether an MP3 file has a Xing header whose count of frames is that of the whole file, not of its first part."""
    file.seek(0)
    xing = re.match(rb"\xff.{8,38}?(?:Xing|Info)\0\0\0([\3\7\x0b\x0f]).{4}(.{4})", file.read(64), re.DOTALL)
    return xing is not None and file.seek(0, io.SEEK_END) <= 17 / 16 * int.from_bytes(xing[2], "big")


def to_16khz(samples: np.ndarray, rate: float) -> np.ndarray:
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
    """Raise BadAudio if a recording is empty, silent (a constant is) or clipped."""
    peak = np.abs(samples - samples.mean()).max() if len(samples) else 0.0
    if peak < SILENCE_PEAK:
        raise BadAudio(f"silent (a peak of {20 * np.log10(peak):.0f} dBFS)" if peak else "silent")
    clipped = np.mean(np.abs(samples) >= 0.999)
    if clipped > CLIPPED_RATIO:
        raise BadAudio(f"clipped ({clipped:.0%} of its samples at full scale)")


def audible(samples: np.ndarray) -> np.ndarray:
    """float32 [samples], scaled to RAISED_PEAK where its peak is under QUIET_PEAK; else, and digital silence, as it is.

    Rounded to 16 bits afterwards it keeps its words, and a voice activity detector hears them.
    """
    peak = np.abs(samples).max(initial=0.0)
    return samples * np.float32(RAISED_PEAK / peak) if 0 < peak < QUIET_PEAK else samples


def to_int16(samples: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)


def to_float32(samples: np.ndarray) -> np.ndarray:
    return samples.astype(np.float32) / 32768.0
