"""Print the study's tables: WER by condition, spread over seeds, relative WER reductions with their intervals.

python -m research.study.table [data/study/results.jsonl] [--repeat OTHER.jsonl] [--words 2]

With --repeat, the noisy WER of the variants that both runs of the study trained with several seeds, and whether the two
runs' seeds overlap. With --words, utterances of fewer words are left out.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from dqlora.data.storage import read_jsonl
from dqlora.errors import UserError, run_stage
from research.study.variants import BASE, CTC, gated, has_adapter

Run = dict[str, Any]  # a line of the results
Groups = dict[int, dict[str, list[Run]]]  # by steps and variant
RESULTS = Path("data/study/results.jsonl")
CLEAN, NOISY = ("clean",), ("10 dB", "5 dB", "0 dB")
COLUMNS = (
    "variant", "seeds", *CLEAN, *NOISY, "noisy", "spread", "clean: reduction vs base", "noisy: reduction vs base",
)  # fmt: skip
ALL = "both"  # corpora together
DRAWS, SEED = 10_000, 0  # of the bootstrap


def edits_and_words(run: Run, corpus: str, condition: str) -> np.ndarray:
    """int [utterances, 2]"""
    corpora = list(run["errors"]) if corpus == ALL else [corpus]
    return np.concatenate([run["errors"][name][condition] for name in corpora])


def summed_edits(runs: list[Run], corpus: str, conditions: tuple[str, ...]) -> np.ndarray:
    """Word edits of each utterance, summed over conditions and runs: the utterance is what the bootstrap draws."""
    return np.sum([edits_and_words(run, corpus, one)[:, 0] for run in runs for one in conditions], axis=0)


def wer(run: Run, corpus: str, conditions: tuple[str, ...]) -> float:
    """Mean of the conditions' WERs, in %."""
    each = (edits_and_words(run, corpus, condition).sum(axis=0) for condition in conditions)
    return 100 * float(np.mean([edits / words for edits, words in each]))


