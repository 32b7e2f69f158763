"""Where the gate stands, and that there is none where the adapter is better on clean speech too."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from dqlora.config import Lora, Paths
from dqlora.data.storage import RaggedArrayWriter, read_json
from dqlora.device import CPU
from dqlora.models.lora import add_lora
from dqlora.models.wav2vec2 import load_student
from stages import fit_gate
from tests.conftest import tone
from tests.stages.test_bad_input import set_preset

TEXTS = [f"THE {name} IS CLOSED" for name in ("FERRY", "HARBOR", "BRIDGE", "STATION", "MARKET", "CASTLE")]
WRONG = [text.replace("CLOSED", "OPEN") for text in TEXTS]
FOREIGN = ["A B C D"] * len(TEXTS)


@pytest.fixture
def clips(project: Path, student_folder: Path) -> Paths:
    """Clean validation clips, and an adapter that changes nothing."""
    paths = Paths("local")
    set_preset(project)
    paths.student.parent.mkdir(parents=True)
    paths.student.symlink_to(student_folder)
    lora = Lora(r=2, alpha=4, dropout=0.0, target_modules=["q_proj"])
    add_lora(load_student(student_folder, "nf4", CPU), lora, seed=0).save_pretrained(paths.adapter)
    paths.clean.mkdir(parents=True)
    with RaggedArrayWriter(paths.clean / "validation", "int16") as out:
        for number, text in enumerate(TEXTS):
            samples = (tone(0.5, 100 + 50 * number) * 30_000).astype(np.int16)
            out.append(samples, id=f"{number}", transcript=text.capitalize(), text=text)
    return paths


def heard(monkeypatch: pytest.MonkeyPatch, base: list[str], adapted: list[str]) -> None:
    def transcribe(student: torch.nn.Module, *_: Any) -> list[str]:
        return adapted if any("lora" in name for name, _ in student.named_parameters()) else base

    monkeypatch.setattr(fit_gate, "transcribe_batch", transcribe)


@pytest.mark.parametrize("base, adapted", [(TEXTS, TEXTS), (TEXTS, WRONG), ([*WRONG[:1], *TEXTS[1:]], TEXTS)])
def test_what_the_base_transcribes_as_well_stays_its_own(
    base: list[str], adapted: list[str], clips: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard(monkeypatch, base, adapted)
    fit_gate.main()
    assert read_json(clips.gate, "")["entropy_threshold"] > 0


def test_no_gate_where_the_adapter_is_better_on_clean_speech(
    clips: Paths, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    heard(monkeypatch, WRONG, TEXTS)
    fit_gate.main()
    assert read_json(clips.gate, "") == {"entropy_threshold": None}
    said = capsys.readouterr().out
    assert "WER 25.0 % without the adapter, 0.0 % with it" in said and "hint" not in said


def test_few_sentences_are_no_reason_to_leave_the_gate_out(clips: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    heard(monkeypatch, WRONG, TEXTS)
    monkeypatch.setattr(fit_gate, "FEWEST_SENTENCES", len(TEXTS) + 1)
    fit_gate.main()
    assert read_json(clips.gate, "")["entropy_threshold"] > 0


@pytest.mark.parametrize("lambda_distill, hinted", [(1.0, True), (0.0, False)])
def test_features_of_a_base_that_hears_badly_are_no_target(
    lambda_distill: float,
    hinted: bool,
    clips: Paths,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text())
    Path("params.yaml").write_text(yaml.safe_dump(params | {"lambda_distill": lambda_distill}))
    heard(monkeypatch, FOREIGN, TEXTS)
    fit_gate.main()
    assert ("try -S lambda_distill=0" in capsys.readouterr().out) == hinted
