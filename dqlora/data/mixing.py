"""Noisy speech: an utterance and a noise recording, mixed at a given SNR."""

import numpy as np

from dqlora.data.audio import to_float32, to_int16

PEAK = 0.999  # largest sample of a mixture; where it would clip, the mixture as a whole is scaled down to this
CUTS = 20  # places of a recording to try before its loudest is taken
OFFSET = 0.1  # of the power, above which a constant offset counts: it would shift the SNR by 0.5 dB
PAUSE = 1e-3  # of the recording's mean power: a cut below it lies in a pause


def without_offset(samples: np.ndarray) -> np.ndarray:
    """float32 [samples] without their mean where that makes more than OFFSET of their power: nobody hears it."""
    mean = samples.mean(dtype=np.float64)
    return (samples - mean).astype(np.float32) if mean**2 > OFFSET * power(samples) else samples


def sounding_part(noise: np.ndarray, samples: int) -> np.ndarray:
    """The first `samples` of a recording, or the loudest where it is silent there; without an offset."""
    first = without_offset(noise[:samples])
    return first if power(first) > PAUSE * power(without_offset(noise)) else _loudest_part(noise, samples)


def _loudest_part(noise: np.ndarray, samples: int) -> np.ndarray:
    sums, squares = (
        np.cumsum(np.append(0, values)) for values in (noise.astype(np.float64), np.square(noise, dtype=float))
    )
    count = min(samples, len(noise))
    variance = (squares[count:] - squares[:-count]) - (sums[count:] - sums[:-count]) ** 2 / count
    start = int(variance.argmax())
    return without_offset(noise[start : start + count])


def fit_noise(noise: np.ndarray, samples: int, generator: np.random.Generator) -> np.ndarray:
    """Noise of exactly `samples` samples: short noise is tiled, long noise is cut at a random place.

    A recording that pauses may be silent where it is cut; then another place is drawn, and after CUTS of them its
    loudest part is taken.

    Parameters
    ----------
    noise
        float32 [any length].

    Returns
    -------
    float32 [samples], without an offset.
    """
    if len(noise) <= samples:
        start = generator.integers(len(noise))
        return without_offset(np.resize(np.roll(noise, -start), samples))
    for _ in range(CUTS):
        start = generator.integers(len(noise) - samples + 1)
        cut = without_offset(noise[start : start + samples])
        if power(cut) > PAUSE * power(noise):
            return cut
    return _loudest_part(noise, samples)


def mix_at_snr(speech: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """Speech plus noise at `snr_db`, scaled down as a whole where it would clip, never clipped.

    SNR is 10 log10(mean(speech^2) / mean(noise^2)) over the utterance, in dB, both without an offset: that of the noise
    is taken out, that of the speech is left in the mixture.

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
    noise = without_offset(noise)
    speech_power, noise_power = power(without_offset(speech)), power(noise)
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
