"""Fetch the speech corpus: data/<preset>/clean/{train,validation,test}, 16 kHz mono, with transcripts spelt out.

What has no transcript is kept with an empty one, for `pseudo_label`, and cut at its pauses where it is long; in test
only where no clip has one.

out_of_domain beside them is another corpus, that of the preset; empty where the preset names none in its language.
"""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from dqlora.config import OUT_OF_DOMAIN, OutOfDomain, Paths, Silence, Speech, load_params, load_preset
from dqlora.data.audio import FRAME_HOP, MAX_SECONDS, SAMPLE_RATE, BadAudio, audible, check_speech, read_audio, to_int16
from dqlora.data.corpus import Clip, commit_of, read_clips, unlisted_recordings
from dqlora.data.fleurs import DamagedError
from dqlora.data.folders import as_text
from dqlora.data.layouts import SPLITS
from dqlora.data.origin import labels_of, write_origin
from dqlora.data.storage import RaggedArrayWriter, atomic_directory
from dqlora.data.text import BadText, Vocabulary, spell_out
from dqlora.errors import Rejected, UserError, most_frequent, named, run_stage
from dqlora.progress import ProgressBar
from dqlora.seeding import generator_for

FEW = 10  # clips
JOINED_SECONDS = 15  # up to which stretches of speech between pauses make one clip, as in read-speech corpora
LONGER_SECONDS = 0.25  # than its row says a recording may be: decoders pad, people round
EMPTY = "empty transcript"
NO_FILE = "no such file"  # as `read_audio` says it
TOO_FEW_FOR = {"validation": "stop training by, and to set the gate by", "test": "tell how good the student is"}


@dataclass(frozen=True)
class Written:
    """How much of a split was written."""

    clips: int
    without_transcript: int
    minutes: float


@dataclass
class Splits:
    """The splits that are written, and what none of them shares with another."""

    folder: Path
    language: str
    vocabulary: Vocabulary
    rejected: Rejected = field(default_factory=Rejected)
    sentences: dict[str, str] = field(default_factory=dict)  # and the splits that they stand in
    files: dict[str, str] = field(default_factory=dict)  # and the clips that they became


def pad_with_silence(silence: Silence, seed: int, samples: np.ndarray, clip: str) -> np.ndarray:
    """A clip, float32 [samples], with silence of random length at its ends, or as it was; at most MAX_SECONDS."""
    generator = generator_for(seed, "silence", clip)
    if generator.random() >= silence.ratio:
        return samples
    room = max(0.0, MAX_SECONDS - len(samples) / SAMPLE_RATE)
    before, after = generator.uniform(0.0, min(silence.seconds, room / 2), 2) * SAMPLE_RATE
    return np.pad(samples, (int(before), int(after)))


def write_split(
    splits: Splits,
    split: str,
    clips: Iterator[Clip],
    wanted: int,
    pad: Callable[[np.ndarray, str], np.ndarray],
    untranscribed: bool = False,
) -> Written:
    """Write one split, at most `wanted` clips, without the sentences and files of those before it.

    `pad` may lengthen a clip, given its float32 [samples] and its id. Clips without a transcript are rejected, unless
    `untranscribed`.
    """
    rejected, files = splits.rejected, splits.files
    names: set[str] = set()  # of recordings, of which one may be several clips
    sentences: set[str] = set()
    written = without = samples_written = 0
    with (
        RaggedArrayWriter(splits.folder / split, "int16") as out,
        ProgressBar(desc=f"speech {split}", unit=" clips", leave=False) as progress,
    ):
        for clip in clips:
            file = os.path.realpath(clip.audio) if isinstance(clip.audio, Path) else ""
            try:
                if clip.problem:
                    raise BadText(clip.problem)
                if clip.id in names:
                    raise BadText("a second clip of this name")
                if file in files:
                    raise BadText(f"the same file as {files[file]}")
                text = "" if untranscribed and not clip.transcript.strip() else fitting_text(clip.transcript, splits)
                parts = parts_of(clip, cut=not text)
            except (BadAudio, BadText) as reason:
                rejected.add(split, clip.id, str(reason))
                continue
            for name, part in parts[: wanted - written]:
                try:
                    check_speech(part)
                except BadAudio as reason:
                    rejected.add(split, name, str(reason))
                    continue
                part = pad(audible(part), name)
                out.append(to_int16(part), id=name, transcript=clip.transcript if text else "", text=text)
                names.add(clip.id)
                if file:
                    files[file] = f"{split}/{clip.id}"
                written += 1
                without += not text
                samples_written += len(part)
                progress.update()
            if text and clip.id in names:
                sentences.add(text)
            if written == wanted:
                break
    splits.sentences |= dict.fromkeys(sentences, split)
    return Written(written, without, samples_written / SAMPLE_RATE / 60)


def tell(split: str, written: Written, rejected: int) -> None:
    """Say how much of a split there is, and whether it is enough."""
    lacking = f"{written.without_transcript} of them without a transcript, " if written.without_transcript else ""
    print(f"{split}: {written.clips} clips, {lacking}{written.minutes:.1f} min, {rejected} rejected")
    if 0 < written.clips < FEW and split in TOO_FEW_FOR:
        print(
            f"warning: {split} has {written.clips}, too few to {TOO_FEW_FOR[split]}; give it {FEW} and more",
            file=sys.stderr,
        )


def fitting_text(transcript: str, splits: Splits) -> str:
    """The transcript in the student's letters. Raises BadText if it is empty, cannot be written or is in a split."""
    if not transcript.strip():
        raise BadText(EMPTY)
    text = splits.vocabulary.fit(spell_out(transcript, splits.language))
    if text in splits.sentences:
        raise BadText(f"its sentence stands in {splits.sentences[text]} too")
    return text


