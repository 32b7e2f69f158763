"""Print the study's tables out of the runs it noted: WER by condition, spread over seeds, gains with their intervals.

python -m study.table [data/study/results.jsonl] [--again OTHER.jsonl] [--words 2]

With --again, the noisy WER of the variants that both runs of the study trained with several seeds, and whether the two
runs' seeds overlap. With --words, utterances of fewer words are left out.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from dqlora.errors import UserError, run_stage
from dqlora.scoring import Errors, relative_gain
from study.run import BASE, RESULTS
from study.variants import CTC, has_adapter, switched

Run = dict[str, Any]  # a line of the results
Groups = dict[int, dict[str, list[Run]]]  # by steps and variant
CLEAN, NOISY = ("clean",), ("10 dB", "5 dB", "0 dB")
COLUMNS = (
    "variant", "seeds", *CLEAN, *NOISY, "noisy", "spread", "clean: gain on base", "noisy: gain on base",
)  # fmt: skip
ALL = "both"  # corpora together
DRAWS, SEED = 10_000, 0  # of the bootstrap


def edits_and_words(run: Run, corpus: str, condition: str) -> np.ndarray:
    """int [utterances, 2]"""
    corpora = list(run["errors"]) if corpus == ALL else [corpus]
    return np.concatenate([run["errors"][name][condition] for name in corpora])


def summed(runs: list[Run], corpus: str, conditions: tuple[str, ...]) -> Errors:
    """Word edits of each utterance, summed over conditions and runs: the utterance is what the bootstrap draws."""
    edits = sum(edits_and_words(run, corpus, condition) for run in runs for condition in conditions)
    none = np.zeros(len(edits), int)
    return Errors(edits[:, 0], edits[:, 1], none, none)


def wer(run: Run, corpus: str, conditions: tuple[str, ...]) -> float:
    """Mean of the conditions' WERs, in %."""
    each = (edits_and_words(run, corpus, condition).sum(axis=0) for condition in conditions)
    return 100 * float(np.mean([edits / words for edits, words in each]))


def gain(over: list[Run], runs: list[Run], corpus: str, conditions: tuple[str, ...]) -> str:
    """How much lower the runs' WER is, in % of the others', with its interval; over the seeds that both have."""
    seeds = {run["seed"] for run in runs}
    same = over * len(runs) if over[0]["variant"] == BASE else [run for run in over if run["seed"] in seeds]
    runs = runs if over[0]["variant"] == BASE else [run for run in runs if run["seed"] in {one["seed"] for one in same}]
    if not same:
        return ""
    found = relative_gain(summed(same, corpus, conditions), summed(runs, corpus, conditions), DRAWS, SEED)
    return f"{100 * found['wer_relative']:.1f} [{100 * found['ci_low']:.1f}, {100 * found['ci_high']:.1f}]"


def row(name: str, runs: list[Run], base: list[Run], others: list[Run], corpus: str) -> list[str]:
    each = [wer(run, corpus, NOISY) for run in runs]
    conditions = [f"{np.mean([wer(run, corpus, (one,)) for run in runs]):.1f}" for one in CLEAN + NOISY]
    cells = [name, str(len(runs)), *conditions, f"{np.mean(each):.1f}", f"{max(each) - min(each):.1f}"]
    if name == BASE:
        return [*cells, "", "", ""]
    on_base = [gain(base, runs, corpus, conditions) for conditions in (CLEAN, NOISY)]
    return [*cells, *on_base, gain(others, runs, corpus, NOISY) if others and others is not runs else ""]


def read_runs(results: Path, words: int = 1) -> Groups:
    """The runs by steps and variant; the base has 0 steps. Adapters are there a second time, switched.

    Utterances of fewer than `words` words are left out.
    """
    if not results.exists():
        raise UserError(f"{results}: no such file; make study writes it")
    runs = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    base = next((run for run in runs if run["variant"] == BASE), {})
    if "entropies" in base:  # runs of before the switch lack them
        adapted = [run for run in runs if run is not base and has_adapter(run["variant"])]
        runs += [run | {"variant": switched(run["variant"]), "errors": after_switch(base, run)} for run in adapted]
    groups: Groups = defaultdict(lambda: defaultdict(list))
    for run in runs:
        for conditions in run["errors"].values():
            for condition, errors in conditions.items():
                conditions[condition] = [edits_words for edits_words in errors if edits_words[1] >= words]
        groups[run["steps"]][run["variant"]].append(run)
    return groups


def after_switch(base: Run, run: Run) -> dict[str, Any]:
    """The run's errors where the base is not sure, and else the base's: what `student.Switched` reads."""
    return {
        corpus: {
            condition: [
                own if entropy <= base["entropy_limit"] else other
                for entropy, own, other in zip(
                    base["entropies"][corpus][condition], base["errors"][corpus][condition], errors, strict=True
                )
            ]
            for condition, errors in conditions.items()
        }
        for corpus, conditions in run["errors"].items()
    }


def compare(groups: Groups, others: Groups) -> None:
    """Print the seeds' ranges of what both have with several seeds."""
    print("| steps | variant | noisy, lowest and highest seed | again | overlap |\n| --- | --- | --- | --- | --- |")
    overlaps = []
    for steps, variants in sorted(groups.items()):
        for name, runs in variants.items():
            pair = [[wer(run, ALL, NOISY) for run in each] for each in (runs, others[steps][name])]
            if min(map(len, pair)) > 1:
                overlaps.append(max(map(min, pair)) <= min(map(max, pair)))
                ranges = [f"{min(each):.1f} to {max(each):.1f}" for each in pair]
                print(f"| {steps} | {name} | {' | '.join(ranges)} | {'yes' if overlaps[-1] else 'no'} |")
    print(f"\n{sum(overlaps)} of {len(overlaps)} overlap")


def main(
    results: Annotated[Path, typer.Argument(help="What study.run wrote.")] = RESULTS,
    over: Annotated[str, typer.Option(help="The variant that the last column compares with.")] = CTC,
    again: Annotated[Path | None, typer.Option(help="Another run of the study, to compare the seeds' ranges.")] = None,
    words: Annotated[int, typer.Option(min=1, help="Leave out utterances of fewer words.")] = 1,
) -> None:
    groups = read_runs(results, words)
    if again:
        compare(groups, read_runs(again, words))
        return
    base = groups.pop(0)[BASE]
    names = {name for variants in groups.values() for name in variants}
    if over != CTC and over not in names:
        raise UserError(f"--over {over!r}: not in {results}; there are: {'; '.join(sorted(names))}")
    for steps, variants in sorted(groups.items()):
        for corpus in (*base[0]["errors"], ALL):
            print(f"\n{steps} steps, {corpus}: WER and gains in %\n")
            columns = [*COLUMNS, f"noisy: gain on {over}"]
            print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
            rows = [
                row(name, runs, base, variants.get(over, []), corpus)
                for name, runs in [(BASE, base), *variants.items()]
            ]
            for cells in sorted(rows, key=lambda cells: float(cells[6])):
                print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    run_stage(lambda: typer.run(main))
