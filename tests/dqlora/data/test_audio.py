import io
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import soxr

from dqlora.data.audio import (
    SAMPLE_RATE,
    BadAudio,
    audible,
    check_speech,
    read_audio,
    stream_audio,
    to_float32,
    to_int16,
)
from tests.conftest import RATE, cut_data_chunk, tone, wav_bytes
from tests.recordings import (
    CONTAINERS,
    SECONDS,
    SOUND,
    of_unknown_length,
    recording,
    with_length,
    with_video,
    without_xing,
)

SPEECH = tone(2.0)


def ogg(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE, format="OGG", subtype="OPUS")
    return file.getvalue()


def changed(file: bytes, at: int, value: int) -> bytes:
    return file[:at] + value.to_bytes(2, "little") + file[at + 2 :]


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (b"", "empty file"),
        (b"this is no recording, it is a text", "not readable as audio"),
        (wav_bytes(SPEECH[:0]), "no samples"),
        (cut_data_chunk(wav_bytes(SPEECH)), "truncated"),
        (ogg(SPEECH)[:3000], "truncated"),
        (changed(wav_bytes(SPEECH), 24, 8000), "contradictory header"),
        (changed(wav_bytes(SPEECH), 22, 2), "contradictory header"),
        (wav_bytes(np.full(8000, np.nan, np.float32), subtype="FLOAT"), "NaN"),
        (wav_bytes(np.where(np.arange(32000) == 9, np.inf, SPEECH).astype(np.float32), subtype="FLOAT"), "NaN"),
        (wav_bytes(np.zeros(32000, np.float32)), "silent"),
        (wav_bytes(5e-4 * SPEECH, subtype="FLOAT"), r"silent \(a peak of -\d+ dBFS\)"),
        (wav_bytes(np.clip(20 * SPEECH, -1, 1)), "clipped"),
        (wav_bytes(32767 * np.clip(20 * SPEECH, -1, 1), subtype="FLOAT"), "clipped"),
        (wav_bytes(SPEECH) + wav_bytes(SPEECH)[36:], "two chunks of samples"),
        (wav_bytes(tone(0.1)), "0.10 s, shorter"),
        (wav_bytes(tone(60.0)), "60.0 s, longer"),
    ],
)
def test_bad_audio_is_named(file: bytes, reason: str) -> None:
    with pytest.raises(BadAudio, match=reason):
        check_speech(read_audio(file))


def is_whole(samples: np.ndarray, times: int = 1) -> bool:
    """Whether it is SOUND, that many times; an encoder may add or delay 0.1 s."""
    return 0 <= len(samples) - times * len(SOUND) < times * 0.1 * SAMPLE_RATE


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_is_read_to_its_end(container: str) -> None:
    samples = read_audio(recording(container))
    assert is_whole(samples)
    if container not in ("aac", "m4a", "vorbis", "opus", "webm"):  # those that keep the phase, at no delay
        found = samples[: len(SOUND)]
        assert np.corrcoef(found, SOUND)[0, 1] > 0.99
        assert np.std(found) == pytest.approx(np.std(SOUND), rel=0.06)


