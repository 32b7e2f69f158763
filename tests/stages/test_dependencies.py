"""dvc.yaml knows all that a stage depends on, code and parameters, and nothing else."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dqlora.config import Params, Preset
from tests.closure import PACKAGES, ROOT, closure

PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
STAGES = list(PIPELINE)
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.suffix in (".py", ".j2"))
# that compute features, train or evaluate
HEAVY = {"encode_teacher", "extract_features", "train_teacher_head", "make_targets", "train", "fit_gate", "evaluate"}
LIGHT = ("dqlora/report", "dqlora/demo", "dqlora/transcription", "dqlora/cli.py", "research", "benchmarks")


def relative(files: set[Path]) -> set[str]:
    return {str(file.relative_to(ROOT)) for file in files}


def test_every_stage_module_is_a_stage_of_the_pipeline() -> None:
    assert {path.stem for path in (ROOT / "stages").glob("*.py")} == set(STAGES)


def test_what_a_wrong_path_breaks_runs_before_what_takes_minutes() -> None:
    """DVC runs what does not depend on each other in the order of dvc.yaml."""
    assert set(STAGES[:3]) == {stage for stage in STAGES if stage.startswith("fetch_")}


# Code


def declared_code(stage: str) -> set[str]:
    return {dep for dep in PIPELINE[stage]["deps"] if dep.split("/")[0] in PACKAGES and dep.endswith(".py")}


@pytest.mark.parametrize("stage", STAGES)
def test_deps_are_exactly_the_code_that_a_stage_imports(stage: str) -> None:
    needed, declared = relative(closure(ROOT / f"stages/{stage}.py")), declared_code(stage)
    lines = [f"add      - {dep}" for dep in sorted(needed - declared)]
    lines += [f"remove   - {dep}" for dep in sorted(declared - needed)]
    assert not lines, f"dvc.yaml: stages.{stage}.deps:\n" + "\n".join(lines)


LOADED = """
import json, os, sys
import accelerate, datasets, dvclive, peft, torch, transformers  # once, before the forks
from importlib import import_module
for stage in sys.argv[1:]:
    if not os.fork():
        import_module(f"stages.{stage}")
        files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
        print(json.dumps([stage, [file for file in files if file]]), flush=True)
        os._exit(0)
    os.wait()
