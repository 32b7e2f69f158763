"""The command line as a user meets it: files in, words out, one line for each mistake."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from dqlora.cli import app
from dqlora.config import Lora
from dqlora.data.storage import write_json
from dqlora.models.lora import add_lora
from dqlora.models.wav2vec2 import load_student
from tests.conftest import RATE, ROOT, tone, wav_bytes

MODEL = str(ROOT / "presets/mini/student")


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    """Two clips of the mini corpus as files, of different rates and channels."""
    import pyarrow.parquet

    from dqlora.data.audio import read_audio

    table = pyarrow.parquet.read_table(ROOT / "presets/mini/speech/test/0000.parquet", columns=["audio"])
    for name, row in zip(("one.wav", "two.flac"), table.to_pylist(), strict=False):
        samples = read_audio(row["audio"]["bytes"])
        soundfile.write(tmp_path / name, np.stack([samples] * 2, axis=1), RATE)
    return tmp_path


def run(*arguments: str, stdin: bytes | None = None) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["transcribe", *arguments, "--model", MODEL], stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def test_text_of_one_and_of_several_files(speech: Path) -> None:
    code, one, _ = run(str(speech / "one.wav"))
    assert code == 0 and len(one.split()) > 5
    code, both, _ = run(str(speech / "one.wav"), str(speech / "two.flac"))
    assert code == 0
    assert both.splitlines()[0] == f"{speech / 'one.wav'}: {one.strip()}"
    assert both.splitlines()[1].startswith(f"{speech / 'two.flac'}: ")


def test_every_format_has_the_same_words(speech: Path, tmp_path: Path) -> None:
    out = tmp_path / "transcripts"
    for form in ("txt", "json", "srt", "vtt"):
        assert run(str(speech / "one.wav"), "--format", form, "--output", str(out))[0] == 0
    text = (out / "one.txt").read_text().strip()
    made = json.loads((out / "one.json").read_text())
    assert made["text"] == text == " ".join(word["text"] for word in made["words"])
    assert all(0 <= word["confidence"] <= 1 for word in made["words"])
    starts = [word["start"] for word in made["words"]]
    assert starts == sorted(starts) and starts[-1] < soundfile.info(speech / "one.wav").duration
    for form in ("srt", "vtt"):
        lines = (out / f"one.{form}").read_text().splitlines()
        spoken = [line for line in lines if line and "-->" not in line and not line.isdigit() and line != "WEBVTT"]
        assert " ".join(spoken) == text


@pytest.mark.parametrize("name", ["/dev/stdin", "-", "fifo"])
def test_what_cannot_be_sought_is_copied_first(name: str, speech: Path) -> None:
    content = (speech / "one.wav").read_bytes()
    expected = run(str(speech / "one.wav"))
    if name == "fifo":
        name = str(speech / "fifo")
        os.mkfifo(name)
        threading.Thread(target=Path(name).write_bytes, args=[content], daemon=True).start()
        assert run(name) == expected
    elif name == "-":
        assert run(name, stdin=content) == expected
    else:
        command = [sys.executable, "-m", "dqlora.cli", "transcribe", name, "--model", MODEL]
        ended = subprocess.run(command, input=content, capture_output=True, check=True, cwd=ROOT)
        assert ended.stdout.decode() == expected[1]


@pytest.mark.parametrize("form", ["txt", "json"])
def test_a_name_need_not_be_utf_8(form: str, speech: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.wav")
    (speech / "one.wav").rename(speech / name)
    recordings = [str(speech / name), str(speech / "two.flac")]
    code, out, _ = run(*recordings, "--format", form)
    assert code == 0 and len(out.splitlines()) == 2
    assert "caf\\udce9.wav" in (json.loads(out.splitlines()[0])["file"] if form == "json" else out)
    assert run(*recordings, "--format", form, "--output", str(tmp_path / "texts"))[0] == 0
    assert len(list((tmp_path / "texts").iterdir())) == 2


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "x/.dvc/tmp"), "x/.dvc/tmp: Permission denied"),
        (OSError(errno.EROFS, "Read-only file system", "x"), "x: Read-only file system"),
        (OSError(errno.ENOSPC, "No space left on device", "x"), "no space left on the disk (x)"),
        (OSError(errno.ENOSPC, "No space left on device"), "no space left on the disk (output)"),
    ],
)
@pytest.mark.parametrize(
    ("command", "raises"),
    [
        (["compare"], "dqlora.report.compare.experiments"),
        (["compare", "one", "two"], "dqlora.report.compare.differences"),
        (["push", "owner/name"], "dqlora.config.load_params"),
        (["demo"], "dqlora.config.load_params"),
        (["transcribe", "one.wav"], "dqlora.cli.find_model"),
    ],
)
def test_a_file_or_disk_that_refuses_takes_one_line(
    error: OSError, message: str, command: list[str], raises: str, speech: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise error

    monkeypatch.chdir(speech)
    monkeypatch.setattr(raises, refuse)
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {message}; ") and result.stderr.count("\n") == 1


def test_a_folder_holds_the_text_alone(speech: Path, tmp_path: Path) -> None:
    names = [str(speech / "one.wav"), str(speech / "two.flac")]
    assert run(*names, "--output", str(tmp_path / "out"))[0] == 0
    for name in names:
        assert (tmp_path / "out" / f"{Path(name).stem}.txt").read_text() == run(name)[1]


@pytest.mark.parametrize("others", [("tue/one.wav",), ("one.flac",), ("one.wav",), ("two.wav", "b/one.ogg")])
@pytest.mark.parametrize("form", ["txt", "srt"])
def test_no_transcript_replaces_another(others: tuple[str, ...], form: str, speech: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    names = [str(speech / name) for name in ("one.wav", *others)]
    code, _, errors = run(*names, "--format", form, "--output", str(out))
    assert code == 1 and not out.exists()
    assert f"{names[0]} and {names[-1]} would both be written to {out / f'one.{form}'}" in errors


def test_bad_files_are_named_and_the_others_transcribed(speech: Path) -> None:
    bad = {
        "missing.wav": (None, "No such file or directory"),
        "folder.wav": ("folder", "a folder; give FOLDER/*.wav"),
        "text.wav": (b"not a sound " * 100, "not readable as audio"),
        "empty.wav": (b"", "empty file"),
        "cut.wav": (wav_bytes(tone(2.0))[:9000], "truncated file"),
        "short.wav": (wav_bytes(tone(0.01)), "0.01 s, shorter than 0.3 s"),
        "nan.wav": (wav_bytes(np.full(RATE, np.nan, np.float32), subtype="FLOAT"), "NaN or infinite samples"),
    }
    for name, (content, _) in bad.items():
        if content == "folder":
            (speech / name).mkdir()
        elif isinstance(content, bytes):
            (speech / name).write_bytes(content)
    soundfile.write(speech / "ten.wav", np.stack([tone(1.0)] * 10, axis=1), RATE)
    code, out, errors = run(*(str(speech / name) for name in (*bad, "ten.wav", "one.wav")))
    assert code == 1
    assert [line.split(": ")[0] for line in out.splitlines()] == [str(speech / "ten.wav"), str(speech / "one.wav")]
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == len(bad)
    for line, (name, (_, reason)) in zip(lines, bad.items(), strict=True):
        assert line.startswith(f"error: {speech / name}: ") and reason in line


@pytest.mark.parametrize("seed", range(10))
def test_whatever_is_in_a_file_takes_one_line(seed: int, tmp_path: Path) -> None:
    """Random bytes behind the first ones of each container, and recordings with some bytes changed."""
    rng = np.random.default_rng(seed)
    recording = wav_bytes(tone(0.5))
    for number, start in enumerate((b"", b"RIFF", b"ID3", b"OggS", b"fLaC", b"FORM", b"caff", b"\x1aE\xdf\xa3")):
        (tmp_path / f"{number}.bin").write_bytes(start + rng.bytes(rng.integers(3000)))
        changed = bytearray(recording)
        for position in rng.integers(60, size=3):
            changed[position] = rng.integers(256)
        (tmp_path / f"{number}.wav").write_bytes(changed)
    names = sorted(map(str, tmp_path.iterdir()))
    _, out, errors = run(*names)
    lines = [line for line in (out + errors).splitlines() if not line.startswith("[")]  # FFmpeg's own
    assert sorted(line.removeprefix("error: ").split(": ")[0] for line in lines) == names


def test_an_unreadable_model_ends_with_one_line(speech: Path) -> None:
    broken = speech / "model"
    shutil.copytree(MODEL, broken)
    (broken / "model.safetensors").write_bytes(b"cut")
    for model, message in {"nowhere": "no such folder", str(broken): "cut short or damaged"}.items():
        result = CliRunner().invoke(app, ["transcribe", str(speech / "one.wav"), "--model", model])
        assert result.exit_code == 1
        assert result.stderr.startswith("error: ") and message in result.stderr and result.stderr.count("\n") == 1


def run_with_adapter(project: Path, base: Path = MODEL) -> Path:
    """A run whose LoRA adapters change nothing yet, ungated and greedy."""
    student, adapter = project / "models/mini/pretrained/student", project / "models/mini/adapter"
    shutil.copytree(base, student)
    lora = Lora(r=2, alpha=2, dropout=0.0, target_modules=["q_proj"])
    add_lora(load_student(student, "none", torch.device("cpu")), lora, seed=0).save_pretrained(adapter)
    write_json(adapter / "run.json", {"student": "models/mini/pretrained/student", "quantize": "none"})
    write_json(adapter.with_name("gate.json"), {"entropy_threshold": None})
    write_json(adapter.with_name("decoder.json"), {"method": "greedy"})
    return adapter


@pytest.mark.parametrize("command", ["transcribe", "export"])
@pytest.mark.parametrize(
    ("damaged", "content"),
    [("adapter_model.safetensors", b"cut"), ("adapter_model.safetensors", None), ("adapter_config.json", b"")],
)
def test_a_damaged_run_ends_with_one_line(command: str, damaged: str, content: bytes | None, speech: Path) -> None:
    adapter = run_with_adapter(speech)
    (adapter / damaged).unlink()
    if content is not None:
        (adapter / damaged).write_bytes(content)
    name = str(speech / ("out" if command == "export" else "one.wav"))
    result = CliRunner().invoke(app, [command, name, "--model", str(adapter)])
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    *working, error = result.stderr.splitlines()
    assert error.startswith(f"error: {adapter}: cannot be loaded as an adapter of its base (")
    assert error.endswith("run `dvc repro train`, or copy the whole folder of a run of this student")
    assert working == ([f"exporting {adapter}; this may take minutes"] if command == "export" else [])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--hotword", "Ковальский"), "hot word 'Ковальский': letters outside the student's vocabulary"),
        (("--hotword", "?!"), "hot word '?!': empty"),
        (("--hotwords", "missing.txt"), "--hotwords missing.txt: no text file in UTF-8 there"),
    ],
)
def test_hot_words_that_cannot_be_used_take_one_line(options: tuple[str, str], reason: str, speech: Path) -> None:
    code, out, error = run(str(speech / "one.wav"), *options)
    assert (code, out) == (1, "") and reason in error and error.count("\n") == 1


def test_hot_words_come_from_the_command_line_and_from_a_file(speech: Path) -> None:
    (speech / "names.txt").write_text("Kowalski\n\nvolcanic ash\n", encoding="utf-8")
    options = ("--hotword", "Nguyen", "--hotwords", str(speech / "names.txt"))
    code, out, error = run(str(speech / "one.wav"), *options)
    assert (code, out) == run(str(speech / "one.wav"))[:2]
    assert error.endswith("hot words not heard: Nguyen, Kowalski, volcanic ash\n")
    word = out.split()[-1]
    _, _, error = run(
        str(speech / "one.wav"), "--hotword", word.upper(), *(f"--hotword=name {letter}" for letter in "abcdefghijkl")
    )
    assert error.endswith(
        "hot words not heard: " + ", ".join(f"name {letter}" for letter in "abcdefghij") + " and 2 more\n"
    )


def test_subtitles_of_several_files_need_a_folder(speech: Path) -> None:
    code, _, errors = run(str(speech / "one.wav"), str(speech / "two.flac"), "--format", "srt")
    assert code == 1 and "several files need --output FOLDER" in errors


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [(KeyboardInterrupt(), 130, "interrupted at"), (OSError(errno.ENOSPC, "full"), 1, "no space left to write")],
)
def test_an_interruption_and_a_full_disk_leave_no_half_file(
    raised: BaseException, code: int, said: str, speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise raised

    broken = "data.storage.atomic_write" if isinstance(raised, OSError) else "transcription.recogniser.transcribe_file"
    monkeypatch.setattr(f"dqlora.{broken}", fail)
    out = tmp_path / "out"
    found, _, errors = run(str(speech / "one.wav"), str(speech / "two.flac"), "--output", str(out))
    assert found == code and said in errors and "two" not in errors  # nothing more is transcribed
    assert not out.exists() or not list(out.iterdir())


@pytest.mark.parametrize(
    ("output", "reason"),
    [("one.wav", "a file, not a folder"), ("one.wav/out", "Not a directory"), ("locked", "may not be written to")],
)
def test_where_nothing_can_be_written_nothing_is_transcribed(
    output: str, reason: str, speech: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object) -> None:
        raise AssertionError("loads a model for nothing")

    monkeypatch.setattr("dqlora.transcription.recogniser.load_recogniser", load)
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)  # root may write anywhere
    code, _, errors = run(str(speech / "one.wav"), "--output", str(speech / output))
    assert code == 1 and errors.startswith(f"error: --output {speech / output}: {reason}; name ")
    assert errors.count("\n") == 1


def test_when_nobody_reads_on_nothing_more_is_transcribed(speech: Path) -> None:
    """As behind `| head -1`."""
    names = [str(speech / "one.wav"), *[str(speech / "two.flac")] * 20]
    command = [sys.executable, "-m", "dqlora.cli", "transcribe", *names, "--model", MODEL]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    assert process.stdout and process.stderr
    assert process.stdout.readline().startswith(f"{speech / 'one.wav'}: ".encode())
    process.stdout.close()
    said = process.stderr.read().decode()
    assert process.wait() == 1 and "error" not in said and "Error" not in said


PROBE = """
import resource, sys
from dqlora.cli import app
try:
    app(sys.argv[1:])
