"""The whole pipeline through DVC, at a tiny size: the fleurs preset, its lines answered by a stand-in of the hub."""

import hashlib
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import Wav2Vec2ForCTC

from dqlora.data.storage import RaggedArray
from tests.conftest import ROOT, write_noise
from tests.hub import serve
from tests.warm_python import warm_python

STAGES = (
    "fetch_models",
    "fetch_speech",
    "fetch_noise",
    "pseudo_label",
    "mix",
    "extract_features",
    "encode_teacher",
    "train_teacher_head",
    "make_targets",
    "train",
    "fit_gate",
    "build_lm",
    "fit_decoder",
    "transcribe_teacher",
    "evaluate",
    "export",
    "profile",
    "report",
)
OUTPUTS = {
    "fetch_models": "models/fleurs/pretrained",
    "fetch_speech": "data/fleurs/clean",
    "pseudo_label": "data/fleurs/pseudo_labels",
    "fetch_noise": "data/fleurs/noise",
    "mix": "data/fleurs/noisy",
    "extract_features": "data/fleurs/cnn_features",
    "encode_teacher": "data/fleurs/teacher",
    "train_teacher_head": "models/fleurs/teacher_head",
    "make_targets": "data/fleurs/targets",
    "train": "models/fleurs/adapter",
    "fit_gate": "models/fleurs/gate.json",
    "build_lm": "models/fleurs/lm",
    "fit_decoder": "models/fleurs/decoder.json",
    "transcribe_teacher": "data/fleurs/teacher_transcripts",
    "evaluate": "metrics/fleurs/test",
    "export": "models/fleurs/exported",
}
# The command of docs/metrics.md
EXP_SHOW = (
    "exp",
    "show",
    "--only-changed",
    "--keep",
    "base|clean|noisy|gain|low|high",
    "--drop",
    ".*/|Created|State|Executor|lm|out_of_domain",
)
CHANGING = {"profile": "metrics/fleurs/costs.json", "report": "metrics/fleurs/report.html"}  # with every run
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "DVC_NO_ANALYTICS": "1",
    "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@t", "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@t",
}  # fmt: skip


# A sitecustomize.py that notes which of the project's files each stage opens to read, in its child processes too.
RECORDER = """
import os, sys
stage = next((each for each in sys.orig_argv if each.startswith("stages.")), None)
if stage:
    log = os.open(os.environ["OPENED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    def note(event, arguments):
        if event == "open" and str(arguments[1] or "r").startswith("r"):
            path = os.path.relpath(os.fsdecode(arguments[0])) if isinstance(arguments[0], (str, bytes)) else ""
            if path.split("/")[0] in ("data", "models", "metrics", "presets"):
                os.write(log, f"{stage.removeprefix('stages.')} {path}\\n".encode())
    sys.addaudithook(note)
"""


def run(*command: str, folder: Path, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**ENVIRONMENT, "PYTHONPATH": str(folder), **variables}
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert not check or ended.returncode == 0, f"{' '.join(command)}\n{ended.stdout[-3000:]}\n{ended.stderr[-3000:]}"
    return ended


def stages_run(output: str) -> list[str]:
    """The stages that DVC ran, those it took from its cache not among them."""
    lines = output.splitlines()
    return [line.split("'")[1] for line in lines if line.startswith("Running stage")]


