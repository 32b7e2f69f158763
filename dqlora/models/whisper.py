"""The teacher: a frozen Whisper. Its encoder gives features, its decoder transcripts."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer
from transformers.modeling_outputs import BaseModelOutput

from dqlora.data.audio import FRAMES_PER_SECOND, SAMPLE_RATE
from dqlora.data.batching import fetched, once_the_next_began, pad_waves
from dqlora.errors import UserError, first_line
from dqlora.models.languages import whisper_language

WINDOW = 30  # seconds, of Whisper's training
# Seconds of silence behind a clip. Without the rest of the window features change a little, and the WER of a head on
# them does not (`python -m benchmarks.window`).
MARGIN = 4.0
BATCH_SECONDS = {"cuda": 64 * WINDOW, "cpu": 4 * WINDOW}
LONGEST = 200  # tokens of a transcript; what repeats itself ends there


@dataclass(frozen=True)
class Transcript:
    """What Whisper writes of a clip, and how sure it is, in the measures of its own `transcribe`.

    Radford et al. 2022, section 4.5; openai/whisper, decoding.py.
    """

    text: str
    log_probability: float  # mean of the tokens' and the end's, in nats
    no_speech: float  # probability, at the start of the transcript, that nobody speaks
    language: float | None  # probability of the language among all; None of a model that knows one alone
    ended: bool  # rather than broken off at LONGEST


class Teacher:
    """Whisper out of a safetensors folder, frozen."""

    def __init__(self, folder: Path, device: torch.device):
        # bf16 on a GPU; fp32 on the CPU, where half precision is slow and rounds differently from machine to machine
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        try:
            self.model = WhisperForConditionalGeneration.from_pretrained(
                folder, dtype=dtype, device_map={"": device}, use_safetensors=True, local_files_only=True
            )
            self._extractor = WhisperFeatureExtractor.from_pretrained(folder, local_files_only=True)
            self._tokenizer = WhisperTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise UserError(f"{folder}: cannot be loaded as a Whisper model ({first_line(error)})") from None
        self.model.requires_grad_(False).eval()

    @property
    def width(self) -> int:
        return self.model.config.d_model

    def log_mel(self, clips: Sequence[np.ndarray], seconds: int = WINDOW) -> Tensor:
        """Whisper's log-mel spectrogram [clips, 80 or 128, 100 seconds] of clips padded with silence to `seconds`.

        As transformers' WhisperFeatureExtractor makes it, but on the model's device from start to end.

        Parameters
        ----------
        clips
            [samples] each, at 16 kHz: all of them int16, or all float32 within -1 and 1.
        """
        waves = pad_waves(clips, self.model.device, seconds * SAMPLE_RATE)
        device, size = self.model.device, self._extractor.n_fft
        window = torch.hann_window(size, device=device)
        spectrum = torch.stft(
            waves, size, self._extractor.hop_length, window=window, return_complex=True
        )[..., :-1]  # fmt: skip
        filters = torch.from_numpy(self._extractor.mel_filters).to(device, torch.float32)
        log_mel = (filters.T @ spectrum.abs().square()).clamp(min=1e-10).log10()
        log_mel = torch.maximum(log_mel, log_mel.amax((1, 2), keepdim=True) - 8.0)
        return ((log_mel + 4.0) / 4.0).to(self.model.dtype)

    @torch.inference_mode()
    def encode(self, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Encoder features of each clip, float16 [ceil(50 seconds), width]; the padding's frames are dropped.

        Whisper's window of 30 s is shortened to the clip and MARGIN, in whole seconds. A clip's features depend on it
        alone: only clips with the same window are batched.

        Parameters
        ----------
        clips
            as of `log_mel`, at most 30 s each.
        """
        windows = [min(WINDOW, math.ceil(len(clip) / SAMPLE_RATE + MARGIN)) for clip in clips]
        features: list[np.ndarray] = [np.empty(0)] * len(clips)

        def started() -> Iterator[tuple[list[int], Callable[[], np.ndarray]]]:
            for seconds in sorted(set(windows)):
                same = [number for number, window in enumerate(windows) if window == seconds]
                at_once = max(1, BATCH_SECONDS[self.model.device.type] // seconds)
                for start in range(0, len(same), at_once):
                    batch = same[start : start + at_once]
                    hidden = self._encoder(self.log_mel([clips[number] for number in batch], seconds))
                    yield batch, fetched(hidden.half())

        for batch, encoded in once_the_next_began(started()):
            for number, rows in zip(batch, encoded(), strict=True):
                features[number] = rows[: math.ceil(FRAMES_PER_SECOND * len(clips[number]) / SAMPLE_RATE)]
        return features

    def _encoder(self, log_mel: Tensor) -> Tensor:
        """What WhisperEncoder computes, of a window of any length up to 30 s."""
        encoder = self.model.model.encoder
        hidden = F.gelu(encoder.conv2(F.gelu(encoder.conv1(log_mel)))).transpose(1, 2).contiguous()
        hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
        for layer in encoder.layers:
            out = layer(hidden, None)
            hidden = out[0] if isinstance(out, tuple) else out
        return encoder.layer_norm(hidden)

    @torch.inference_mode()
    def transcribe(self, clips: list[np.ndarray], language: str) -> list[str]:
        """Greedy transcripts of clips, float32 [samples] at 16 kHz, at most 30 s."""
        return self._texts(self._tokens(language, input_features=self.log_mel(clips)))

    @torch.inference_mode()
    def transcribe_with_scores(self, clips: list[np.ndarray], language: str) -> list[Transcript]:
        """Greedy transcripts as of `transcribe`, each with its scores."""
        encoded = BaseModelOutput(last_hidden_state=self._encoder(self.log_mel(clips)))
        tokens = self._tokens(language, encoder_outputs=encoded)
        scores = self._scores(tokens, encoded, language)
        ended = ((tokens < self.model.config.eos_token_id).sum(-1) < LONGEST).tolist()
        return [
            Transcript(text, *scored, end) for text, scored, end in zip(self._texts(tokens), scores, ended, strict=True)
        ]

    def _tokens(self, language: str, **audio: Any) -> Tensor:
        multilingual = {"language": whisper_language(language), "task": "transcribe"} if self._multilingual else {}
        return self.model.generate(**audio, num_beams=1, do_sample=False, max_new_tokens=LONGEST, **multilingual)

    def _texts(self, tokens: Tensor) -> list[str]:
        return [text.strip() for text in self._tokenizer.batch_decode(tokens, skip_special_tokens=True)]

    @property
    def _multilingual(self) -> bool:
        return bool(getattr(self.model.generation_config, "is_multilingual", False))

    def _scores(
        self, tokens: Tensor, encoded: BaseModelOutput, language: str
    ) -> list[tuple[float, float, float | None]]:
        """Of each transcript mean log-probability, no-speech probability and the language's: one pass of the decoder.

        Tokens that Whisper suppresses have no probability, as in its own decoding.
        """
        settings, end = self.model.generation_config, self.model.config.eos_token_id
        start, spoken = [self.model.config.decoder_start_token_id], ""
        if self._multilingual:
            spoken = f"<|{whisper_language(language)}|>"
            start += [settings.lang_to_id[spoken], settings.task_to_id["transcribe"]]
        start.append(settings.no_timestamps_token_id)
        texts = [row[row < end].tolist() for row in tokens]  # every special token's id is the end's, or above it
        rows = [torch.tensor([*start, *text, end], device=tokens.device) for text in texts]
        padded = pad_sequence(rows, batch_first=True, padding_value=end)
        logits = self.model(encoder_outputs=encoded, decoder_input_ids=padded[:, :-1]).logits.float()
        at_start = logits[:, 0].softmax(-1)
        no_speech = at_start[:, settings.no_timestamps_token_id - 1].tolist()  # <|nospeech|> stands before it
        languages: list[float | None] = [None] * len(rows)
        if spoken:
            ids = list(settings.lang_to_id.values())
            among = logits[:, 0, ids].softmax(-1)
            languages = among[:, ids.index(settings.lang_to_id[spoken])].tolist()
        logits[..., settings.suppress_tokens or []] = -math.inf
        written = logits.log_softmax(-1).gather(-1, padded[:, 1:, None])[..., 0]
        first = len(start) - 1  # predicts the first token of the text
        means = [float(row[first : first + len(text) + 1].mean()) for row, text in zip(written, texts, strict=True)]
        return list(zip(means, no_speech, languages, strict=True))
