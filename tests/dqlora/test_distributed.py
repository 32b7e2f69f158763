"""Two processes train as one does at the same global batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PROGRAM = """
import json, sys
import numpy as np, torch
from pathlib import Path
from accelerate import Accelerator
from dqlora.batching import Example
from dqlora.config import Budget, Distill, Lora, Train
from dqlora.objective import Objective
from dqlora.student import add_lora, cnn_features, load_student
from dqlora.text import Vocabulary
from dqlora.training import train_student

torch.set_num_threads(1)
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
accelerator = Accelerator(cpu=True)
model = load_student(folder, "nf4", accelerator.device)
vocabulary = Vocabulary.load(folder / "vocab.json")
rng = np.random.default_rng(0)
examples = []
for number, text in enumerate(["HELLO", "GOOD DAY", "YES", "ALL IS WELL", "NO"]):
    features = cnn_features(model, rng.normal(size=16000 + 3000 * number).astype(np.float32)).numpy()
    teacher = rng.normal(size=(len(features), 32)).astype(np.float16)
    examples.append(Example(features.astype(np.float16), vocabulary.encode(text), text, teacher))
model = add_lora(
    model, Lora(r=4, alpha=8, dropout=0.0, target_modules=["q_proj", "k_proj", "v_proj", "out_proj"]), seed=0
)
for module in model.modules():
    if isinstance(module, torch.nn.Dropout):
        module.p = 0.0
    if hasattr(module, "dropout") and isinstance(module.dropout, float):
        module.dropout = 0.0
distill = Distill(target="whisper_letters", temperature=1.0, frames="all", layer=1)
progress = train_student(
    Objective(model, vocabulary.blank, distill), examples, examples, vocabulary, "en",
    Train(
        learning_rate=1e-2, warmup_share=0.1, weight_decay=0.0, gradient_clip=1.0, dropout=0.0, mask_time_prob=0.3,
        interpolation=1.0, base_reads=0.0, patience=99,
    ),
    Budget(head_steps=1, steps=6, batch_seconds=3, validate_every=1),
    lambda_distill=0.5, seed=0, checkpoint=out.with_suffix(".safetensors"), accelerator=accelerator,
)
if accelerator.is_main_process:
    losses = [point["train_loss"] for point in progress.curve[1:]]
    out.write_text(json.dumps({"processes": accelerator.num_processes, "losses": losses}))
"""


def test_two_processes_have_the_loss_curve_of_one(student_folder: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    curves = []
    for processes in (1, 2):
        out = tmp_path / f"{processes}.json"
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command = [*launch, str(program), str(student_folder), str(out)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr[-2000:]
        found = json.loads(out.read_text())
        assert found["processes"] == processes  # `accelerate launch --cpu` would start one, whatever it is asked for
        curves.append(found["losses"])
    assert len(curves[0]) == 6
    assert curves[0][-1] < curves[0][0]
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)
