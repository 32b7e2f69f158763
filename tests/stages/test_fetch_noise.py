import functools
import http.server
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from dqlora.config import Paths
from dqlora.data import noise
from dqlora.data.mixing import fit_noise, power
from dqlora.data.noise import find_recordings
from dqlora.data.storage import RaggedArray
from dqlora.errors import UserError
from stages import fetch_noise
from stages.fetch_noise import address_of, check_is_not_speech, source_folder
from tests.conftest import RATE, write_noise


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A server on loopback with train/ and test/ of two recordings."""
    handler = functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=write_noise(tmp_path / "served", count=2)
    )
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_list_of_urls_becomes_a_folder_and_its_checksums_bind(address: str, tmp_path: Path) -> None:
    lines = [f"{split},{address}/{split}/fan_{number}.wav" for split in ("train", "test") for number in range(2)]
    (tmp_path / "list.csv").write_text("\n".join(["split,url", *lines]))
    paths = Paths("mini", tmp_path)
    splits = find_recordings(source_folder(str(tmp_path / "list.csv"), paths), seed=0)
    assert {split: sorted(item.id for item in items) for split, items in splits.items()} == {
        "train": ["fan_0.wav", "fan_1.wav"],
        "test": ["fan_0.wav", "fan_1.wav"],
    }
    assert len(paths.checksums.read_text().splitlines()) == 4
    assert paths.checksums.parent == tmp_path / "presets"  # beside the preset, in no stage's deps

    (tmp_path / "list.csv").write_text("\n".join(["split,url", *lines[1:]]), encoding="utf-8-sig")  # as Excel saves it
    splits = find_recordings(source_folder(str(tmp_path / "list.csv"), paths), seed=0)
    assert [item.id for item in splits["train"]] == ["fan_1.wav"]  # and not the one that the list no longer has

    (tmp_path / "served/test/fan_1.wav").write_bytes(b"another recording")
    (paths.downloads / "noise/test/fan_1.wav").unlink()
    with pytest.raises(UserError, match=r"fan_1\.wav"):
        source_folder(str(tmp_path / "list.csv"), paths)


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_noise(tmp_path / "noise")
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = source_folder("~/noise", Paths("mini", tmp_path))
    assert find_recordings(folder, seed=0).keys() == {"train", "test"} and noise.unused_files(folder) == []
    assert len(noise.test_recordings(Path("~/noise"))) > 0


def test_the_address_of_a_list_is_told_and_its_query_is_not(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("split,url\ntrain,https://me:pw@example.org/a/1.wav?key=1\n")
    assert address_of(str(tmp_path / "list.csv")) == "https://example.org/a/"
    assert address_of(str(tmp_path)) == ""


@pytest.mark.parametrize(
    ("noise", "speech", "mixed"), [("a", "a", True), (".", "a", True), ("a/noise", "a", False), ("b", "a", False)]
)
def test_speech_is_not_taken_for_noise(noise: str, speech: str, mixed: bool, tmp_path: Path) -> None:
    (tmp_path / "a/noise").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    with pytest.raises(UserError, match="taken for noise") if mixed else nullcontext():
        check_is_not_speech(str(tmp_path / noise), str(tmp_path / speech))
    check_is_not_speech("synthetic", str(tmp_path / speech))
    check_is_not_speech(str(tmp_path / noise), "hf://datasets/owner/name@revision/en")


@pytest.mark.parametrize("top", ["made", "."])
@pytest.mark.parametrize("kind", ["zip", "gztar"])
def test_an_archive_is_unpacked(tmp_path: Path, kind: str, top: str) -> None:
    root = write_noise(tmp_path / "packed/made", count=2) if top == "." else tmp_path / "packed"
    write_noise(tmp_path / "packed/made", count=2)
    archive = shutil.make_archive(str(tmp_path / "noise"), kind, root)
    splits = find_recordings(source_folder(archive, Paths("local", tmp_path)), seed=0)
    assert {split: sorted(item.path.parts[-2:] for item in items) for split, items in splits.items()} == {
        "train": [("train", "fan_0.wav"), ("train", "fan_1.wav")],
        "test": [("test", "fan_0.wav"), ("test", "fan_1.wav")],
    }


def test_a_file_that_is_no_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "noise.txt").write_text("hum")
    with pytest.raises(UserError, match=r"noise\.txt: neither a zip nor a tar archive"):
        source_folder(str(tmp_path / "noise.txt"), Paths("local", tmp_path))


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    assert source_folder(str(tmp_path), Paths("mini", tmp_path)) == tmp_path


@pytest.fixture
def local(project: Path, tmp_path: Path) -> Path:
    """A project whose local preset reads 2 s of each of tmp_path/noise, four at most of each split."""
    params = yaml.safe_load((project / "params.yaml").read_text())
    (project / "params.yaml").write_text(yaml.safe_dump({**params, "preset": "local"}))
    preset = yaml.safe_load((project / "presets/local.yaml").read_text())
    preset["noise"] |= {"path": str(tmp_path / "noise"), "seconds": 2, "recordings": {"train": 4, "test": 4}}
    (project / "presets/local.yaml").write_text(yaml.safe_dump(preset))
    return project


def hiss(seconds: float, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE)).astype(np.float32)


def stored(project: Path, split: str) -> dict[str, np.ndarray]:
    noise = RaggedArray(project / "data/local/noise" / split)
    return {item["id"]: noise[item["id"]] for item in noise.items}


@pytest.mark.parametrize("offset", [0.0, 0.2])
@pytest.mark.parametrize("silent", [1.0, 3.0, 30.0])
def test_a_recording_that_begins_in_silence(local: Path, tmp_path: Path, silent: float, offset: float) -> None:
    write_noise(tmp_path / "noise")
    late = np.concatenate([np.zeros(round(silent * RATE), np.float32), hiss(3, seed=9)]) + np.float32(offset)
    soundfile.write(tmp_path / "noise/train/late.wav", late, RATE)
    fetch_noise.main()
    found = stored(local, "train")["late.wav"].astype(np.float32)
    assert len(found) == 2 * RATE
    assert abs(found.mean()) < 0.02 * np.abs(found).max()
    assert all(power(fit_noise(found, RATE, np.random.default_rng(seed))) > 0 for seed in range(10))


@pytest.mark.parametrize("samples", [np.zeros(3 * RATE), np.full(3 * RATE, 0.3)], ids=["zero", "constant"])
def test_silence_is_rejected_by_name(
    local: Path, tmp_path: Path, samples: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(write_noise(tmp_path / "noise") / "train/mute.wav", samples, RATE)
    fetch_noise.main()
    assert "mute.wav" not in stored(local, "train")
    assert "train/mute.wav: silent" in capsys.readouterr().out


def test_a_cap_takes_of_every_category(local: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        for number, kind in enumerate(("airport", "bus", "metro", "park")):
            (tmp_path / "noise" / split / kind).mkdir(parents=True)
            for take in range(6):
                noise = hiss(0.5, seed=100 * number + 2 * take + (split == "test"))
                soundfile.write(tmp_path / "noise" / split / kind / f"{take}.wav", noise, RATE)
    fetch_noise.main()
    for split in ("train", "test"):
        assert {name.split("/")[0] for name in stored(local, split)} == {"airport", "bus", "metro", "park"}


def test_what_is_not_used_is_counted_and_named(local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_noise(tmp_path / "noise")
    (folder / "train/phone.m4a").write_bytes(b"\0\0\0\x1cftypM4A \0\0\0\0" + bytes(3000))
    (folder / "train" / os.fsdecode(b"mem\xf3.xyz")).write_bytes(b"?")
    (folder / "train/gone.wav").symlink_to(tmp_path / "unplugged/gone.wav")
    soundfile.write(folder / "loose.wav", hiss(1), RATE)
    fetch_noise.main()
    told = capsys.readouterr().out
    assert "train/gone.wav: no such file" in told
    assert "train/phone.m4a: not readable as audio" in told
    assert "not used, by their names no recordings: 1 (train/mem\\udcf3.xyz)" in told
    assert "not used, in neither of the splits train and test: 1 (loose.wav)" in told


def test_recordings_with_transcripts_are_doubted(
    local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Read speech taken for noise teaches the student not to hear speech."""
    folder = write_noise(tmp_path / "noise")
    (folder / "classes.csv").write_text("file_name,class\ntrain/a.wav,fan\n")
    (folder / "gone.csv").symlink_to(tmp_path / "unplugged/gone.csv")
    fetch_noise.main()
    assert "warning" not in capsys.readouterr().err
    (folder / "train/metadata.csv").write_text("file_name,transcription\na.wav,hello\n")
    fetch_noise.main()
    assert re.search(r"warning: noise\.path: .*: train/metadata\.csv holds transcripts; ", capsys.readouterr().err)