"""


def test_the_closure_holds_all_that_python_loads() -> None:
    """The closure is read from the source; here Python itself says what an import of each stage executes."""
    ended = subprocess.run(
        [sys.executable, "-c", LOADED, *STAGES], cwd=ROOT, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    seen = dict(map(json.loads, ended.stdout.splitlines()))
    assert list(seen) == STAGES
    for stage, files in seen.items():
        ours = {
            path for path in map(Path, files) if path.is_relative_to(ROOT) and path.parts[len(ROOT.parts)] in PACKAGES
        }
        assert len(ours) > 4
        assert relative(ours) <= declared_code(stage), stage


@pytest.mark.parametrize("stage", sorted(HEAVY))
def test_what_is_costly_does_not_depend_on_how_results_are_shown(stage: str) -> None:
    assert not [dep for dep in PIPELINE[stage]["deps"] if dep.startswith(LIGHT)]


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A copy of the project whose lock says that every stage is up to date, its outputs stand-ins."""
    from dvc.repo import Repo

    folder = tmp_path_factory.mktemp("committed")
    for package in (*PACKAGES, "presets"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", "*.tmp-*"))
    for name in ("dvc.yaml", "params.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, folder / name)
    values = yaml.safe_load((folder / "params.yaml").read_text())
    paths = [dep for stage in PIPELINE.values() for dep in stage["deps"]]
    paths += [
        out for stage in PIPELINE.values() for kind in ("outs", "metrics", "plots") for out in stage.get(kind, [])
    ]
    for path in (next(iter(path)) if isinstance(path, dict) else path for path in paths):
        place = folder / re.sub(r"\$\{(\w+)\}", lambda name: str(values[name[1]]), path)
        if not place.suffix:
            place = place / "content"
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(path)
    before = Path.cwd()
    os.chdir(folder)
    repo = Repo.init(no_scm=True)
    repo.commit(force=True)
    yield repo
    repo.close()
    os.chdir(before)


def changed_dependencies(repo: Any) -> dict[str, set[str]]:
    """What `dvc status` names of each stage that is to run again: those of its deps that changed."""
    repo._reset()
    return {
        stage: {dep for entry in entries for dep in entry.get("changed deps", {})}
        for stage, entries in repo.status().items()
        if stage in PIPELINE
    }


def test_a_change_of_any_file_names_the_stages_that_execute_it(committed: Any) -> None:
    """Over all files at once: of each stage, `dvc status` names every module that it executes, and no other."""
    assert changed_dependencies(committed) == {}
    pages = list((ROOT / "presets").rglob("*.md"))
    assert len(pages) >= 2
    for file in [*MODULES, *pages]:
        with (Path(committed.root_dir) / file.relative_to(ROOT)).open("a") as copy:
            copy.write("\n# changed\n")
    expected = {stage: relative(closure(ROOT / f"stages/{stage}.py")) for stage in STAGES}
    expected["report"] |= {"dqlora/report/report.html.j2", "dqlora/report/common.html.j2"}
    assert changed_dependencies(committed) == expected


# Parameters


class Reads(ast.NodeVisitor):
    """The parameters that a stage's file reads: every chain of attributes on what load_params and load_preset give.

    A chain that ends in a block counts as the whole block, whoever reads of it what.
    """

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.passed_whole: list[int] = []

    def visit_Attribute(self, node: ast.Attribute) -> None:
        chain, inner = [node.attr], node.value
        while isinstance(inner, ast.Attribute):
            chain.append(inner.attr)
            inner = inner.value
        if root := self._root(inner):
            self.names.add(".".join([root, *reversed(chain)]))
        else:
            self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load) and self._root(node):
            self.passed_whole.append(node.lineno)

    @staticmethod
    def _root(node: ast.expr) -> str | None:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            return {"load_params": "params", "load_preset": "preset"}.get(node.func.id)
        return node.id if isinstance(node, ast.Name) and node.id in ("params", "preset") else None


def leaves(name: str) -> set[str]:
    """A parameter's name, or those of all parameters of a block."""
    root, *parts = name.split(".")
    model: Any = {"params": Params, "preset": Preset}[root]
    for number, part in enumerate(parts):
        if not hasattr(model, "model_fields"):
            return {".".join([root, *parts[:number]])}  # a method of a value
        model = model.model_fields[part].annotation
    if not hasattr(model, "model_fields"):
        return {name}
    return {leaf for field in model.model_fields for leaf in leaves(f"{name}.{field}")}


def read_parameters(stage: str) -> set[str]:
    reads = Reads()
    reads.visit(ast.parse((ROOT / f"stages/{stage}.py").read_text()))
    assert not reads.passed_whole, (
        f"stages/{stage}.py, line {reads.passed_whole[0]}: hand on blocks, not all parameters"
    )
    found = {leaf for name in reads.names for leaf in leaves(name)}
    return found - {"params.preset"}  # in the paths of dvc.yaml


def declared_parameters(stage: str) -> set[str]:
    names: list[str] = []
    for entry in PIPELINE[stage].get("params", []):
        if isinstance(entry, dict):
            assert list(entry) == ["presets/${preset}.yaml"]
            names += [f"preset.{name}" for name in entry["presets/${preset}.yaml"]]
        else:
            names.append(f"params.{entry}")
    return {leaf for name in names for leaf in leaves(name)} - {"params.preset"}


@pytest.mark.parametrize("stage", STAGES)
def test_params_are_exactly_those_that_a_stage_reads(stage: str) -> None:
    read, declared = read_parameters(stage), declared_parameters(stage)
    lines = [f"add      - {name}" for name in sorted(read - declared)]
    lines += [f"remove   - {name}" for name in sorted(declared - read)]
    assert not lines, f"dvc.yaml: stages.{stage}.params:\n" + "\n".join(lines)


def test_only_stages_load_parameters_and_only_in_their_own_files() -> None:
    """So that the chains in a stage's file are all that it reads."""
    for stage in STAGES:
        for file in closure(ROOT / f"stages/{stage}.py"):
            if file.parts[-2] != "stages" and file.name != "config.py":
                assert "load_params(" not in file.read_text() and "load_preset(" not in file.read_text(), file


def test_the_checks_can_fail() -> None:
    """The reader of parameters finds blocks, leaves, aliases and what is handed on whole."""
    reads = Reads()
    reads.visit(
        ast.parse(
            "params = load_params()\nf(params.lora, params.train.patience, load_preset(p).speech.language)\ng(params)"
        )
    )
    assert reads.names == {"params.lora", "params.train.patience", "preset.speech.language"}
    assert reads.passed_whole == [3]
    assert leaves("params.lora") == {f"params.lora.{name}" for name in ("r", "alpha", "dropout", "target_modules")}
