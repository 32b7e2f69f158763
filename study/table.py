"""Print the study's table out of metrics/study/results.jsonl: WER by condition, spread over seeds, gain with interval.

python -m study.table
"""

import json
from collections import defaultdict
from typing import Any

import numpy as np

from dqlora.scoring import Errors, relative_gain
from study.run import BASE, RESULTS
from study.variants import CTC

CONDITIONS = ("clean", "10 dB", "5 dB", "0 dB")
COLUMNS = ("variant", "seeds", *CONDITIONS, "noisy", "spread", "gain on base %", "gain on CTC only %")
DRAWS, SEED = 10_000, 0  # of the bootstrap


def noisy(runs: list[dict[str, Any]], corpus: str) -> Errors:
    """Word edits of each utterance, summed over the noisy conditions and the runs."""
    edits = sum(np.array(run["errors"][corpus][name]) for run in runs for name in CONDITIONS[1:])
    none = np.zeros(len(edits), int)
    return Errors(edits[:, 0], edits[:, 1], none, none)


def wer(run: dict[str, Any], corpus: str, conditions: tuple[str, ...]) -> float:
    """Mean of the conditions' WERs, in %."""
    rows = [np.array(run["errors"][corpus][name]) for name in conditions]
    return 100 * float(np.mean([edits.sum() / words.sum() for edits, words in (row.T for row in rows)]))


def gain(over: list[dict[str, Any]], runs: list[dict[str, Any]], corpus: str) -> str:
    """Relative gain in noisy WER with its interval, over the seeds that both were run with."""
    seeds = {run["seed"] for run in runs}
    same = over * len(runs) if len(over) == 1 else [run for run in over if run["seed"] in seeds]
    if len(same) != len(runs):
        return ""
    found = relative_gain(noisy(same, corpus), noisy(runs, corpus), DRAWS, SEED)
    return f"{100 * found['wer_relative']:.1f} [{100 * found['ci_low']:.1f}, {100 * found['ci_high']:.1f}]"


def main() -> None:
    rows = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    groups: dict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["steps"], row["variant"]].append(row)
    base = groups.pop((0, BASE))
    for steps in sorted({steps for steps, _ in groups}):
        print(f"\n### {steps} steps\n")
        for corpus in base[0]["errors"]:
            print(f"\n{corpus}, WER %\n")
            print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
            same = {name: runs for (budget, name), runs in groups.items() if budget == steps}
            for name, runs in sorted({BASE: base, **same}.items(), key=lambda item: _mean_noisy(item[1], corpus)):
                cells = [f"{np.mean([wer(run, corpus, (one,)) for run in runs]):.1f}" for one in CONDITIONS]
                each = [wer(run, corpus, CONDITIONS[1:]) for run in runs]
                over_ctc = gain(same[CTC], runs, corpus) if CTC in same and name not in (CTC, BASE) else ""
                over_base = gain(base, runs, corpus) if name != BASE else ""
                spread = f"{max(each) - min(each):.1f}"
                cells = [name, str(len(runs)), *cells, f"{np.mean(each):.1f}", spread, over_base, over_ctc]
                print(f"| {' | '.join(cells)} |")


def _mean_noisy(runs: list[dict[str, Any]], corpus: str) -> float:
    return float(np.mean([wer(run, corpus, CONDITIONS[1:]) for run in runs]))


if __name__ == "__main__":
    main()
