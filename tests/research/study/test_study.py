"""The study end to end at a tiny size: runs are noted once, taken up again, and tabulated."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml

from dqlora.config import Lora, load_params
from dqlora.data.batching import Example, collate
from dqlora.data.storage import RaggedArray
from dqlora.errors import UserError
from dqlora.evaluation.metrics import Errors, relative_wer_reduction
from dqlora.models.lora import add_lora
from dqlora.models.wav2vec2 import load_student
from dqlora.training.objective import DistillationLoss
from research.study import sources, unlabelled
from research.study.run import COMPARISONS
from research.study.runner import job_of, make_once
from research.study.table import (
    DRAWS,
    SEED,
    behind_gate,
    comparison,
    edits_and_words,
    read_runs,
    reduction,
    reduction_with_interval,
    summed_edits,
    wer,
)
from research.study.tables import RESULTS, TABLES, page
from research.study.variants import ALPHAS, BASE, CTC, FINALISTS, VARIANTS, at_alpha, gated, has_adapter
from stages import extract_features, fetch_noise, fetch_speech, mix
from tests.conftest import ROOT, write_audiofolder, write_noise

LOGITS = "base logits, λ 3"


def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"research.study.{module}", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def study_project(project: Path, student_folder: Path, tmp_path: Path) -> Path:
    """A project whose preset `tiny` is mixed and ready to train on."""
    kept = shutil.ignore_patterns("__pycache__", "results", "tables")
    shutil.copytree(ROOT / "research", project / "research", ignore=kept)
    shutil.copytree(student_folder, project / "models/tiny/pretrained/student")
    for split, count in {"train": 4, "validation": 2, "test": 3}.items():
        texts = [f"{split} sentence {'very ' * number}long" for number in range(count)]
        write_audiofolder(tmp_path / "speech" / split, texts)
    preset = yaml.safe_load((ROOT / "presets/study.yaml").read_text())
    preset["speech"]["path"] = str(tmp_path / "speech")
    preset["noise"]["path"] = str(write_noise(tmp_path / "noise"))
    preset["budget"]["batch_seconds"] = 4
    (project / "presets/tiny.yaml").write_text(yaml.safe_dump(preset))
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["preset"], params["mix"]["copies"] = "tiny", 1
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    for stage in (fetch_speech, fetch_noise, mix, extract_features):
        stage.main()
    return project


def test_runs_are_noted_once_and_tabulated(study_project: Path) -> None:
    command = (
        "run",
        "--preset",
        "tiny",
        "--steps",
        "5",
        "--seed",
        "0",
        "--seed",
        "1",
        "--only",
        CTC,
        "--only",
        LOGITS,
    )
    ended = run(*command)
    assert ended.returncode == 0, ended.stderr
    results = study_project / "data/study/results.jsonl"
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    names = [at_alpha(name, alpha) for name in (CTC, LOGITS) for alpha in ALPHAS]
    assert sorted((row["variant"], row["seed"]) for row in rows) == sorted(
        [(BASE, 0), *((name, seed) for name in names for seed in (0, 1))]
    )
    for row in rows:
        assert {name: len(errors) for name, errors in row["errors"]["test"].items()} == {
            "clean": 3, "10 dB": 3, "5 dB": 3, "0 dB": 3
        }  # fmt: skip
    assert run(*command).returncode == 0
    assert len(results.read_text().splitlines()) == len(rows)

    table = run("table")
    assert table.returncode == 0, table.stderr
    lines = [line for line in table.stdout.splitlines() if line.startswith("| ") and "---" not in line]
    assert {line.split(" | ")[0].strip("| ") for line in lines} == {"variant", BASE, *names, *map(gated, names)}

    half = at_alpha(CTC, 0.5)
    lines = run("table", "--over", half).stdout.splitlines()
    assert any(f"noisy: reduction vs {half} |" in line for line in lines)
    rows_of = {line.split(" | ")[0].strip("| "): line for line in lines}
    assert rows_of[half].endswith(" |  |") and "[" in rows_of[LOGITS].rsplit(" | ", 1)[1]


def test_labels_are_those_of_the_variant(study_project: Path) -> None:
    folder = study_project / "labels"
    folder.mkdir()
    for split in ("train", "validation"):
        clips = RaggedArray(study_project / "data/tiny/clean" / split)
        lines = [
            {"id": item["id"], "text": "HEARD", "transcript": "Heard.", "kept": number > 0}
            for number, item in enumerate(clips.items)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    # the others have a target of features, of a layer that the small student lacks
    trained = ("people's labels", "Whisper's labels, unfiltered")
    command = ["run", "--compare", "labels", "--preset", "tiny", "--steps", "1", "--seed", "0"]
    command += [f"--only={name}" for name in trained]
    missing = run(*command)
    assert missing.returncode == 1 and "no train.jsonl there" in missing.stderr
    ended = run(*command, "--labels", str(folder))
    assert ended.returncode == 0, ended.stderr
    rows = [json.loads(line) for line in (study_project / "data/study/results.jsonl").read_text().splitlines()]
    names = [at_alpha(name, alpha) for name in trained for alpha in ALPHAS]
    assert sorted(row["variant"] for row in rows) == sorted([BASE, *names])

    runner = unlabelled.LabelRunner("tiny", folder)
    texts = {
        variant: [
            item["text"]
            for item in runner.clips(job_of(load_params(), variant, 1, 0, unlabelled.LABELS), "train").items
        ]
        for variant in unlabelled.LABELS
    }
    people = [item["text"] for item in RaggedArray(study_project / "data/tiny/clean/train").items]
    assert texts["people's labels"] == people and len(people) == 4
    assert texts["Whisper's labels"] == ["HEARD"] * 3 and texts["Whisper's labels, unfiltered"] == ["HEARD"] * 4


def test_without_labels_the_distance_alone_is_left(student_folder: Path) -> None:
    student = load_student(student_folder, "none", torch.device("cpu"))
    width = student.config.conv_dim[-1]
    batch = collate([Example(np.ones((20, width), np.float16), [5, 6], "AB", None)])
    ctc, _ = unlabelled.FeaturesOnly(student, 0)(batch)
    assert ctc == 0 and DistillationLoss(student, 0)(batch)[0] > 0


def test_a_gated_run_has_the_bases_errors_where_the_base_is_certain() -> None:
    base = {
        "errors": {"a": {"clean": [[1, 9], [2, 9]]}},
        "entropies": {"a": {"clean": [0.1, 0.3]}},
        "entropy_threshold": 0.2,
    }
    assert behind_gate(base, {"errors": {"a": {"clean": [[5, 9], [6, 9]]}}}) == {"a": {"clean": [[1, 9], [6, 9]]}}
    full = "base features of layer 8, λ 1, full fine-tuning, no masks"
    assert full in VARIANTS and not has_adapter(at_alpha(full, 0.5)) and has_adapter(at_alpha(CTC, 0.5))


def test_an_adapter_is_scored_at_every_alpha(study_project: Path, student_folder: Path) -> None:
    missing = run("wise_ft", "--preset", "tiny")
    assert missing.returncode == 1 and "no LoRA adapter" in missing.stderr
    lora = Lora(r=4, alpha=64, dropout=0.0, target_modules=["q_proj", "v_proj", "output_dense"])
    model = add_lora(load_student(student_folder, "none", torch.device("cpu")), lora, seed=0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=2.0)
    model.save_pretrained(study_project / "models/tiny/adapter")
    ended = run("wise_ft", "--preset", "tiny")
    assert ended.returncode == 0, ended.stderr
    rows = [line.strip("| ").split(" | ") for line in ended.stdout.splitlines() if line.startswith("| ")]
    assert rows[0][1:] == ["validation, clean", "validation, noisy", "test, clean", "test, noisy"]
    assert [row[0] for row in rows[2:]] == [f"{tenths / 10}" for tenths in range(11)]
    assert len({tuple(row[1:]) for row in rows[2:]}) > 1  # the update makes a difference


def test_what_runs_share_is_made_again_for_other_inputs_or_code(tmp_path: Path) -> None:
    made: list[str] = []

    def write(folder: Path) -> None:
        made.append(folder.name)
        (folder / "number").write_text(str(len(made)))

    for fingerprint in ("one", "one", "other"):
        make_once(tmp_path / "shared", fingerprint, write)
    assert len(made) == 2 and (tmp_path / "shared/number").read_text() == "2"


def test_without_speech_and_noise_make_study_asks_for_them() -> None:
    for given, returncode in (([], 2), (["SPEECH=a"], 2), (["SPEECH=a", "NOISE=b"], 0)):
        ended = subprocess.run(["make", "-n", "study", *given], cwd=ROOT, capture_output=True, text=True, check=False)
        assert ended.returncode == returncode
        assert ("needs SPEECH=folder" in ended.stderr) == (returncode == 2)


def test_what_is_asked_wrongly_is_named(study_project: Path) -> None:
    for arguments, message in {
        ("run", "--steps", "5", "--seed", "0", "--only", "nothing"): "no variant is left",
        ("run", "--seed", "0"): "give --steps, --finalist-steps or both",
        ("table", "none.jsonl"): "none.jsonl: no such file",
        ("sources", "nowhere", "nowhere"): "no such file",
    }.items():
        ended = run(*arguments)
        assert ended.returncode != 0 and message in ended.stderr, ended.stderr


def test_synthetic_speech_is_trained_on_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "presets/mini").mkdir(parents=True)
    (tmp_path / "presets/mini/speech").symlink_to(ROOT / "presets/mini/speech")
    for split in ("train", "validation", "test"):
        write_audiofolder(tmp_path / "real" / split, [f"{split} sentence"])
    write_noise(tmp_path / "noise/train")
    write_noise(tmp_path / "noise/test")
    with pytest.raises(UserError, match="no synthetic speech"):
        sources.main(tmp_path / "real", tmp_path / "noise", tmp_path / "shards")
    (tmp_path / "shards").mkdir()
    for name, texts in {"0-0-0": ["second", "third"], "0-1-0": ["first"]}.items():
        np.save(tmp_path / f"shards/{name}.npy", np.arange(800 * len(texts), dtype=np.int16))
        entries = [{"text": text, "voice": "v", "samples": 800} for text in texts]
        (tmp_path / f"shards/{name}.json").write_text(json.dumps(entries))
    write_audiofolder(tmp_path / "other/train", ["never read"])
    write_audiofolder(tmp_path / "other/test", ["heard elsewhere"])
    sources.main(tmp_path / "real", tmp_path / "noise", tmp_path / "shards", tmp_path / "other")
    speech = tmp_path / "presets/study/speech"
    tables = [(speech / split / "metadata.csv").read_text() for split in ("train", "validation", "test")]
    assert "never read" not in "".join(tables)
    assert ["heard elsewhere" in table for table in tables] == [False, False, True]
    rows = [line.split(",") for line in (speech / "train/metadata.csv").read_text().splitlines()[1:]]
    assert [row[1] for row in rows if row[0].startswith("synthetic")] == ["first", "second", "third"]
    assert len(rows) == 220 + 1 + 3
    assert not list((speech / "test").glob("synthetic*")) and not list((speech / "validation").glob("synthetic*"))
    samples, rate = soundfile.read(speech / "train/synthetic-00001.wav", dtype="int16")
    assert rate == 16_000 and samples.tolist() == list(range(800))


def test_every_variant_is_a_valid_setting() -> None:
    params = load_params(ROOT / "params.yaml")
    for variants in COMPARISONS.values():
        for variant in variants:
            assert job_of(params, variant, 5, 3, variants).params.seed == 3
    assert job_of(params, "consistency 1", 5, 0, COMPARISONS["losses"]).batch_seconds == 80
    assert job_of(params, LOGITS, steps=5, seed=0).params.distill.target == "base_logits"
    assert job_of(params, "CTC only, learning rate 1e-3", steps=5, seed=0).learning_rate == 1e-3
    assert set(FINALISTS) <= set(VARIANTS)


def noted(variant: str, seed: int, edits: int) -> dict:
    errors = {name: [[edits, 10], [edits + 1, 10]] for name in ("clean", "10 dB", "5 dB", "0 dB")}
    return {"variant": variant, "seed": seed, "errors": {"one": errors, "two": errors}}


def test_the_tables_figures() -> None:
    base, ctc, better = noted(BASE, 0, 8), [noted(CTC, seed, 5) for seed in (0, 1)], [noted("x", 1, 3)]
    noisy = ("10 dB", "5 dB", "0 dB")
    assert wer(base, "one", noisy) == pytest.approx(85)
    assert len(edits_and_words(base, "both", "clean")) == 4
    np.testing.assert_array_equal(summed_edits(ctc, "one", noisy), [30, 36])
    assert reduction([base], ctc, "one", noisy).startswith("35.3 [")  # 11 edits for 17
    assert reduction(ctc, better, "one", noisy).startswith("36.4 [")  # 7 for 11, over seed 1 alone
    mean = [noted("mean of adapters", 0, 3) | {"adapters": 2}]
    assert reduction(ctc, mean, "one", noisy).startswith("36.4 [")  # 14 for 22, over both


def test_short_utterances_may_be_left_out_of_the_table(tmp_path: Path) -> None:
    run = noted(BASE, 0, 8) | {"steps": 0}
    run["errors"]["one"] = {"clean": [[0, 1], [8, 10]]}
    (tmp_path / "results.jsonl").write_text(json.dumps(run) + "\n")
    kept = [read_runs(tmp_path / "results.jsonl", words)[0][BASE][0]["errors"] for words in (1, 2)]
    assert [len(errors["one"]["clean"]) for errors in kept] == [2, 1]
    assert [len(errors["two"]["clean"]) for errors in kept] == [2, 2]


def test_two_runs_of_the_study_are_compared_by_their_seeds_ranges() -> None:
    def runs(*edits: int) -> list[dict[str, Any]]:
        conditions = ("10 dB", "5 dB", "0 dB")
        return [{"errors": {"mini": {condition: [[count, 100]] for condition in conditions}}} for count in edits]

    first = {350: {"a": runs(10, 14), "b": runs(10, 12), "one seed": runs(9)}}
    second = {350: {"a": runs(14, 18), "b": runs(13, 15), "one seed": runs(9)}}
    assert list(comparison(first, second))[2:] == [
        "| 350 | a | 10.0 to 14.0 | 14.0 to 18.0 | yes |",
        "| 350 | b | 10.0 to 12.0 | 13.0 to 15.0 | no |",
        "",
        "1 of 2 overlap",
    ]


def test_intervals_are_those_of_the_metrics() -> None:
    rng = np.random.default_rng(1)
    words, base, better = rng.integers(10, 20, 30), rng.integers(0, 10, 30), rng.integers(0, 6, 30)
    none = np.zeros(30, int)
    expected = relative_wer_reduction(Errors(base, words, none, none), Errors(better, words, none, none), DRAWS, SEED)
    assert reduction_with_interval(base, better) == pytest.approx(tuple(expected.values()))


def test_every_results_file_has_its_table() -> None:
    """Other tables are those of trials: README.md says which command prints them."""
    tables, results = ({path.stem for path in found} for found in (TABLES.glob("*.md"), RESULTS.glob("*.jsonl")))
    assert results <= tables
    readme = (TABLES.parent / "README.md").read_text(encoding="utf-8")
    for trial in tables - results:
        assert f"(tables/{trial}.md)" in readme and f"python -m research.study.{trial} " in readme, trial


@pytest.mark.parametrize("results", sorted(RESULTS.glob("*.jsonl")), ids=lambda path: path.stem)
def test_the_committed_tables_are_what_the_command_writes(results: Path) -> None:
    assert (TABLES / f"{results.stem}.md").read_text(encoding="utf-8") == page(results)
