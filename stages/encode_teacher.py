"""Encode what the teacher hears: data/<preset>/teacher/{train,validation}, Whisper encoder features, once a clip."""

from pathlib import Path

import torch
from tqdm import tqdm

from dqlora.config import Paths, load_params
from dqlora.errors import run_stage
from dqlora.storage import Packed, PackedWriter, whole_folder
from dqlora.teacher import Teacher

CLIPS_AT_ONCE = {"cuda": 512, "cpu": 32}  # the more, the more of them have the same length


def encode_split(teacher: Teacher, heard: Packed, folder: Path, at_once: int) -> None:
    with (
        PackedWriter(folder, "float16", teacher.width) as out,
        tqdm(total=len(heard), desc=f"encode {folder.name}", unit=" clips") as progress,
    ):
        for start in range(0, len(heard), at_once):
            items = heard.items[start : start + at_once]
            encoded = teacher.encode([heard[item["id"]] for item in items])
            for item, features in zip(items, encoded, strict=True):
                out.append(features, id=item["id"], utterance=item.get("utterance", item["id"]))
            progress.update(len(items))


def main() -> None:
    params = load_params()
    paths = Paths(params.preset)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teacher = Teacher(paths.teacher, device)
    heard = paths.heard_by_teacher(params.teacher_input)
    with whole_folder(paths.teacher_features) as folder:
        for split in ("train", "validation"):
            encode_split(teacher, Packed(heard / split), folder / split, CLIPS_AT_ONCE[device.type])


if __name__ == "__main__":
    run_stage(main)
