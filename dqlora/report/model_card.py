"""A run's adapter and its model card, to a repository on the hub."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from dqlora.config import Params, Paths, Preset
from dqlora.data.storage import read_json, read_jsonl, rerun
from dqlora.errors import UserError, first_line
from dqlora.evaluation.metrics import CONFIDENCE
from dqlora.evaluation.results import Estimate, Scores
from dqlora.models.gate import entropy_threshold

NOT_PUSHED = ("README.md", "run.json", "rejected.csv")  # peft's empty card, and what means something here alone


def model_card(repository: str, params: Params, preset: Preset, paths: Paths) -> str:
    """The card of the preset's newest run, out of its metrics: data, base, WER with intervals, limits, licences."""
    origin = read_json(paths.student / "origin.json", rerun("fetch_models"))
    rows = read_jsonl(paths.metrics / "test" / "predictions.jsonl", rerun("evaluate"))
    scores = Scores(rows, preset.speech.language, params.evaluate.bootstrap_draws, params.seed)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"estimate": _estimate, "relative": _relative}
    return environment.get_template("card.md.j2").render(
        repository=repository,
        confidence=CONFIDENCE,
        params=params,
        snrs=[f"{snr:g}" for snr in params.mix.test_snr_db],
        preset=preset,
        licences=preset.licences,
        origin=origin,
        base_repository=_hub_name(origin["source"]),
        lora=params.student.adapt == "lora",
        threshold=entropy_threshold(paths.adapter),
        train=read_json(paths.metrics / "train.json", rerun("train")),
        evaluate=read_json(paths.metrics / "evaluate.json", rerun("evaluate")),
        utterances=len({row["id"] for row in rows}),
        clean=scores.overall(noisy=False),
        noisy=scores.overall(noisy=True),
    )


def _hub_name(source: str) -> str | None:
    return source.removeprefix("hf://").partition("@")[0] if source.startswith("hf://") else None


def _estimate(estimate: Estimate) -> str:
    if estimate.value is None:
        return "not measured"
    text = f"{100 * estimate.value:.1f} %"
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def _relative(reduction: dict[str, float]) -> str:
    lower = "lower" if reduction["relative"] >= 0 else "higher"
    sign = 1 if reduction["relative"] >= 0 else -1
    low, high = sorted(100 * sign * reduction[end] for end in ("ci_low", "ci_high"))
    return f"WER {abs(100 * reduction['relative']):.1f} % {lower} [{low:.1f}, {high:.1f}]"


def prepare(repository: str, params: Params, preset: Preset, paths: Paths, folder: Path) -> None:
    """Write into `folder` what the repository is to hold: adapter, card, and the base where the hub has none."""
    if not (paths.adapter / "run.json").exists():
        raise UserError(f"{paths.adapter}: no trained adapter; run `dvc repro`")
    (folder / "README.md").write_text(model_card(repository, params, preset, paths), encoding="utf-8")
    for file in paths.adapter.iterdir():
        if file.name not in NOT_PUSHED:
            shutil.copyfile(file, folder / file.name)
    origin = read_json(paths.student / "origin.json", rerun("fetch_models"))
    name = _hub_name(origin["source"])
    if name is None:
        shutil.copytree(paths.student, folder / "base")
    config = folder / "adapter_config.json"
    if config.exists():
        settings: dict[str, Any] = read_json(config, rerun("train"))
        settings |= {"base_model_name_or_path": name or repository, "revision": origin["commit"]}
        config.write_text(json.dumps(settings, indent=2) + "\n")


def push(repository: str, private: bool, params: Params, preset: Preset, paths: Paths) -> str:
    """Create the repository if need be and commit to it; its address.

    Raises
    ------
    UserError
        if the run is not complete, nobody is logged in, the hub cannot be reached or refuses.
    """
    api = HfApi()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(repository, params, preset, paths, folder)
        try:
            url = api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Adapter and card of a dqlora run")
        except LocalTokenNotFoundError:
            raise UserError("nobody is logged in to the hub; run `hf auth login`") from None
        except HfHubHTTPError as error:
            raise UserError(
                f"{repository}: {api.endpoint} refuses ({first_line(error)}); see `hf auth whoami`"
            ) from None
        except Exception as error:  # the hub's HTTP client and its errors are not part of its interface
            raise UserError(f"{repository}: could not be pushed to {api.endpoint} ({first_line(error)})") from None
    return str(url)
