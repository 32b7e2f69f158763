"""Transcribe with the teacher what has no transcript: data/<preset>/pseudo_labels, metrics/<preset>/pseudo_label.json.

Each label is kept, or rejected with its reason. Human transcripts stay as they are; where no clip lacks one, nothing is
transcribed.
"""

import json
from collections import ChainMap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dqlora.config import OUT_OF_DOMAIN, Paths, PseudoLabel, load_params, load_preset
from dqlora.data.audio import SAMPLE_RATE, to_16khz, to_float32
from dqlora.data.storage import RaggedArray, atomic_directory, fingerprint, loaded_sources, write_json
from dqlora.data.text import BadText, Vocabulary, spell_out
from dqlora.errors import Rejected, UserError, counted, most_frequent, quieten_libraries, run_stage
from dqlora.evaluation.label_filter import Measures, why_rejected
from dqlora.progress import ProgressBar

SPLITS = ("test", "validation", "train")  # test first: a sentence that stands in two splits stays out of training
SPEED = 1.1  # of a clip that is heard again, as in speed perturbation (Ko et al. 2015)
BATCH_SIZE = {"cuda": 64, "cpu": 8}
DIGITS = 4  # of what is written: more differ from machine to machine

Listen = Callable[[RaggedArray, list[str]], list[Measures]]


def without_transcript(clips: RaggedArray) -> list[str]:
    return [item["id"] for item in clips.items if not item["text"]]


def make_listener(paths: Paths, language: str, second: str) -> Listen:
    """Measures the teacher's transcripts of clips, with a second transcript of each."""
    from dqlora.device import default_device  # only here: most runs have nothing to label, and these take seconds
    from dqlora.models.wav2vec2 import EncoderCTC, load_student, transcribe
    from dqlora.models.whisper import Teacher

    quieten_libraries()
    device = default_device()
    teacher = Teacher(paths.teacher, device)
    student = EncoderCTC(load_student(paths.student, "none", device)) if second == "student" else None
    vocabulary = Vocabulary.load(paths.student / "vocab.json")

    def listen(clips: RaggedArray, names: list[str]) -> list[Measures]:
        sounds = [to_float32(clips[name]) for name in names]
        heard = teacher.transcribe_with_scores(sounds, language)
        others: list[str] | list[None] = [None] * len(sounds)
        if second == "faster":
            others = teacher.transcribe([to_16khz(sound, SPEED * SAMPLE_RATE) for sound in sounds], language)
        elif student:
            others = [transcribe(student, vocabulary, sound) for sound in sounds]
        return [
            Measures(
                each.text,
                round(each.log_probability, DIGITS),
                round(each.no_speech, DIGITS),
                None if each.language is None else round(each.language, DIGITS),
                other,
                each.ended,
            )
            for each, other in zip(heard, others, strict=True)
        ]

    return listen


def measure(clips: RaggedArray, names: list[str], listen: Listen, batch_size: int, log: Path) -> Iterator[Measures]:
    """Listen to clips in batches; each is noted in `log`, from which a killed run goes on, batch by batch."""
    lines = log.read_bytes().split(b"\n")[:-1] if log.exists() else []  # the last was not written to its end
    done = len(lines) if len(lines) == len(names) else len(lines) // batch_size * batch_size
    if done:
        print(f"labelling goes on from clip {done} ({log})")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        file.truncate(sum(len(line) + 1 for line in lines[:done]))
        for line in lines[:done]:
            yield Measures(**json.loads(line))
        for start in range(done, len(names), batch_size):
            batch = listen(clips, names[start : start + batch_size])
            file.writelines(json.dumps(vars(each)).encode() + b"\n" for each in batch)
            file.flush()
            yield from batch


def label(
    name: str, found: Measures, settings: PseudoLabel, language: str, vocabulary: Vocabulary, held_out: dict[str, str]
) -> dict[str, Any]:
    """A line of the output: the transcript, its text in the student's letters, what it was judged by, and how.

    `held_out` are the sentences of the other splits, and which it is.
    """
    text, reason = "", why_rejected(found, settings, language)
    try:
        text = vocabulary.fit(spell_out(found.transcript, language))
    except BadText as problem:
        reason = reason or str(problem)
    if not reason and text in held_out:
        reason = f"its sentence stands in {held_out[text]} too"
    disagreement = found.disagreement(language)
    return {
        "id": name,
        "transcript": found.transcript,
        "text": text,
        "log_probability": found.log_probability,
        "no_speech": found.no_speech,
        "compression_ratio": round(found.compression_ratio, DIGITS),
        "language": found.language,
        "second": found.second,
        "wer": None if disagreement is None else round(disagreement, DIGITS),
        "kept": not reason,
        "reason": reason,
    }


