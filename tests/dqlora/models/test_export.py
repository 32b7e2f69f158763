"""The exports load in plain transformers and plain onnxruntime, and say what the adapter says."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from dqlora.cli import app
from dqlora.config import Lora
from dqlora.data.storage import write_json
from dqlora.data.text import Vocabulary
from dqlora.models.decoding import GREEDY, BeamSearch, greedy
from dqlora.models.export import OnnxStudent, merge, readme, save_processor, write_exports
from dqlora.models.language_model import as_decoded, train_arpa
from dqlora.models.lora import add_lora, load_adapted
from dqlora.models.wav2vec2 import EncoderCTC, cnn_features, load_student
from dqlora.transcription.recogniser import load_recogniser
from tests.conftest import RATE, ROOT, tone, wav_bytes

CPU = torch.device("cpu")
STUDENT = ROOT / "presets/mini/student"
LORA = Lora(r=4, alpha=8, dropout=0.0, target_modules=["q_proj", "intermediate_dense"])
VOCABULARY = Vocabulary.load(STUDENT / "vocab.json")
BEAM = {
    "method": "beam", "language_model": "lm/model.arpa", "weights": {"alpha": 2.0, "beta": 0.0, "unknown": -10.0},
}  # fmt: skip
# Importing this project fails, and so does what it brings along
BARE = "import sys; sys.modules |= dict.fromkeys(('dqlora', 'torchaudio', 'torchcodec', 'soxr', 'av', 'datasets'))\n"


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
    sentences = (ROOT / "presets/mini/text/sentences.txt").read_text().upper().replace(".", "").splitlines()
    (folder.parent / "lm").mkdir()
    (folder.parent / "lm/model.arpa").write_text(as_decoded(train_arpa(sentences[:200], 3, 0.0), VOCABULARY))
    write_json(folder.with_name("decoder.json"), BEAM)
    return folder


@pytest.fixture(scope="module")
def exported(adapter: Path) -> Path:
    folder = adapter.parent / "exported"
    (folder / "merged").mkdir(parents=True)
    (folder / "merged/of_an_earlier_export").touch()
    (folder / "thesis.txt").write_text("mine")
    result = CliRunner().invoke(app, ["export", str(folder), "--model", str(adapter)])
    assert result.exit_code == 0, result.output
    return folder


def test_an_export_replaces_an_earlier_one_and_touches_nothing_else(exported: Path) -> None:
    assert {path.name for path in exported.iterdir()} == {"README.md", "merged", "onnx", "thesis.txt"}
    assert (exported / "thesis.txt").read_text() == "mine"
    assert not (exported / "merged/of_an_earlier_export").exists()


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


@pytest.mark.parametrize("method", ["beam", "greedy"])
@pytest.mark.parametrize("kind", ["merged", "onnx"])
def test_the_lines_of_its_readme_turn_a_file_into_the_commands_text(
    kind: str, method: str, exported: Path, clip: Path, adapter: Path, tmp_path: Path
) -> None:
    """Pasted into a place without this project."""
    text = (exported / "README.md").read_text() if method == "beam" else readme(STUDENT, False, GREEDY)
    lines = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(lines) == 2 and ("ctc_beam_decoder" in text) == (method == "beam")
    samples = np.load(clip)
    (tmp_path / kind).symlink_to(exported / kind)
    soundfile.write(tmp_path / "recording.wav", np.stack([samples, samples], axis=1), RATE, subtype="FLOAT")
    command = [sys.executable, "-I", "-c", BARE + lines[kind == "onnx"]]
    without_ffmpeg = {"PATH": str(tmp_path)}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=without_ffmpeg)
    assert ended.returncode == 0, ended.stderr
    recogniser = load_recogniser(str(exported / kind), CPU)
    reference = load_recogniser(str(adapter), CPU)
    assert isinstance(recogniser.decoder, BeamSearch)
    greedily = greedy(recogniser.logits(samples))
    path = greedily if method == "greedy" else recogniser.token_ids(samples)
    expected = recogniser.vocabulary.decode(path.tolist())
    assert ended.stdout == expected + "\n" and len(expected.split()) > 5
    assert (recogniser.token_ids(samples) == reference.token_ids(samples)).mean() > 0.97
    assert (recogniser.token_ids(samples) != greedily).any()  # the language model does something


VOCABULARIES = {
    # tokens, tokenizer settings; the condition in the lines for ONNX, whether transformers is to write small letters
    "as the hub's": (["<pad>", "|", "A", "B"], {}, "len(token) == 1}", True),
    "a blank of one letter": (["_", " ", "a", "b"], {"pad_token": "_", "word_delimiter_token": " "},
                              'len(token) == 1 and token != "_"}', False),
    "Turkish": (["<pad>", "|", "I", "İ"], {}, "len(token) == 1}", False),
}  # fmt: skip


@pytest.mark.parametrize("name", VOCABULARIES)
def test_the_readme_and_the_processor_know_the_students_tokens(name: str, tmp_path: Path) -> None:
    tokens, settings, condition, small = VOCABULARIES[name]
    student = tmp_path / "student"
    student.mkdir()
    write_json(student / "vocab.json", {token: index for index, token in enumerate(tokens)})
    write_json(student / "tokenizer_config.json", settings)
    write_json(student / "preprocessor_config.json", {"do_normalize": False})
    text = readme(student, False, GREEDY)
    assert condition in text and f'replace("{settings.get("word_delimiter_token", "|")}", " ")' in text
    assert "always on" not in text and "always on" in readme(student, True, GREEDY)
    assert "hot words" not in text and "hot words" in readme(student, False, GREEDY | {"hotwords": ["AB"]})
    (tmp_path / "out").mkdir()
    save_processor(student, tmp_path / "out")
    assert json.loads((tmp_path / "out/tokenizer_config.json").read_text())["do_lower_case"] is small
    assert json.loads((tmp_path / "out/preprocessor_config.json").read_text())["do_normalize"]


def test_where_the_base_transcribes_some_clips_so_it_does_in_onnx(adapter: Path, clip: Path, tmp_path: Path) -> None:
    """Clean speech, of which the base is certain, and the same in noise."""
    shutil.copytree(adapter, tmp_path / "adapter")
    weights = load_file(adapter / "adapter_model.safetensors")
    stronger = {name: weight * (100 if "lora_B" in name else 1) for name, weight in weights.items()}
    save_file(stronger, tmp_path / "adapter" / "adapter_model.safetensors")
    write_json(tmp_path / "gate.json", {"entropy_threshold": 0.2})
    write_json(tmp_path / "decoder.json", GREEDY)
    write_exports(STUDENT, tmp_path / "adapter", "nf4", tmp_path / "exported")
    assert {path.name for path in (tmp_path / "exported").iterdir()} == {"README.md", "merged", "onnx"}
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
    suffixes = {file.suffix for kind in ("merged", "onnx") for file in (exported / kind).rglob("*") if file.is_file()}
    assert suffixes == {".arpa", ".json", ".onnx", ".safetensors"}
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
    assert {path.name for path in (tmp_path / "exported").iterdir()} == {"README.md", "merged", "onnx"}


@pytest.mark.parametrize(("missing", "stage"), [("decoder.json", "fit_decoder"), ("lm/model.arpa", "build_lm")])
def test_what_was_not_copied_along_is_named_before_anything_is_exported(
    missing: str, stage: str, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(adapter.parent, tmp_path / "run", ignore=shutil.ignore_patterns("exported"))
    (tmp_path / "run" / missing).unlink()
    monkeypatch.setattr("dqlora.models.export.merge", None)
    monkeypatch.chdir(tmp_path / "run" / "adapter")  # named by "."
    result = CliRunner().invoke(app, ["export", str(tmp_path / "out"), "--model", "."])
    *_, error = result.stderr.splitlines()
    assert result.exit_code == 1
    assert error.startswith(
        f"error: {tmp_path / 'run' / missing}: no such file; run `dvc repro {stage}`, or copy it along"
    )


@pytest.mark.parametrize(
    ("damaged", "content"),
    [
        ("model.onnx", b"cut"),
        ("config.json", b"{"),
        ("config.json", None),
        ("decoder.json", None),
        ("decoder.json", b"{"),
        ("model.arpa", None),
        ("vocab.json", None),
    ],
)
def test_a_damaged_onnx_export_ends_with_one_line(
    damaged: str, content: bytes | None, exported: Path, tmp_path: Path
) -> None:
    """It transcribes by all of its files or not at all."""
    folder = tmp_path / "onnx"
    shutil.copytree(exported / "onnx", folder)
    (folder / damaged).unlink()
    if content is not None:
        (folder / damaged).write_bytes(content)
    (tmp_path / "one.wav").write_bytes(wav_bytes(tone(1.0)))
    result = CliRunner().invoke(app, ["transcribe", str(tmp_path / "one.wav"), "--model", str(folder)])
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert str(folder) in result.stderr and result.stderr.count("\n") == 1


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export", str(tmp_path / "out"), "--model", str(STUDENT)])
    assert result.exit_code == 1 and "no trained adapter; run `dvc repro`" in result.stderr
    assert not (tmp_path / "out").exists()
