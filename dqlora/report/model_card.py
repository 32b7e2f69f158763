"""A run's adapter and its model card, to a repository on the hub."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from dqlora.config import OUT_OF_DOMAIN, Paths, Preset
from dqlora.data.hub import HUB
from dqlora.data.origin import ORIGIN, Kind, Origin, public_name, text_source
from dqlora.data.storage import fingerprint, read_json, read_jsonl, rerun
from dqlora.data.text import Vocabulary
from dqlora.errors import UserError, first_line
from dqlora.evaluation.metrics import CONFIDENCE
from dqlora.evaluation.results import Estimate, Scores, in_words
from dqlora.models.decoding import decoder_settings
from dqlora.models.export import PROCESSOR, decode_lines, save_decoder, save_processor
from dqlora.models.gate import entropy_threshold
from dqlora.models.run import RUN, base_of_run, read_run
from dqlora.models.wav2vec2 import NOT_QUANTISED
from dqlora.report.licence import UNKNOWN, adapter_licence

NOT_PUSHED = ("README.md", RUN, "rejected.csv")  # peft's empty card, and what means something here alone
RECORDED = {"base", "speech", "noise", "used", "learns_from"}  # of run.json: what the card cannot do without


def recorded_run(paths: Paths) -> dict[str, Any]:
    """What the pipeline recorded of the run in `paths.adapter`.

    Raises
    ------
    UserError
        if there is no run, it was recorded by an earlier version, or its base is not the one on disk.
    """
    run = read_run(paths.adapter)
    if missing := sorted(RECORDED - run.keys()):
        raise UserError(f"{paths.adapter / RUN}: does not say of its run: {', '.join(missing)}; {rerun('train')}")
    base_of_run(paths.adapter)
    return run


def recorded_test(paths: Paths) -> dict[str, Any]:
    """What `evaluate` recorded beside its predictions.

    Raises
    ------
    UserError
        if there is nothing, or it was of another adapter, behind another gate or decoder, than are on disk.
    """
    folder = paths.metrics / "test"
    measured: dict[str, Any] = read_json(folder / "record.json", rerun("evaluate"))
    if measured["adapter"] != fingerprint(paths.adapter):
        raise UserError(f"{folder}: measured of another adapter than {paths.adapter}; {rerun('evaluate')}")
    if measured["entropy_threshold"] != entropy_threshold(paths.adapter):
        raise UserError(f"{folder}: measured behind another gate than {paths.gate}; {rerun('evaluate')}")
    if measured["decoder"] != decoder_settings(paths.decoder.parent):
        raise UserError(f"{folder}: decoded otherwise than {paths.decoder} says; {rerun('evaluate')}")
    return measured


def text_origin(paths: Paths, measured: dict[str, Any]) -> Origin | None:
    """Of what the language model was made of beside the transcripts; None if nothing, or if no model is used."""
    if not measured["decoder"]["language_model"]:
        return None
    origin: Origin = read_json(paths.lm / ORIGIN, rerun("build_lm"))
    return origin if origin["source"] else None


def licences_of(preset: Preset, run: dict[str, Any], measured: dict[str, Any], text: Origin | None) -> dict[str, str]:
    """The licence of each part of a run: the preset's, if that still names what the run was made of; else unknown."""
    stated: list[tuple[str, Origin, str, Kind, str]] = [
        ("base", run["base"], preset.student, "model", preset.licences.student),
        ("teacher", measured["teacher"], preset.teacher, "model", preset.licences.teacher),
        ("speech", run["speech"], preset.speech.path, "speech", preset.licences.speech),
        ("noise", run["noise"], preset.noise.path, "noise", preset.licences.noise),
    ]
    licences = {
        part: licence if public_name(source, kind) == origin["source"] else UNKNOWN
        for part, origin, source, kind, licence in stated
    }
    if text:
        same = text_source(preset.lm.model, preset.lm.text) == text["source"]
        licences["text"] = preset.licences.text if same else UNKNOWN
    return licences


