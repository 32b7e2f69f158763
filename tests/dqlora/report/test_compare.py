"""The table of experiments."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dvc.exceptions import DvcException
from dvc.scm import RevError
from rich.console import Console

from dqlora.errors import UserError
from dqlora.report.compare import comparison, differences, experiments

PATH = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
FOUND = {"base.clean": 0.073, "clean": 0.08, "lm.clean": 0.061, "base.noisy": 0.766, "noisy": 0.534}
GAIN = {"gain": 0.303, "low": 0.251, "high": 0.36, "out_of_domain": -0.031}
SAME = {"seed": 0, "models/mini/adapter": "1234", "stages/train.py": "ab", "typ": "baseline", "Created": "06:12 AM"}


def row(name: str | None, file: str = "", **changes: Any) -> dict[str, Any]:
    """What DVC gives: a metric has its file before its name where several files have it."""
    metrics = {f"{file}{metric}": value for metric, value in (FOUND | GAIN).items()}
    return {"Experiment": name, "rev": "workspace", **SAME, **metrics, **changes}


def shown(rows: list[dict[str, Any]], width: int = 120, others: int = 0) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(comparison(rows, others, width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_sweep_fits_a_terminal_and_names_what_it_shows() -> None:
    rows = [row(None, lambda_distill=1.0), *(row(f"sweep-{value}", lambda_distill=value) for value in (0.3, 0.5, 2.0))]
    text = shown(rows)
    assert max(map(len, text.splitlines())) <= 120
    for part in (
        "WER clean",
        "WER noisy",
        "base",
        "distilled",
        "lower in noise",
        "[interval]",
        "domain",
        "lambda_distill",
    ):
        assert part in text
    [line] = [line for line in text.splitlines() if "sweep-0.5" in line]
    shown_line = "sweep-0.5 7.3, 8.0, 6.1 76.6, 53.4, - 30.3 [25.1, 36.0] -3.1 lambda_distill: 0.5"
    assert " ".join(line.split()) == shown_line
    assert "seed" not in text and "1234" not in text  # the same in all, and the hash of a dependency


def test_what_is_not_shown_is_counted() -> None:
    assert "not shown, queued, running or not evaluated: 2" in shown([row(None)], others=2)
    assert "not shown" not in shown([row(None)])


def test_a_long_name_of_a_setting_is_not_broken_on_a_narrow_terminal() -> None:
    name = "presets/mini.yaml:budget.wise_ft_alpha"
    rows = [row(f"run-{alpha}", **{name: alpha, "lora.r": 8 * alpha}) for alpha in (0.4, 1.0)]
    text = shown(rows, 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "wise_ft_alpha: 0.4" in text and "lora.r: 8" in text
    assert "budget.wise_ft_alpha: 0.4" in shown(rows, 120)


@pytest.mark.parametrize("width", [80, 120, 300])
def test_presets_keep_their_own_metrics_and_their_lines_do_not_crowd_the_table(width: int) -> None:
    lines = {f"presets/local.yaml:{name}": name for name in ("speech.path", "student", "budget.steps", "noise.seconds")}
    mine = row("mine", "metrics/local/summary.json:", preset="local", **lines)
    theirs = row("theirs", "metrics/mini/summary.json:", preset="mini", **{"presets/mini.yaml:student": "other"})
    rows = [mine, theirs]
    for one, other in (rows, rows[::-1]):
        one |= {name: None for name in other if name not in one}
    text = shown(rows, width)
    assert max(map(len, text.splitlines())) <= width
    assert text.count("76.6, 53.4,    -") == 2 and text.count("30.3 [25.1, 36.0]") == 2
    assert "preset: local" in text and "preset: mini" in text
    assert "speech.path" not in text and "student" not in text


def test_what_has_no_metrics_is_left_out_and_what_lacks_one_shows_it() -> None:
    queued = {**dict.fromkeys(row(None)), "Experiment": "queued"}
    partial = row("few clips") | {"low": None, "high": None, "out_of_domain": None}
    text = shown([row("whole"), queued, partial])
    assert "queued" not in text
    assert "30.3 [-, -]" in text


def test_an_experiment_that_stopped_before_evaluate_has_no_metrics_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    def commit(parent: str | None, **stages: str) -> str:
        if parent:
            git("checkout", "-q", "--detach", parent)
        (tmp_path / "dvc.lock").write_text(json.dumps({"stages": {name: {"md5": md5} for name, md5 in stages.items()}}))
        git("add", "dvc.lock")
        git("commit", "-q", "--allow-empty", "-m", "a run")
        return git("rev-parse", "--short", "HEAD")

    git("init", "-q")
    main = commit(None, mix="1", evaluate="1")
    stopped, whole = commit(main, mix="2", evaluate="1"), commit(main, mix="2", evaluate="2")
    same = commit(main, mix="1", evaluate="1")  # ran nothing
    monkeypatch.chdir(tmp_path)
    rows = [row(None), row(None) | {"rev": "main"}]
    rows += [
        row(name) | {"rev": rev, "typ": "branch_commit"}
        for name, rev in (("stopped", stopped), ("whole", whole), ("same", same))
    ]
    rows += [
        row(state) | {"rev": same, "typ": "branch_base", "State": state} for state in ("Running", "Queued", "Failed")
    ]
    monkeypatch.setattr("dqlora.report.compare.exp_show", lambda num: rows)
    evaluated, others = experiments()
    assert [each["Experiment"] for each in evaluated] == [None, None, "whole", "same"]
    assert others == 4


LOCK = "stages: {evaluate: {deps: [{path: adapter, md5: a}]}, train: {outs: [{path: adapter, md5: a}]}}"


def files_of(predictions: list[dict[str, Any]]) -> dict[str, str]:
    return {
        "params.yaml": "preset: mini",
        "metrics/mini/test/predictions.jsonl": "".join(json.dumps(row) + "\n" for row in predictions),
        "metrics/mini/test/record.json": json.dumps({"language": "en", "bootstrap_draws": 500, "seed": 0}),
        "dvc.lock": LOCK,
    }


def test_two_experiments_are_compared_clip_by_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    """In noise the old one has four words wrong and the new one two; on clean speech neither has any."""
    clips = [{"id": f"{number}", "condition": condition, "reference": f"sentence {'abcdefghij'[number]}x"}
             for number in range(10) for condition in ("clean", "5 dB")]  # fmt: skip

    def heard(wrong: int) -> list[dict[str, Any]]:
        right = [clip | {"distilled": clip["reference"], "teacher": "nothing"} for clip in clips]
        return [row | {"distilled": "sentence"} if row["condition"] != "clean" and int(row["id"]) < wrong else row
                for row in right]  # fmt: skip

    found = {"old": files_of(heard(4)), "new": files_of(heard(2)), "other": files_of(heard(2)[2:])}
    found["louder"] = files_of([row | {"noise": "street"} for row in heard(2)])
    found["stopped"] = found["new"] | {"dvc.lock": LOCK.replace("md5: a}]}}", "md5: b}]}}")}

    def read(path: str, rev: str | None) -> str:
        if rev not in (*found, None):
            raise RevError(f"unknown Git revision '{rev}'")
        return found[rev or "new"][path]

    monkeypatch.setattr("dqlora.report.compare.read", read)
    noisy, clean = differences("old", "workspace")
    assert noisy.startswith("Distilled student, noisy: WER 50.0 % lower [") and noisy.endswith(
        "workspace than in old: no difference shown"
    )
    assert clean == "Distilled student, clean: WER 0.0 % lower [0.0, 0.0] in workspace than in old: no difference shown"
    assert differences("new", "old")[0].startswith("Distilled student, noisy: WER 100.0 % higher [")
    with pytest.raises(UserError, match="new, other: tested on different clips or noise"):
        differences("new", "other")
    with pytest.raises(UserError, match="new, louder: tested on different clips or noise"):
        differences("new", "louder")
    with pytest.raises(UserError, match="stopped: stopped before evaluate"):
        differences("new", "stopped")
    with pytest.raises(UserError, match="gone: no test transcripts of it here"):
        differences("old", "gone")


def test_what_is_not_in_the_cache_takes_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a fresh clone: a commit's dvc.lock names test transcripts that were written elsewhere."""
    monkeypatch.chdir(tmp_path)
    clip = {"id": "a", "reference": "a", "distilled": "a"}
    for name, content in files_of([clip | {"condition": condition} for condition in ("clean", "5 dB")]).items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(content)
    Path("dvc.lock").unlink()
    Path("dvc.yaml").write_text("stages: {evaluate: {cmd: 'true', outs: [metrics/mini/test]}}")
    commands = ("git init -q", "dvc init -q", "dvc commit -q -f", "git add .", "git commit -q -m a")
    for name in ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"):
        monkeypatch.setenv(name, "a@b")
    for command in commands:
        subprocess.run(command.split(), check=True, capture_output=True, env=os.environ | {"PATH": PATH})
    folders = [*Path(".dvc/cache/files/md5").iterdir()]
    for folder in folders:
        folder.rename(tmp_path / folder.name)
    with pytest.raises(UserError, match=r"HEAD: no test transcripts of it here .* if it was run elsewhere"):
        differences("HEAD", "workspace")
    for folder in folders:
        (tmp_path / folder.name).rename(folder)
    same = "WER 0.0 % lower [no interval: fewer than 5 sentences] in workspace than in HEAD: no verdict"
    assert [line.partition(": ")[2] for line in differences("HEAD", "workspace")] == [same, same]


def test_a_setting_in_square_brackets_is_shown_as_it_is() -> None:
    """They are rich's marks, and a path may have them."""
    rows = [row("one", **{"speech.path": "/data/[bold]/[/b]"}), row("other", **{"speech.path": "/data"})]
    assert "speech.path: /data/[bold]/[/b]" in shown(rows, 300)


def test_while_dvc_writes_an_experiment_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def exp_show(num: int) -> None:
        raise DvcException("directory '/project/.dvc/tmp/exps/tmp93day6yx/.dvc' does not exist")

    monkeypatch.setattr("dqlora.report.compare.exp_show", exp_show)
    with pytest.raises(UserError, match="an experiment begins or ends at the moment; try again"):
        experiments()


def test_outside_a_project_one_line_says_where_to_run_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(os.environ, "GIT_CEILING_DIRECTORIES", str(tmp_path))
    with pytest.raises(UserError, match="run this in the project's folder"):
        experiments()
