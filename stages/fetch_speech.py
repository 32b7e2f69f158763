"""Fetch the speech corpus: data/<preset>/clean/{train,validation,test}, 16 kHz mono, with transcripts spelt out."""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from dqlora.config import Paths, Silence, Speech, load_params, load_preset
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
    speech: Speech,
    pad: Callable[[np.ndarray, str], np.ndarray],
    split: str,
    folder: Path,
    vocabulary: Vocabulary,
    held_out: set[str],
    rejected: Rejected,
) -> set[str]:
    """Write one split and say how much it is; returns its sentences. Sentences in `held_out` are rejected.

    `pad` may lengthen a clip, given its float32 [samples] and its id.
    """
    wanted = getattr(speech.clips, split)
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
                text = vocabulary.fit(spell_out(clip.transcript, speech.language))
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


def fetch(speech: Speech, silence: Silence, paths: Paths, seed: int) -> None:
    """Write all splits; of those, training clips get silence at their ends."""
    vocabulary = Vocabulary.load(paths.student / "vocab.json")
    rejected = Rejected()
    held_out: set[str] = set()
    with atomic_directory(paths.clean) as folder:
        for split in SPLITS:  # test first: a sentence that stands in two splits stays out of training
            clips = read_clips(speech.path, split, seed, paths.downloads / "speech", paths.checksums)
            pad = partial(pad_with_silence, silence, seed) if split == "train" else lambda samples, _: samples
            sentences = fetch_split(clips, speech, pad, split, folder / split, vocabulary, held_out, rejected)
            if not sentences:
                rejected.show()
                reasons = [reason for of, _, reason in rejected.items if of == split]
                why = f"all {len(reasons)} were rejected, the first: {reasons[0]}" if reasons else "it has no rows"
                raise UserError(f"speech.path: {speech.path}: no usable clip in {split}: {why}")
            held_out |= sentences
        write_origin(folder, speech.path, "speech", commit_of(speech.path), labels=labels_of(speech.path))
        rejected.write(folder)


def main() -> None:
    params = load_params()
    speech, paths = load_preset(params.preset).speech, Paths(params.preset)
    try:
        fetch(speech, params.silence, paths, params.seed)
    except DamagedError as error:
        print(error)
        fetch(speech, params.silence, paths, params.seed)


if __name__ == "__main__":
    run_stage(main)
