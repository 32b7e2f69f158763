"""Models are found, and what is not there is told, before anything is loaded."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dqlora.data.storage import fingerprint
from dqlora.errors import UserError
from dqlora.models.decoding import decoder_settings
from dqlora.models.gate import entropy_threshold
from dqlora.models.run import base_of_run, find_model, newest_run, read_run
from tests.conftest import ROOT

STUDENT = "models/mini/pretrained/student"


def write_run(project: Path, preset: str = "mini", student: str = STUDENT) -> Path:
    adapter = project / f"models/{preset}/adapter"
    adapter.mkdir(parents=True)
    (adapter / "run.json").write_text(json.dumps({"student": student, "quantize": "nf4"}))
    adapter.with_name("decoder.json").write_text('{"method": "greedy"}')
    return adapter


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """One with a trained run."""
    folder = tmp_path / "project"
    write_run(folder)
    (folder / STUDENT).mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    ("here", "adapter"),
    [
        ("project", "models/mini/adapter"),
        ("project", "{project}/models/mini/adapter"),
        (".", "project/models/mini/adapter"),
        (".", "link"),
        ("project/models", "mini/adapter"),
        ("project/models/mini/adapter", "."),
        ("elsewhere", "{project}/models/mini/adapter"),
        ("elsewhere", "../project/models/mini/adapter"),
        ("other", "../project/models/mini/adapter"),
        ("other", "{project}/models/mini/adapter"),
        ("project", "../copy/adapter"),
    ],
)
def test_a_run_is_found_from_any_folder(
    here: str, adapter: str, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its base is its own project's, also where another project lies here; a copy's is this project's."""
    (tmp_path / "link").symlink_to(project / "models/mini/adapter")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "other" / STUDENT).mkdir(parents=True)
    for name in ("adapter", "decoder.json"):
        (tmp_path / "copy").mkdir(exist_ok=True)
        copy = shutil.copytree if name == "adapter" else shutil.copyfile
        copy(project / "models/mini" / name, tmp_path / "copy" / name)
    monkeypatch.chdir(tmp_path / here)
    named = adapter.format(project=project)
    student, quantize = base_of_run(Path(named))
    assert student.resolve() == (project / STUDENT).resolve() and quantize == "nf4"
    found = Path(find_model(named))
    assert found.samefile(named) and found.with_name("decoder.json").exists()
    if here == "project" and not adapter.startswith("{"):
        assert str(student) == STUDENT  # no path of this machine goes on from here


@pytest.mark.parametrize("name", ["gate.json", "decoder.json"])
def test_what_was_not_copied_along_is_named_and_nothing_is_taken_in_its_place(name: str, project: Path) -> None:
    """Without its decoder.json a run would decode greedily, as another student than was evaluated."""
    adapter = project / "models/mini/adapter"
    (adapter / "adapter_config.json").touch()
    (project / "models/mini/gate.json").touch()
    assert find_model(str(adapter)) == str(adapter)
    adapter.with_name(name).unlink()
    stage = f"fit_{name.partition('.')[0]}"
    with pytest.raises(UserError, match=f"mini/{name}: no such file; run `dvc repro {stage}`, or copy it along with"):
        find_model(str(adapter))


@pytest.mark.parametrize("content", ["{}", "[]", "null"])
def test_what_is_of_another_kind_is_named(content: str, project: Path) -> None:
    adapter = project / "models/mini/adapter"
    (adapter / "adapter_config.json").touch()
    for name in ("adapter/run.json", "gate.json", "decoder.json"):
        (project / "models/mini" / name).write_text(content)
    with pytest.raises(UserError, match=r"run\.json: has no student and quantize; run `dvc repro train`"):
        read_run(adapter)
    with pytest.raises(UserError, match=r"gate\.json: has no entropy_threshold; run `dvc repro fit_gate`"):
        entropy_threshold(adapter)
    with pytest.raises(UserError, match=r"decoder\.json: has no method; run `dvc repro fit_decoder`"):
        decoder_settings(adapter.parent)


def test_another_base_than_the_one_that_was_adapted_is_named(project: Path) -> None:
    """As where a preset's `student` was changed, and the run that should adapt it has not come to training."""
    adapter, student = project / "models/mini/adapter", project / STUDENT
    (student / "model.safetensors").write_text("one")
    run = {"student": STUDENT, "quantize": "nf4", "base": {"digest": fingerprint(student)}}
    (adapter / "run.json").write_text(json.dumps(run))
    assert base_of_run(adapter) == (student, "nf4")
    (student / "model.safetensors").write_text("two")
    with pytest.raises(UserError, match=r"student: not the base that .*adapter was trained on; run `dvc repro`"):
        base_of_run(adapter)


def test_the_newest_run_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("older", "newer")):
        os.utime(write_run(tmp_path, name, "gone") / "run.json", (number, number))
    assert newest_run() == Path("models/newer/adapter")
    with pytest.raises(UserError, match="newer/adapter: its base, gone, is in no folder above it and not here; run"):
        find_model(None)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (None, "no trained run here (models/<preset>/adapter); run the command in the project's folder, after "),
        ("nowhere", "--model nowhere: no such folder; a model on the hub is owner/name@revision"),
        ("owner/name", "--model owner/name: no such folder; a model on the hub is owner/name@revision"),
        ("file", "--model file: no such folder"),
        (".", "--model .: no model in this folder; a run's is models/<preset>/adapter of its project"),
        ("project", "--model project: no model in this folder"),
        ("broken", "broken/run.json: cannot be read as JSON"),
        ("moved", "moved: its base, gone/student, is in no folder above it and not here; run `dvc repro`"),
    ],
)
def test_what_is_no_model_is_named(
    source: str | None, reason: str, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    for name, content in {"broken": '{"student"', "moved": '{"student": "gone/student", "quantize": "nf4"}'}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(content)
    with pytest.raises(UserError) as refused:
        find_model(source)
    assert reason in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("owner/name@revision", "hf://owner/name@revision"),
        ("hf://owner/name@revision", "hf://owner/name@revision"),
        (str(ROOT / "presets/mini/student"), str(ROOT / "presets/mini/student")),
    ],
)
def test_models_of_others(source: str, found: str) -> None:
    assert find_model(source) == found


def test_importing_it_takes_no_time() -> None:
    code = "import sys, dqlora.models.run; print(*sorted({'torch', 'transformers', 'numpy', 'av'} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ended.stdout.strip() == ""