@cache
def bootstrap_counts(utterances: int) -> np.ndarray:
    """How often each utterance is drawn, float32 [draws, utterances]: the draws of `metrics.relative_wer_reduction`."""
    generator = np.random.default_rng(SEED)
    blocks = [generator.integers(utterances, size=(1000, utterances)) for _ in range(DRAWS // 1000)]
    counts = np.zeros((DRAWS, utterances), np.float32)
    np.add.at(counts, (np.arange(DRAWS)[:, None], np.concatenate(blocks)), 1)
    return counts


def reduction_with_interval(base: np.ndarray, better: np.ndarray) -> tuple[float, float, float]:
    """What `metrics.relative_wer_reduction` gives for these edits, int [utterances], at once for all draws."""
    drawn = bootstrap_counts(len(base)) @ np.stack([base, better], axis=1).astype(np.float32)
    low, high = np.quantile(1 - drawn[:, 1].astype(float) / np.maximum(drawn[:, 0], 1), (0.025, 0.975))
    return float(1 - better.sum() / max(base.sum(), 1)), float(low), float(high)


def of_same_seeds(over: list[Run], runs: list[Run]) -> tuple[list[Run], list[Run]]:
    """Both sides' runs of the seeds that both have; the base and a mean of adapters, of no seed, as often as needed."""
    if over[0]["variant"] == BASE or "adapters" in over[0]:
        return over * len(runs), runs
    if "adapters" in runs[0]:
        return over, runs * len(over)
    seeds = {run["seed"] for run in over} & {run["seed"] for run in runs}
    return [run for run in over if run["seed"] in seeds], [run for run in runs if run["seed"] in seeds]


def reduction(over: list[Run], runs: list[Run], corpus: str, conditions: tuple[str, ...]) -> str:
    """The runs' relative WER reduction over others, in %, with its interval; empty if they share no seed."""
    pair = of_same_seeds(over, runs)
    if not pair[0]:
        return ""
    edits = (summed_edits(each, corpus, conditions) for each in pair)
    relative, low, high = (100 * value for value in reduction_with_interval(*edits))
    return f"{relative:.1f} [{low:.1f}, {high:.1f}]"


def row(name: str, runs: list[Run], base: list[Run], others: list[Run], corpus: str) -> list[str]:
    each = [wer(run, corpus, NOISY) for run in runs]
    conditions = [f"{np.mean([wer(run, corpus, (one,)) for run in runs]):.1f}" for one in CLEAN + NOISY]
    cells = [name, str(len(runs)), *conditions, f"{np.mean(each):.1f}", f"{max(each) - min(each):.1f}"]
    if name == BASE:
        return [*cells, "", "", ""]
    vs_base = [reduction(base, runs, corpus, conditions) for conditions in (CLEAN, NOISY)]
    return [*cells, *vs_base, reduction(others, runs, corpus, NOISY) if others and others is not runs else ""]


def read_runs(results: Path, words: int = 1) -> Groups:
    """The runs by steps and variant; the base has 0 steps. Adapters are there a second time, behind the gate.

    Utterances of fewer than `words` words are left out.
    """
    runs = read_jsonl(results, "`make study` writes it")
    base = next((run for run in runs if run["variant"] == BASE), {})
    if "entropies" in base:  # runs of before the gate lack them
        adapted = [run for run in runs if run is not base and has_adapter(run["variant"])]
        runs += [run | {"variant": gated(run["variant"]), "errors": behind_gate(base, run)} for run in adapted]
    groups: Groups = defaultdict(lambda: defaultdict(list))
    for run in runs:
        for conditions in run["errors"].values():
            for condition, errors in conditions.items():
                conditions[condition] = [edits_words for edits_words in errors if edits_words[1] >= words]
        groups[run["steps"]][run["variant"]].append(run)
    return groups


def behind_gate(base: Run, run: Run) -> dict[str, Any]:
    """The run's errors where the base is uncertain, and else the base's: those of `gate.GatedStudent`."""
    return {
        corpus: {
            condition: [
                own if entropy <= base["entropy_threshold"] else other
                for entropy, own, other in zip(
                    base["entropies"][corpus][condition], base["errors"][corpus][condition], errors, strict=True
                )
            ]
            for condition, errors in conditions.items()
        }
        for corpus, conditions in run["errors"].items()
    }


def comparison(groups: Groups, others: Groups) -> Iterator[str]:
    """The lines of a table: the seeds' ranges of what both runs of the study trained with several seeds."""
    yield from ("| steps | variant | noisy, lowest and highest seed | repeat | overlap |", "|" + " --- |" * 5)
    overlaps = []
    for steps, variants in sorted(groups.items()):
        for name, runs in variants.items():
            pair = [[wer(run, ALL, NOISY) for run in each] for each in (runs, others[steps][name])]
            if min(map(len, pair)) > 1:
                overlaps.append(max(map(min, pair)) <= min(map(max, pair)))
                ranges = [f"{min(each):.1f} to {max(each):.1f}" for each in pair]
                yield f"| {steps} | {name} | {' | '.join(ranges)} | {'yes' if overlaps[-1] else 'no'} |"
    yield from ("", f"{sum(overlaps)} of {len(overlaps)} overlap")


def tables(groups: Groups, over: str = CTC) -> Iterator[str]:
    """The lines of a table for each number of steps and each corpus, the last column over the variant `over`."""
    base = groups[0][BASE]
    corpora = list(base[0]["errors"])
    columns = [*COLUMNS, f"noisy: reduction vs {over}"]
    for steps, corpus in itertools.product(sorted(set(groups) - {0}), [*corpora, ALL] if len(corpora) > 1 else corpora):
        variants = groups[steps]
        yield from ("", f"{steps} steps, {corpus}: WER and relative WER reduction in %, 95 % intervals", "")
        yield from (f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns))
        others = variants.get(over, [])
        rows = [row(name, runs, base, others, corpus) for name, runs in [(BASE, base), *variants.items()]]
        for cells in sorted(rows, key=lambda cells: float(cells[6])):
            yield f"| {' | '.join(cells)} |"


def main(
    results: Annotated[Path, typer.Argument(help="What research.study.run wrote.")] = RESULTS,
    over: Annotated[str, typer.Option(help="The variant that the last column compares with.")] = CTC,
    repeat: Annotated[Path | None, typer.Option(help="Another run of the study, to compare the seeds' ranges.")] = None,
    words: Annotated[int, typer.Option(min=1, help="Leave out utterances of fewer words.")] = 1,
) -> None:
    groups = read_runs(results, words)
    if BASE not in groups[0]:
        raise UserError(f"{results}: no run of {BASE!r}, with which the others are compared; `make study` goes on")
    names = {name for steps, variants in groups.items() if steps for name in variants}
    if over != CTC and over not in names:
        raise UserError(f"--over {over!r}: not in {results}; there are: {'; '.join(sorted(names))}")
    for line in comparison(groups, read_runs(repeat, words)) if repeat else tables(groups, over):
        print(line)


if __name__ == "__main__":
    run_stage(lambda: typer.run(main))
