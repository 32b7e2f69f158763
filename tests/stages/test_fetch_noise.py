import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dqlora.config import Paths
from dqlora.data.noise import find_recordings
from dqlora.errors import UserError
from stages.fetch_noise import source_folder
from tests.conftest import write_noise


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
    assert {split: [item.id for item in items] for split, items in splits.items()} == {
        "train": ["fan_0.wav", "fan_1.wav"],
        "test": ["fan_0.wav", "fan_1.wav"],
    }
    assert len(paths.checksums.read_text().splitlines()) == 4
    assert paths.checksums.parent == tmp_path / "presets"  # beside the preset, in no stage's deps

    (tmp_path / "served/test/fan_1.wav").write_bytes(b"another recording")
    (paths.downloads / "noise/test/fan_1.wav").unlink()
    with pytest.raises(UserError, match=r"fan_1\.wav"):
        source_folder(str(tmp_path / "list.csv"), paths)


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    assert source_folder(str(tmp_path), Paths("mini", tmp_path)) == tmp_path
