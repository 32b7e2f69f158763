"""The benchmarks run where there is no GPU, at a small size; what they measure is not tested."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from benchmarks.experiment import prepare, print_table, run_one, write_tree
from benchmarks.scaling import CLIP, write_corpus
from dqlora.data.audio import SAMPLE_RATE
from dqlora.data.storage import RaggedArray, RaggedArrayWriter
from dqlora.errors import UserError
from tests.conftest import ROOT, tone, write_audiofolder, write_noise
from tests.dqlora.test_cli import run_with_adapter


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_training_at_a_small_size(tmp_path: Path) -> None:
    output = tmp_path / "table.json"
    ended = run("benchmarks.training", "--small", "--rounds", "1", "--only", "ours", "--output", str(output))
    assert ended.returncode == 0, ended.stderr[-2000:]
    table = json.loads(output.read_text())["table"]
    assert {name.partition(":")[0] for name in table} >= {"train", "load batches", "mix, one core"}
    assert all(row["rtfx"] > 0 for row in table.values())
    assert all(f"| {name} |" in ended.stdout for name in table)


def test_two_processes_have_the_loss_curve_of_one(tmp_path: Path) -> None:
    output = tmp_path / "table.json"
    ended = run("benchmarks.processes", "--small", "--rounds", "1", "--batch-seconds", "40", "--output", str(output))
    assert ended.returncode == 0, ended.stderr[-2000:]
    found = json.loads(output.read_text())
    assert found["curves_apart"] < 1e-4
    assert all(runs[0]["losses"][-1] < runs[0]["losses"][0] for runs in found["runs"].values())
    assert min(found["rates"].values()) > 0


def test_a_corpus_has_the_hours_asked_for(tmp_path: Path) -> None:
    with RaggedArrayWriter(tmp_path / "source", "int16") as out:
        for number in range(3):
            out.append(np.full(8 * SAMPLE_RATE, number, np.int16), id=f"{number}")
    write_corpus(tmp_path / "source", tmp_path / "made", hours=0.05)
    made = RaggedArray(tmp_path / "made")
    assert len(made) * CLIP == 180
    assert {item["length"] for item in made.items} == {CLIP * SAMPLE_RATE}


def test_without_a_run_scaling_says_what_to_do(tmp_path: Path) -> None:
    ended = run("benchmarks.scaling", "--hours", "0.01", "--run", str(tmp_path / "models/mini"))
    assert ended.returncode == 1
    assert "dvc repro" in ended.stderr.strip().splitlines()[-1]


def test_transcription_of_clips_and_of_all_joined(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "beep.wav", tone(1.0), SAMPLE_RATE)
    (tmp_path / "metadata.csv").write_text("file_name,transcription\nbeep.wav,beep\n")
    write_noise(tmp_path / "noise", count=1)
    noise = str(tmp_path / "noise/test")
    ended = run("benchmarks.transcription", str(tmp_path), "--noise", noise, "--clips", "3")
    assert ended.returncode == 0, ended.stderr[-2000:]
    rows = [line.strip("| ").split(" | ") for line in ended.stdout.splitlines()[2:]]
    assert len(rows) == 6
    for _, _, whole, transcribed, joined, than_whole in rows[:3]:
        assert float(whole) == float(transcribed)
        assert (" lower [" if float(joined) <= float(whole) else " higher [") in than_whole
    assert float(rows[0][4]) < 20


def test_an_adapter_that_changes_nothing_gains_nothing_elsewhere(tmp_path: Path, student_folder: Path) -> None:
    adapter = run_with_adapter(tmp_path, student_folder)
    speech = write_audiofolder(
        tmp_path / "speech", [f"sentence number {word}" for word in ("one", "two", "three", "four", "five")]
    )
    write_noise(tmp_path / "noise", count=2)
    output = tmp_path / "found.json"
    options = ("--noise", str(tmp_path / "noise/test"), "--run", str(adapter), "--output", str(output))
    ended = run("benchmarks.other_speech", str(speech), *options)
    assert ended.returncode == 0, ended.stderr[-2000:]
    [found] = json.loads(output.read_text()).values()
    assert found["base"] == found["distilled"] and set(found["base"]) == {"clean", "10 dB", "5 dB", "0 dB"}
    reduction = found["distilled than base, noisy"]
    assert reduction["relative"] == reduction["ci_low"] == 0.0
    assert "0.0 % lower [0.0, 0.0]" in ended.stdout


def test_the_experiment_of_a_tree_is_its_own(tmp_path: Path) -> None:
    tree = tmp_path / "now"
    write_tree(tree, None)
    assert (tree / "stages/train.py").read_bytes() == (ROOT / "stages/train.py").read_bytes()
    assert not (tree / "data").exists() and not (tree / ".venv").exists()
    stages = prepare(tree, "fleurs", tmp_path / "made", 7)
    assert stages[0] == "fetch_models" and stages[-1] == "report"
    preset = yaml.safe_load((tree / "presets/fleurs.yaml").read_text())
    assert preset["speech"]["path"] == str(tmp_path / "made/speech") and preset["budget"]["steps"] == 7
    assert yaml.safe_load((tree / "params.yaml").read_text())["preset"] == "fleurs"
    for half in (None, 0):
        with pytest.raises(UserError, match=r"(?s)fetch_speech failed:.*error: .*no such"):
            run_one(tree, "fetch_speech", tmp_path / f"{half}.log", half)
    with pytest.raises(UserError, match="--against: nothing: no such commit"):
        write_tree(tmp_path / "before", "nothing")


def test_the_experiments_table_has_each_stages_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    print_table({"mix": {"before": 4.0, "now": 3.0}, "fit": {"now": 2.0}})
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[2:]]
    assert rows == [["mix", "4.0", "3.0", "0.75"], ["fit", "", "2.0", ""], ["all", "4.0", "5.0", "1.25"]]
