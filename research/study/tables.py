"""Write the tables of every results file: research/study/tables/<results file>.md.

python -m research.study.tables
"""

from pathlib import Path

from dqlora.data.storage import atomic_write
from dqlora.errors import run_stage
from research.study.table import comparison, read_runs, tables

FOLDER = Path(__file__).parent
RESULTS, TABLES = FOLDER / "results", FOLDER / "tables"


def page(results: Path) -> str:
    """All tables of one results file; first, where the study was repeated, whether both runs agree."""
    groups = read_runs(results)
    lines = [f"# {results.stem}", ""]
    lines += [f"Written by `python -m research.study.tables` from [its runs](../results/{results.name})."]
    repeat = results.with_stem(f"{results.stem}_repeat")
    if repeat.exists():
        lines += ["", f"Repeated with the same seeds: [{repeat.stem}]({repeat.stem}.md).", ""]
        lines += comparison(groups, read_runs(repeat))
    return "\n".join([*lines, *tables(groups)]) + "\n"


def main() -> None:
    for results in sorted(RESULTS.glob("*.jsonl")):
        atomic_write(TABLES / f"{results.stem}.md", page(results))


if __name__ == "__main__":
    run_stage(main)
