"""Noise in zip and tar archives: only audio comes out, and only into its folder."""

import io
import shutil
import stat
import tarfile
import zipfile
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from dqlora.data.archives import extract_archive
from dqlora.errors import UserError

NOISE = np.random.default_rng(0).bytes(20_000)  # does not get smaller when packed
MODES = {"zip": zipfile.ZIP_STORED, "deflated.zip": zipfile.ZIP_DEFLATED, "bzip2.zip": zipfile.ZIP_BZIP2,
         "lzma.zip": zipfile.ZIP_LZMA, "tar": "w", "tar.gz": "w:gz", "tar.bz2": "w:bz2", "tar.xz": "w:xz"}  # fmt: skip


def write(path: Path, *names: str, link: str = "") -> Path:
    mode = MODES[path.name.partition(".")[2]]
    if isinstance(mode, int):
        with zipfile.ZipFile(path, "w", mode) as packed:
            for name in names:
                packed.writestr(name, NOISE)
            if link:
                info = zipfile.ZipInfo(link)
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
                packed.writestr(info, "/etc/passwd")
        return path
    with tarfile.open(path, mode) as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(NOISE)
            tar.addfile(member, io.BytesIO(NOISE))
        if link:
            member = tarfile.TarInfo(link)
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(member)
    return path


@pytest.fixture(params=MODES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_only_audio_comes_out(tmp_path: Path, kind: str) -> None:
    names = ("ESC-50/audio/b.wav", "n/A.FLAC", "n/._b.wav", "n/readme.txt", "__MACOSX/n/A.FLAC", ".x/b.wav")
    paths = extract_archive(write(tmp_path / f"a.{kind}", *names, link="n/c.wav"), tmp_path / "out")
    assert paths == [tmp_path / "out/ESC-50/audio/b.wav", tmp_path / "out/n/A.FLAC"]
    assert [path for path in sorted((tmp_path / "out").rglob("*")) if path.is_file()] == paths
    assert all(path.read_bytes() == NOISE for path in paths)


@pytest.mark.parametrize("name", ["../b.wav", "n/../../b.wav", "/b.wav"])
def test_nothing_leaves_the_folder(tmp_path: Path, kind: str, name: str) -> None:
    with pytest.raises(UserError, match="unsafe"):
        extract_archive(write(tmp_path / f"a.{kind}", name), tmp_path / "out")
    assert not list(tmp_path.rglob("b.wav"))


def test_windows_paths_are_paths(tmp_path: Path) -> None:
    assert extract_archive(write(tmp_path / "a.zip", "n\\b.wav"), tmp_path / "out") == [tmp_path / "out/n/b.wav"]
    with pytest.raises(UserError, match="unsafe"):
        extract_archive(write(tmp_path / "b.zip", "..\\c.wav"), tmp_path / "out")


def test_a_bomb_is_refused(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = write(tmp_path / f"a.{kind}", "a.wav", "b.wav")
    usage = namedtuple("usage", "free")(len(NOISE) + 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="more than the disk has room for"):
        extract_archive(archive, tmp_path / "out")


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.9])
def test_a_cut_archive_is_named_with_a_way_out(tmp_path: Path, kind: str, ratio: float) -> None:
    archive = write(tmp_path / f"a.{kind}", *(f"{number}.wav" for number in range(8)))
    archive.write_bytes(archive.read_bytes()[: round(ratio * archive.stat().st_size)])
    with pytest.raises(UserError, match=r"give a whole one \(in downloads/ it is fetched again once you delete it\)"):
        extract_archive(archive, tmp_path / "out")


def test_other_archives_are_to_be_unpacked(tmp_path: Path) -> None:
    (tmp_path / "noise.rar").write_bytes(b"Rar!\x1a\x07\x01\x00" + NOISE)
    with pytest.raises(UserError, match=r"neither a zip nor a tar .* unpack it yourself and"):
        extract_archive(tmp_path / "noise.rar", tmp_path / "out")


def test_an_encrypted_zip_is_to_be_unpacked(tmp_path: Path) -> None:
    data = bytearray(write(tmp_path / "a.zip", "b.wav").read_bytes())
    data[6] |= 1  # general purpose flag, bit 0, of the file
    data[data.rindex(b"PK\1\2") + 8] |= 1  # and of the directory
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(UserError, match=r"encrypted.* unpack it yourself"):
        extract_archive(tmp_path / "a.zip", tmp_path / "out")


@pytest.mark.parametrize("kind", ["deflated.zip", "tar.gz", "tar"])
def test_no_mutation_of_an_archive_escapes(tmp_path: Path, kind: str) -> None:
    whole = write(tmp_path / f"a.{kind}", "a.wav", "n/b.wav").read_bytes()
    rng = np.random.default_rng(0)
    for number in range(100):
        data = bytearray(whole)
        for _ in range(3):
            at = int(rng.integers(len(data))) if rng.random() < 0.5 else int(rng.choice([0, 1])) * -600
            data[at : at + 8] = rng.bytes(8)
        archive = tmp_path / f"{number}.{kind}"
        archive.write_bytes(data)
        try:
            paths = extract_archive(archive, tmp_path / "out")
        except UserError:
            continue
        assert all(path.is_relative_to(tmp_path / "out") for path in paths)