def model_card(repository: str, preset: Preset, paths: Paths) -> str:
    """The card of the run in `paths`, out of what the run recorded: parts, amounts, WER with intervals, limits, use.

    Of the preset it takes the licences of what both name, and nothing else.

    Raises
    ------
    UserError
        if the run is not complete, or its metrics, adapter, gate and base do not belong together.
    """
    run, measured = recorded_run(paths), recorded_test(paths)
    rows = read_jsonl(paths.metrics / "test" / "predictions.jsonl", rerun("evaluate"))
    scores = Scores(rows, measured["language"], measured["bootstrap_draws"], measured["seed"])
    text = text_origin(paths, measured)
    licences = licences_of(preset, run, measured, text)
    licence, reason = adapter_licence(licences)
    vocabulary = Vocabulary.load(paths.student / "vocab.json")
    settings = measured["decoder"]
    model = Path(settings["language_model"] or "")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {
        "amount": _amount,
        "duration": _duration,
        "estimate": _estimate,
        "origin": _origin,
        "in_words": in_words,
        "snrs": _snrs,
    }
    return environment.get_template("card.md.j2").render(
        repository=repository,
        run=run,
        measured=measured,
        noise={"train": run["noise"]["train"], "test": measured["noise"]["test"]},
        labelled_by_teacher=_labelled(run["used"] | {"test": measured["used"]}),
        licence=licence,
        reason=reason,
        licences=licences,
        text=text,
        base_repository=_hub_name(run["base"]["source"]),
        lora=run["adapt"] == "lora",
        not_quantised=NOT_QUANTISED,
        threshold=entropy_threshold(paths.adapter),
        decoder=settings,
        language_model=model.name,
        decode_lines=decode_lines(vocabulary, settings, f'hf_hub_download("{repository}", "{model.name}")').strip(),
        confidence=CONFIDENCE,
        clean=scores.overall(noisy=False),
        noisy=scores.overall(noisy=True),
        reduction=measured["metrics"]["wer_reduction"],
        out_of_domain=measured["metrics"].get(OUT_OF_DOMAIN),
    )


def _hub_name(source: str) -> str | None:
    return source.removeprefix(HUB).partition("@")[0] if source.startswith(HUB) else None


def _origin(origin: Origin) -> str:
    commit = origin["commit"] if origin["commit"] and origin["commit"] not in origin["source"] else None
    return ", ".join(
        [
            origin["source"],
            *([f"files under {origin['address']}"] if origin.get("address") else []),
            *([f"commit {commit}"] if commit else []),
        ]
    )


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def _amount(used: dict[str, Any]) -> str:
    return f"{used['clips']} clips ({_duration(used['seconds'])}) in {used['mixtures']} mixtures"


def _labelled(used: dict[str, dict[str, Any]]) -> str:
    """How much of each split the teacher transcribed; empty where it is nothing."""
    return ", ".join(
        f"{split} {_duration(amounts['labelled_by_teacher']['seconds'])} of {_duration(amounts['seconds'])}"
        for split, amounts in used.items()
        if "labelled_by_teacher" in amounts
    )


def _snrs(used: dict[str, Any]) -> str:
    levels = [f"{snr:g}" for snr in used["snr_db"] if snr is not None]
    return f"{', '.join(levels)} dB" + (", or not mixed" if None in used["snr_db"] else "")


def _estimate(estimate: Estimate) -> str:
    if estimate.value is None:
        return "not measured"
    text = f"{100 * estimate.value:.1f} %"
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def prepare(repository: str, preset: Preset, paths: Paths, folder: Path) -> None:
    """Write into `folder` what the repository is to hold: adapter, tokens, card, and the base where no hub has it.

    Raises
    ------
    UserError
        as `model_card`.
    """
    (folder / "README.md").write_text(model_card(repository, preset, paths), encoding="utf-8")
    for file in paths.adapter.iterdir():
        if file.name not in NOT_PUSHED:
            shutil.copyfile(file, folder / file.name)
    save_processor(paths.student, folder)
    save_decoder(paths.decoder.parent, folder)
    config = folder / "adapter_config.json"
    if config.exists():
        origin = read_json(paths.student / ORIGIN, rerun("fetch_models"))
        name = _hub_name(origin["source"])
        if name is None:
            shutil.copytree(paths.student, folder / "base", ignore=shutil.ignore_patterns(ORIGIN, *PROCESSOR))
        settings: dict[str, Any] = read_json(config, rerun("train"))
        settings |= {"base_model_name_or_path": name or repository, "revision": origin["commit"]}
        config.write_text(json.dumps(settings, indent=2) + "\n")


def push(repository: str, private: bool, preset: Preset, paths: Paths) -> str:
    """Create the repository if need be and commit to it; its address.

    Raises
    ------
    UserError
        as `model_card`, or if nobody is logged in, the hub cannot be reached or refuses.
    """
    api = HfApi()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(repository, preset, paths, folder)
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
