import json
from pathlib import Path

import pytest

from dqlora.errors import UserError
from stages.evaluate import teacher_transcripts

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
