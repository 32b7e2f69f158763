"""Experiments side by side: headline metrics of each, and the parameters in which they differ; two of them, paired."""

import json
import subprocess
from typing import Any

import yaml
from dvc.api import exp_show, read
from dvc.exceptions import DvcException
from dvc.scm import SCMError
from dvc_data.index import DataIndexDirError
from rich import box
from rich.markup import escape
from rich.table import Table

from dqlora.config import Paths
from dqlora.errors import UserError, first_line
from dqlora.evaluation.metrics import score, wer_reductions
from dqlora.evaluation.results import LM_SYSTEMS, SYSTEMS, Estimate, in_words, verdict

METRICS = (  # of summary.json
    *("base.clean", "clean", "lm.clean", "base.noisy", "noisy", "lm.noisy"),
    *("gain", "low", "high", "out_of_domain"),
)
EXPERIMENT = ("branch_base", "branch_commit")  # DVC's `typ` of those
UNFINISHED = ("Queued", "Running", "Failed")  # DVC's `State` of those that have their commit's metrics still
ABOUT = ("rev", "typ", "Created", "parent", "State", "Executor", "Experiment")  # DVC's own columns

NARROW = 100  # columns of a terminal under which the settings stand below the name
FIRST_COLUMN = 17  # columns that are left for both in one of 80

Row = dict[str, Any]  # one experiment as `dvc.api.exp_show` gives it: flat names of metrics, parameters and deps


def experiments(commits: int = 1) -> tuple[list[Row], int]:
    """The workspace, the newest `commits` and the experiments that began from them and evaluated; how many did not.

    Raises
    ------
    UserError
        if this is no project under DVC and git, or DVC is writing an experiment at the moment.
    """
    try:
        rows = exp_show(num=commits)
    except DvcException as error:
        if ".dvc/tmp/exps" in str(error):
            raise UserError("an experiment begins or ends at the moment; try again in a few seconds") from None
        raise UserError(f"no experiments here ({first_line(error)}); run this in the project's folder") from None
    ended = [row for row in rows if row.get("State") not in UNFINISHED]
    evaluated = [row for row in ended if row.get("typ") not in EXPERIMENT or _evaluated(row)]
    return evaluated, len(rows) - len(evaluated)


def _evaluated(row: Row) -> bool:
    """Whether an experiment's metrics are its own: where it stopped before `evaluate`, they are its commit's.

    One that ran nothing, since it has its commit's settings, has its commit's metrics by right.
    """
    own, commit = _stages(row["rev"]), _stages(f"{row['rev']}~1")
    return "evaluate" not in own or own == commit or own["evaluate"] != commit.get("evaluate")


def _stages(revision: str) -> dict[str, Any]:
    """What dvc.lock says of each stage at a revision; empty where there is none."""
    lock = subprocess.run(["git", "show", f"{revision}:dvc.lock"], capture_output=True, check=False)
    return (yaml.safe_load(lock.stdout) or {}).get("stages", {}) if lock.returncode == 0 else {}


def differences(before: str, after: str) -> list[str]:
    """How much lower WER is in one experiment than in another, on the same test clips, a line each of what was decoded.

    Parameters
    ----------
    before, after
        names of experiments, branches or commits; `workspace` is what lies in the folder.

    Raises
    ------
    UserError
        if there is no such experiment, or it did not evaluate, or the two have other test clips.
    """
    (first, record), (second, _) = (_tested(name) for name in (before, after))
    tested_on = ("id", "condition", "reference", "noise")
    clips = [[[row.get(name) for name in tested_on] for row in rows] for rows in (first, second)]
    if clips[0] != clips[1]:
        raise UserError(
            f"{before}, {after}: tested on different clips or noise; name two experiments of one preset and seed"
        )
    lines = []
    for system, name in (SYSTEMS | LM_SYSTEMS).items():
        if not system.startswith("distilled") or system not in first[0] or system not in second[0]:
            continue
        one, other = (score(rows, system, record["language"]) for rows in (first, second))
        for condition, reduction in wer_reductions(one, other, record["bootstrap_draws"], record["seed"]).items():
            found = verdict(Estimate(reduction["relative"], reduction.get("ci_low"), reduction.get("ci_high")))
            lines.append(f"{name}, {condition}: WER {in_words(reduction)} in {after} than in {before}: {found}")
    return lines


