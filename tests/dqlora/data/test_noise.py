import os
from pathlib import Path, PurePath

import pytest

from dqlora.data.noise import category_of, find_recordings, group_of, outside_splits, unused_files
from dqlora.errors import UserError


@pytest.mark.parametrize(
    ("path", "category"),
    [
        ("AirConditioner_3.wav", "AirConditioner"),
        ("rain.ogg", "rain"),
        ("walk-on-leaves.ogg", "walk-on-leaves"),
        ("fan12.wav", "fan"),
        ("street (2).wav", "street"),
        ("office_2_ch1.wav", "office"),
        ("cafe_L.wav", "cafe"),
        ("airport/3.wav", "airport"),
        ("DKITCHEN/ch01.wav", "DKITCHEN"),
        ("DEMAND/NPARK/ch16.wav", "NPARK"),
        ("metro/mic-2.flac", "metro"),
        ("bus/left.wav", "bus"),
        ("7.wav", "7"),
        ("bench1.wav", "bench"),
        ("audio/1-100032-A-0.wav", "dog"),
        ("5-9032-A-49.wav", "hand_saw"),
        ("fold1/101415-3-0-2.wav", "dog_bark"),
        ("fold10/7061-6-0-0.wav", "gun_shot"),
        ("noise/free-sound/noise-free-sound-0000.wav", "noise-free-sound"),
        ("office (L).wav", "office"),
        ("office_L_01.wav", "office"),
        ("ch1_office.wav", "office"),
        ("left/rain.wav", "rain"),
        ("station/ch01/3.wav", "station"),
        ("noise_fullband/door_Freesound_validated_448384_1.wav", "door_Freesound_validated"),
    ],
)
def test_a_category_is_a_word_where_there_is_one(path: str, category: str) -> None:
    assert category_of(PurePath(path)) == category


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("DKITCHEN/ch01.wav", "DKITCHEN/ch16.wav", True),
        ("DKITCHEN/ch01.wav", "NPARK/ch01.wav", False),
        ("a/cafe_L.wav", "a/cafe_R.wav", True),
        ("a/cafe-left.wav", "a/cafe-right.wav", True),
        ("cafe_1_mic1.wav", "cafe_1_mic2.wav", True),
        ("cafe_1_mic1.wav", "cafe_2_mic1.wav", False),
        ("airport/3.wav", "airport/4.wav", False),
        ("1-100032-A-0.wav", "1-100032-B-0.wav", True),
        ("fold1/101415-3-0-2.wav", "fold1/101415-3-0-3.wav", True),
        ("fan_1.wav", "fan_2.wav", False),
        ("office_L_01.wav", "office_R_01.wav", True),
        ("office_L_01.wav", "office_R_02.wav", False),
        ("office (L).wav", "office (R).wav", True),
        ("office [left].wav", "office [right].wav", True),
        ("office (1).wav", "office (2).wav", False),
        ("ch1_office.wav", "ch2_office.wav", True),
        ("CH 1 office.wav", "CH 2 office.wav", True),
        ("ch1_office.wav", "ch2_street.wav", False),
        ("ch01/office.wav", "ch02/office.wav", True),
        ("ch01/office.wav", "ch02/street.wav", False),
        ("a/left/rain.wav", "a/right/rain.wav", True),
        ("a/left/rain.wav", "b/right/rain.wav", False),
        ("CAF_1.CH1.wav", "CAF_1.CH6.wav", True),
        ("cafe_L.wav", "cafe.flac", True),
        ("leftovers.wav", "overs.wav", False),
    ],
)
def test_channels_and_slices_are_of_one_recording(one: str, other: str, same: bool) -> None:
    assert (group_of(PurePath(one)) == group_of(PurePath(other))) == same


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize("seed", range(5))
def test_channels_of_one_recording_are_never_in_both_splits(tmp_path: Path, seed: int) -> None:
    scenes = ["DKITCHEN", "NPARK", "OOFFICE", "PCAFETER"]
    touch(tmp_path, *(f"{scene}/ch{number:02}.wav" for scene in scenes for number in range(1, 17)))
    splits = find_recordings(tmp_path, seed)
    train, test = ({item.category for item in splits[split]} for split in ("train", "test"))
    assert not train & test
    assert train | test == set(scenes)


@pytest.mark.parametrize("seed", range(3))
def test_categories_take_turns(tmp_path: Path, seed: int) -> None:
    counts = {"airport": 9, "bus": 2, "park": 5}
    for split in ("train", "test"):
        touch(tmp_path / split, *(f"{kind}/{number}.wav" for kind in counts for number in range(counts[kind])))
    train = find_recordings(tmp_path, seed)["train"]
    assert len(train) == 16
    assert sorted(item.category for item in train[:6]) == ["airport", "airport", "bus", "bus", "park", "park"]
    assert train == find_recordings(tmp_path, seed)["train"]
    assert train != find_recordings(tmp_path, seed + 1)["train"]


def test_what_is_not_used_is_known(tmp_path: Path) -> None:
    touch(tmp_path, "fan_1.wav", "b/RAIN.M4A", "._fan_1.wav", "readme.txt", "b/old.xyz", "c.oga")
    assert unused_files(tmp_path) == ["b/old.xyz", "readme.txt"]
    splits = find_recordings(tmp_path, seed=0)
    assert sorted(item.id for item in splits["train"] + splits["test"]) == ["b/RAIN.M4A", "c.oga", "fan_1.wav"]


