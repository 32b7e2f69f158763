"""Fetch the speech corpus: data/<preset>/clean/{train,validation,test}, 16 kHz mono, with transcripts spelt out.

out_of_domain beside them is another corpus, that of the preset; empty where the preset names none in its language.
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from dqlora.config import OUT_OF_DOMAIN, OutOfDomain, Paths, Silence, Speech, load_params, load_preset
from dqlora.data.audio import MAX_SECONDS, SAMPLE_RATE, BadAudio, check_speech, read_audio, to_int16
from dqlora.data.corpus import Clip, commit_of, read_clips
from dqlora.data.fleurs import DamagedError
from dqlora.data.layouts import SPLITS
from dqlora.data.origin import labels_of, write_origin
from dqlora.data.storage import RaggedArrayWriter, atomic_directory
from dqlora.data.text import BadText, Vocabulary, spell_out
from dqlora.errors import Rejected, UserError, run_stage
from dqlora.progress import ProgressBar
from dqlora.seeding import generator_for

FEW = 10  # clips
TOO_FEW_FOR = {"validation": "stop training by, and to set the gate by", "test": "tell how good the student is"}


def pad_with_silence(silence: Silence, seed: int, samples: np.ndarray, clip: str) -> np.ndarray:
    """A clip, float32 [samples], with silence of random length at its ends, or as it was; at most MAX_SECONDS."""
    generator = generator_for(seed, "silence", clip)
    if generator.random() >= silence.ratio:
        return samples
    room = max(0.0, MAX_SECONDS - len(samples) / SAMPLE_RATE)
    before, after = generator.uniform(0.0, min(silence.seconds, room / 2), 2) * SAMPLE_RATE
    return np.pad(samples, (int(before), int(after)))


def fetch_split(
    clips: Iterator[Clip],
    wanted: int,
    language: str,
    pad: Callable[[np.ndarray, str], np.ndarray],
    split: str,
    folder: Path,
    vocabulary: Vocabulary,
    held_out: set[str],
    rejected: Rejected,
) -> set[str]:
    """Write one split, at most `wanted` clips, and say how much it is; returns its sentences. `held_out` are rejected.

    `pad` may lengthen a clip, given its float32 [samples] and its id.
    """
    ids: set[str] = set()
    sentences: set[str] = set()
    samples_written = 0
    with (
        RaggedArrayWriter(folder, "int16") as out,
        ProgressBar(desc=f"speech {split}", unit=" clips", leave=False) as progress,
    ):
        for clip in clips:
            try:
                if clip.problem:
                    raise BadText(clip.problem)
                if clip.id in ids:
                    raise BadText("a second clip of this name")
                if not clip.transcript.strip():
                    raise BadText("empty transcript")
                text = vocabulary.fit(spell_out(clip.transcript, language))
                if text in held_out:
                    raise BadText("its sentence stands in another split too")
                samples = read_audio(clip.audio)
                check_speech(samples)
                samples = pad(samples, clip.id)
            except (BadAudio, BadText) as reason:
                rejected.add(split, clip.id, str(reason))
                continue
            ids.add(clip.id)
            sentences.add(text)
            samples_written += len(samples)
            out.append(to_int16(samples), id=clip.id, transcript=clip.transcript, text=text)
            progress.update()
            if len(ids) == wanted:
                break
    minutes = samples_written / SAMPLE_RATE / 60
    print(f"{split}: {len(ids)} clips, {minutes:.1f} min, {rejected.count(split)} rejected")
    if 0 < len(ids) < FEW and split in TOO_FEW_FOR:
        print(
            f"warning: {split} has {len(ids)}, too few to {TOO_FEW_FOR[split]}; give it {FEW} and more",
            file=sys.stderr,
        )
    return sentences


def as_it_is(samples: np.ndarray, clip: str) -> np.ndarray:
    return samples


def no_usable_clip(name: str, path: str, split: str, rejected: Rejected) -> UserError:
    rejected.show()
    reasons = [reason for of, _, reason in rejected.items if of == split]
    why = f"all {len(reasons)} were rejected, the first: {reasons[0]}" if reasons else "it has no rows"
    return UserError(f"{name}: {path}: no usable clip in {split}: {why}")


def fetch(speech: Speech, other: OutOfDomain | Literal["none"], silence: Silence, paths: Paths, seed: int) -> None:
    """Write all splits; of those, training clips get silence at their ends."""
    vocabulary = Vocabulary.load(paths.student / "vocab.json")
    rejected = Rejected()
    held_out: set[str] = set()
    with atomic_directory(paths.clean) as folder:
        for split in SPLITS:  # test first: a sentence that stands in two splits stays out of training
            clips = read_clips(speech.path, split, seed, paths.downloads / "speech", paths.checksums)
            pad = partial(pad_with_silence, silence, seed) if split == "train" else as_it_is
            wanted = getattr(speech.clips, split)
            sentences = fetch_split(
                clips, wanted, speech.language, pad, split, folder / split, vocabulary, held_out, rejected
            )
            if not sentences:
                raise no_usable_clip("speech.path", speech.path, split, rejected)
            held_out |= sentences
        fetch_out_of_domain(other, speech.language, paths, seed, folder, vocabulary, held_out, rejected)
        write_origin(folder, speech.path, "speech", commit_of(speech.path), labels=labels_of(speech.path))
        rejected.write(folder)


def fetch_out_of_domain(
    other: OutOfDomain | Literal["none"],
    language: str,
    paths: Paths,
    seed: int,
    folder: Path,
    vocabulary: Vocabulary,
    held_out: set[str],
    rejected: Rejected,
) -> None:
    """Write the split that is out of domain; empty where the preset names none, or one in another language."""
    split = folder / OUT_OF_DOMAIN
    if other == "none" or other.language != language:
        with RaggedArrayWriter(split, "int16"):
            pass
        if other != "none":
            print(f"{OUT_OF_DOMAIN}: none, it is in {other.language} and the student's speech in {language}")
        return
    try:
        clips = read_clips(other.speech, "test", seed, paths.downloads / OUT_OF_DOMAIN, paths.checksums)
        texts = fetch_split(
            clips, other.clips, language, as_it_is, OUT_OF_DOMAIN, split, vocabulary, held_out, rejected
        )
    except DamagedError:
        raise
    except UserError as error:
        raise UserError(str(error).replace("speech.path", "out_of_domain.speech")) from None
    if not texts:
        raise no_usable_clip("out_of_domain.speech", other.speech, OUT_OF_DOMAIN, rejected)
    write_origin(split, other.speech, "speech", commit_of(other.speech), labels=labels_of(other.speech))


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
