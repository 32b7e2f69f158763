"""Fetch the pretrained models: models/<preset>/pretrained/{student,teacher}, as safetensors folders."""

from dqlora.config import Paths, load_params, load_preset
from dqlora.errors import run_stage
from dqlora.pretrained import fetch_student, fetch_teacher
from dqlora.storage import whole_folder


def main() -> None:
    params = load_params()
    preset = load_preset(params.preset)
    paths = Paths(params.preset)
    with whole_folder(paths.student.parent) as folder:
        for role in ("student", "teacher"):
            (folder / role).mkdir()
        fetch_student(preset.student, folder / "student", params.seed)
        fetch_teacher(preset.teacher, folder / "teacher")


if __name__ == "__main__":
    run_stage(main)