def contents(output: Path) -> dict[str, str]:
    """SHA-256 of a file, or of every file in a folder, by its path in there."""
    files = sorted(file for file in (output.rglob("*") if output.is_dir() else [output]) if file.is_file())
    return {str(file.relative_to(output)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def experiment(project: Path, *options: str) -> list[str]:
    """The stages that `dvc exp run` runs; the project is then as it was."""
    ended = run("dvc", "exp", "run", *options, folder=project)
    restore(project)
    return stages_run(ended.stdout)


def restore(project: Path) -> None:
    for settings in (project / "params.yaml", *(project / "presets").glob("*.yaml")):
        settings.touch()  # else git may take one of the same length for unchanged
    run("git", "checkout", "-q", "HEAD", "--", ".", folder=project)
    run("dvc", "checkout", "-q", "--force", folder=project)


def as_published(student: Path, output: Path) -> None:
    """Weights as those of facebook/wav2vec2-base-960h: old names, nothing for masking, and a pickle beside them."""
    shutil.copytree(student, output)
    weights = load_file(student / "model.safetensors")
    del weights["wav2vec2.masked_spec_embed"]
    old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    for new_name, old_name in old.items():
        [name] = [name for name in weights if name.endswith(new_name)]
        weights[name.replace(new_name, old_name)] = weights.pop(name)
    save_file(weights, output / "model.safetensors", {"format": "pt"})
    (output / "pytorch_model.bin").write_bytes(b"not to be unpickled")


def fill_hub(root: Path, preset: dict[str, Any], student: Path, teacher: Path) -> None:
    """What the lines of the fleurs preset name: the mini preset's speech, and small models."""
    corpus, commit, config = re.fullmatch(r"hf://datasets/(.+)@([0-9a-f]{40})/(.+)", preset["speech"]["path"]).groups()
    shutil.copytree(ROOT / "presets/mini/speech", root / "datasets" / corpus / commit / config)
    for role, write in (("student", as_published), ("teacher", shutil.copytree)):
        name, commit = re.fullmatch(r"hf://(.+)@([0-9a-f]{40})", preset[role]).groups()
        write({"student": student, "teacher": teacher}[role], root / "models" / name / commit)
    write_noise(root / "noise")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, student_folder: Path, teacher_folder: Path) -> Iterator[Path]:
    """The fleurs preset after `dvc repro`, its own lines answered by a stand-in of the hub."""
    base = tmp_path_factory.mktemp("pipeline")
    folder = base / "project"
    for name in ("stages", "dqlora", "presets"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.tmp-*"))
    for name in ("dvc.yaml", "params.yaml", ".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, folder / name)

    preset = yaml.safe_load((ROOT / "presets/fleurs.yaml").read_text())
    fill_hub(base / "hub", preset, student_folder, teacher_folder)
    preset["speech"]["clips"] = {"train": 6, "validation": 2, "test": 2}
    preset["out_of_domain"]["clips"] = 2
    with serve(base / "hub") as hub:
        ENVIRONMENT.update(HF_ENDPOINT=hub.url, HF_HOME=str(base / "cache"))
        noise = [file.relative_to(hub.root) for file in sorted((base / "hub/noise").rglob("*.wav"))]
        lines = [f"{file.parts[1]},{hub.url}/{file.as_posix()}\n" for file in noise]
        (folder / preset["noise"]["path"]).write_text("split,url\n" + "".join(lines))
        with warm_python(base / "warm", ENVIRONMENT) as programs:
            ENVIRONMENT["PATH"] = f"{programs}:{ENVIRONMENT['PATH']}"
            yield repro(base, folder, preset)


def repro(base: Path, folder: Path, preset: dict[str, Any]) -> Path:
    """The project in `folder`, all stages run and committed."""
    preset["teacher_head"]["steps"] = 3
    preset["budget"] |= {"steps": 6, "learning_rate": 2e-3, "batch_seconds": 15, "validate_every": 2}
    (folder / "presets/fleurs.yaml").write_text(yaml.safe_dump(preset))
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params |= {"preset": "fleurs"}
    params["mix"] |= {"copies": 1, "test_snr_db": [10, 0]}
    params["teacher_head"] |= {"hidden": 32, "layers": 1}
    params["distill"] |= {"layer": 2}
    params["decode"] |= {"beam_width": 2}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))

    run("git", "init", "-q", folder=folder)
    run("dvc", "init", "-q", folder=folder)
    run("git", "add", "-A", folder=folder)
    run("git", "commit", "-qm", "code", folder=folder)
    (base / "recorder").mkdir()
    (base / "recorder/sitecustomize.py").write_text(RECORDER)
    recorded = {"PYTHONPATH": f"{base / 'recorder'}:{folder}", "OPENED": str(base / "opened.txt")}
    assert stages_run(run("dvc", "repro", folder=folder, **recorded).stdout) == list(STAGES)
    run("git", "add", "-A", folder=folder)
    run("git", "commit", "-qm", "first run", folder=folder)
    return folder


@pytest.fixture(scope="module")
def made(project: Path) -> dict[str, dict[str, str]]:
    """Contents of every output as the unbroken run left them."""
    return {stage: contents(project / output) for stage, output in OUTPUTS.items()}


def test_every_artifact_is_there(project: Path) -> None:
    noisy = RaggedArray(project / "data/fleurs/noisy/test")
    assert len(noisy) == 2 * 2
    assert {item["snr_db"] for item in noisy.items} == {10, 0}
    used = {
        split: {item.get("noise") for item in RaggedArray(project / f"data/fleurs/noisy/{split}").items}
        for split in ("train", "test")
    }
    known = {
        split: {item["id"] for item in RaggedArray(project / f"data/fleurs/noise/{split}").items}
        for split in ("train", "test")
    }
    assert used["train"] <= known["train"] | {None} and used["test"] <= known["test"]
    student = Wav2Vec2ForCTC.from_pretrained(project / "models/fleurs/pretrained/student")
    PeftModel.from_pretrained(student, project / "models/fleurs/adapter")
    made = json.loads((project / "models/fleurs/adapter/run.json").read_text())
    assert (made["student"], made["quantize"]) == ("models/fleurs/pretrained/student", "nf4")
    gate = json.loads((project / "models/fleurs/gate.json").read_text())
    assert list(gate) == ["entropy_threshold"]
    threshold = gate["entropy_threshold"]  # none if the adapter of this random student is better on clean speech too
    assert threshold is None or 0 < threshold < math.log(32)  # nats a frame of 32 tokens
    for split in ("train", "validation"):
        features = RaggedArray(project / f"data/fleurs/cnn_features/{split}")
        mixtures = RaggedArray(project / f"data/fleurs/noisy/{split}")
        assert {item["id"] for item in features.items} == {item["id"] for item in mixtures.items}
    targets, clean = RaggedArray(project / "data/fleurs/targets"), RaggedArray(project / "data/fleurs/clean/train")
    assert {item["id"] for item in targets.items} == {item["id"] for item in clean.items}
    assert (project / "metrics/fleurs/report.html").stat().st_size > 10_000


def test_a_stage_reads_nothing_that_it_does_not_depend_on(project: Path) -> None:
    """Every file that Python opened to read lies in one of the stage's deps, or in what it writes itself."""
    opened = set((project.parent / "opened.txt").read_text().splitlines())
    assert {line.split()[0] for line in opened} == set(STAGES)
    pipeline = yaml.safe_load((project / "dvc.yaml").read_text())["stages"]
    for line in sorted(opened):
        stage, _, path = line.partition(" ")
        own = [entry for kind in ("outs", "metrics", "plots") for entry in pipeline[stage].get(kind, [])]
        known = [next(iter(entry)) if isinstance(entry, dict) else entry for entry in own + pipeline[stage]["deps"]]
        known = [each.replace("${preset}", "fleurs").replace("${teacher_input}", "clean") for each in known]
        known += ["presets/fleurs.yaml", "models/fleurs/checkpoints", "metrics/fleurs/curves"]
        known += ["data/fleurs/downloads", "presets/fleurs.sha256"]
        unfinished = ".tmp-" in path or path.endswith(".lock")  # of the stage's own output; who writes a file
        assert unfinished or any(f"{path}/".startswith(f"{each}/") for each in known), line


def test_metrics_are_numbers_under_stable_names(project: Path) -> None:
    evaluate = json.loads((project / "metrics/fleurs/evaluate.json").read_text())
    for system in ("base", "distilled", "teacher"):
        assert set(evaluate[system]) == {"clean", "noisy", "snr"}
        assert set(evaluate[system]["snr"]) == {"10", "0"}
        assert set(evaluate[system]["clean"]) == {"wer", "cer"}
        mean = sum(one["wer"] for one in evaluate[system]["snr"].values()) / 2
        assert evaluate[system]["noisy"]["wer"] == pytest.approx(mean)
    for condition in ("noisy", "clean"):
        assert set(evaluate["wer_reduction"][condition]) == {"relative"}  # two test sentences give no interval
    # random students: whether the language model helps them, on few clips, differs from CPU to CPU
    decoder = json.loads((project / OUTPUTS["fit_decoder"]).read_text())
    lm = (
        {"base_lm", "distilled_lm", "wer_reduction_with_lm", "lm_wer_reduction"}
        if decoder["method"] == "beam"
        else set()
    )
    names = {"base", "distilled", "wer_reduction", "out_of_domain"} | lm
    assert set(evaluate) == names | {"teacher", "adapter_mb"}
    other = evaluate["out_of_domain"]
    assert set(other) == names - {"out_of_domain"} and set(other["wer_reduction"]) == {"noisy", "clean"}
    train = json.loads((project / "metrics/fleurs/train.json").read_text())
    assert {"steps", "trainable_parameters", "trainable_ratio", "rejected"} <= set(train)
    memory = {"peak_rss_mb", "peak_gpu_mb"}
    costs = json.loads((project / "metrics/fleurs/costs.json").read_text())
    students = {"distilled", "base_lm", "distilled_lm"} & set(evaluate)
    assert {name: set(found) for name, found in costs.items()} == {
        name: {"rtf", "peak_rss_mb"} for name in ({"base", "merged", "onnx", "teacher"} | students)
    }  # fmt: skip
    training = json.loads((project / "metrics/fleurs/curves/metrics.json").read_text())
    assert {"seconds", "rtfx"} | memory <= set(training)
    summary = json.loads((project / "metrics/fleurs/summary.json").read_text())
    for found, name in ((summary["base"], "base"), (summary, "distilled")):
        for condition in ("clean", "noisy"):
            assert found[condition] == pytest.approx(evaluate[name][condition]["wer"], abs=6e-4)
    assert summary["gain"] == pytest.approx(evaluate["wer_reduction"]["noisy"]["relative"], abs=6e-4)
    assert summary["out_of_domain"] == pytest.approx(other["wer_reduction"]["noisy"]["relative"], abs=6e-4)

    def leaves(value: object) -> Iterator[object]:
        if isinstance(value, dict):
            for inner in value.values():
                yield from leaves(inner)
        else:
            yield value

    assert all(
        isinstance(leaf, int | float) for metrics in (evaluate, train, summary, costs) for leaf in leaves(metrics)
    )
    predictions = [
        json.loads(line) for line in (project / "metrics/fleurs/test/predictions.jsonl").read_text().splitlines()
    ]
    assert len(predictions) == 2 * 3
    assert {"id", "condition", "reference", "base", "distilled", "teacher"} <= set(predictions[0])


def test_a_second_repro_runs_nothing_and_an_experiment_what_it_changes(project: Path) -> None:
    assert stages_run(run("dvc", "repro", folder=project).stdout) == []
    for value in ("2", "0.5"):
        ended = run("dvc", "exp", "run", "-S", f"lambda_distill={value}", "evaluate", folder=project)
        assert stages_run(ended.stdout) == ["train", "fit_gate", "fit_decoder", "evaluate"]
    left = json.loads(run("dvc", "status", "--json", folder=project).stdout)
    assert list(left) == ["export", "profile", "report"]
    assert "base.clean" in run("dvc", "metrics", "show", folder=project).stdout
    evaluated = run("dvc", "metrics", "diff", "--targets", "metrics/fleurs/evaluate.json", "--all", folder=project)
    assert "base.snr.10.wer" in evaluated.stdout
    shown = run("dvc", *EXP_SHOW, folder=project, COLUMNS="400").stdout.splitlines()
    assert max(map(len, shown)) <= 120 - len("   low    high ")  # two test sentences have no interval
    columns = ["base.clean", "base.noisy", "clean", "noisy", "gain", "lambda_distill"]
    assert shown[1].split() == ["Experiment", *columns]
    assert len([line for line in shown if "├──" in line or "└──" in line]) == 2
    compared = run("dqlora", "compare", folder=project, COLUMNS="120").stdout
    for text in ("WER clean", "WER noisy", "base", "distilled", "[interval]", "lambda_distill", " 0.5 ", " 1 "):
        assert text in compared
    assert max(map(len, compared.splitlines())) <= 120
    run("dvc", "plots", "show", folder=project)
    assert (project / "dvc_plots/index.html").exists()
    restore(project)


def test_the_same_commit_run_again_changes_nothing_in_git(project: Path) -> None:
    """But for two hashes in dvc.lock, of what costs and report are; and those take nothing with them.

    Both are killed while they write, as the other stages are below.
    """
    run("dvc", "repro", "--force", "--single-item", "evaluate", folder=project)
    assert run("git", "status", "--porcelain", folder=project).stdout == ""
    for stage, path in CHANGING.items():
        (project / path).unlink()
        kill_while_it_writes(project, stage)
    lost = hash_in_lock(project, CHANGING["profile"])
    (project / f".dvc/cache/files/md5/{lost[:2]}/{lost[2:]}").unlink()  # as on another machine
    assert stages_run(run("dvc", "repro", folder=project).stdout) == list(CHANGING)
    assert not list((project / "metrics/fleurs").glob(".*.tmp-*"))
    assert run("git", "status", "--porcelain", folder=project).stdout.split() == ["M", "dvc.lock"]
    changed = run("git", "diff", "--unified=0", "dvc.lock", folder=project).stdout
    assert len([line for line in changed.splitlines() if line.startswith("+ ")]) <= 2 * 3  # md5 and size, out and dep
    run("git", "commit", "-qam", "costs of this machine", folder=project)


def test_presets_lie_side_by_side_and_there_is_a_way_back(project: Path, made: dict[str, dict[str, str]]) -> None:
    """The lines of README.md."""
    metrics = contents(project / "metrics/fleurs")
    shutil.copy(project / "presets/fleurs.yaml", project / "presets/theirs.yaml")
    wrong = ("-S", "preset=theirs", "-S", "presets/theirs.yaml:speech.path=/nowhere")
    failed = run("dvc", "exp", "run", *wrong, "fetch_speech", folder=project, check=False)
    assert failed.returncode and "/nowhere" in failed.stderr + failed.stdout
    assert "preset: theirs" in (project / "params.yaml").read_text()  # a failed override stays
    run("dvc", "checkout", "-q", "--allow-missing", folder=project)  # as `dvc exp run` of all stages begins
    assert not (project / "data/fleurs/noisy/train").exists()
    tracked = [
        name for name in metrics if name.endswith((".json", ".tsv")) and name != "costs.json" and "test/" not in name
    ]
    assert {name: metrics[name] for name in tracked}.items() <= contents(project / "metrics/fleurs").items()
    (project / "metrics/theirs").mkdir(exist_ok=True)
    (project / "metrics/theirs/train.json").write_text("{}")
    run("git", "add", "metrics/theirs", folder=project)  # as DVC does of new metrics; where it is killed, they stay so
    run("touch", "params.yaml", folder=project)
    run("git", "reset", "-q", "--hard", folder=project)
    assert not (project / "metrics/theirs").exists()
    run("dvc", "checkout", "-q", "--allow-missing", folder=project)
    assert stages_run(run("dvc", "repro", folder=project).stdout) == []
    assert {stage: contents(project / output) for stage, output in OUTPUTS.items()} == made
    assert contents(project / "metrics/fleurs") == metrics
    (project / "presets/theirs.yaml").unlink()


def hash_in_lock(project: Path, path: str) -> str:
    stages = yaml.safe_load((project / "dvc.lock").read_text())["stages"].values()
    return next(out["md5"] for stage in stages for out in stage["outs"] if out["path"] == path)


def test_another_gate_trains_nothing(project: Path) -> None:
    without = json.loads((project / "models/fleurs/gate.json").read_text())["entropy_threshold"] is None
    after = [] if without else ["fit_decoder", "evaluate"]
    assert experiment(project, "-S", "gate.quantile=0.5", "evaluate") == ["fit_gate", *after]
    assert experiment(project, "-S", "decode.method=greedy", "fit_decoder") == ["fit_decoder"]


def test_another_teacher_head_trains_no_student_whose_target_is_not_made_of_it(project: Path) -> None:
    assert yaml.safe_load((project / "params.yaml").read_text())["distill"]["target"] == "base_features"
    assert experiment(project, "-S", "teacher_head.layers=2") == ["train_teacher_head", "make_targets", "report"]


def test_a_copied_preset_needs_no_folder_of_its_own(project: Path) -> None:
    shutil.copy(project / "presets/fleurs.yaml", project / "presets/mine.yaml")
    fetched = ["fetch_models", "fetch_speech", "fetch_noise"]  # what reads a preset's sources
    ended = run("dvc", "exp", "run", "-S", "preset=mine", "fetch_noise", folder=project)
    assert stages_run(ended.stdout) == fetched
    for stage in fetched:
        output = project / OUTPUTS[stage].replace("fleurs", "mine")
        assert contents(output) == contents(project / OUTPUTS[stage])
    (project / "presets/mine.yaml").unlink()
    restore(project)


def test_push_and_pull_restore_every_output(project: Path, made: dict[str, dict[str, str]], tmp_path: Path) -> None:
    run("dvc", "remote", "add", "-d", "here", str(tmp_path / "remote"), folder=project)
    run("dvc", "push", "-q", folder=project)
    run("git", "clone", "-q", str(project), str(tmp_path / "clone"), folder=project)
    clone = tmp_path / "clone"
    run("dvc", "remote", "add", "-d", "here", str(tmp_path / "remote"), folder=clone)
    run("dvc", "pull", "-q", folder=clone)
    assert {stage: contents(clone / output) for stage, output in OUTPUTS.items()} == made
    assert (clone / "metrics/fleurs/report.html").read_bytes() == (project / "metrics/fleurs/report.html").read_bytes()
    run("dvc", "remote", "remove", "here", folder=project)


def test_contributing_holds_word_by_word(project: Path) -> None:
    """Every code block of CONTRIBUTING.md goes where its first line says, every command is run; of this preset."""
    shutil.copytree(ROOT / "tests", project / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    preset = yaml.safe_load((project / "presets/fleurs.yaml").read_text())
    preset["noise"] |= {"path": "synthetic", "seconds": 1}
    (project / "presets/fleurs.yaml").write_text(yaml.safe_dump(preset))
    ran = []
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(), re.M | re.S):
        if language == "bash":
            for line in block.replace("presets/mini.yaml", "presets/fleurs.yaml").splitlines():
                run(*shlex.split(line, comments=True), folder=project)
                ran.append(line)
            continue
        name = block.split("\n", 1)[0].removeprefix("# ").partition(":")[0]
        path = project / name
        if language == "yaml":
            path.write_text(path.read_text().replace("stages:\n", f"stages:\n{block}\n", 1))
        else:
            path.write_text((path.read_text() if path.exists() else "") + f"\n\n{block}")
    assert len(ran) >= 4
    assert set(json.loads((project / "metrics/fleurs/words.json").read_text())) == {"train", "validation", "test"}
    assert json.loads((project / "models/fleurs/adapter/run.json").read_text())["distill"]["target"] == "doubled_logits"
    assert "drips" in {item["category"] for item in RaggedArray(project / "data/fleurs/noise/train").items}
    shutil.rmtree(project / "tests")
    (project / "stages/count_words.py").unlink()
    (project / "metrics/fleurs/words.json").unlink()
    restore(project)


KILLED = """
import os, runpy, signal, sys
stage, output, temporary, times = sys.argv[1:]
del sys.argv[1:]
left = int(times)
def kill(event, arguments):
    global left
    if event in ("open", "os.rename") and temporary in str(arguments[0]):
        assert not os.path.exists(output), f"{output} is there and not yet whole"
        left -= event == "os.rename"
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(kill)
runpy.run_module(f"stages.{stage}", run_name="__main__", alter_sys=True)
"""


def kill(project: Path, stage: str, temporary: str, times: int = 1) -> str:
    """Run a stage that kills itself (-9) as it is about to rename a path with `temporary` in it; what it printed.

    Until then its output is not there.
    """
    command = ["python", "-u", "-c", KILLED, stage, (OUTPUTS | CHANGING)[stage], temporary, str(times)]
    ended = run(*command, folder=project, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr[-3000:]
    return ended.stdout


def kill_while_it_writes(project: Path, stage: str) -> None:
    output = project / (OUTPUTS | CHANGING)[stage]
    kill(project, stage, f".{output.name}.tmp-")
    assert list(output.parent.glob(f".{output.name}.tmp-*"))
    assert not output.exists()


@pytest.mark.parametrize("stage", OUTPUTS)
def test_a_killed_stage_leaves_nothing_half_done(project: Path, made: dict[str, dict[str, str]], stage: str) -> None:
    """kill -9 while the output is being written; then the same command ends with the same bytes."""
    output = project / OUTPUTS[stage]
    shutil.rmtree(output) if output.is_dir() else output.unlink()
    if stage == "train":
        kill(project, stage, "checkpoints/", times=2)  # the first checkpoint stands
        assert not output.exists()
    else:
        kill_while_it_writes(project, stage)
    again = run("python", "-m", f"stages.{stage}", folder=project)
    if stage == "train":
        assert "training goes on from step" in again.stdout
    assert contents(output) == made[stage]
    assert not list(output.parent.glob(".*.tmp-*"))


@pytest.mark.parametrize("changed", ["stages/train.py", "dqlora/training/schedule.py"])
def test_the_checkpoint_of_other_code_is_never_taken_up(project: Path, changed: str) -> None:
    checkpoints = project / "models/fleurs/checkpoints"
    shutil.rmtree(project / OUTPUTS["train"])
    kill(project, "train", "checkpoints/", times=2)
    [first] = checkpoints.glob("*.safetensors")
    with (project / changed).open("a") as source:
        source.write("# other code\n")
    other = kill(project, "train", "checkpoints/", times=2)
    assert "training goes on from step" not in other
    assert len(list(checkpoints.glob("*.safetensors"))) == 2
    restore(project)
    again = run("python", "-m", "stages.train", folder=project)
    assert f"training goes on from step 2 ({first.relative_to(project)})" in again.stdout
    shutil.rmtree(checkpoints)
    restore(project)


@pytest.mark.parametrize("stage", ["fetch_models", "fetch_speech", "fetch_noise"])
def test_without_a_network_a_stage_ends_soon_with_one_line(tmp_path: Path, student_folder: Path, stage: str) -> None:
    for name in ("stages", "dqlora", "presets"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.tmp-*"))
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({**params, "preset": "fleurs"}))
    if stage == "fetch_speech":
        shutil.copytree(student_folder, tmp_path / "models/fleurs/pretrained/student")
    nothing = dict.fromkeys(("HF_ENDPOINT", "https_proxy", "HTTPS_PROXY"), "http://127.0.0.1:9")
    environment = {**ENVIRONMENT, **nothing, "PYTHONPATH": str(tmp_path), "HF_HOME": str(tmp_path / "empty")}
    started = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", f"stages.{stage}"], cwd=tmp_path, env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert time.monotonic() - started < 30
    assert ended.returncode == 1
    lines = [line for line in ended.stderr.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, ended.stderr
    assert "network" in lines[0] or "reach" in lines[0]
    assert "Traceback" not in ended.stderr
    left = [
        path.name
        for root in ("data", "models")
        for path in (tmp_path / root).glob("fleurs/*")
        if stage != "fetch_speech"
    ]
    assert [name for name in left if name != "downloads"] == []
