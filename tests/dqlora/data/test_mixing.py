import numpy as np
import pytest

from dqlora.data.audio import SAMPLE_RATE
from dqlora.data.mixing import PEAK, fit_noise, mix_at_snr, power, sounding_part
from tests.conftest import tone

SPEECH = tone(3.0)


def snr_of(mixture: np.ndarray, speech: np.ndarray) -> float:
    """SNR of a mixture in dB, by projecting it on the speech: independent of how it was scaled."""
    mixture, speech = mixture.astype(np.float64), speech.astype(np.float64)
    scale = mixture @ speech / (speech @ speech)
    noise = mixture - scale * speech
    return float(10 * np.log10(np.mean((scale * speech) ** 2) / np.mean(noise**2)))


def orthogonal(noise: np.ndarray, speech: np.ndarray) -> np.ndarray:
    """Noise without its part along the speech, so that `snr_of` is exact."""
    speech = speech.astype(np.float64)
    return (noise - (noise @ speech) / (speech @ speech) * speech).astype(np.float32)


@pytest.mark.parametrize("snr_db", [-10.0, 0.0, 5.0, 12.5, 30.0])
@pytest.mark.parametrize("level", [1.0, 1e-3, 1e-7], ids=["loud", "quiet", "near-silent"])
@pytest.mark.parametrize("seconds", [0.2, 3.0, 20.0], ids=["short", "same", "long"])
def test_snr_is_the_one_asked_for(snr_db: float, level: float, seconds: float) -> None:
    rng = np.random.default_rng(0)
    noise = (level * rng.standard_normal(round(seconds * SAMPLE_RATE))).astype(np.float32)
    fitted = orthogonal(fit_noise(noise, len(SPEECH), rng), SPEECH)
    assert snr_of(mix_at_snr(SPEECH, fitted, snr_db), SPEECH) == pytest.approx(snr_db, abs=0.01)


def test_a_mixture_is_scaled_never_clipped() -> None:
    speech = 4 * SPEECH / np.abs(SPEECH).max() * 0.25
    noise = orthogonal(np.random.default_rng(0).standard_normal(len(speech)).astype(np.float32), speech)
    mixture = mix_at_snr(speech, noise, -10.0)
    assert np.abs(mixture).max() == pytest.approx(PEAK, abs=1e-6)
    assert np.sum(np.abs(mixture) >= PEAK - 1e-6) == 1
    assert snr_of(mixture, speech) == pytest.approx(-10.0, abs=0.01)


def test_silence_has_no_snr() -> None:
    with pytest.raises(ValueError, match="noise is silent"):
        mix_at_snr(SPEECH, np.zeros_like(SPEECH), 5.0)
    with pytest.raises(ValueError, match="speech is silent"):
        mix_at_snr(np.zeros_like(SPEECH), SPEECH, 5.0)


def test_short_noise_is_tiled() -> None:
    noise = np.array([1, -2, 3, -2], np.float32)
    fitted = fit_noise(noise, 11, np.random.default_rng(0))
    assert np.array_equal(fitted[:7], fitted[4:])
    assert sorted(fitted[:4]) == [-2, -2, 1, 3]


def test_long_noise_is_cut_where_it_sounds() -> None:
    noise = np.zeros(10 * SAMPLE_RATE, np.float32)
    noise[-SAMPLE_RATE:] = 0.1
    for seed in range(20):
        cut = fit_noise(noise, SAMPLE_RATE, np.random.default_rng(seed))
        assert power(cut) > 0


@pytest.mark.parametrize("offset", [-0.5, 0.02, 0.1, 3.0])
@pytest.mark.parametrize("who", ["noise", "speech", "both"])
def test_an_offset_is_neither_speech_nor_noise(offset: float, who: str) -> None:
    noise = 0.02 * np.random.default_rng(0).standard_normal(len(SPEECH)).astype(np.float32)
    noise = orthogonal(noise - noise.mean(), SPEECH - SPEECH.mean())
    mixture = mix_at_snr(SPEECH + offset * (who != "noise"), noise + offset * (who != "speech"), 10.0)
    heard = (mixture - mixture.mean(dtype=np.float64)).astype(np.float32)
    assert snr_of(heard, SPEECH - SPEECH.mean()) == pytest.approx(10.0, abs=0.5)


@pytest.mark.parametrize("offset", [0.0, 0.3])
@pytest.mark.parametrize("start", [0, 3, 7])
def test_the_part_that_sounds_is_kept(start: int, offset: float) -> None:
    noise = np.full(10 * SAMPLE_RATE, offset, np.float32)
    noise[start * SAMPLE_RATE : (start + 2) * SAMPLE_RATE] += SPEECH[: 2 * SAMPLE_RATE]
    kept = sounding_part(noise, 2 * SAMPLE_RATE)
    assert len(kept) == 2 * SAMPLE_RATE
    assert power(kept) == pytest.approx(power(SPEECH[: 2 * SAMPLE_RATE]), rel=0.05)
    assert abs(kept.mean()) < 0.01


def test_a_part_is_no_longer_than_the_recording() -> None:
    assert len(sounding_part(SPEECH, 100 * SAMPLE_RATE)) == len(SPEECH)
    assert power(sounding_part(np.zeros(100, np.float32), 10)) == 0


def test_noise_over_a_constant_is_cut_where_it_sounds() -> None:
    """Silence with an offset has power, and no sound."""
    noise = np.full(10 * SAMPLE_RATE, 0.3, np.float32)
    noise[-SAMPLE_RATE // 4 :] = -0.3 + 0.05 * SPEECH[: SAMPLE_RATE // 4]
    for seed in range(20):
        cut = fit_noise(noise, SAMPLE_RATE, np.random.default_rng(seed))
        assert np.isfinite(mix_at_snr(SPEECH[:SAMPLE_RATE], cut, 5.0)).all()