@pytest.mark.parametrize("wrapper", ["", "noise", "My noise/v1"])
@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"),
        ("Train", "Test"),
        ("training", "testing"),
        ("noise_train", "noise_test"),
        ("train-noise", "test-noise"),
        ("train_set", "test_set"),
        ("train", "val"),
        ("TRAIN", "eval"),
        ("train", "validation"),
        ("tr", "tt"),
        ("office/train", "office/test"),
    ],
)
def test_own_splits_are_kept(tmp_path: Path, wrapper: str, train: str, test: str) -> None:
    folder = tmp_path / wrapper
    touch(folder, *(f"{train}/bus_{number}.wav" for number in range(3)), f"{test}/rain.wav")
    splits = find_recordings(tmp_path, seed=0)
    assert {item.path for item in splits["train"]} == set((folder / train).iterdir())
    assert [item.path for item in splits["test"]] == [folder / test / "rain.wav"]
    assert {item.category for item in splits["train"]} == {"bus"}
    assert not outside_splits(tmp_path)


def everything(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.wav"))


@pytest.mark.parametrize(("one", "other"), [("train_station", "test_tone"), ("trains", "tests"), ("train", "bus")])
def test_a_kind_of_noise_is_no_split(tmp_path: Path, one: str, other: str) -> None:
    touch(tmp_path, *(f"{folder}/{number}.wav" for folder in (one, other) for number in range(3)))
    splits = find_recordings(tmp_path, seed=0)
    assert sorted(item.path for item in splits["train"] + splits["test"]) == everything(tmp_path)
    assert {item.category for item in splits["train"] + splits["test"]} == {one, other}


def test_two_folders_of_a_split_share_no_name(tmp_path: Path) -> None:
    touch(tmp_path, "train/1.wav", "Training/1.wav", "test/1.wav")
    assert sorted(item.id for item in find_recordings(tmp_path, seed=0)["train"]) == ["Training/1.wav", "train/1.wav"]


def test_what_is_outside_of_the_splits_is_known(tmp_path: Path) -> None:
    touch(tmp_path, "train/a.wav", "test/b.wav", "loose.wav", "dev/x.wav", "dev/readme.txt")
    assert outside_splits(tmp_path) == ["dev/x.wav", "loose.wav"]
    assert unused_files(tmp_path) == ["dev/readme.txt"]


@pytest.mark.parametrize("splits", [("train/", "test/"), ("", "")])
def test_names_need_not_be_utf_8(tmp_path: Path, splits: tuple[str, str]) -> None:
    """What is written of them can be, and the recordings are found under the names that they have."""
    wanted = [split + os.fsdecode(name) for split in splits for name in (b"caf\xe9.wav", b"\xff/1.wav", b"caf\xe8.wav")]
    touch(tmp_path, *wanted)
    found = [recording for recordings in find_recordings(tmp_path, 0).values() for recording in recordings]
    assert {recording.path for recording in found} == {tmp_path / name for name in wanted}
    assert len({recording.id for recording in found}) == 3
    assert {recording.category.encode() for recording in found} >= {b"caf\\udce9", b"caf\\udce8"}


def test_links_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "office/a.wav", "test/b.wav")
    touch(tmp_path / "noise", "train/c.wav")
    (tmp_path / "noise/train/office").symlink_to(tmp_path / "elsewhere/office")
    (tmp_path / "noise/test").symlink_to(tmp_path / "elsewhere/test")
    (tmp_path / "noise/train/again").symlink_to(tmp_path / "noise")
    (tmp_path / "elsewhere/office/up").symlink_to(tmp_path / "elsewhere")
    splits = find_recordings(tmp_path / "noise", seed=0)
    assert [item.id for item in splits["test"]] == ["b.wav"]
    assert {"c.wav", "office/a.wav"} <= {item.id for item in splits["train"]}


@pytest.mark.parametrize("hidden", [".Trash/a.wav", "__MACOSX/train/a.wav", "train/.cache/a.wav", "train/._a.wav"])
def test_what_is_hidden_is_no_recording(tmp_path: Path, hidden: str) -> None:
    touch(tmp_path, hidden, "train/b.wav", "test/c.wav")
    assert [item.id for item in find_recordings(tmp_path, seed=0)["train"]] == ["b.wav"]
    assert not unused_files(tmp_path) + outside_splits(tmp_path)


@pytest.mark.parametrize("names", [["DKITCHEN/ch01.wav", "DKITCHEN/ch02.wav"], ["fan.wav"]])
def test_one_recording_is_too_few(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(UserError, match=rf"one recording alone \({names[0]}.*put at least two"):
        find_recordings(touch(tmp_path, *names), seed=0)


@pytest.mark.parametrize("empty", ["train", "test"])
def test_an_empty_split_is_named(tmp_path: Path, empty: str) -> None:
    (tmp_path / empty).mkdir()
    touch(tmp_path, *(f"{split}/{number}.wav" for split in {"train", "test"} - {empty} for number in range(2)))
    with pytest.raises(UserError, match=f"no recordings to {empty} on"):
        find_recordings(tmp_path, seed=0)
