"""How good the teacher's labels are, with and without each line of the filter, where people's transcripts are known.

python -m research.study.labels SPEECH [SPEECH ...] --preset local

SPEECH are folders with a metadata.csv, whose recordings were labelled by `dvc repro pseudo_label` without it.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from dqlora.config import Paths, PseudoLabel, load_params, load_preset
from dqlora.data.storage import read_jsonl, rerun
from dqlora.data.tables import read_table
from dqlora.errors import UserError, run_stage
from dqlora.evaluation.label_filter import Measures, why_rejected
from dqlora.evaluation.metrics import count_errors
from dqlora.evaluation.results import wer_with_interval

LINES = ("log_probability", "no_speech", "compression_ratio", "language", "repeats", "hallucinations", "wer")


def only(settings: PseudoLabel, *lines: str) -> PseudoLabel:
    """The filter with these of its lines alone."""
    off = {line: [] if line == "hallucinations" else "none" for line in LINES if line not in lines}
    return settings.model_copy(update=off)


def quality(labels: list[dict[str, Any]], language: str, draws: int, seed: int) -> dict[str, Any]:
    """Clips, and the WER of their labels by people's transcripts with its interval over clips."""
    errors = count_errors([label["human"] for label in labels], [label["transcript"] for label in labels], language)
    found = wer_with_interval(errors, draws, seed)
    wrong = int((errors.word_edits > 0).sum())
    return {"clips": len(labels), "wer": found.value, "low": found.low, "high": found.high, "with_errors": wrong}


def main(
    speech: Annotated[list[Path], typer.Argument(help="Folders with a metadata.csv.")],
    preset: Annotated[str, typer.Option(help="Whose labels are judged.")] = "local",
) -> None:
    params = load_params()
    language, paths = load_preset(preset).speech.language, Paths(preset)
    draws, seed, settings = params.evaluate.bootstrap_draws, params.seed, params.pseudo_label
    human = {row.id: (folder, row.transcript) for folder in speech for row in read_table(folder / "metadata.csv")}
    results = []
    for folder in speech:
        labels = [
            label | {"human": human[name][1]}
            for split in ("train", "validation", "test")
            for label in read_jsonl(paths.pseudo_labels / f"{split}.jsonl", rerun("pseudo_label"))
            if (name := label["id"].rpartition("/")[2]) in human and human[name][0] == folder
        ]
        if not labels:
            raise UserError(f"{folder}: none of its recordings is among the labels of {paths.pseudo_labels}")
        filters = {
            "unfiltered": only(settings),
            **{line: only(settings, line) for line in LINES},
            "all lines": settings,
        }
        for name, lines in filters.items():
            kept = [label for label in labels if not why_rejected(measures(label), lines, language)]
            if kept:
                found = quality(kept, language, draws, seed)
                results.append({"speech": "/".join(folder.parts[-2:]), "filter": name, "of": len(labels), **found})
    print("| speech | filter | kept | with an error | WER of the labels |\n| --- | --- | --- | --- | --- |")
    for row in results:
        interval = "" if row["low"] is None else f" ({100 * row['low']:.1f} to {100 * row['high']:.1f})"
        wer = f"{100 * row['wer']:.1f} %{interval}"
        print(f"| {row['speech']} | {row['filter']} | {row['clips']} of {row['of']} | {row['with_errors']} | {wer} |")
    print("\n".join(json.dumps(row) for row in results))


def measures(label: dict[str, Any]) -> Measures:
    names = ("transcript", "log_probability", "no_speech", "language", "second")
    return Measures(**{name: label[name] for name in names})


if __name__ == "__main__":
    run_stage(lambda: typer.run(main))