WAV, AU, FLAC, VORBIS, OPUS, MP3 = map(recording, ("wav", "au", "flac", "vorbis", "opus", "mp3"))
BYTES = 2 * len(SOUND)
WHOLE = {
    **{f"wav of length {length:#x}": with_length(WAV, length) for length in (
        0, 0x7FFFF000, 0x7FFFFF00, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FFFFFFF - 36,
        BYTES + 1, BYTES + 2, BYTES + 44, BYTES - 1, BYTES - 2, BYTES - 100, BYTES // 2
    )},
    "wav, a chunk after": WAV + b"LIST\4\0\0\0INFO",
    "wav, an odd chunk before": WAV[:36] + b"LIST\5\0\0\0INFOa\0" + WAV[36:],
    "wav, junk after": WAV + bytes(range(128)),
    "flac of unknown length": of_unknown_length(FLAC),
    "flac after ID3": b"ID3\4\0\0\0\0\x10\0" + bytes(2048) + FLAC,
    "mp3 after ID3": b"ID3\4\0\0\0\0\x10\0" + bytes(2048) + MP3,
    "wav after ID3": b"ID3\4\0\0\0\0\x10\0" + bytes(2048) + WAV,
    "au of unknown length": AU[:8] + b"\xff" * 4 + AU[12:],
    "mp3 before ID3": MP3 + b"TAG" + bytes(125),
    "mp3 without a length": without_xing(MP3),
    "mp3 without a length, 48 kHz": without_xing(recording("mp3 48 kHz vbr")),
    "ogg, junk after": VORBIS + bytes(300),
    "webm of unknown length": recording("webm").replace(b"\x44\x89\x88", b"\xec\x89\0"),  # Duration becomes Void
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_a_header_that_says_nothing_or_not_the_truth(name: str) -> None:
    assert is_whole(read_audio(WHOLE[name]))


@pytest.mark.parametrize(
    "parts",
    [
        ("vorbis", "vorbis"),
        ("opus", "opus"),
        ("vorbis", "opus"),
        ("wav", "wav"),
        ("wav", "wav 24 bit"),
        ("mp3", "mp3"),
        ("flac", "flac"),
        ("aiff", "aiff"),
    ],
    ids=" ".join,
)
def test_joined_files_are_read_to_the_end_of_the_last(parts: tuple[str, ...]) -> None:
    file = b"".join(map(recording, parts))
    assert is_whole(read_audio(file), len(parts))


@pytest.mark.parametrize("container", ["vorbis", "opus"])
def test_ogg_without_an_end_mark(container: str) -> None:
    file = recording(container)
    samples = read_audio(file[: file.rindex(b"OggS")])
    assert 1.0 < len(samples) / SAMPLE_RATE < SECONDS


@pytest.mark.parametrize("ratio", [0.3, 0.7, 0.9])
@pytest.mark.parametrize("container", [name for name in CONTAINERS if name != "aac"])
def test_a_truncated_file_is_named(container: str, ratio: float) -> None:
    file = recording(container)
    with pytest.raises(BadAudio, match=r"truncated|damaged|not readable"):
        read_audio(file[: round(ratio * len(file))])


VIDEOS = {
    "mkv": ("matroska", "aac"),
    "mkv, opus": ("matroska", "libopus"),
    "mkv, pcm": ("matroska", "pcm_s16le"),
    "avi": ("avi", "pcm_s16le"),
    "avi, mp3": ("avi", "libmp3lame"),
    "flv": ("flv", "aac", "flv"),
    "mov": ("mov", "aac"),
}


@pytest.mark.parametrize("name", VIDEOS)
def test_a_video_is_read_to_its_end_or_named(name: str) -> None:
    file = with_video(*VIDEOS[name])
    assert is_whole(read_audio(file))
    for ratio in (0.3, 0.5, 0.9):
        with pytest.raises(BadAudio, match=r"truncated|damaged|not readable"):
            read_audio(file[: round(ratio * len(file))])


@pytest.mark.parametrize("seconds", [1.0, 1.25, 2.5, 2.99])
@pytest.mark.parametrize("container", ["caf alac", "mka mp3", "avi"])
def test_no_end_is_lost_or_missed(container: str, seconds: float) -> None:
    assert len(read_audio(recording(container, seconds))) == pytest.approx(seconds * SAMPLE_RATE, abs=2)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"])
def test_wav_with_its_highest_bytes_first(subtype: str) -> None:
    file = io.BytesIO()
    soundfile.write(file, SPEECH, RATE, format="WAV", subtype=subtype, endian="BIG")
    np.testing.assert_allclose(read_audio(file.getvalue()), SPEECH, atol=0.02)
    with pytest.raises(BadAudio, match="truncated"):
        read_audio(file.getvalue()[:-2000])


@pytest.mark.parametrize("factor", [1.5, 3.0, 100.0, 32768.0, 2.0**31])
@pytest.mark.parametrize("layout", ["WAV", "AIFF", "CAF", "AU", "W64"])
def test_floats_beyond_full_scale_are_scaled_and_not_clipped(layout: str, factor: float) -> None:
    file = io.BytesIO()
    loud = factor / np.abs(SPEECH).max() * SPEECH
    loud[777] = 30 * factor  # a click does not set the level
    soundfile.write(file, np.stack([loud, loud], axis=1), RATE, format=layout, subtype="FLOAT")
    samples = read_audio(file.getvalue())
    check_speech(samples)
    samples[777] = loud[777] = 0
    stored = to_float32(to_int16(samples))
    assert 0.9 < np.abs(samples).max() < 1.1
    assert np.corrcoef(stored, loud)[0, 1] > 0.9999


@pytest.mark.parametrize("level", [0.1, 1.0])
@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_a_normal_level_stays_as_it_is(subtype: str, level: float) -> None:
    samples = to_float32(to_int16(level / np.abs(SPEECH).max() * SPEECH))
    assert np.array_equal(audible(read_audio(wav_bytes(samples, subtype=subtype))), samples)


@pytest.mark.parametrize("level", [1e-2, 1e-3, 1e-5])
def test_a_quiet_sound_keeps_its_bits(level: float) -> None:
    assert np.corrcoef(to_int16(audible(level * SPEECH)), SPEECH)[0, 1] > 0.9999


def test_digital_silence_stays_silent() -> None:
    assert not audible(np.zeros(RATE, np.float32)).any()
    assert not len(audible(np.zeros(0, np.float32)))


@pytest.mark.parametrize("name", ["flac", "vorbis", "opus", "mp3", "m4a", "webm", "webm of unknown length"])
def test_a_hole_in_a_file_is_named(name: str) -> None:
    file = bytearray(WHOLE.get(name) or recording(name))
    start = len(file) // 2
    file[start : start + len(file) // 10] = bytes(len(file) // 10)
    with pytest.raises(BadAudio, match=r"damaged|truncated"):
        read_audio(bytes(file))


def stereo(left: np.ndarray, right: np.ndarray) -> bytes:
    return wav_bytes(np.stack([left, right], axis=1))


HISS = 0.1 * np.random.default_rng(0).standard_normal((2, len(SPEECH))).astype(np.float32)


@pytest.mark.parametrize(
    ("file", "least"),
    [
        (stereo(SPEECH, SPEECH), 1.0),
        (stereo(SPEECH, -SPEECH), 1.0),
        (stereo(0.3 * SPEECH, -SPEECH), 0.6),
        (stereo(SPEECH, 0 * SPEECH), 0.5),
        (stereo(0 * SPEECH, SPEECH), 0.5),
        (stereo(SPEECH + HISS[0], -SPEECH + HISS[1]), 0.9),
        (wav_bytes(np.stack([0 * SPEECH, SPEECH, -SPEECH, SPEECH, -SPEECH, 0 * SPEECH], axis=1)), 0.6),
    ],
    ids=["same", "opposed", "quieter and opposed", "right dead", "left dead", "opposed in noise", "six"],
)
def test_channels_do_not_cancel(file: bytes, least: float) -> None:
    samples = read_audio(file)
    assert abs(samples @ SPEECH) / (SPEECH @ SPEECH) > least - 0.01


def test_opposed_channels_do_not_jump_between_blocks() -> None:
    """Which of the two is louder changes, and with it the one that the other is held against."""
    sine = np.sin(2 * np.pi * 200 * np.arange(40 * RATE) / RATE).astype(np.float32)
    louder = np.where(np.arange(len(sine)) % (20 * RATE) < 10 * RATE, 0.5, 0.3).astype(np.float32)
    samples = read_audio(stereo(louder * sine, (louder - 0.8) * sine))
    assert np.abs(np.diff(samples)).max() < 0.05


@pytest.mark.parametrize("container", ["wav", "flac"])
def test_16_bits_stay_as_they_are(container: str) -> None:
    expected = soundfile.read(io.BytesIO(recording(container)), dtype="int16")[0]
    assert np.array_equal(to_int16(read_audio(recording(container))), expected)


def test_a_length_that_is_not_known_is_none() -> None:
    assert stream_audio(io.BytesIO(WAV))[0] == pytest.approx(SECONDS)
    for name in ("wav of length 0xffffffff", "flac of unknown length", "mp3 without a length"):
        assert stream_audio(io.BytesIO(WHOLE[name]))[0] is None


@pytest.mark.parametrize("content", [b"#EXTM3U\n#EXTINF:1,\nsecret.wav\n", b"ffconcat version 1.0\nfile secret.wav\n"])
def test_a_playlist_opens_no_other_file(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("secret.wav").write_bytes(WAV)
    with pytest.raises(BadAudio, match="not readable as audio"):
        read_audio(content)


@pytest.mark.parametrize("container", CONTAINERS)
def test_no_mutation_escapes(container: str) -> None:
    """Bits, spans and ends of a file changed at random: it is named, or read whole, in bounded time and memory."""
    rng = np.random.default_rng([*container.encode()])
    whole = recording(container, 0.6)
    least = len(read_audio(whole)) - 0.1 * SAMPLE_RATE
    for _ in range(MUTATIONS):
        file = mutated(whole, rng)
        try:
            samples = read_audio(file)
        except BadAudio:
            continue
        assert samples.ndim == 1
        assert np.isfinite(samples).all()
        # A header that says another rate, encoding or number of channels makes another file that is as good as this
        # one; so is a file that was cut off where its header has lost the length too
        if len(samples) < least and len(file) > len(whole) - 3 * MUTATED_BYTES:
            assert coding(file) != coding(whole)


MUTATIONS = 200  # of each container
MUTATED_BYTES = 64  # at most, at one place


def coding(file: bytes) -> tuple[str, int, int]:
    """As FFmpeg finds it in the header."""
    with av.open(io.BytesIO(file), metadata_errors="replace") as container:
        stream = container.streams.audio[0]
        return stream.codec.name, stream.rate, stream.channels


def mutated(file: bytes, rng: np.random.Generator) -> bytes:
    data = bytearray(file)
    for _ in range(rng.integers(1, 4)):
        data = data or bytearray(1)
        limit = len(data) if rng.random() < 0.5 else min(200, len(data))  # headers more often
        at, length = int(rng.integers(limit)), int(rng.integers(1, MUTATED_BYTES))
        match rng.integers(6):
            case 0:
                data[at] ^= 1 << int(rng.integers(8))
            case 1:
                data[at : at + length] = rng.bytes(length)
            case 2:
                data[at : at + length] = bytes([rng.choice([0, 0x7F, 0xFF])]) * length
            case 3:
                del data[at : at + length]
            case 4:
                data[at:at] = rng.bytes(length)
            case 5:
                del data[max(1, at) :]
    return bytes(data)


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
