"""What the teacher, Whisper's own decoding, reads in the test clips: data/<preset>/teacher_transcripts, once a clip."""

import json

import torch
from tqdm import tqdm

from dqlora.audio import to_float32
from dqlora.config import Paths, load_params, load_preset
from dqlora.errors import run_stage
from dqlora.storage import whole_folder
from dqlora.teacher import Teacher
from dqlora.testset import test_clips

CLIPS_AT_ONCE = {"cuda": 64, "cpu": 8}


def main() -> None:
    preset = load_params().preset
    language, paths = load_preset(preset).speech.language, Paths(preset)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows, clips = test_clips(paths)
    teacher, at_once = Teacher(paths.teacher, device), CLIPS_AT_ONCE[device.type]
    with (
        whole_folder(paths.teacher_transcripts) as folder,
        (folder / "test.jsonl").open("w", encoding="utf-8") as file,
        tqdm(total=len(clips), desc="teacher transcribes", unit=" clips") as progress,
    ):
        for start in range(0, len(clips), at_once):
            batch = [to_float32(clip) for clip in clips[start : start + at_once]]
            for row, text in zip(rows[start : start + at_once], teacher.transcribe(batch, language), strict=True):
                line = {"id": row["id"], "condition": row["condition"], "teacher": text}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            progress.update(len(batch))


if __name__ == "__main__":
    run_stage(main)
