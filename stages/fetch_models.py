"""Fetch the pretrained models: models/<preset>/pretrained/{student,teacher,teacher_head}, as safetensors folders."""

import shutil
from pathlib import Path

import torch

from dqlora.config import Paths, load_params, load_preset
from dqlora.data.storage import atomic_directory, existing_folder
from dqlora.errors import run_stage
from dqlora.models.pretrained import check_student, check_teacher, fetch_student, fetch_teacher
from dqlora.models.teacher_head import load_head


def fetch_teacher_head(source: Path, output: Path) -> None:
    """Copy a head that an earlier run or research.pretrain.head left.

    Raises
    ------
    UserError
        if the folder holds none.
    """
    source = existing_folder(source, "teacher_head.path", "give that of a trained head, or `scratch`")
    load_head(source, torch.device("cpu"))
    output.mkdir()
    for name in ("config.json", "head.safetensors"):
        shutil.copyfile(source / name, output / name)


def main() -> None:
    params = load_params()
    preset = load_preset(params.preset)
    paths = Paths(params.preset)
    language = preset.speech.language
    check_student(preset.student)
    check_teacher(preset.teacher, language)
    with atomic_directory(paths.student.parent) as folder:
        if preset.teacher_head.path != "scratch":
            fetch_teacher_head(Path(preset.teacher_head.path), folder / "teacher_head")
        for role in ("student", "teacher"):
            (folder / role).mkdir()
        fetch_student(preset.student, folder / "student", params.seed)
        fetch_teacher(preset.teacher, folder / "teacher", language)


if __name__ == "__main__":
    run_stage(main)
