import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from dqlora.data import download, parquet
from dqlora.data.corpus import commit_of
from dqlora.data.download import digest_of
from dqlora.data.fleurs import DamagedError, Recording, folder_recordings, hub_recordings
from dqlora.errors import UserError
from tests.hub import Fault, Hub, cut, flip, serve, short, status

COMMIT = "168de341b3db6859a9bac1c50a2ef5e3b47647e0"
MAIN = "70bb2e84b976b7e960aa89f1c648e09c59f894dd"
NAME = f"hf://datasets/google/fleurs@{COMMIT}/en_us"
SIZES = {"train": 25, "validation": 5, "test": 8}


def rows_of(split: str) -> list[dict[str, object]]:
    rng = np.random.default_rng(len(split))
    return [
        {
            "id": n,
            "path": f"cache/x/{split}{n}.wav",
            "audio": {"bytes": rng.bytes(20_000), "path": f"{split}{n}.wav"},
            "transcription": f"the {n} of {split}",
            "raw_transcription": f"The {n} of {split}." if n else None,
        }
        for n in range(SIZES[split])
    ]


def expected(split: str) -> list[Recording]:
    return [
        (f"{split}{n}.wav", row["audio"]["bytes"], row["raw_transcription"] or row["transcription"])
        for n, row in enumerate(rows_of(split))
    ]


def write(path: Path, split: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows_of(split)), path, row_group_size=10, dictionary_pagesize_limit=2**30)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(parquet, "LARGE", 0)
    monkeypatch.setattr(download, "PAUSES", (0.01,))
    monkeypatch.setattr(download, "PATIENCE", 0.3)
    root = tmp_path / "root/datasets/google/fleurs"
    for split in SIZES:
        write(root / COMMIT / "en_us" / split / "0000.parquet", split)
        write(root / MAIN / "parquet-data/en_us" / f"{split}-00000-of-00001.parquet", split)
    (root / COMMIT / "de_de").mkdir()
    with serve(tmp_path / "root") as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield hub


@pytest.fixture
def read(hub: Hub, tmp_path: Path) -> "Read":
    return Read(tmp_path)


class Read:
    """Reads into a folder of downloads, as a run of the stage does."""

    def __init__(self, folder: Path):
        self.downloads, self.checksums = folder / "downloads", folder / "preset.sha256"

    def __call__(self, split: str, name: str = NAME) -> Iterator[Recording]:
        return hub_recordings(name, split, self.downloads, self.checksums)

    def some(self, split: str, count: int) -> list[Recording]:
        return [each for _, each in zip(range(count), self(split), strict=False)]


@pytest.mark.parametrize("name", [NAME, f"hf://datasets/google/fleurs@{MAIN}/en_us"])
@pytest.mark.parametrize("split", SIZES)
def test_reads_what_is_there(read: Read, split: str, name: str) -> None:
    assert list(read(split, name)) == expected(split)
    assert list(read(split, name)) == expected(split)


def test_only_the_row_groups_that_are_read_come(hub: Hub, read: Read) -> None:
    path = hub.root / "datasets/google/fleurs" / COMMIT / "en_us/train/0000.parquet"
    metadata = pq.read_metadata(path)
    first = metadata.row_group(1).column(0).dictionary_page_offset
    assert read.some("train", 10) == expected("train")[:10]
    assert hub.bytes["0000.parquet"] == first + metadata.serialized_size + 16  # its end is asked for twice
    assert list(read("train")) == expected("train")
    assert hub.bytes["0000.parquet"] < path.stat().st_size + 2 * metadata.serialized_size


@pytest.mark.parametrize("split", SIZES)
def test_a_second_run_needs_no_network(hub: Hub, read: Read, split: str) -> None:
    list(read(split))
    hub.shutdown()
    hub.server_close()
    assert list(read(split)) == expected(split)


@pytest.mark.parametrize("fault", [cut, short, status(503), status(429, Retry_After="0")])
@pytest.mark.parametrize("split", SIZES)
def test_a_fault_that_passes(hub: Hub, read: Read, split: str, fault: object) -> None:
    list(read.some(split, 0))
    hub.spoil(fault, "/cdn/", times=2)
    assert list(read(split)) == expected(split)


def test_a_flipped_byte_of_a_whole_file_is_mended(hub: Hub, read: Read) -> None:
    hub.spoil(lambda handler, body: flip(handler, body) if len(body) > 50_000 else body, times=3)
    assert list(read("validation")) == expected("validation")