def test_noise_out_of_domain_is_every_recording_of_its_folder_and_none_of_training(local: Path, tmp_path: Path) -> None:
    write_noise(tmp_path / "noise")
    (tmp_path / "other").mkdir()
    for number in range(2):
        soundfile.write(tmp_path / f"other/wind_{number}.wav", hiss(3, seed=50 + number), RATE)
    trained = next((tmp_path / "noise/train").iterdir())
    (tmp_path / "other/again.wav").write_bytes(trained.read_bytes())
    preset = yaml.safe_load((local / "presets/local.yaml").read_text())
    preset["out_of_domain"]["noise"] = str(tmp_path / "other")
    (local / "presets/local.yaml").write_text(yaml.safe_dump(preset))
    fetch_noise.main()
    assert set(stored(local, "out_of_domain")) == {"wind_0.wav", "wind_1.wav"}
    (local / "presets/local.yaml").write_text(yaml.safe_dump(preset | {"out_of_domain": "none"}))
    fetch_noise.main()
    assert not stored(local, "out_of_domain")


def test_noise_out_of_domain_that_is_missing_ends_it(local: Path, tmp_path: Path) -> None:
    write_noise(tmp_path / "noise")
    preset = yaml.safe_load((local / "presets/local.yaml").read_text())
    preset["out_of_domain"]["noise"] = str(tmp_path / "nowhere")
    (local / "presets/local.yaml").write_text(yaml.safe_dump(preset))
    with pytest.raises(UserError, match=r"out_of_domain\.noise: .*nowhere: no such folder"):
        fetch_noise.main()
