"""Mixtures are written in any number of processes; what the stage says of them is fit for a log."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from dqlora.config import Paths
from dqlora.data.audio import to_int16
from dqlora.data.storage import RaggedArray, RaggedArrayWriter
from tests.conftest import tone

CLIPS = {"train": 5, "validation": 2, "test": 3, "out_of_domain": 0}


@pytest.fixture
def fetched(project: Path) -> Paths:
    """What the stages before `mix` leave."""
    paths = Paths("mini", project)
    for split, count in CLIPS.items():
        with RaggedArrayWriter(paths.clean / split, "int16") as out:
            for number in range(count):
                out.append(to_int16(tone(0.5, 150 + 20 * number)), id=f"{split}-{number}", text="A")
    for split in ("train", "test", "out_of_domain"):
        with RaggedArrayWriter(paths.noise / split, "int16") as out:
            out.append(np.arange(-800, 800, dtype=np.int16), id=f"{split}-saw", category="saw")
    return paths


@pytest.mark.parametrize("workers", [1, 3])
def test_a_log_has_a_line_for_each_split(workers: int, fetched: Paths, project: Path) -> None:
    command = [sys.executable, "-m", "stages.mix", "--workers", str(workers)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, cwd=project)
    lines = [f"mix {split}: {count} clips, S s" for split, count in CLIPS.items()]
    assert re.sub(r"\d+ s$", "S s", ended.stderr, flags=re.MULTILINE).splitlines() == lines
    assert "\r" not in ended.stderr
    mix = yaml.safe_load((project / "params.yaml").read_text())["mix"]
    versions = {"train": mix["copies"], "validation": len(mix["test_snr_db"]), "test": len(mix["test_snr_db"])}
    versions["out_of_domain"] = 0
    for split, count in CLIPS.items():
        assert len(RaggedArray(fetched.noisy / split)) == count * versions[split]


def test_a_wrong_parameter_is_told_before_torch_is_imported(project: Path) -> None:
    (project / "params.yaml").write_text("preset: mini\n")
    code = "import sys; from stages import mix, fetch_noise, fetch_speech, report; print('torch' in sys.modules)"
    probe = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=project)
    assert probe.stdout == "False\n"
    ended = subprocess.run([sys.executable, "-m", "stages.mix"], capture_output=True, text=True, cwd=project)
    assert ended.returncode == 1 and ended.stderr.startswith("error: params.yaml: seed: missing")
