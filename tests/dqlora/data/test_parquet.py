import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dqlora.data import parquet
from dqlora.data.parquet import read_rows

COLUMNS = ["name", "audio.path", "audio.bytes"]


def table(rows: int = 40, twice: bool = False, nulls: bool = False) -> pa.Table:
    """Recordings that do and do not compress, from none to 300 kB long."""
    rng = np.random.default_rng(0)
    values = [rng.bytes(int(rng.integers(0, 300_000))) if n % 3 else bytes([n]) * (n * 5000) for n in range(rows)]
    values[7] = b"ab" * 40_000 + values[1][:1000] + b"abc" * 9
    if twice:
        values[5] = values[3]
    audio = [{"bytes": None if nulls and n == 4 else value, "path": f"{n}.wav"} for n, value in enumerate(values)]
    return pa.table({"name": [f"clip {n}" for n in range(rows)], "audio": audio})


@pytest.mark.parametrize("group", [40, 15])
@pytest.mark.parametrize(
    "settings",
    [
        {"dictionary_pagesize_limit": 2**30},
        {"use_dictionary": False},
        {"compression": "none", "dictionary_pagesize_limit": 2**30},
        {"compression": "none", "use_dictionary": False},
        {"compression": "zstd"},
        {"data_page_version": "2.0"},
        {"write_statistics": False},
        {"data_page_size": 1000, "write_batch_size": 4},  # a dictionary that gets too large, then PLAIN pages
        {"dictionary_pagesize_limit": 2**30, "write_page_index": True, "write_page_checksum": True},
    ],
)
@pytest.mark.parametrize("content", [{}, {"twice": True}, {"nulls": True}])
def test_reads_what_pyarrow_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict, content: dict, group: int
) -> None:
    monkeypatch.setattr(parquet, "LARGE", 0)
    path = tmp_path / "a.parquet"
    written = table(**content)
    pq.write_table(written, path, row_group_size=group, **settings)
    metadata = pq.read_metadata(path)
    read = [row for n in range(metadata.num_row_groups) for row in read_rows(path, metadata, n, COLUMNS, "audio.bytes")]
    expected = [
        {"name": row["name"], "audio.path": row["audio"]["path"], "audio.bytes": row["audio"]["bytes"]}
        for row in written.to_pylist()
    ]
    assert [dict(sorted(row.items())) for row in read] == [dict(sorted(row.items())) for row in expected]


@pytest.mark.parametrize("dictionary", [True, False])
def test_reads_a_column_that_may_not_be_null(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dictionary: bool) -> None:
    monkeypatch.setattr(parquet, "LARGE", 0)
    path, clips = tmp_path / "a.parquet", [bytes([number]) * 1000 for number in range(20)]
    schema = pa.schema([pa.field("name", pa.string()), pa.field("audio", pa.binary(), nullable=False)])
    names = [str(number) for number in range(20)]
    pq.write_table(pa.table([names, clips], schema=schema), path, use_dictionary=dictionary)
    read = read_rows(path, pq.read_metadata(path), 0, ["name", "audio"], "audio")
    assert [row["audio"] for row in read] == clips


def test_reads_a_row_group_without_what_lies_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "LARGE", 0)
    path = tmp_path / "a.parquet"
    pq.write_table(table(), path, row_group_size=15, dictionary_pagesize_limit=2**30)
    metadata = pq.read_metadata(path)
    start = metadata.row_group(1).column(0).dictionary_page_offset
    (tmp_path / "part").write_bytes(path.read_bytes()[start:])
    whole = list(read_rows(path, metadata, 1, COLUMNS, "audio.bytes"))
    assert list(read_rows(tmp_path / "part", metadata, 1, COLUMNS, "audio.bytes", start)) == whole


@pytest.mark.parametrize("position", [30, 2000, 400_000, 1_000_000])
@pytest.mark.parametrize("compression", ["snappy", "none"])
def test_damage_ends_in_an_error_or_in_other_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str, position: int
) -> None:
    monkeypatch.setattr(parquet, "LARGE", 0)
    path = tmp_path / "a.parquet"
    pq.write_table(table(), path, compression=compression, dictionary_pagesize_limit=2**30)
    metadata = pq.read_metadata(path)
    content = bytearray(path.read_bytes())
    content[position : position + 50] = bytes(255 - byte for byte in content[position : position + 50])
    path.write_bytes(content)
    with suppress(OSError, ValueError, IndexError, KeyError):
        assert len(list(read_rows(path, metadata, 0, COLUMNS, "audio.bytes"))) == 40


MEMORY = """
import resource, sys
from pathlib import Path
import pyarrow.parquet as pq
from dqlora.data.parquet import read_rows
path = Path(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = read_rows(path, pq.read_metadata(path), 0, ["name", "audio.bytes"], "audio.bytes")
assert sum(len(row["audio.bytes"]) for row in rows) == 100 << 20
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_page_of_a_whole_row_group_is_not_held(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rng = np.random.default_rng(0)
    audio = [{"bytes": rng.bytes(1 << 20), "path": f"{n}.wav"} for n in range(100)]
    pq.write_table(
        pa.table({"name": [str(n) for n in range(100)], "audio": audio}), path, dictionary_pagesize_limit=2**30
    )
    ended = subprocess.run([sys.executable, "-c", MEMORY, str(path)], capture_output=True, text=True, check=True)
    assert int(ended.stdout) < 40 * 1024  # kB, of 100 MB
