"""What a trained run left, found before anything is loaded: importing this takes no time."""

from pathlib import Path
from typing import Any

from dqlora.errors import UserError

RUN = "run.json"  # in a run's adapter folder: what it adapted


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

    return read_json(adapter / RUN, rerun("train"))


def base_of_run(adapter: Path) -> tuple[Path, str]:
    """The folder of the student that a run adapted, and how that was quantised.

    A run names its student relative to its project, which is looked for in the folders above the adapter, then here.
    """
    run = read_run(adapter)
    for root in (*adapter.parents, *adapter.resolve().parents, Path()):
        if (student := root / run["student"]).is_dir():
            return student, run["quantize"]
    raise UserError(
        f"{adapter}: its base, {run['student']}, is in no folder above it and not here; run `dvc repro` in its project"
    )


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
    if folder.name in ("", ".."):
        folder = folder.resolve()  # gate and language model lie beside it
    if (folder / RUN).exists():
        base_of_run(folder)
        gate = folder.with_name("gate.json")
        if (folder / "adapter_config.json").exists() and not gate.exists():
            raise UserError(
                f"{gate}: no such file; run `dvc repro fit_gate`, or copy it along with the adapter's folder"
            )
    elif folder.is_dir() and not (folder / "config.json").exists():
        inside = [str(folder / name) for name in ("merged", "onnx", "adapter") if (folder / name).is_dir()]
        way_out = f"give {' or '.join(inside)}" if inside else "a run's is models/<preset>/adapter of its project"
        raise UserError(f"--model {source}: no model in this folder; {way_out}")
    elif not folder.is_dir():
        if "@" not in str(source):
            raise UserError(f"--model {source}: no such folder; a model on the hub is owner/name@revision")
        return f"hf://{str(source).removeprefix('hf://')}"
    return str(folder)
