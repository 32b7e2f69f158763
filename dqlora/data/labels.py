"""The transcripts that are learnt from and counted against: the source's own, else the teacher's where it was kept."""

from typing import Any

from dqlora.config import Paths
from dqlora.data.storage import RaggedArray, read_jsonl, rerun

TEACHER = "teacher"  # `labelled_by` of a clip whose transcript is the teacher's; the others have no such field


def labelled(paths: Paths, split: str) -> RaggedArray:
    """The clips of a split that have a transcript; those whose label was rejected are left out.

    Returns
    -------
    int16 [samples] a clip, as `fetch_speech` wrote them, each with `transcript` and `text` of the source, or those of
    `pseudo_label` and `labelled_by`.

    Raises
    ------
    UserError
        if a clip lacks its transcript, and what `pseudo_label` writes is missing.
    """
    clips = RaggedArray(paths.clean / split)
    if all(item["text"] for item in clips.items):
        return clips
    labels = {label["id"]: label for label in read_jsonl(paths.pseudo_labels / f"{split}.jsonl", rerun("pseudo_label"))}
    return clips.with_items(
        [item if item["text"] else _with_label(item, labels[item["id"]])
         for item in clips.items if item["text"] or labels[item["id"]]["kept"]]
    )  # fmt: skip


def _with_label(item: dict[str, Any], label: dict[str, Any]) -> dict[str, Any]:
    return item | {"transcript": label["transcript"], "text": label["text"], "labelled_by": TEACHER}
