import difflib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.utils.hydra import apply_overrides

from dqlora.config import load_params, load_preset
from dqlora.errors import UserError
from tests.conftest import ROOT


@pytest.mark.parametrize("preset", ["mini", "fleurs", "local", "study"])
def test_what_ships_is_valid(preset: str) -> None:
    load_params(ROOT / "params.yaml")
    load_preset(preset, ROOT / "presets")


def changed(tmp_path: Path, name: str, value: object) -> Path:
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    *blocks, key = name.split(".")
    block = values
    for part in blocks:
        block = block[part]
    block[key] = value
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("lambda_distil", 0.5, "lambda_distil: unknown parameter; known here: preset, seed, lambda_distill"),
        ("mix.copys", 2, "mix.copys: unknown parameter; known here: copies, snr_db, test_snr_db"),
        ("lambda_distill", -1, "lambda_distill: Input should be greater than or equal to 0 (got -1)"),
        ("lambda_distill", "much", "lambda_distill: Input should be a valid number"),
        ("mix.copies", 0, "mix.copies: Input should be greater than or equal to 1 (got 0)"),
        ("mix.copies", 1.5, "mix.copies: Input should be a valid integer"),
        ("mix.snr_db", [], "mix.snr_db: List should have at least 1 item"),
        ("mix.snr_db", [200], "mix.snr_db.0: Input should be less than or equal to 60 or 'clean' (got 200)"),
        ("mix.test_snr_db", [5, 5.0], "mix: test_snr_db names one SNR twice"),
        ("teacher_input", "loud", "teacher_input: Input should be 'clean' or 'noisy' (got 'loud')"),
        ("student.quantize", "int8", "student.quantize: Input should be 'nf4' or 'none' (got 'int8')"),
        ("student.adapt", "full", "student: adapt: full trains the weights themselves and needs quantize: none"),
        ("pseudo_label.wer", -1, "pseudo_label.wer: Input should be greater than or equal to 0 or 'none' (got -1)"),
        ("pseudo_label.repeats", "x", "pseudo_label.repeats: Input should be a valid integer or 'none' (got 'x')"),
        ("distill.frames", "letters", "distill.frames: Input should be 'all', 'nonblank' or 'around_nonblank'"),
        ("train.base_reads", 0.9, "train.base_reads: unknown parameter; known here: warmup_ratio,"),
        ("train.wise_ft_alpha", 1, "train.wise_ft_alpha: unknown parameter; known here: warmup_ratio,"),
        ("gate.quantile", 1, "gate.quantile: Input should be less than 1 (got 1)"),
        ("seed", True, "seed: Input should be a valid integer (got True)"),
        ("train", 3, "train: Input should be a block of warmup_ratio, weight_decay, "),
    ],
)
def test_a_wrong_parameter_is_named_with_what_is_allowed(
    tmp_path: Path, name: str, value: object, message: str
) -> None:
    with pytest.raises(UserError) as refused:
        load_params(changed(tmp_path, name, value))
    assert message in str(refused.value)
    assert str(refused.value).count("params.yaml: ") == 1
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("nothing", "out_of_domain: Input should be a block of speech, noise, language, clips or 'none'"),
        ({"speech": "folder", "noise": "folder", "clips": 3}, "out_of_domain.language: missing"),
        ({"sound": "folder"}, "out_of_domain.sound: unknown parameter; known here: speech, noise, language, clips"),
    ],
)
def test_a_block_that_may_be_none_is_explained_once(tmp_path: Path, block: object, message: str) -> None:
    values = yaml.safe_load((ROOT / "presets/mini.yaml").read_text())
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values | {"out_of_domain": block}))
    with pytest.raises(UserError) as refused:
        load_preset("mine", tmp_path)
    assert message in str(refused.value) and str(refused.value).count("'none'") == message.count("'none'")


@pytest.mark.parametrize("value", ["english", "en-US", "EN", "", False, 1, None])
def test_a_language_is_a_code(tmp_path: Path, value: object) -> None:
    """Norway's `no`, without quotes, is YAML's false."""
    values = yaml.safe_load((ROOT / "presets/mini.yaml").read_text())
    values["speech"]["language"] = value
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=rf"speech\.language: should be a code of ISO 639.* \(got {value!r}\)"):
        load_preset("mine", tmp_path)


