"""Whisper's own transcripts of the test clips: data/<preset>/teacher_transcripts, once a clip."""

import json
from itertools import chain

from dqlora.config import Paths, load_params, load_preset
from dqlora.data.audio import to_float32
from dqlora.data.storage import atomic_directory
from dqlora.device import default_device, map_on_cores
from dqlora.errors import run_stage
from dqlora.evaluation.test_set import test_clips
from dqlora.models.whisper import Teacher
from dqlora.progress import ProgressBar

BATCH_SIZE = {"cuda": 64, "cpu": 8}


def main() -> None:
    params = load_params()
    language, paths = load_preset(params.preset).speech.language, Paths(params.preset)
    device = default_device()
    rows, clips = test_clips(paths)
    teacher, batch_size = Teacher(paths.teacher, device), BATCH_SIZE[device.type]
    with (
        atomic_directory(paths.teacher_transcripts) as folder,
        (folder / "test.jsonl").open("w", encoding="utf-8") as file,
        ProgressBar(total=len(clips), desc="teacher transcribes", unit=" clips") as progress,
    ):
        batches = [clips[start : start + batch_size] for start in range(0, len(clips), batch_size)]
        found = map_on_cores(lambda batch: teacher.transcribe(list(map(to_float32, batch)), language), batches, device)
        for row, text in zip(rows, chain.from_iterable(found), strict=True):
            line = {"id": row["id"], "condition": row["condition"], "teacher": text}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            progress.update()


if __name__ == "__main__":
    run_stage(main)
