"""New speakers, rooms and microphones from few voices, on batches on the GPU. No noise is added.

Every function takes and returns float32 [clips, samples] at 16 kHz and draws one value a clip.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dqlora.data.batching import length_mask
from research.pretrain.voices import SAMPLE_RATE

LIFTER = 30  # cepstral coefficients of the envelope: 1.9 ms, shorter than any voice's period
N_FFT, HOP = 512, 128  # samples: 32 ms and 8 ms
MAX_GAIN = 2.5  # nepers (22 dB) that a moved formant may add or take
REVERBERATION = (0.08, 0.6)  # s until the echo has fallen by 60 dB
DIRECT = (0.0, 15.0)  # dB, direct sound relative to the echo
ROOM_SECONDS = 0.4  # length of the impulse response
BANDS = 8  # points of the microphone's response, evenly spread over octaves from 60 Hz


@dataclass(frozen=True)
class Strength:
    rate: tuple[float, float]  # playing speed: tempo, pitch and formants together, as on a tape recorder
    formants: tuple[float, float]  # formant frequencies alone: adults' vocal tracts differ by some 20 % (Fant 1966)
    formant_ratio: float  # of the clips have their formants moved
    room_ratio: float  # of the clips stand in a room
    eq_db: float  # standard deviation of the microphone's response at each of its points
    telephone_ratio: float  # of the clips are cut to 300-3400 Hz
    notch_ratio: float  # of the clips lack a band of up to 500 Hz
    mask_ratio: float  # SpecAugment: of the frames are hidden


STRENGTHS = {
    "strong": Strength((0.86, 1.18), (0.84, 1.19), 1.0, 0.5, 6.0, 0.15, 0.3, 0.12),
    "light": Strength((0.9, 1.12), (0.92, 1.1), 0.5, 0.25, 3.0, 0.1, 0.1, 0.06),
}


def uniform(low: float, high: float, count: int, device: torch.device) -> Tensor:
    return torch.rand(count, device=device) * (high - low) + low


def played(counts: Tensor, rates: Tensor) -> Tensor:
    """How many samples a clip of `counts` samples has when played at `rates` (float64, so that devices agree)."""
    return ((counts - 1) / rates).floor().long()


def play(audio: Tensor, starts: Tensor, counts: Tensor, rates: Tensor, samples: int) -> Tensor:
    """Cut clips out of one long recording and play each at its own rate (Catmull-Rom interpolation).

    Parameters
    ----------
    audio
        int16 [all samples]
    starts, counts
        int64 [clips]: each clip's first sample and number of samples.
    rates
        float64 [clips]: 2 plays twice as fast.
    samples
        Length of the rows; a clip fills the beginning of its own.

    Returns
    -------
    float32 [clips, samples], zeros after the clip's end.
    """
    times = torch.arange(samples, device=audio.device) * rates[:, None]
    whole = times.floor()
    part = (times - whole).float()
    last = (counts - 1)[:, None]
    before, here, after, beyond = (
        audio[starts[:, None] + (whole.long() + shift).clamp(min=0).minimum(last)].float() / 32768
        for shift in (-1, 0, 1, 2)
    )
    slope = (after - before) / 2
    curve = before - 2.5 * here + 2 * after - beyond / 2
    bend = (beyond - before) / 2 + 1.5 * (here - after)
    waves = here + part * (slope + part * (curve + part * bend))
    return waves * length_mask(played(counts, rates), samples)


def move_formants(waves: Tensor, strength: Strength) -> Tensor:
    """Stretch clips' spectral envelopes, found by cepstral smoothing, and leave their harmonics where they are."""
    factors = uniform(*strength.formants, len(waves), waves.device)
    factors = torch.where(torch.rand_like(factors) < strength.formant_ratio, factors, 1.0)
    window = torch.hann_window(N_FFT, device=waves.device)
    spectrum = torch.stft(waves, N_FFT, HOP, window=window, return_complex=True)  # [clips, bins, frames]
    log_magnitude = (spectrum.abs() + 1e-4).log().transpose(1, 2)  # [clips, frames, bins]
    cepstrum = torch.fft.irfft(log_magnitude, dim=-1)
    cepstrum[..., LIFTER : N_FFT - LIFTER + 1] = 0
    envelope = torch.fft.rfft(cepstrum, dim=-1).real
    bins = envelope.shape[-1]
    source = (torch.arange(bins, device=waves.device) / factors[:, None]).clamp(max=bins - 1.001)
    low, part = source.long(), source.frac()
    index = low[:, None].expand_as(envelope)
    moved = torch.lerp(envelope.gather(2, index), envelope.gather(2, index + 1), part[:, None])
    gain = (moved - envelope).clamp(-MAX_GAIN, MAX_GAIN).exp().transpose(1, 2)
    samples = waves.shape[1]
    waves = overlapped(torch.fft.irfft((spectrum * gain).transpose(1, 2)) * window)
    windows = overlapped(window.square().expand(1, spectrum.shape[2], -1))
    inner = slice(N_FFT // 2, N_FFT // 2 + samples)  # as torch.stft pads at both ends
    return waves[:, inner] / windows[:, inner]


def overlapped(frames: Tensor) -> Tensor:
    """Frames [clips, frames, N_FFT], HOP apart, added up; torch.istft would also check windows, and wait for that."""
    clips, count, _ = frames.shape
    parts = frames.reshape(clips, count, N_FFT // HOP, HOP)
    waves = frames.new_zeros(clips, count + N_FFT // HOP - 1, HOP)
    for number in range(N_FFT // HOP):
        waves[:, number : number + count] += parts[:, :, number]
    return waves.flatten(1)


def place(waves: Tensor, strength: Strength) -> Tensor:
    """Put each clip into a room and before a microphone: one filter, applied in the frequency domain."""
    clips, samples = waves.shape
    size = samples + int(ROOM_SECONDS * SAMPLE_RATE)
    size += -size % 1024
    spectrum = torch.fft.rfft(waves, size) * torch.fft.rfft(rooms(clips, strength, waves.device), size)
    frequencies = torch.linspace(0, SAMPLE_RATE / 2, spectrum.shape[1], device=waves.device)
    return torch.fft.irfft(spectrum * microphones(clips, strength, frequencies), size)[:, :samples]


def rooms(clips: int, strength: Strength, device: torch.device) -> Tensor:
    """Impulse responses [clips, samples]: a pulse, then noise that decays exponentially (Moorer 1979)."""
    samples = int(ROOM_SECONDS * SAMPLE_RATE)
    time = torch.arange(samples, device=device) / SAMPLE_RATE
    decay = math.log(1000) / uniform(*REVERBERATION, clips, device)
    echo = torch.randn(clips, samples, device=device) * torch.exp(-decay[:, None] * time)
    echo[:, : SAMPLE_RATE // 500] = 0  # nothing returns within 2 ms
    echo /= echo.norm(dim=1, keepdim=True) * 10 ** (uniform(*DIRECT, clips, device)[:, None] / 20)
    echo *= torch.rand(clips, 1, device=device) < strength.room_ratio
    echo[:, 0] += 1
    return echo


def microphones(clips: int, strength: Strength, frequencies: Tensor) -> Tensor:
    """Frequency responses [clips, frequencies]: a smooth random curve, for some a telephone's band or a notch."""
    device = frequencies.device
    octaves = (frequencies.clamp(min=60) / 60).log2() / math.log2(SAMPLE_RATE / 2 / 60) * (BANDS - 1)
    low = octaves.long().clamp(max=BANDS - 2)
    decibels = torch.randn(clips, BANDS, device=device) * strength.eq_db
    response = 10 ** (torch.lerp(decibels[:, low], decibels[:, low + 1], octaves - low) / 20)
    telephone = torch.rand(clips, 1, device=device) < strength.telephone_ratio
    response = response * torch.where(telephone & ((frequencies < 300) | (frequencies > 3400)), 0.03, 1.0)
    centre = uniform(100, 6000, clips, device)[:, None]
    half = uniform(50, 250, clips, device)[:, None]
    notch = (torch.rand(clips, 1, device=device) < strength.notch_ratio) & ((frequencies - centre).abs() < half)
    return torch.where(notch, 0.03, response)


def mask_spans(clips: int, frames: int, ratio: float, span: int, device: torch.device) -> Tensor:
    """bool [clips, frames]: spans of `span` frames (odd) start at random, `ratio` of all frames if none overlapped."""
    starts = (torch.rand(clips, 1, frames, device=device) < ratio / span).float()
    return F.max_pool1d(starts, span, stride=1, padding=span // 2)[:, 0] > 0
