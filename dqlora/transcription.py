"""Recordings of any length into words and their times: windows that overlap, greedy CTC, subtitles."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import nn

from dqlora.audio import FRAME_HOP, MIN_SECONDS, SAMPLE_RATE, SILENCE_PEAK, BadAudio, stream_audio
from dqlora.errors import UserError
from dqlora.pretrained import locate_student
from dqlora.storage import read_json
from dqlora.student import FromFeatures, base_of, cnn_features, frames_of, load_adapted, load_student
from dqlora.text import Vocabulary

WINDOW = 16 * SAMPLE_RATE  # samples that a window is read for: as long as the clips that students are trained on
CONTEXT = 2 * SAMPLE_RATE  # samples more that it hears on either side
MAX_CUE = 84  # characters of a subtitle: two lines of 42 (BBC subtitle guidelines: 37 to 42)
MAX_CUE_SECONDS = 6.0
PAUSE = 0.8  # s between two words that ends a subtitle


@dataclass(frozen=True)
class Word:
    text: str
    start: float  # s
    end: float  # s


class Recogniser:
    """A student, adapted or not, that reads a window of speech."""

    def __init__(self, model: nn.Module, vocabulary: Vocabulary, device: torch.device):
        self.model, self.vocabulary, self.device = model, vocabulary, device
        self.config = base_of(model).config

    @torch.inference_mode()
    def symbols(self, samples: np.ndarray) -> np.ndarray:
        """The best symbol of each frame, int64 [frames], of float32 [samples]; silence is blank."""
        frames = frames_of(self.config, len(samples))
        if frames == 0 or np.abs(samples).max() < SILENCE_PEAK:
            return np.full(frames, self.vocabulary.blank)
        features = cnn_features(self.model, samples)
        logits = FromFeatures(self.model)(features[None], torch.tensor([frames], device=self.device))
        return logits[0].argmax(-1).cpu().numpy()


def newest_run(models: Path = Path("models")) -> Path:
    """The adapter folder that was written last below `models`."""
    adapters = sorted(models.glob("*/adapter/run.json"), key=lambda path: path.stat().st_mtime)
    if not adapters:
        raise UserError(f"{models}: no trained adapter; run `dvc repro`, or name a model with --model")
    return adapters[-1].parent


def load_recogniser(source: str | None, device: torch.device) -> Recogniser:
    """Load what is to transcribe.

    Parameters
    ----------
    source
        a run's adapter folder, the folder of a Wav2Vec2ForCTC, or owner/name@revision on the hub; None for the newest
        run.

    Raises
    ------
    UserError
        if there is no such model, or it is none of these.
    """
    folder = newest_run() if source is None else Path(source)
    if (folder / "run.json").exists():
        run = read_json(folder / "run.json")
        student = Path(run["student"])
        if not student.is_dir():
            raise UserError(
                f"{folder}: its base, {student}, is not here; run from the project's root, after `dvc repro`"
            )
        model = load_adapted(student, folder, run["quantize"], device)
        return Recogniser(model, Vocabulary.load(student / "vocab.json"), device)
    if not folder.is_dir() and "@" not in str(source):
        raise UserError(f"--model {source}: no such folder; a model on the hub is owner/name@revision")
    hub = not folder.is_dir() and not str(source).startswith("hf://")
    student, _ = locate_student(f"hf://{source}" if hub else str(source))
    return Recogniser(load_student(student, "none", device), Vocabulary.load(student / "vocab.json"), device)


def windows(blocks: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, slice]]:
    """Cut a stream of samples into overlapping windows, holding no more than one of them.

    Yields
    ------
    A window's samples, float32, and the frames of it that are its own: those of all windows, one after another, are the
    stream's frames, each once. A window begins on a frame.
    """
    held = np.empty(0, np.float32)
    start, own = 0, 0  # samples of the stream at which `held`, and the next window's own part, begin
    for block in blocks:
        held = np.concatenate([held, block])
        while start + len(held) >= own + WINDOW + CONTEXT:
            yield held[: own + WINDOW + CONTEXT - start], _frames(own - start, own + WINDOW - start)
            own += WINDOW
            held = held[own - CONTEXT - start :]
            start = own - CONTEXT
    if start + len(held) > own:
        yield held, slice((own - start) // FRAME_HOP, None)


def _frames(first: int, last: int) -> slice:
    return slice(first // FRAME_HOP, last // FRAME_HOP)


def words_of(symbols: Iterable[int], vocabulary: Vocabulary) -> Iterator[Word]:
    """Words of a stream of frames' symbols, as `Vocabulary.decode` spells them, with the times of their letters."""
    letters: list[str] = []
    first = last = 0
    previous = vocabulary.blank
    for frame, symbol in enumerate(symbols):
        name = vocabulary.name(symbol)
        if name == " " and letters:
            yield _word(letters, first, last)
            letters = []
        elif name and name != " ":
            if symbol != previous:
                first = first if letters else frame
                letters.append(name)
            last = frame
        previous = symbol
    if letters:
        yield _word(letters, first, last)


def _word(letters: list[str], first: int, last: int) -> Word:
    hop = FRAME_HOP / SAMPLE_RATE
    return Word("".join(letters).lower(), round(first * hop, 2), round((last + 1) * hop, 2))


def transcribe_file(
    recogniser: Recogniser, file: BinaryIO, on_progress: Callable[[float, float], None] = lambda done, all: None
) -> list[Word]:
    """Words of an open recording of any length.

    Parameters
    ----------
    on_progress
        called with the seconds read so far and those of the whole.

    Raises
    ------
    BadAudio
        as `stream_audio`, or shorter than a word.
    """
    seconds, blocks = stream_audio(file)
    if seconds < MIN_SECONDS:
        raise BadAudio(f"{seconds:.2f} s, shorter than {MIN_SECONDS} s")

    def symbols() -> Iterator[int]:
        done = 0
        for samples, own in windows(blocks):
            kept = recogniser.symbols(samples)[own]
            done += len(kept)
            on_progress(min(seconds, done * FRAME_HOP / SAMPLE_RATE), seconds)
            yield from kept.tolist()

    return list(words_of(symbols(), recogniser.vocabulary))


def cues(words: list[Word]) -> list[list[Word]]:
    """Words of one subtitle each: at most 84 characters and 6 s, and none across a pause."""
    grouped: list[list[Word]] = []
    for word in words:
        group = grouped[-1] if grouped else []
        length = sum(len(each.text) + 1 for each in group) + len(word.text)
        new = not group or word.start - group[-1].end > PAUSE
        if new or length > MAX_CUE or word.end - group[0].start > MAX_CUE_SECONDS:
            grouped.append([word])
        else:
            group.append(word)
    return grouped


def text_of(words: list[Word]) -> str:
    return " ".join(word.text for word in words)


def subtitles(words: list[Word], kind: str) -> str:
    """`srt` (SubRip) or `vtt` (WebVTT, W3C 2019)."""
    mark = "," if kind == "srt" else "."
    blocks = []
    for number, cue in enumerate(cues(words), 1):
        times = f"{_timestamp(cue[0].start, mark)} --> {_timestamp(cue[-1].end, mark)}"
        blocks.append(f"{number}\n{times}\n{text_of(cue)}\n")
    return ("WEBVTT\n\n" if kind == "vtt" else "") + "\n".join(blocks)


def _timestamp(seconds: float, mark: str) -> str:
    milliseconds = round(1000 * seconds)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{mark}{rest % 1000:03d}"


def as_json(name: str, words: list[Word]) -> dict[str, Any]:
    return {"file": name, "text": text_of(words), "words": [asdict(word) for word in words]}
