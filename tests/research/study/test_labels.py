import json
from pathlib import Path

import pytest

from dqlora.config import Paths
from dqlora.errors import UserError
from research.study import labels
from tests.stages.test_bad_input import set_preset


def test_labels_are_held_to_what_people_wrote(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_preset(project)
    folder = Paths("local").pseudo_labels
    folder.mkdir(parents=True)
    good = {"log_probability": -0.1, "no_speech": 0.1, "language": None, "second": None, "kept": True}
    lines = [
        {"id": "a.ogg", "transcript": "He said so.", **good},
        {"id": "deep/b.ogg", "transcript": "thank you", **good, "no_speech": 0.9},
        {"id": "c.ogg", "transcript": "unheard", **good},
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for split in ("validation", "test"):
        (folder / f"{split}.jsonl").write_text("")
    speech = project / "speech/here"
    speech.mkdir(parents=True)
    (speech / "metadata.csv").write_text("file_name,transcription\na.ogg,he said so\nb.ogg,nothing at all\n")
    labels.main([speech])
    printed = capsys.readouterr().out
    assert "| speech/here | unfiltered | 2 of 2 | 1 | 50.0 % |" in printed
    assert "| speech/here | log_probability | 2 of 2 | 1 | 50.0 % |" in printed
    for line in ("no_speech", "hallucinations", "all lines"):
        assert f"| speech/here | {line} | 1 of 2 | 0 | 0.0 % |" in printed
    (speech / "metadata.csv").write_text("file_name,transcription\nd.ogg,he said so\n")
    with pytest.raises(UserError, match="none of its recordings is among the labels"):
        labels.main([speech])
