"""The exports load in plain transformers and plain onnxruntime, and say what the adapter says."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from dqlora.cli import app
from dqlora.config import Lora
from dqlora.data.storage import write_json
from dqlora.models.export import OnnxStudent, merge, write_exports
from dqlora.models.lora import add_lora, load_adapted
from dqlora.models.wav2vec2 import EncoderCTC, cnn_features, load_student
from dqlora.transcription.recogniser import load_recogniser
from tests.conftest import ROOT, tone

CPU = torch.device("cpu")
STUDENT = ROOT / "presets/mini/student"
LORA = Lora(r=4, alpha=8, dropout=0.0, target_modules=["q_proj", "intermediate_dense"])
WITHOUT_THE_PROJECT = "import sys; sys.modules['dqlora'] = None\n"  # importing it would fail
PIPELINE = """
import sys, numpy
from transformers import pipeline
read = pipeline("automatic-speech-recognition", model=sys.argv[1])
print(read({"raw": numpy.load(sys.argv[2]), "sampling_rate": 16000})["text"])
"""
RUNTIME = """
import json, sys, numpy, onnxruntime
from pathlib import Path
folder = Path(sys.argv[1])
session = onnxruntime.InferenceSession(folder / "model.onnx")
names = {index: name for name, index in json.loads((folder / "vocab.json").read_text()).items()}
best = session.run(None, {"audio": numpy.load(sys.argv[2])[None]})[0][0].argmax(-1)
merged = [names[i] for before, i in zip([-1, *best], best) if i != before]
print("".join(name for name in merged if name != "<pad>").replace("|", " "))
"""


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's adapter on the mini student in 4 bits; its updates are random and small."""
    folder = tmp_path_factory.mktemp("run") / "adapter"
    model = add_lora(load_student(STUDENT, "nf4", CPU), LORA, seed=0)
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data = 0.01 * torch.randn(weight.shape, generator=generator)
    model.save_pretrained(folder)
    write_json(folder / "run.json", {"student": str(STUDENT), "quantize": "nf4"})
    write_json(folder.with_name("gate.json"), {"entropy_threshold": None})
    return folder


@pytest.fixture(scope="module")
def exported(adapter: Path) -> Path:
    folder = adapter.parent / "exported"
    result = CliRunner().invoke(app, ["export", str(folder), "--model", str(adapter)])
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="module")
def clip(adapter: Path) -> Path:
    import pyarrow.parquet

    from dqlora.data.audio import read_audio

    table = pyarrow.parquet.read_table(ROOT / "presets/mini/speech/test/0000.parquet", columns=["audio"])
    path = adapter.parent / "clip.npy"
    np.save(path, read_audio(table.to_pylist()[0]["audio"]["bytes"]))
    return path


def test_merged_weights_give_the_adapters_logits(adapter: Path) -> None:
    samples = tone(2.0)
    adapted = load_adapted(STUDENT, adapter, "nf4", CPU)
    merged = merge(STUDENT, adapter, "nf4")
    with torch.inference_mode():
        logits = [
            EncoderCTC(model)(features[None], torch.tensor([len(features)]))
            for model in (adapted, merged)
            if (features := cnn_features(model, samples)) is not None
        ]
    torch.testing.assert_close(*logits, atol=1e-3, rtol=0)
    base = load_student(STUDENT, "nf4", CPU)
    with torch.inference_mode():
        unadapted = EncoderCTC(base)(cnn_features(base, samples)[None], torch.tensor([logits[0].shape[1]]))
    assert (unadapted - logits[0]).abs().max() > 0.1  # the adapter does something