def _tested(name: str) -> tuple[list[Row], dict[str, Any]]:
    """The predictions of the test clips in an experiment, and what `evaluate` recorded beside them."""
    revision = None if name == "workspace" else name
    try:
        paths = Paths(yaml.safe_load(read("params.yaml", rev=revision))["preset"])
        folder = (paths.metrics / "test").as_posix()
        predictions, record = (read(f"{folder}/{file}", rev=revision) for file in ("predictions.jsonl", "record.json"))
        stages = yaml.safe_load(read("dvc.lock", rev=revision))["stages"]
    except (DvcException, DataIndexDirError, SCMError, OSError) as error:
        raise UserError(
            f"{name}: no test transcripts of it here ({first_line(error)}); name an experiment of `dqlora compare`, a "
            "commit, or workspace; if it was run elsewhere, check it out and run `dvc repro evaluate`"
        ) from None
    made = {output["path"]: output["md5"] for stage in stages.values() for output in stage.get("outs", [])}
    if any(made.get(each["path"], each["md5"]) != each["md5"] for each in stages["evaluate"].get("deps", [])):
        raise UserError(f"{name}: stopped before evaluate; run `dvc exp run evaluate` with its settings")
    return [json.loads(line) for line in predictions.splitlines()], json.loads(record)


def comparison(rows: list[Row], others: int, width: int) -> Table:
    """One line an experiment that has metrics: WERs, gain and interval in %, then the settings in which it differs.

    The lines of a preset are compared only among experiments of that preset.

    Parameters
    ----------
    others
        experiments that are not shown.
    width
        of the terminal, in columns.
    """
    shown = [(row, _metrics(row)) for row in rows]
    shown = [(row, metrics) for row, metrics in shown if metrics]
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        collapse_padding=True,
        caption="WER in %; lower than each one's own base, without LM, 95 % interval of a paired bootstrap;\n"
        "two with each other: dqlora compare ONE OTHER"
        + (f"\nnot shown, queued, running or not evaluated: {others}" if others else ""),
        caption_justify="left",
    )
    beside = width >= NARROW
    table.add_column("experiment" if beside else "experiment,\nsettings\nthat differ", no_wrap=beside, overflow="fold")
    for condition in ("clean", "noisy"):
        table.add_column(f"WER {condition}:\nbase,\ndistilled,\nwith LM", justify="right", no_wrap=True)
    table.add_column("lower in noise\nby \\[interval]", justify="right", no_wrap=True)
    table.add_column("out of\ndomain", justify="right", no_wrap=True)
    if beside:
        table.add_column("settings that differ", overflow="fold")
    for row, metrics in shown:
        wer = [f"{100 * metrics[name]:.1f}" if name in metrics else "-" for name in METRICS]
        gain = f"{wer[6]} \\[{wer[7]}, {wer[8]}]"
        differing = _differing([each for each, _ in shown], row)
        settings = [escape(_setting(name.rpartition(":")[2], row[name], beside)) for name in differing]
        systems = (f"{base}, {distilled:>4}, {lm:>4}" for base, distilled, lm in (wer[:3], wer[3:6]))
        name = row["Experiment"] or row["rev"]
        first, *last = [name, "\n".join(settings)] if beside else ["\n".join([name, *settings])]
        table.add_row(first, *systems, gain, wer[9], *last)
    return table


def _differing(rows: list[Row], row: Row) -> list[str]:
    """The parameters that `row` has and that another row, if it has them too, has otherwise."""
    values = {
        name: {str(each[name]) for each in rows if each.get(name) is not None} for name in row if _is_parameter(name)
    }
    return [name for name, found in values.items() if row[name] is not None and len(found) > 1]


def _setting(name: str, value: Any, whole: bool) -> str:
    """`name: value`; unless `whole` of a long one the name within its block."""
    setting = f"{name}: {_plain(value)}"
    return setting if whole or len(setting) <= FIRST_COLUMN else f"{name.rpartition('.')[2]}: {_plain(value)}"


def _plain(value: Any) -> str:
    """DVC gives every number of a column as a float where one is."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _metrics(row: Row) -> dict[str, float]:
    """By their names in summary.json: DVC puts the file before a name that several presets have."""
    named = {name.rpartition(":")[2]: value for name, value in row.items() if value is not None}
    return {name: named[name] for name in METRICS if isinstance(named.get(name), float)}


def _is_parameter(name: str) -> bool:
    """Neither a metric nor the hash of a dependency, which is a path."""
    key = name.rpartition(":")[2]
    return key not in METRICS and name not in ABOUT and "/" not in key and not key.endswith((".py", ".j2", ".csv"))
