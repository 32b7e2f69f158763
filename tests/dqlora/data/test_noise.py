from pathlib import Path, PurePath

import pytest

from dqlora.data.noise import category_of, find_recordings, group_of, unused_files


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