def test_a_missing_parameter_file_and_preset_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_params(tmp_path / "params.yaml")
    with pytest.raises(UserError, match="known presets: fleurs, local, mini, study"):
        load_preset("maxi", ROOT / "presets")
    (tmp_path / "params.yaml").write_text("preset: mini\n")
    with pytest.raises(UserError, match="seed: missing"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("preset: [unclosed\n")
    with pytest.raises(UserError, match="not valid YAML"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("")
    with pytest.raises(UserError, match="expected parameters by name"):
        load_params(tmp_path / "params.yaml")


FILES = ("params.yaml", *sorted(f"presets/{path.name}" for path in (ROOT / "presets").glob("*.yaml")))


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


LEAVES = [(file, name, value) for file in FILES for name, value in leaves(yaml.safe_load((ROOT / file).read_text()))]


def lines_changed(file: str, override: str, tmp_path: Path) -> tuple[list[str], list[str]]:
    """Those that `dvc exp run -S file:override` takes out and puts in."""
    copy = tmp_path / Path(file).name
    shutil.copy(ROOT / file, copy)
    apply_overrides(copy, [override])
    before, after = (path.read_text().splitlines() for path in (ROOT / file, copy))
    diff = list(difflib.unified_diff(before, after, n=0))[2:]
    return tuple([line[1:] for line in diff if line[0] == sign] for sign in "-+")  # type: ignore[return-value]


@pytest.mark.parametrize(("file", "name", "value"), LEAVES, ids=[f"{file}:{name}" for file, name, _ in LEAVES])
def test_an_override_changes_one_line(file: str, name: str, value: Any, tmp_path: Path) -> None:
    """The files stand as DVC writes them, so that it leaves the rest alone, comments included."""
    other = {str: "other", int: 7, float: 0.25, list: [*value[:-1], 7] if isinstance(value, list) else 0}[type(value)]
    written = f"[{','.join(map(str, other))}]" if isinstance(other, list) else other
    removed, added = lines_changed(file, f"{name}={written}", tmp_path)
    assert len(removed) >= 1 and len(added) == 1
    assert len(removed) == 1 or removed[0].endswith(">-")  # too long for a line
    assert removed[0].partition("#")[2] == added[0].partition("#")[2]
    assert yaml.safe_load((tmp_path / Path(file).name).read_text()) != yaml.safe_load((ROOT / file).read_text())


@pytest.mark.parametrize("name", ["mix.snr_db", "mix.test_snr_db", "lora.target_modules"])
@pytest.mark.parametrize("value", ["[5]", "[clean]", "[1,2,3,4,5,6,7,8,9]", "[-5,2.5]"])
def test_an_override_of_a_list_changes_its_items_alone(name: str, value: str, tmp_path: Path) -> None:
    removed, added = lines_changed("params.yaml", f"{name}={value}", tmp_path)
    assert removed + added and all(line.startswith("  - ") for line in removed + added)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("none", []),
        ("", []),
        ("Anna, Bob,", ["Anna", "Bob"]),
        (" Anna ,, Bob Dylan", ["Anna", "Bob Dylan"]),
        (["Anna"], ["Anna"]),
    ],
)
def test_hot_words_are_what_stands_between_commas(tmp_path: Path, written: object, read: list[str]) -> None:
    assert load_params(changed(tmp_path, "decode.hotwords", written)).decode.hotwords == read


@pytest.mark.parametrize("target", ["q_proj", "attention.q_proj", "layers.3.feed_forward.output_dense"])
def test_lora_targets_are_ends_of_linear_layers_names(target: str, tmp_path: Path) -> None:
    assert load_params(changed(tmp_path, "lora.target_modules", [target])).lora.target_modules == [target]
    with pytest.raises(UserError, match=r"lora\.target_modules\.0: should be .* one of q_proj, .*\(got '.*x'"):
        load_params(changed(tmp_path, "lora.target_modules", [target + "x"]))


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_batch_and_an_update_are_finite(tmp_path: Path, value: float) -> None:
    with pytest.raises(UserError, match=r"lora\.alpha: Input should be"):
        load_params(changed(tmp_path, "lora.alpha", value))
    preset = yaml.safe_load((ROOT / "presets/mini.yaml").read_text())
    preset["budget"]["batch_seconds"] = value
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(preset))
    with pytest.raises(UserError, match=r"budget\.batch_seconds: Input should be"):
        load_preset("mine", tmp_path)
