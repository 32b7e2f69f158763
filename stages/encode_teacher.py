"""Encode the teacher's input audio: data/<preset>/teacher/{train,validation}, Whisper encoder features, once a clip."""

from pathlib import Path

from dqlora.config import Paths, load_params
from dqlora.data.labels import labelled
from dqlora.data.storage import RaggedArray, RaggedArrayWriter, atomic_directory
from dqlora.device import default_device
from dqlora.errors import run_stage
from dqlora.models.whisper import Teacher
from dqlora.progress import ProgressBar

BATCH_SIZE = {"cuda": 512, "cpu": 32}  # the more, the more of them have the same length


def encode_split(teacher: Teacher, audio: RaggedArray, folder: Path, batch_size: int) -> None:
    with (
        RaggedArrayWriter(folder, "float16", teacher.width) as out,
        ProgressBar(total=len(audio), desc=f"encode {folder.name}", unit=" clips") as progress,
    ):
        for start in range(0, len(audio), batch_size):
            items = audio.items[start : start + batch_size]
            encoded = teacher.encode([audio[item["id"]] for item in items])
            for item, features in zip(items, encoded, strict=True):
                out.append(features, id=item["id"], utterance=item.get("utterance", item["id"]))
            progress.update(len(items))


def main() -> None:
    params = load_params()
    paths = Paths(params.preset)
    device = default_device()
    teacher = Teacher(paths.teacher, device)
    with atomic_directory(paths.teacher_features) as folder:
        for split in ("train", "validation"):
            audio = labelled(paths, split) if params.teacher_input == "clean" else RaggedArray(paths.noisy / split)
            encode_split(teacher, audio, folder / split, BATCH_SIZE[device.type])


if __name__ == "__main__":
    run_stage(main)
