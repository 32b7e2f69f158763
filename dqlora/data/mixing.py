"""Noisy speech: an utterance and a noise recording, mixed at a given SNR."""

import numpy as np

from dqlora.data.audio import to_float32, to_int16

PEAK = 0.999  # largest sample of a mixture; where it would clip, the mixture as a whole is scaled down to this
CUTS = 20  # places of a recording to try before its loudest is taken
PAUSE = 1e-3  # of the recording's mean power: a cut below it lies in a pause


def fit_noise(noise: np.ndarray, samples: int, generator: np.random.Generator) -> np.ndarray:
    """Noise of exactly `samples` samples: short noise is tiled, long noise is cut at a random place.

    A recording that pauses may be silent where it is cut; then another place is drawn, and after CUTS of them the one
    around its loudest sample is taken.

    Parameters
    ----------
    noise
        float32 [any length].

    Returns
    -------
    float32 [samples].
    """
    if len(noise) <= samples:
        start = generator.integers(len(noise))
        return np.resize(np.roll(noise, -start), samples)
    for _ in range(CUTS):
        start = generator.integers(len(noise) - samples + 1)
        cut = noise[start : start + samples]
        if power(cut) > PAUSE * power(noise):
            return cut
    start = np.clip(np.abs(noise).argmax() - samples // 2, 0, len(noise) - samples)
    return noise[start : start + samples]


def mix_at_snr(speech: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """Speech plus noise at `snr_db`, scaled down as a whole where it would clip, never clipped.

    SNR is 10 log10(mean(speech^2) / mean(noise^2)) over the utterance, in dB.

    Parameters
    ----------
    speech, noise
        float32 [samples], of the same length.

    Returns
    -------
    float32 [samples].

    Raises
    ------
    ValueError
        if either is silent: no gain gives the SNR.
    """
    speech_power, noise_power = power(speech), power(noise)
    if speech_power == 0 or noise_power == 0:
        raise ValueError(f"{'speech' if speech_power == 0 else 'noise'} is silent: it has no SNR")
    gain = np.sqrt(speech_power / noise_power / 10 ** (snr_db / 10))
    mixture = speech.astype(np.float64) + gain * noise.astype(np.float64)
    return (mixture * min(1.0, PEAK / np.abs(mixture).max())).astype(np.float32)


def power(samples: np.ndarray) -> float:
    """Mean square of the samples, in float64."""
    return float(np.mean(np.square(samples, dtype=np.float64)))


def mix_int16(
    speech: np.ndarray, noise: np.ndarray, snr_db: float | None, generator: np.random.Generator
) -> np.ndarray:
    """`mix_at_snr` on int16 [samples] as stored, the noise fitted first; `snr_db` None leaves the speech clean."""
    if snr_db is None:
        return speech
    samples = to_float32(speech)
    return to_int16(mix_at_snr(samples, fit_noise(to_float32(noise), len(samples), generator), snr_db))
