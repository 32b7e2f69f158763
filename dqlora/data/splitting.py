"""Splits of a corpus that has none of its own: by sentence, so that what is tested is never trained on."""

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from dqlora.data.tables import Row
from dqlora.errors import UserError

Place = TypeVar("Place")  # of a row: its table

# Cumulative ratios of a seeded hash of the sentence, where a corpus has no splits of its own.
HASH_RATIOS = (("test", 0.15), ("validation", 0.25), ("train", 1.0))
VALIDATION_RATIOS = (("validation", 0.1), ("train", 1.0))  # where it has all but a validation split


def split_by_sentence(
    folder: Path, rows: list[tuple[Row, Place]], ratios: tuple[tuple[str, float], ...], seed: int
) -> list[tuple[Row, Place]]:
    """Rows that are to train on, split by a hash of their sentence so that each split has one sentence at least.

    Where the sentences are too few for that, rows without a transcript are split by a hash of their names, and what
    sentences there are go to test. What cannot be used stays in train, which rejects it.
    """
    own = [row.split in ("", "train") and not row.problem for row, _ in rows]
    sentences = [_sentence(row) if ours else "" for (row, _), ours in zip(rows, own, strict=True)]
    names = [row.id if ours and not row.transcript.strip() else "" for (row, _), ours in zip(rows, own, strict=True)]
    known, bare = ({key for key in keys if key} for keys in (sentences, names))
    keys, to_split, left, splits = sentences, known, ratios, {"": ""}
    if len(known) < len(ratios):
        keys, to_split = [sentence or name for sentence, name in zip(sentences, names, strict=True)], bare
        if known and ratios == HASH_RATIOS:
            left, splits = VALIDATION_RATIOS, splits | dict.fromkeys(known, "test")
    if len(to_split) < len(left):
        without = f", and {len(bare)} without a transcript," if bare else ""
        problems = Counter(row.problem for row, _ in rows if row.problem)
        most = f" ({problems.total()} are not usable; the first: {next(iter(problems))})" if problems else ""
        raise UserError(
            f"speech.path: {folder}: {sum(map(bool, sentences))} usable rows with {len(known)} different sentences"
            f"{without}{most} are too few to split into {', '.join(name for name, _ in ratios)}; add recordings of "
            "other sentences, or put them into train/, validation/ and test/"
        )
    hashes = {key: hash_ratio(key, seed) for key in to_split}
    ordered = sorted(hashes, key=lambda key: hashes[key])
    start = 0
    for number, (name, below) in enumerate(left):
        to_come = len(left) - number - 1
        end = sum(ratio < below for ratio in hashes.values())
        end = min(max(end, start + 1), len(ordered) - to_come)
        splits |= dict.fromkeys(ordered[start:end], name)
        start = end
    return [
        (replace(row, split=splits.get(key, "") or row.split), table)
        for (row, table), key in zip(rows, keys, strict=True)
    ]


def _sentence(row: Row) -> str:
    """Its words alone; nothing of a row with a problem."""
    letters = "".join(char if char.isalnum() else " " for char in row.transcript.lower())
    return "" if row.problem else " ".join(letters.split())


def hash_ratio(sentence: str, seed: int) -> float:
    """A number in [0, 1) that depends on the seed and the sentence alone."""
    return int(hashlib.sha256(f"{seed}:{sentence}".encode()).hexdigest()[:12], 16) / 16**12
