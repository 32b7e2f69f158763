"""Synthesise training speech on every core until the time is up.

python -m research.pretrain.synthesise TEXT FOLDER --engines hibari flite espeak --seconds 80 --workers 16

Each worker writes, every few minutes of speech, FOLDER/<seed>-<worker>-<shard>.npy, int16 [samples] of clips in a row,
and then the same name .json with a clip's text, voice and number of samples; so that training may go on beside it. A
clip's voice, speed and pitch come from the seed and its line's number, those held out not counted.
"""

import argparse
import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np

from dqlora.seeding import generator_for
from research.pretrain.texts import bare, held_out_texts
from research.pretrain.voices import SAMPLE_RATE, TEST_VOICES, VOICES, Voice, synthesise

ENGINE_RATIOS = {"hibari": 0.50, "flite": 0.32, "espeak": 0.18, "kokoro": 0.75, "piper": 0.22}  # relative, of clips
HIBARI_RATIOS = {"heart": 0.2, "heart-low": 0.2, "heart-male": 0.2, "heart-child": 0.4}  # of the named half
FLITE_RATIOS = {"slt": 0.25, "rms": 0.35, "awb": 0.25, "kal16": 0.15}
# those Whisper can transcribe
ESPEAK_VARIANTS = ["", "", "", "+max", "+max", "+max", "+max", "+m1", "+m7", "+f2", "+f3", "+Gene", "+klatt2"]
KOKORO_SPEAKERS = 300
SPEED = (0.8, 1.25)  # relative to the voice's own
MAX_SECONDS = 14.0  # of a clip
SHARD_SECONDS = 300  # of speech
SILENCE = 0.6  # at most so many s before and after a clip, with --pauses
TRACTS_ALIKE = 0.06  # two hibari voices whose tracts differ by less are taken for one, with --no-test-voices


def draw_voice(engines: list[str], rng: np.random.Generator) -> tuple[Voice, float]:
    """A voice and, for those that do not bring their own, a pitch."""
    ratios = np.array([ENGINE_RATIOS[engine] for engine in engines])
    engine = rng.choice(engines, p=ratios / ratios.sum())
    if engine == "hibari" and rng.random() < 0.5:
        name = rng.choice(list(HIBARI_RATIOS), p=list(HIBARI_RATIOS.values()))
        return VOICES[name], rng.uniform(0.93, 1.08)
    if engine == "hibari":
        tract = rng.uniform(0.84, 1.22)  # from a child's to a tall man's, the recorded woman's being 1
        pitch = np.exp(-2.4 * (tract - 1) + rng.normal(0, 0.12))  # long tracts go with low voices
        return Voice("hibari", "us", 2, tract, pitch), 1.0
    if engine == "flite":
        return Voice("flite", rng.choice(list(FLITE_RATIOS), p=list(FLITE_RATIOS.values())), 2), rng.uniform(0.85, 1.18)
    if engine == "espeak":
        return Voice("espeak", "en-us" + rng.choice(ESPEAK_VARIANTS), 2), rng.uniform(0.7, 1.3)
    if engine == "kokoro":
        return Voice("kokoro", f"speaker {rng.integers(KOKORO_SPEAKERS)}", 2), rng.uniform(0.84, 1.06)
    return Voice("piper", "joe", 0), rng.uniform(0.85, 1.15)


def is_test_voice(voice: Voice) -> bool:
    """Whether the mini corpus' test split is read by this voice or one that could be taken for it."""
    alike = [each for each in TEST_VOICES.values() if (each.engine, each.name) == (voice.engine, voice.name)]
    return any(abs(each.tract - voice.tract) < TRACTS_ALIKE for each in alike)


def join(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """The description of two clips in one."""
    names = {key: f"{first[key]} {second[key]}" for key in ("text", "voice")}
    return names | {"samples": first["samples"] + second["samples"]}


def work(worker: int, args: argparse.Namespace, lines: list[str], deadline: float) -> tuple[int, int]:
    """Synthesise every `args.workers`-th line of a random order; how many clips and samples were made."""
    order = generator_for(args.seed, "order").permutation(len(lines))[worker :: args.workers]
    clips: list[dict] = []
    parts: list[np.ndarray] = []
    made, shard = np.zeros(2, int), 0
    for number in order:
        rng = generator_for(args.seed, "clip", number)
        voice, pitch = draw_voice(args.engines, rng)
        while args.no_test_voices and is_test_voice(voice):
            voice, pitch = draw_voice(args.engines, rng)
        samples = synthesise(voice, lines[number], rng.uniform(*SPEED), pitch)
        if args.pauses:
            samples = np.pad(samples, rng.integers(0, round(SILENCE * SAMPLE_RATE), 2))
        if len(samples) <= MAX_SECONDS * SAMPLE_RATE:
            clip = {"text": lines[number], "voice": f"{voice.engine} {voice.name}", "samples": len(samples)}
            part = np.round(samples * 32767).astype(np.int16)
            room = MAX_SECONDS * SAMPLE_RATE - len(samples)
            if args.pauses and clips and clips[-1]["samples"] <= room and rng.random() < args.joined:
                clip, part = join(clips.pop(), clip), np.concatenate([parts.pop(), part])
            parts.append(part)
            clips.append(clip)
            made += 1, len(samples)
        done = time.time() > deadline or number == order[-1]
        if clips and (done or sum(map(len, parts)) > SHARD_SECONDS * SAMPLE_RATE):
            path = args.folder / f"{args.seed}-{worker}-{shard}.json"
            np.save(path.with_suffix(".npy"), np.concatenate(parts))
            path.with_suffix(".tmp").write_text(json.dumps(clips))
            path.with_suffix(".tmp").rename(path)  # whoever sees the list finds the samples
            clips, parts, shard = [], [], shard + 1
        if done:
            break
    return tuple(made.tolist())


def lines_to_read(text: Path, held_out: list[Path]) -> list[str]:
    """The lines of a text but those that stand in `held_out`, were it a single word."""
    refused = held_out_texts(held_out, shortest=1)
    return [line for line in text.read_text(encoding="utf-8").splitlines() if bare(line) not in refused]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("text", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--engines", nargs="+", choices=ENGINE_RATIOS, required=True)
    parser.add_argument("--seconds", type=float, required=True, help="wall-clock time")
    parser.add_argument("--workers", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-test-voices", action="store_true", help="none that the mini corpus is tested with")
    parser.add_argument("--pauses", action="store_true", help="silence at the ends of clips, and several in one")
    parser.add_argument(
        "--joined", type=float, default=0.3, help="ratio of clips that go on from the one before, with --pauses"
    )
    parser.add_argument(
        "--held-out", type=Path, nargs="+", default=[], help="metadata.csv's and lists: no sentence of theirs is read"
    )
    args = parser.parse_args()

    deadline = time.time() + args.seconds
    lines = lines_to_read(args.text, args.held_out)
    args.folder.mkdir(parents=True, exist_ok=True)
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        made = pool.starmap(work, [(worker, args, lines, deadline) for worker in range(args.workers)], chunksize=1)
    clips, samples = np.sum(made, axis=0)
    print(f"{clips} clips, {samples / SAMPLE_RATE / 3600:.2f} h")


if __name__ == "__main__":
    main()
