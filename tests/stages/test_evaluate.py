import json
from pathlib import Path

import pytest
import torch

from dqlora.config import Lora
from dqlora.data.audio import to_float32, to_int16
from dqlora.data.batching import BATCH_SECONDS
from dqlora.data.text import Vocabulary
from dqlora.errors import UserError
from dqlora.evaluation.results import in_words, out_of_domain_in_words
from dqlora.models.decoding import greedy
from dqlora.models.gate import GatedStudent, entropies
from dqlora.models.lora import add_lora
from dqlora.models.wav2vec2 import EncoderCTC, cnn_features, load_student, transcribe
from stages.evaluate import measure, summary_of, teacher_transcripts, transcribe_all
from tests.conftest import tone

ROWS = [{"id": "crow", "condition": "clean"}, {"id": "crow", "condition": "5 dB"}]


def test_the_teachers_transcripts_are_found_by_clip_and_condition(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    lines = [row | {"teacher": f"crow, {row['condition']}"} for row in reversed(ROWS)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert teacher_transcripts(path, ROWS) == ["crow, clean", "crow, 5 dB"]
    with pytest.raises(UserError, match=r"test\.jsonl: lacks jay at 5 dB; run `dvc repro transcribe_teacher`"):
        teacher_transcripts(path, [{"id": "jay", "condition": "5 dB"}])


def test_missing_transcripts_of_the_teacher_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file; run `dvc repro transcribe_teacher`"):
        teacher_transcripts(tmp_path / "test.jsonl", ROWS)


SYSTEMS, STUDENTS = ["base", "distilled", "teacher"], ["base", "distilled"]


def predictions(systems: list[str]) -> list[dict[str, str]]:
    """Eight sentences of two words, clean and at 5 dB; the base has one wrong in noise, the others none."""
    rows = []
    for number in range(8):
        for condition in ("clean", "5 dB"):
            reference = f"say {chr(97 + number)}x"
            wrong = {"base": f"way {chr(97 + number)}x"} if condition == "5 dB" else {}
            rows.append({"id": str(number), "condition": condition, "reference": reference}
                        | dict.fromkeys(systems, reference) | wrong)  # fmt: skip
    return rows


@pytest.mark.parametrize("out_of_domain", [True, False])
def test_the_summary_is_short_and_says_what_is_gained_at_home_and_elsewhere(out_of_domain: bool) -> None:
    metrics = measure(predictions(SYSTEMS), SYSTEMS, "en", 200, 0)
    if out_of_domain:
        metrics["out_of_domain"] = measure(predictions(STUDENTS), STUDENTS, "en", 200, 0)
    assert summary_of(metrics) == {
        "base": {"clean": 0.0, "noisy": 0.5}, "clean": 0.0, "noisy": 0.0, "gain": 1.0, "low": 1.0, "high": 1.0
    } | ({"out_of_domain": 1.0} if out_of_domain else {})  # fmt: skip


def test_of_few_sentences_there_is_no_interval() -> None:
    """A bootstrap over one sentence gives the same value in every draw: an interval as if there were no doubt."""
    rows = predictions(SYSTEMS)
    for sentences, ends in ((1, set()), (4, set()), (5, {"ci_low", "ci_high"})):
        metrics = measure([row for row in rows if int(row["id"]) < sentences], SYSTEMS, "en", 200, 0)
        for reduction in metrics["wer_reduction"].values():
            assert set(reduction) == {"relative"} | ends
        assert {"low", "high"} & set(summary_of(metrics)) == {end.removeprefix("ci_") for end in ends}
        assert ("[no interval" in in_words(metrics["wer_reduction"]["noisy"])) == (not ends)
        if not ends:
            assert "warning" not in out_of_domain_in_words(metrics)


def test_the_summary_is_rounded_once() -> None:
    """A gain of 29.452 % is 29.5 % as in the report; by way of four digits it would be shown as 29.4."""
    metrics = measure(predictions(SYSTEMS), SYSTEMS, "en", 200, 0)
    metrics["wer_reduction"]["noisy"]["relative"] = 0.29452
    assert f"{100 * summary_of(metrics)['gain']:.1f}" == f"{100 * 0.29452:.1f}" == "29.5"


@pytest.mark.parametrize("batch_seconds", [0, 4, 40])
@pytest.mark.parametrize("gated", [True, False])
def test_students_transcribe_a_batch_as_they_do_each_clip(
    student_folder: Path, monkeypatch: pytest.MonkeyPatch, gated: bool, batch_seconds: int
) -> None:
    monkeypatch.setitem(BATCH_SECONDS, "cpu", batch_seconds)
    cpu = torch.device("cpu")
    vocabulary = Vocabulary.load(student_folder / "vocab.json")
    clips = [to_int16(tone(seconds, 100 + 90 * number)) for number, seconds in enumerate((2.0, 0.3, 1.4, 1.1))]
    base = EncoderCTC(load_student(student_folder, "nf4", cpu))
    lora = Lora(r=4, alpha=8, dropout=0.0, target_modules=["q_proj", "v_proj", "output_dense"])
    model = add_lora(load_student(student_folder, "nf4", cpu), lora, seed=0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3)
    found = entropies(base, [cnn_features(base.model, to_float32(clip)).clone() for clip in clips])
    between = sum(sorted(found)[1:3]) / 2
    distilled = (GatedStudent(model, base.model, between) if gated else EncoderCTC(model)).eval()
    texts = transcribe_all(base, distilled, vocabulary, clips, {"": greedy, "_lm": lambda logits: logits.argmin(-1)})
    for clip, text in zip(clips, texts, strict=True):
        assert list(text) == ["base", "base_lm", "distilled", "distilled_lm"]
        for name, student in (("base", base), ("distilled", distilled)):
            assert text[name] == transcribe(student, vocabulary, to_float32(clip))
    changed = [text["base"] != text["distilled"] for text in texts]
    assert sum(changed) == (2 if gated else 4), changed
