"""Pushing, against a stand-in for the hub's upload API on loopback."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import Wav2Vec2ForCTC

from dqlora.config import Lora
from dqlora.data.storage import write_json
from dqlora.models.lora import add_lora
from dqlora.models.wav2vec2 import load_student

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


@pytest.fixture
def finished(project: Path, student_folder: Path) -> Path:
    """A project with a run of the mini preset that is complete as far as pushing cares."""
    student = project / "models/mini/pretrained/student"
    shutil.copytree(student_folder, student)
    write_json(student / "origin.json", {"source": "presets/mini/student", "commit": None})
    adapter = project / "models/mini/adapter"
    lora = Lora(r=4, alpha=8, dropout=0.0, target_modules=["q_proj"])
    add_lora(load_student(student, "none", torch.device("cpu")), lora, 0).save_pretrained(adapter)
    write_json(adapter / "run.json", {"student": str(student), "quantize": "nf4"})
    (adapter / "rejected.csv").write_text("split,id,reason\n")
    write_json(project / "models/mini/gate.json", {"entropy_threshold": 0.12345})
    noisy = {"relative": 0.5, "ci_low": 0.25, "ci_high": 0.75}
    reduction = {"noisy": noisy, "clean": {**noisy, "relative": -0.5}}
    write_json(project / "metrics/evaluate.json", {"wer_reduction": reduction})
    write_json(project / "metrics/train.json", {"steps": 42})
    rows = []
    for number in range(40):
        reference = "some words were said"
        for condition in ("clean", "10 dB", "5 dB", "0 dB"):
            texts = {
                "base": "some",
                "distilled": "some words" if condition == "clean" else "some were",
                "teacher": reference,
            }
            rows.append({"id": f"u{number}", "condition": condition, "reference": reference, **texts})
    (project / "metrics/test").mkdir()
    (project / "metrics/test/predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return project


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

    front, card = hub.files["README.md"].decode().split("---\n")[1:3]
    assert yaml.safe_load(front)["license"] == "apache-2.0"
    assert "| base | 75.0 % [75.0, 75.0] | 75.0 % [75.0, 75.0] |" in card
    assert "| distilled | 50.0 % [50.0, 50.0] | 50.0 % [50.0, 50.0] |" in card
    assert "in noise: WER 50.0 % lower [25.0, 75.0]. On clean speech: WER 50.0 % higher [-75.0, -25.0]." in card
    for said in (
        "presets/mini/student",
        "42 steps",
        "40 test utterances",
        "10, 5, 0 dB",
        "base_features",
        "## Limits",
        "entropy <= 0.1235",
    ):
        assert said in card

    for name, content in hub.files.items():
        (tmp_path / "pulled" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pulled" / name).write_bytes(content)
    PeftModel.from_pretrained(Wav2Vec2ForCTC.from_pretrained(tmp_path / "pulled/base"), tmp_path / "pulled")


def test_the_card_can_be_read_first(finished: Path) -> None:
    ended = push("http://127.0.0.1:9", "--card")
    assert ended.returncode == 0 and ended.stdout.startswith("---\nlicense: apache-2.0\n")


def test_a_base_from_the_hub_is_named_with_its_commit(finished: Path, hub: Hub) -> None:
    write_json(
        finished / "models/mini/pretrained/student/origin.json", {"source": "hf://them/base@main", "commit": "abc"}
    )
    assert push(hub.url).returncode == 0
    config = json.loads(hub.files["adapter_config.json"])
    assert (config["base_model_name_or_path"], config["revision"]) == ("them/base", "abc")
    assert not any(name.startswith("base/") for name in hub.files)
    assert "base_model: them/base" in hub.files["README.md"].decode()


def test_what_is_wrong_takes_one_line(finished: Path, hub: Hub) -> None:
    hub.refuse = True
    for ended, message in (
        (push(hub.url), "refuses"),
        (push("http://127.0.0.1:9"), "could not be pushed"),
    ):
        assert ended.returncode == 1
        assert ended.stderr.startswith("error: ") and message in ended.stderr and ended.stderr.count("\n") == 1
    (finished / "models/mini/adapter/run.json").unlink()
    assert "no trained adapter; run `dvc repro`" in push(hub.url).stderr
