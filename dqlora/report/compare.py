"""Experiments side by side: the headline metrics of each, and the parameters in which they differ."""

from typing import Any

from dvc.api import exp_show
from dvc.exceptions import DvcException
from rich import box
from rich.table import Table

from dqlora.errors import UserError, first_line

METRICS = (  # of summary.json
    *("base.clean", "clean", "lm.clean", "base.noisy", "noisy", "lm.noisy"),
    *("gain", "low", "high", "out_of_domain"),
)
ABOUT = ("rev", "typ", "Created", "parent", "State", "Executor", "Experiment")  # DVC's own columns

Row = dict[str, Any]  # one experiment as `dvc.api.exp_show` gives it: flat names of metrics, parameters and deps


def experiments(commits: int = 1) -> list[Row]:
    """The workspace, the newest `commits` and the experiments that began from them.

    Raises
    ------
    UserError
        if this is no project under DVC and git.
    """
    try:
        return exp_show(num=commits)
    except DvcException as error:
        raise UserError(f"no experiments here ({first_line(error)}); run this in the project's folder") from None


def comparison(rows: list[Row]) -> Table:
    """One line an experiment that has metrics: WERs, gain and interval in %, then the settings in which it differs.

    The lines of a preset are compared only among experiments of that preset.
    """
    shown = [(row, _metrics(row)) for row in rows]
    shown = [(row, metrics) for row, metrics in shown if metrics]
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        caption="WER in %; 95 % interval of a paired bootstrap",
        caption_justify="left",
    )
    table.add_column("experiment", no_wrap=True)
    for condition in ("clean", "noisy"):
        table.add_column(f"WER {condition}:\nbase,\ndistilled,\nwith LM", justify="right", no_wrap=True)
    table.add_column("lower in noise\nby \\[interval]", justify="right", no_wrap=True)
    table.add_column("out of\ndomain", justify="right", no_wrap=True)
    table.add_column("settings that differ", overflow="fold")
    for row, metrics in shown:
        wer = [f"{100 * metrics[name]:.1f}" if name in metrics else "-" for name in METRICS]
        gain = f"{wer[6]} \\[{wer[7]}, {wer[8]}]"
        settings = [f"{name.rpartition(':')[2]}: {row[name]}" for name in _differing([each for each, _ in shown], row)]
        systems = (f"{base}, {distilled:>4}, {lm:>4}" for base, distilled, lm in (wer[:3], wer[3:6]))
        table.add_row(row["Experiment"] or row["rev"], *systems, gain, wer[9], "\n".join(settings))
    return table


def _differing(rows: list[Row], row: Row) -> list[str]:
    """The parameters that `row` has and that another row, if it has them too, has otherwise."""
    values = {
        name: {str(each[name]) for each in rows if each.get(name) is not None} for name in row if _is_parameter(name)
    }
    return [name for name, found in values.items() if row[name] is not None and len(found) > 1]


def _metrics(row: Row) -> dict[str, float]:
    """By their names in summary.json: DVC puts the file before a name that several presets have."""
    named = {name.rpartition(":")[2]: value for name, value in row.items() if value is not None}
    return {name: named[name] for name in METRICS if isinstance(named.get(name), float)}


def _is_parameter(name: str) -> bool:
    """Neither a metric nor the hash of a dependency, which is a path."""
    key = name.rpartition(":")[2]
    return key not in METRICS and name not in ABOUT and "/" not in key and not key.endswith((".py", ".j2", ".csv"))