def counts(clips: RaggedArray, labels: list[dict[str, Any]]) -> dict[str, Any]:
    """How many clips and hours have a human transcript, a label that is kept, or one that is rejected, and why."""
    names = {
        "human": [item["id"] for item in clips.items if item["text"]],
        "kept": [line["id"] for line in labels if line["kept"]],
        "rejected": [line["id"] for line in labels if not line["kept"]],
    }
    seconds = {kind: sum(clips.item(name)["length"] for name in same) / SAMPLE_RATE for kind, same in names.items()}
    return {
        **{kind: {"clips": len(same), "hours": round(seconds[kind] / 3600, 6)} for kind, same in names.items()},
        "reasons": counted(line["reason"] for line in labels if not line["kept"]),
    }


def nothing_left(split: str, reasons: dict[str, int]) -> UserError:
    return UserError(
        f"{split}: no usable clip: none has a transcript of its own, and all of the teacher's were rejected: "
        f"{most_frequent(reasons)}; loosen pseudo_label in params.yaml, name another teacher in the preset, or give "
        "transcripts"
    )


def measured(paths: Paths, split: str, names: list[str], listen: Listen, *settings: str) -> Iterator[Measures]:
    """Measures of the clips that have no transcript; what a killed run has heard of them is not heard again."""
    from dqlora.device import default_device

    sources = (paths.clean / split, paths.teacher, paths.student, *settings, *loaded_sources())
    log = paths.teacher_labels / f"{split}-{fingerprint(*sources)}.jsonl"
    for other in set(paths.teacher_labels.glob(f"{split}-*.jsonl")) - {log}:
        other.unlink()
    found = measure(RaggedArray(paths.clean / split), names, listen, BATCH_SIZE[default_device().type], log)
    yield from ProgressBar(found, f"teacher labels {split}", len(names), unit=" clips")


def main() -> None:
    params = load_params()
    settings, language = params.pseudo_label, load_preset(params.preset).speech.language
    paths = Paths(params.preset)
    vocabulary = Vocabulary.load(paths.student / "vocab.json")
    splits = {split: RaggedArray(paths.clean / split) for split in (*SPLITS, OUT_OF_DOMAIN)}
    spoken = {split: {item["text"]: split for item in clips.items if item["text"]} for split, clips in splits.items()}
    lacking = {split: without_transcript(splits[split]) for split in SPLITS}
    listen = make_listener(paths, language, settings.second) if any(lacking.values()) else None
    rejected, metrics = Rejected(), {}
    with atomic_directory(paths.pseudo_labels) as folder:
        for split, names in lacking.items():
            held_out = dict(ChainMap(*(texts for other, texts in spoken.items() if other != split)))
            labels = []
            if names and listen:
                found = measured(paths, split, names, listen, language, settings.second)
                pairs = zip(names, found, strict=True)
                labels = [label(name, each, settings, language, vocabulary, held_out) for name, each in pairs]
            lines = "\n".join(json.dumps(line, ensure_ascii=False) for line in labels)
            (folder / f"{split}.jsonl").write_text(lines + "\n", encoding="utf-8")  # DVC warns of an empty file
            metrics[split] = counts(splits[split], labels)
            spoken[split] |= {line["text"]: split for line in labels if line["kept"]}
            for line in labels:
                if not line["kept"]:
                    rejected.add(split, line["id"], line["reason"])
            if not spoken[split]:
                rejected.show()
                raise nothing_left(split, metrics[split]["reasons"])
        rejected.write(folder)
    write_json(paths.metrics / "pseudo_label.json", metrics)
    for split, names in lacking.items():
        if names:
            human, kept, not_kept = (metrics[split][name]["clips"] for name in ("human", "kept", "rejected"))
            print(f"{split}: {human} clips with a transcript of their own, {kept} labelled, {not_kept} rejected")


if __name__ == "__main__":
    run_stage(main)
