"""What a trained run left, found before anything is loaded: importing this takes no time."""

from pathlib import Path
from typing import Any

from dqlora.errors import UserError

RUN = "run.json"  # in a run's adapter folder: what it adapted
BESIDE = {"gate.json": "fit_gate", "decoder.json": "fit_decoder"}  # that folder, and the stages that write them


def newest_run(models: Path = Path("models")) -> Path:
    """The adapter folder that was written last below `models`."""
    adapters = sorted(models.glob(f"*/adapter/{RUN}"), key=lambda path: path.stat().st_mtime)
    if not adapters:
        raise UserError(
            f"no trained run here ({models}/<preset>/adapter); run the command in the project's folder, after "
            "`dvc repro`, or give --model FOLDER"
        )
    return adapters[-1].parent


def read_run(adapter: Path) -> dict[str, Any]:
    """What a run recorded of itself; raises UserError if the folder is no run's."""
    if not (adapter / RUN).exists():
        raise UserError(f"{adapter}: no trained adapter; run `dvc repro`, or name a run's adapter folder")
    from dqlora.data.storage import read_json, rerun

    return read_json(adapter / RUN, rerun("train"), ["student", "quantize"])


def base_of_run(adapter: Path) -> tuple[Path, str]:
    """The folder of the student that a run adapted, and how that was quantised.

    A run names its student relative to its project, which is looked for in the folders above the adapter, then here.

    Raises
    ------
    UserError
        if there is none, or another one than the run adapted.
    """
    from dqlora.data.storage import fingerprint

    run = read_run(adapter)
    student = _folder_of_base(adapter, run)
    if "base" in run and fingerprint(student) != run["base"]["digest"]:
        raise UserError(f"{student}: not the base that {adapter} was trained on; run `dvc repro`")
    return student, run["quantize"]


def _folder_of_base(adapter: Path, run: dict[str, Any]) -> Path:
    for root in (*adapter.parents, *adapter.resolve().parents, Path()):
        if (student := root / run["student"]).is_dir():
            return student
    raise UserError(
        f"{adapter}: its base, {run['student']}, is in no folder above it and not here; run `dvc repro` in its project"
    )


def find_run(adapter: Path) -> Path:
    """An adapter folder by the path beside which its gate and decoder lie, which a link to it does not show.

    Raises
    ------
    UserError
        if it is none, or its base, its gate or how it decodes is missing.
    """
    run = read_run(adapter)
    if adapter.name in ("", "..") or adapter.is_symlink():
        adapter = adapter.resolve()
    _folder_of_base(adapter, run)
    for name, stage in BESIDE.items():
        fully_trained = not (adapter / "adapter_config.json").exists()
        if not adapter.with_name(name).exists() and not (name == "gate.json" and fully_trained):
            raise UserError(
                f"{adapter.with_name(name)}: no such file; run `dvc repro {stage}`, or copy it along with the "
                "adapter's folder"
            )
    return adapter


def find_model(source: str | None) -> str:
    """The folder, or hf://owner/name@revision, of what is to transcribe.

    Parameters
    ----------
    source
        a run's adapter folder, a model's folder, or owner/name@revision on the hub; None for the newest run.

    Raises
    ------
    UserError
        if there is no such folder, or no model in it.
    """
    folder = newest_run() if source is None else Path(source)
    if (folder / RUN).exists():
        folder = find_run(folder)
    elif folder.is_dir() and not (folder / "config.json").exists():
        inside = [str(folder / name) for name in ("merged", "onnx", "adapter") if (folder / name).is_dir()]
        way_out = f"give {' or '.join(inside)}" if inside else "a run's is models/<preset>/adapter of its project"
        raise UserError(f"--model {source}: no model in this folder; {way_out}")
    elif not folder.is_dir():
        if "@" not in str(source):
            raise UserError(f"--model {source}: no such folder; a model on the hub is owner/name@revision")
        return f"hf://{str(source).removeprefix('hf://')}"
    return str(folder)