@pytest.mark.parametrize(
    "fault",
    [
        lambda handler, body: flip(handler, body) if len(body) > 150_000 else body,
        lambda handler, body: body[:100_000] + bytes(9) + body[100_009:] if len(body) > 150_000 else body,
        lambda handler, body: bytes(len(body)) if len(body) > 150_000 else body,
        lambda handler, body: bytes(len(body) - 8) + body[-8:] if 8 < len(body) < 10_000 else body,
    ],
)
def test_damage_in_one_of_several_parts_is_found(hub: Hub, read: Read, fault: Fault) -> None:
    hub.spoil(fault, times=3)
    with pytest.raises(DamagedError, match=r"train/0000\.parquet came damaged \(.*\); run it again"):
        list(read("train"))
    assert list(read("train")) == expected("train")


def test_damage_on_the_disk_is_mended(read: Read) -> None:
    list(read("train"))
    parts = sorted(path for path in read.downloads.rglob("0000.parquet.*") if "train" in str(path))
    digests = [digest_of(path) for path in parts]
    for path in parts:
        path.write_bytes(path.read_bytes()[:-3])
    assert list(read("train")) == expected("train")
    assert [digest_of(path) for path in parts] == digests


def test_what_came_is_kept_when_the_server_goes(hub: Hub, read: Read) -> None:
    rows = read("train")
    assert [next(rows) for _ in range(10)] == expected("train")[:10]
    hub.spoil(status(503), "/cdn/", times=1000)
    with pytest.raises(UserError, match=r"503 .*what has come is kept"):
        next(rows)
    hub.faults, before = 0, hub.bytes["0000.parquet"]
    assert read.some("train", 10) == expected("train")[:10]
    assert hub.bytes["0000.parquet"] == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (f"hf://datasets/google/fleurs@{COMMIT}/en_uk", "has no config en_uk; there are en_us"),
        (f"hf://datasets/google/fleurs@{MAIN}/de_us", "has no config de_us; there are .*en_us"),
        (f"hf://datasets/google/fleurs@{COMMIT}/de_de", r"has no train/\*\.parquet"),
        ("hf://datasets/google/fleurs@main/en_us", "no such revision"),
        (f"hf://datasets/google/flowers@{COMMIT}/en_us", "no public repository"),
        ("hf://datasets/google/fleurs/en_us", "expected hf://datasets/owner/name@revision/config"),
        (f"hf://google/fleurs@{COMMIT}/en_us", "expected hf://datasets/owner/name@revision/config"),
    ],
)
def test_a_wrong_name(read: Read, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        list(read("train", name))
    assert str(caught.value).startswith(f"speech.path: {name}")


def test_a_gated_corpus(hub: Hub, read: Read) -> None:
    hub.spoil(status(401, X_Error_Code="GatedRepo"), "/resolve/", times=1000)
    with pytest.raises(UserError, match="access must be granted"):
        list(read("train"))


@pytest.mark.parametrize("layout", ["{split}/0000.parquet", "{split}-00000-of-00001.parquet"])
@pytest.mark.parametrize("split", SIZES)
def test_folders(tmp_path: Path, split: str, layout: str) -> None:
    for each in SIZES:
        write(tmp_path / "en_us" / layout.format(split=each), each)
    assert list(folder_recordings(tmp_path / "en_us", split)) == expected(split)


@pytest.mark.parametrize(
    ("columns", "message"),
    [({"text": ["a"], "audio": [{"bytes": b"", "path": "a"}]}, "not FLEURS' columns"), (None, "unreadable as Parquet")],
)
def test_bad_files(tmp_path: Path, columns: dict | None, message: str) -> None:
    path = tmp_path / "en_us/train/0000.parquet"
    path.parent.mkdir(parents=True)
    if columns:
        pq.write_table(pa.table(columns), path)
    else:
        path.write_bytes(b"PAR1" * 20)
    with pytest.raises(UserError, match=message):
        list(folder_recordings(tmp_path / "en_us", "train"))


def test_empty_files(hub: Hub, read: Read) -> None:
    """One without rows is none; one of no bytes is named."""
    path = hub.root / "datasets/google/fleurs" / COMMIT / "en_us/validation/0001.parquet"
    pq.ParquetWriter(path, pq.read_schema(path.with_name("0000.parquet"))).close()
    assert list(read("validation")) == expected("validation")
    path = path.parent.parent / "test/0001.parquet"
    for content in (b"", b"PAR"):
        path.write_bytes(content)
        shutil.rmtree(read.downloads)
        with pytest.raises(UserError, match=rf"en_us/test/0001\.parquet: no Parquet file, of {len(content)} bytes"):
            list(read("test"))


@pytest.mark.parametrize("revision", ["main", MAIN])
def test_the_commit_that_a_corpus_is_read_at(hub: Hub, revision: str) -> None:
    hub.refs["main"] = MAIN
    assert commit_of(f"hf://datasets/google/fleurs@{revision}/en_us") == MAIN
    assert commit_of("presets/mini/speech") is None