def parts_of(clip: Clip, cut: bool) -> list[tuple[str, np.ndarray]]:
    """A clip's id and float32 [samples]; if it is to be cut and longer than MAX_SECONDS, those of its parts.

    Raises BadAudio if it cannot be read, its row means a part of it, or nobody speaks in what is cut.
    """
    samples = read_audio(clip.audio)
    seconds = len(samples) / SAMPLE_RATE
    if clip.seconds and seconds > clip.seconds + LONGER_SECONDS:
        raise BadAudio(f"its row means {clip.seconds:.1f} of its {seconds:.1f} s; cut them into a file")
    if not cut or seconds <= MAX_SECONDS:
        return [(clip.id, samples)]
    parts = [(f"{clip.id}:{number}", part) for number, part in enumerate(cut_at_pauses(samples), 1)]
    if not parts:
        raise BadAudio("nobody speaks in it")
    return parts


def cut_at_pauses(samples: np.ndarray) -> Iterator[np.ndarray]:
    """Stretches of speech of a long recording, float32 [samples] each, without the silence between them.

    They are joined up to JOINED_SECONDS, and what is longer than a window without a pause is cut anywhere.
    """
    from dqlora.transcription.segmentation import pieces  # imports torch

    held: list[np.ndarray] = []
    for piece in pieces([samples]):
        for first, last in piece.own:
            begin, end = ((frame - piece.first_frame) * FRAME_HOP for frame in (first, last or len(samples)))
            stretch = piece.samples[begin:end]
            if held and sum(map(len, held)) + len(stretch) > JOINED_SECONDS * SAMPLE_RATE:
                yield np.concatenate(held)
                held = []
            held.append(stretch)
    if held:
        yield np.concatenate(held)


def as_it_is(samples: np.ndarray, clip: str) -> np.ndarray:
    return samples


def no_usable_clip(name: str, path: str, split: str, rejected: Rejected) -> UserError:
    rejected.show()
    reasons = rejected.counts(split)
    why = "it has no rows; give it some, or remove its table"
    if reasons:
        why = f"all {rejected.count(split)} were rejected: {most_frequent(reasons)}"
        if max(reasons, key=reasons.__getitem__) == NO_FILE:
            why += (
                "; a table names recordings by their paths from its own folder, or from clips/, wavs/ or audio/ in it"
            )
    elif split == "validation":
        why += ", and a tenth of train becomes it"
    return UserError(f"{name}: {path}: no usable clip in {split}: {why}")


def fetch(speech: Speech, other: OutOfDomain | Literal["none"], silence: Silence, paths: Paths, seed: int) -> None:
    """Write all splits; of those, training clips get silence at their ends."""
    with atomic_directory(paths.clean) as folder:
        splits = Splits(folder, speech.language, Vocabulary.load(paths.student / "vocab.json"))
        rejected = splits.rejected
        for split in SPLITS:  # test first: a sentence that stands in two splits stays out of training
            pad = partial(pad_with_silence, silence, seed) if split == "train" else as_it_is
            wanted = getattr(speech.clips, split)
            for untranscribed in (False, True) if split == "test" else (True,):
                rejected.items = [item for item in rejected.items if item[0] != split]
                clips = read_clips(speech.path, split, seed, paths.downloads / "speech", paths.checksums)
                written = write_split(splits, split, clips, wanted, pad, untranscribed)
                if written.clips or EMPTY not in rejected.counts():
                    break
            tell(split, written, rejected.count(split))
            if not written.clips:
                raise no_usable_clip("speech.path", speech.path, split, rejected)
        if unlisted := unlisted_recordings(speech.path):
            print(as_text(f"not used, in no table: {len(unlisted)} recordings ({named(unlisted)})"))
        fetch_out_of_domain(other, splits, paths, seed)
        write_origin(folder, speech.path, "speech", commit_of(speech.path), labels=labels_of(speech.path))
        rejected.write(folder)


def fetch_out_of_domain(other: OutOfDomain | Literal["none"], splits: Splits, paths: Paths, seed: int) -> None:
    """Write the split that is out of domain; empty where the preset names none, or one in another language."""
    folder = splits.folder / OUT_OF_DOMAIN
    if other == "none" or other.language != splits.language:
        with RaggedArrayWriter(folder, "int16"):
            pass
        if other != "none":
            print(f"{OUT_OF_DOMAIN}: none, it is in {other.language} and the student's speech in {splits.language}")
        return
    try:
        clips = read_clips(other.speech, "test", seed, paths.downloads / OUT_OF_DOMAIN, paths.checksums)
        written = write_split(splits, OUT_OF_DOMAIN, clips, other.clips, as_it_is)
    except DamagedError:
        raise
    except UserError as error:
        raise UserError(str(error).replace("speech.path", "out_of_domain.speech")) from None
    tell(OUT_OF_DOMAIN, written, splits.rejected.count(OUT_OF_DOMAIN))
    if not written.clips:
        raise no_usable_clip("out_of_domain.speech", other.speech, OUT_OF_DOMAIN, splits.rejected)
    write_origin(folder, other.speech, "speech", commit_of(other.speech), labels=labels_of(other.speech))


def main() -> None:
    params = load_params()
    preset, paths = load_preset(params.preset), Paths(params.preset)
    try:
        fetch(preset.speech, preset.out_of_domain, params.silence, paths, params.seed)
    except DamagedError as error:
        print(error)
        fetch(preset.speech, preset.out_of_domain, params.silence, paths, params.seed)


if __name__ == "__main__":
    run_stage(main)
