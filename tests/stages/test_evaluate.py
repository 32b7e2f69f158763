import json
from pathlib import Path

import pytest

from dqlora.errors import UserError
from stages.evaluate import measure, summary_of, teacher_transcripts

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
