"""The recogniser: a student, adapted or not, or an export, that transcribes recordings of any length."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from transformers import Wav2Vec2Config

from dqlora.data.audio import (
    FRAME_HOP,
    MAX_SECONDS,
    MIN_SECONDS,
    SAMPLE_RATE,
    SILENCE_PEAK,
    BadAudio,
    audible,
    stream_audio,
    to_float32,
    to_int16,
)
from dqlora.data.storage import read_json
from dqlora.data.text import Vocabulary
from dqlora.device import CPU, map_on_cores
from dqlora.errors import UserError
from dqlora.models.decoding import DECODER, Decoder, greedy, load_decoder
from dqlora.models.export import ONNX, OnnxStudent
from dqlora.models.gate import load_distilled
from dqlora.models.pretrained import locate_student
from dqlora.models.run import RUN, base_of_run, find_model
from dqlora.models.test_time_adaptation import adapted_logits
from dqlora.models.wav2vec2 import EVERY_FRAME, EncoderCTC, base_of, clip_logits, frames_of, load_student
from dqlora.transcription.confidence import frame_confidence
from dqlora.transcription.segmentation import Piece, pieces
from dqlora.transcription.words import BREAK, Frame, Word, words_of

# Of a word in a recording longer than a window: of those below, written in noise, hardly one is right
# (research/study/tables/pauses.md).
LEAST_CONFIDENCE = 0.005
AGAIN = "export or copy it again, the folder as a whole"


class Recogniser:
    """A student, adapted or not, that transcribes a window of speech."""

    def __init__(self, student: EncoderCTC, vocabulary: Vocabulary, decoder: Decoder = greedy):
        self.student, self.vocabulary, self.decoder = student, vocabulary, decoder
        self.config, self.device = base_of(student.model).config, base_of(student.model).device

    def path(self, samples: np.ndarray, sound: slice = EVERY_FRAME) -> tuple[np.ndarray, np.ndarray]:
        """The decoder's token of each frame, int64 [frames], and the student's confidence, float32 [frames].

        Parameters
        ----------
        samples
            float32 [samples]; silence is blank.
        sound
            The frames that are no silence put around them.
        """
        frames = frames_of(self.config, len(samples))
        if frames == 0 or np.abs(samples).max() < SILENCE_PEAK:
            return np.full(frames, self.vocabulary.blank), np.ones(frames, np.float32)
        logits = self.logits(samples, sound)
        return self.decoder(logits), frame_confidence(logits)

    def token_ids(self, samples: np.ndarray) -> np.ndarray:
        """The decoder's token of each frame, int64 [frames], of float32 [samples]; silence is blank."""
        return self.path(samples)[0]

    def logits(self, samples: np.ndarray, sound: slice = EVERY_FRAME) -> np.ndarray:
        """float32 [frames, vocabulary]."""
        return clip_logits(self.student, samples, sound)


class AdaptingRecogniser(Recogniser):
    """A student that adapts itself to each clip."""

    def logits(self, samples: np.ndarray, sound: slice = EVERY_FRAME) -> np.ndarray:
        return adapted_logits(self.student, samples, self.vocabulary.blank, sound)


class OnnxRecogniser(Recogniser):
    """An ONNX export, on the CPU; the gate inside it judges by every frame."""

    def __init__(self, folder: Path, hotwords: Sequence[str]):
        if not (folder / DECODER).exists():
            raise UserError(f"{folder / DECODER}: no such file; {AGAIN}")
        self.onnx = OnnxStudent(folder)
        self.vocabulary = self.onnx.vocabulary
        self.decoder = load_decoder(folder, self.vocabulary, hotwords)
        self.config = Wav2Vec2Config.from_dict(read_json(folder / "config.json", AGAIN))
        self.device = CPU

    def logits(self, samples: np.ndarray, sound: slice = EVERY_FRAME) -> np.ndarray:
        return self.onnx.logits(samples)


def load_recogniser(
    source: str | None, device: torch.device, hotwords: Sequence[str] = (), adapt: bool = False
) -> Recogniser:
    """Load what is to transcribe, decoded as its run or export says; greedily where there is neither.

    Parameters
    ----------
    source
        a run's adapter folder, the folder of a Wav2Vec2ForCTC, exported or not, the folder of an ONNX export, or
        owner/name@revision on the hub; None for the newest run.
    hotwords
        names and terms to listen for.
    adapt
        whether it is to adapt itself to each clip.

    Raises
    ------
    UserError
        if there is no such model, or it is none of these, or its letters cannot write a hot word, or it cannot adapt.
    """
    model = find_model(source)
    folder = Path(model)
    kind = AdaptingRecogniser if adapt else Recogniser
    if (folder / ONNX).exists():
        if adapt:
            raise UserError(f"{folder}: an ONNX export cannot adapt itself; give --model a run's adapter folder")
        return OnnxRecogniser(folder, hotwords)
    if (folder / RUN).exists():
        base, quantize = base_of_run(folder)
        vocabulary = Vocabulary.load(base / "vocab.json")
        decoder = load_decoder(folder.parent, vocabulary, hotwords)
        return kind(load_distilled(base, folder, quantize, device), vocabulary, decoder)
    student = locate_student(model)
    vocabulary = Vocabulary.load(student / "vocab.json")
    decoder = load_decoder(student, vocabulary, hotwords)
    return kind(EncoderCTC(load_student(student, "none", device)), vocabulary, decoder)


def transcribe_file(
    recogniser: Recogniser, file: BinaryIO, on_progress: Callable[[float, float | None], None] = lambda done, all: None
) -> list[Word]:
    """Words of an open recording of any length.

    What fits one window gets the transcript that `evaluate` gives it, without letters that are far from any speech. Of
    a longer one, what the student is least certain of is left out: it is noise that the detector took for speech.

    Parameters
    ----------
    on_progress
        called with the seconds transcribed so far and those of the whole, None where the file does not say.

    Raises
    ------
    BadAudio
        as `stream_audio`, or shorter than a word.
    """
    seconds, blocks = stream_audio(file)
    heard = 0.0

    def counted() -> Iterator[np.ndarray]:
        nonlocal heard
        for block in blocks:
            heard += len(block) / SAMPLE_RATE
            yield block

    def heard_in(piece: Piece) -> tuple[Piece, tuple[np.ndarray, np.ndarray]]:
        stored = to_float32(to_int16(audible(piece.samples)))  # 16 bits, as clips are
        return piece, recogniser.path(stored, piece.sound)

    def frames() -> Iterator[Frame]:
        silence = Frame(recogniser.vocabulary.blank, 1.0)
        frame = 0
        for piece, (token_ids, confidences) in map_on_cores(heard_in, pieces(counted()), recogniser.device):
            for first, last in piece.own:
                if first > frame:
                    yield from [BREAK, *[silence] * (first - frame)]
                own = slice(first - piece.first_frame, None if last is None else last - piece.first_frame)
                yield from map(Frame, token_ids[own].tolist(), confidences[own].tolist())
                frame = first + len(token_ids[own])
            if piece.ends_in_pause:
                yield BREAK
            on_progress(frame * FRAME_HOP / SAMPLE_RATE, seconds)

    words = list(words_of(frames(), recogniser.vocabulary))
    if heard < MIN_SECONDS:
        raise BadAudio(f"{heard:.2f} s, shorter than {MIN_SECONDS} s")
    return words if heard <= MAX_SECONDS else [word for word in words if word.confidence >= LEAST_CONFIDENCE]