finally:
    spent = resource.getrusage(resource.RUSAGE_SELF)
    heavy = {"torch", "transformers", "peft", "dvc"}, {"numpy", "av", "soundfile", "soxr"}
    print(spent.ru_utime + spent.ru_stime, *(sorted(names & set(sys.modules)) for names in heavy), sep="|")
"""


@pytest.mark.parametrize(
    ("arguments", "code", "said", "may_decode"),
    [
        (["--help"], 0, "transcribe  Turn recordings into text, subtitles or JSON.", False),
        *(([command, "--help"], 0, "Usage:", False) for command in ("transcribe", "demo", "export", "push")),
        (["transcribe"], 2, "Missing argument", False),
        (["transcibe", "talk.wav"], 2, "No such command", False),
        (["transcribe", "talk.wav", "--modle", "x"], 2, "No such option", False),
        (["transcribe", "talk.wav", "--format", "doc"], 2, "'doc' is not one of", False),
        (["transcribe", "talk.wav", "note.txt", "--format", "srt"], 1, "several files need --output FOLDER", False),
        (["transcribe", "talk.wav", "a/talk.mp3", "--output", "out"], 1, "would both be written to", False),
        (["transcribe", "gone.wav"], 1, "error: gone.wav: No such file or directory\n", False),
        (["transcribe", "gone.wav", "folder.wav"], 1, "error: folder.wav: a folder; give FOLDER/*.wav\n", False),
        (["transcribe", "gone.wav", "--model", "nowhere"], 1, "error: gone.wav: No such file or directory\n", False),
        (["transcribe", "note.txt", "--model", "nowhere"], 1, "error: --model nowhere: no such folder;", False),
        (["transcribe", "talk.wav", "--model", "."], 1, "error: --model .: no model in this folder;", False),
        (["transcribe", "talk.wav"], 1, "error: no trained run here", False),
        (["transcribe", "talk.wav", "--model", "run/adapter"], 1, "error: run/gate.json: no such file;", True),
        (["transcribe", "note.txt", "--model", MODEL], 1, "convert it: ffmpeg -i FILE out.wav\n", True),
        (["transcribe", "note.txt", "none.wav", "--model", MODEL], 1, "error: none.wav: empty file\n", True),
        (["demo", "--model", "nowhere"], 1, "error: params.yaml: no such file; run from the project's root", False),
        (["export", "out"], 1, "error: no trained run here", False),
        (["export", "out", "--model", "."], 1, "error: .: no trained adapter; run `dvc repro`, or name", False),
        (["push", "owner", "--card"], 1, "error: push owner: no name of a repository; write owner/name", False),
        (["push", "owner/name", "--card"], 1, "error: params.yaml: no such file; run from the project's root", False),
        (["demo", "--port", "99999"], 2, "should be less than or equal to 65535", False),
    ],
)
def test_help_and_mistakes_take_no_time(
    arguments: list[str], code: int, said: str, may_decode: bool, tmp_path: Path
) -> None:
    """None of the libraries that take seconds is imported before; from a folder that is no project's."""
    (tmp_path / "talk.wav").write_bytes(wav_bytes(tone(1.0)))
    (tmp_path / "note.txt").write_text("no sound " * 99)
    (tmp_path / "none.wav").touch()
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "run/student").mkdir(parents=True)
    (tmp_path / "run/adapter").mkdir()
    (tmp_path / "run/adapter/adapter_config.json").touch()
    (tmp_path / "run/adapter/run.json").write_text('{"student": "run/student", "quantize": "nf4"}')
    ended = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    *_, probe = ended.stdout.splitlines()
    seconds, heavy, decoders = probe.split("|")
    assert ended.returncode == code and said in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    assert heavy == "[]" and (may_decode or decoders == "[]")
    assert float(seconds) < 1.0  # 0.2 to 0.4 on a core of its own


def test_a_run_elsewhere_transcribes(speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that a project fully trained, named from a folder that is no project's."""
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    for name in ("pretrained/student", "adapter"):
        shutil.copytree(MODEL, project / "models/mini" / name)
    run_of = {"student": "models/mini/pretrained/student", "quantize": "none"}
    (project / "models/mini/decoder.json").write_text('{"method": "greedy"}')
    (project / "models/mini/adapter/run.json").write_text(json.dumps(run_of))
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    model = str(project / "models/mini/adapter")
    found = CliRunner().invoke(app, ["transcribe", str(speech / "one.wav"), "--model", model])
    assert found.exit_code == 0 and found.stdout == run(str(speech / "one.wav"))[1]
