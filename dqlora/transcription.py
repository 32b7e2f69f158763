"""Recordings of any length into words and their times: cut at pauses, greedy CTC, subtitles.

A student hears best what it was trained on, one utterance at a time, so a recording is cut where it pauses. Where it
does not for a while, it is cut into windows that overlap, and of each only the frames away from the cut are kept.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from transformers import Wav2Vec2Config

from dqlora.audio import FRAME_HOP, MIN_SECONDS, SAMPLE_RATE, SILENCE_PEAK, BadAudio, stream_audio
from dqlora.errors import UserError
from dqlora.export import ONNX, OnnxStudent
from dqlora.pretrained import locate_student
from dqlora.storage import read_json
from dqlora.student import FromFeatures, base_of, cnn_features, frames_of, load_reader, load_student
from dqlora.text import Vocabulary

WINDOW = 16 * SAMPLE_RATE  # samples without a pause that are read at once: as long as what students are trained on
CONTEXT = 2 * SAMPLE_RATE  # samples more that such a window hears on either side
PAUSE = 0.3  # s under the threshold: longer than the closure of a stop consonant
RANGE = 30.0  # dB under an utterance's loudest 10 ms: what is quieter at its ends is not heard
EDGE = 0.03  # s heard beyond them
MARGIN = 7  # frames of silence before and after, about as much as in the clips that students learn from
THRESHOLD = 0.25  # of the way, in dB, from the 3rd to the 95th percentile of a stretch's level
LEAST_RANGE = 12.0  # dB between the two, below which nothing is called a pause: speech in loud, steady noise
ENERGY_HOP = SAMPLE_RATE // 100  # samples
LATENESS = 0.05  # s from a word's onset to the mini student's first peak, in the median; a test holds it to 0.15
BREAK = -1  # in a stream of symbols: a pause
MAX_CUE = 84  # characters of a subtitle: two lines of 42 (BBC subtitle guidelines: 37 to 42)
MAX_CUE_SECONDS = 6.0
CUE_PAUSE = 0.8  # s between two words that ends a subtitle


@dataclass(frozen=True)
class Word:
    text: str
    start: float  # s
    end: float  # s


class Recogniser:
    """A student, adapted or not, that reads a window of speech."""

    def __init__(self, reader: FromFeatures, vocabulary: Vocabulary, device: torch.device):
        self.reader, self.vocabulary, self.device = reader, vocabulary, device
        self.config = base_of(reader.model).config

    def symbols(self, samples: np.ndarray) -> np.ndarray:
        """The best symbol of each frame, int64 [frames], of float32 [samples]; silence is blank."""
        frames = frames_of(self.config, len(samples))
        if frames == 0 or np.abs(samples).max() < SILENCE_PEAK:
            return np.full(frames, self.vocabulary.blank)
        return self.best(samples)

    @torch.inference_mode()
    def best(self, samples: np.ndarray) -> np.ndarray:
        """`symbols` of what is long and loud enough."""
        features = cnn_features(self.reader.model, samples)
        logits = self.reader(features[None], torch.tensor([len(features)], device=self.device))
        return logits[0].argmax(-1).cpu().numpy()


class OnnxRecogniser(Recogniser):
    """An ONNX export, on the CPU."""

    def __init__(self, folder: Path):
        self.student = OnnxStudent(folder)
        self.vocabulary = self.student.vocabulary
        self.config = Wav2Vec2Config.from_pretrained(folder)

    def best(self, samples: np.ndarray) -> np.ndarray:
        return self.student.symbols(samples)


def newest_run(models: Path = Path("models")) -> Path:
    """The adapter folder that was written last below `models`."""
    adapters = sorted(models.glob("*/adapter/run.json"), key=lambda path: path.stat().st_mtime)
    if not adapters:
        raise UserError(f"{models}: no trained adapter; run `dvc repro`, or name a model with --model")
    return adapters[-1].parent


def base_of_run(adapter: Path) -> tuple[Path, str]:
    """The folder of the student that a run adapted, and how that was quantised."""
    run = read_json(adapter / "run.json", "train")
    student = Path(run["student"])
    if not student.is_dir():
        raise UserError(f"{adapter}: its base, {student}, is not here; run from the project's root, after `dvc repro`")
    return student, run["quantize"]


def load_recogniser(source: str | None, device: torch.device) -> Recogniser:
    """Load what is to transcribe.

    Parameters
    ----------
    source
        a run's adapter folder, the folder of a Wav2Vec2ForCTC, exported or not, the folder of an ONNX export, or
        owner/name@revision on the hub; None for the newest run.

    Raises
    ------
    UserError
        if there is no such model, or it is none of these.
    """
    folder = newest_run() if source is None else Path(source)
    if (folder / ONNX).exists():
        return OnnxRecogniser(folder)
    if (folder / "run.json").exists():
        student, quantize = base_of_run(folder)
        return Recogniser(
            load_reader(student, folder, quantize, device), Vocabulary.load(student / "vocab.json"), device
        )
    if not folder.is_dir() and "@" not in str(source):
        raise UserError(f"--model {source}: no such folder; a model on the hub is owner/name@revision")
    hub = not folder.is_dir() and not str(source).startswith("hf://")
    student, _ = locate_student(f"hf://{source}" if hub else str(source))
    return Recogniser(
        FromFeatures(load_student(student, "none", device)), Vocabulary.load(student / "vocab.json"), device
    )


@dataclass(frozen=True)
class Window:
    """A stretch of a recording; frames are counted from the recording's beginning.

    The own frames of all windows, one after another, are the recording's, each once.
    """

    samples: np.ndarray  # float32, what is heard
    first_heard: int  # frame
    own: tuple[int, int]  # first frame, and the one after the last
    ends_in_pause: bool


def windows(blocks: Iterable[np.ndarray]) -> Iterator[Window]:
    """Cut a stream of float32 samples at its pauses, or into overlapping windows; holds some 18 s of it."""
    held = np.empty(0, np.float32)
    start = own = 0  # samples of the stream at which `held`, and what is not yet given out, begin
    for block in blocks:
        held = np.concatenate([held, block])
        while start + len(held) >= own + WINDOW + CONTEXT:
            cuts = [start + cut for cut in pauses(held) if start + cut > own]
            for cut in cuts:
                yield _between_pauses(held, start, own, cut)
                held, start, own = held[cut - start :], cut, cut
            if not cuts:
                heard = held[: own + WINDOW + CONTEXT - start]
                yield Window(heard, start // FRAME_HOP, _frames(own, own + WINDOW), ends_in_pause=False)
                own += WINDOW
                held, start = held[own - CONTEXT - start :], own - CONTEXT
    for cut in [start + cut for cut in pauses(held)] + [start + len(held)]:
        if cut > own:
            yield _between_pauses(held, start, own, cut)
            held, start, own = held[cut - start :], cut, cut


def _between_pauses(held: np.ndarray, start: int, own: int, cut: int) -> Window:
    """The window whose own samples are `own` to `cut` of the stream, with silence for what surrounds its sound.

    `held` begins at `start`; what it has before `own` is context, since there was no pause at `own`. A shift of a few
    milliseconds changes words that a student is not sure of: so frames are counted from the loudest sample, and the
    same sound reads the same wherever in a recording it stands.
    """
    silence = np.zeros(MARGIN * FRAME_HOP, np.float32)
    first, last = _ends(held[: cut - start])
    if own == start:
        heard = np.concatenate([silence, held[first:last], silence])
        return Window(heard, round((start + first) / FRAME_HOP) - MARGIN, _frames(own, cut), ends_in_pause=True)
    heard = np.concatenate([held[:last], silence])
    return Window(heard, start // FRAME_HOP, _frames(own, cut), ends_in_pause=True)


def _ends(samples: np.ndarray) -> tuple[int, int]:
    """Where the sound begins and ends, in samples; both a whole number of frames from the loudest sample."""
    peak = int(np.abs(samples).argmax())
    first, last, phase = 0, len(samples), peak % ENERGY_HOP
    level = _levels(samples[phase:])
    if len(level):
        threshold = level.max() - RANGE
        noisy = np.quantile(level, 0.03) > threshold - 3
        loud = np.flatnonzero(_is_loud(samples[phase:]) if noisy else level > threshold) * ENERGY_HOP + phase
        if len(loud):
            edge = round(EDGE * SAMPLE_RATE)
            first, last = int(loud[0]) - edge, int(loud[-1]) + ENERGY_HOP + edge
    first = max(peak % FRAME_HOP, peak - -(-(peak - first) // FRAME_HOP) * FRAME_HOP)
    return first, min(len(samples), peak + -(-(last - peak) // FRAME_HOP) * FRAME_HOP)


def _frames(first: int, last: int) -> tuple[int, int]:
    return first // FRAME_HOP, last // FRAME_HOP


def _levels(samples: np.ndarray) -> np.ndarray:
    """Mean power of each 10 ms, dB."""
    rows = samples[: len(samples) // ENERGY_HOP * ENERGY_HOP].reshape(-1, ENERGY_HOP)
    return 10 * np.log10((rows.astype(np.float64) ** 2).mean(axis=1) + 1e-10)


def _is_loud(samples: np.ndarray) -> np.ndarray:
    """bool [10 ms frames]: whether something is heard there, beside what is heard all along."""
    level = _levels(samples)
    if len(level) == 0:
        return np.zeros(0, bool)
    quiet, loud = np.quantile(level, (0.03, 0.95))
    if loud - quiet < LEAST_RANGE:
        return np.ones(len(level), bool)
    return level > quiet + THRESHOLD * (loud - quiet)


def pauses(samples: np.ndarray) -> list[int]:
    """Where to cut: the middle of each pause between two sounds, in samples, on a frame of the student's."""
    loud = np.flatnonzero(_is_loud(samples))
    gaps = np.flatnonzero(np.diff(loud) * ENERGY_HOP > PAUSE * SAMPLE_RATE)
    middles = (loud[gaps] + loud[gaps + 1]) * ENERGY_HOP // 2
    return (middles // FRAME_HOP * FRAME_HOP).tolist()


def words_of(symbols: Iterable[int], vocabulary: Vocabulary) -> Iterator[Word]:
    """Words of a stream of frames' symbols, as `Vocabulary.decode` spells them, with the times of their letters.

    BREAK takes a frame's place in the stream without counting as one: a word ends there.
    """
    letters: list[str] = []
    frame = first = last = 0
    ended = 0.0  # when the word before ended
    previous = vocabulary.blank

    def word() -> Word:
        start = max(ended, first * FRAME_HOP / SAMPLE_RATE - LATENESS)
        return Word("".join(letters).lower(), round(start, 2), round((last + 1) * FRAME_HOP / SAMPLE_RATE, 2))

    for symbol in symbols:
        name = " " if symbol == BREAK else vocabulary.name(symbol)
        if name == " " and letters:
            yield (made := word())
            letters, ended = [], made.end
        elif name and name != " ":
            if symbol != previous:
                first = first if letters else frame
                letters.append(name)
            last = frame
        previous = symbol
        frame += symbol != BREAK
    if letters:
        yield word()


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
        for window in windows(blocks):
            yield from own_symbols(recogniser, window)
            if window.ends_in_pause:
                yield BREAK
            on_progress(min(seconds, window.own[1] * FRAME_HOP / SAMPLE_RATE), seconds)

    return list(words_of(symbols(), recogniser.vocabulary))


def own_symbols(recogniser: Recogniser, window: Window) -> list[int]:
    """The best symbols of the window's own frames; those that are not heard are blank."""
    first, last = window.own
    own = np.full(last - first, recogniser.vocabulary.blank)
    heard = recogniser.symbols(window.samples)
    begin, end = max(first, window.first_heard), min(last, window.first_heard + len(heard))
    if end > begin:
        own[begin - first : end - first] = heard[begin - window.first_heard : end - window.first_heard]
    return own.tolist()


def cues(words: list[Word]) -> list[list[Word]]:
    """Words of one subtitle each: at most 84 characters and 6 s, and none across a pause."""
    grouped: list[list[Word]] = []
    for word in words:
        group = grouped[-1] if grouped else []
        length = sum(len(each.text) + 1 for each in group) + len(word.text)
        new = not group or word.start - group[-1].end > CUE_PAUSE
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