@pytest.mark.parametrize(("script", "kind"), [(PIPELINE, "merged"), (RUNTIME, "onnx")])
def test_it_loads_without_this_project(script: str, kind: str, exported: Path, clip: Path, adapter: Path) -> None:
    command = [sys.executable, "-I", "-c", WITHOUT_THE_PROJECT + script, str(exported / kind), str(clip)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    recogniser = load_recogniser(str(exported / kind), CPU)
    expected = recogniser.vocabulary.decode(recogniser.token_ids(np.load(clip)).tolist())
    assert ended.stdout.strip().lower() == expected and len(expected.split()) > 5
    reference = load_recogniser(str(adapter), CPU).token_ids(np.load(clip))
    assert (recogniser.token_ids(np.load(clip)) == reference).mean() > 0.97


def test_where_the_base_transcribes_some_clips_so_it_does_in_onnx(adapter: Path, clip: Path, tmp_path: Path) -> None:
    """Clean speech, of which the base is certain, and the same in noise."""
    shutil.copytree(adapter, tmp_path / "adapter")
    weights = load_file(adapter / "adapter_model.safetensors")
    stronger = {name: weight * (100 if "lora_B" in name else 1) for name, weight in weights.items()}
    save_file(stronger, tmp_path / "adapter" / "adapter_model.safetensors")
    write_json(tmp_path / "gate.json", {"entropy_threshold": 0.2})
    write_exports(STUDENT, tmp_path / "adapter", "nf4", tmp_path / "exported")
    assert {path.name for path in (tmp_path / "exported").iterdir()} == {"merged", "onnx"}
    clean = np.load(clip)
    noisy = clean + 0.1 * np.random.default_rng(0).normal(size=len(clean)).astype(np.float32)
    onnx = OnnxStudent(tmp_path / "exported" / "onnx")
    base, adapted = load_student(STUDENT, "nf4", CPU), load_adapted(STUDENT, tmp_path / "adapter", "nf4", CPU)
    for samples, expected in ((clean, base), (noisy, adapted)):
        own, other = (
            EncoderCTC(model)(features[None], torch.tensor([len(features)]))[0].argmax(-1).numpy()
            for model in (expected, adapted if expected is base else base)
            if (features := cnn_features(model, samples)) is not None
        )
        found = onnx.token_ids(samples)
        assert (found == own).mean() > 0.97 and (own == other).mean() < 0.9
        recogniser = load_recogniser(str(tmp_path / "adapter"), CPU)
        assert np.array_equal(recogniser.token_ids(samples), own)


def test_the_onnx_model_takes_any_length(exported: Path) -> None:
    student = OnnxStudent(exported / "onnx")
    assert [len(student.token_ids(tone(seconds))) for seconds in (0.03, 1.0, 20.0)] == [1, 49, 999]


def test_no_pickle_and_no_quantisation_is_left(exported: Path) -> None:
    assert {file.suffix for file in exported.rglob("*") if file.is_file()} == {".json", ".safetensors", ".onnx"}
    for kind in ("merged", "onnx"):
        assert "quantization_config" not in json.loads((exported / kind / "config.json").read_text())


def test_no_path_of_this_machine_is_in_the_onnx_file(exported: Path) -> None:
    content = (exported / "onnx" / "model.onnx").read_bytes()
    assert not [path for path in (ROOT, Path(torch.__file__).parent) if str(path).encode() in content]


def test_full_fine_tuning_exports_as_it_is(student_folder: Path, tmp_path: Path) -> None:
    trained = load_student(student_folder, "none", CPU)
    trained.lm_head.weight.data += 1
    trained.save_pretrained(tmp_path / "adapter")
    model = merge(student_folder, tmp_path / "adapter", "none")
    torch.testing.assert_close(model.lm_head.weight, trained.lm_head.weight)
    write_json(tmp_path / "adapter" / "run.json", {"student": str(student_folder), "quantize": "none"})
    write_exports(student_folder, tmp_path / "adapter", "none", tmp_path / "exported")
    assert {path.name for path in (tmp_path / "exported").iterdir()} == {"merged", "onnx"}


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export", str(tmp_path / "out"), "--model", str(STUDENT)])
    assert result.exit_code == 1 and "no run's adapter folder (no run.json)" in result.stderr
    assert not (tmp_path / "out").exists()
