"""Archives of recordings: zip, and tar packed in any way."""

import errno
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from dqlora.data.audio import AUDIO_SUFFIXES
from dqlora.data.folders import is_audio, is_hidden
from dqlora.errors import UserError
from dqlora.progress import ProgressBar

Member = tuple[PurePosixPath, int, Callable[[], IO[bytes]]]  # name, bytes, and how to open it


def check_archive(path: Path) -> None:
    """Raise ValueError if a file is neither a zip nor a tar archive."""
    if not (zipfile.is_zipfile(path) or tarfile.is_tarfile(path)):
        raise ValueError("neither a zip nor a tar archive; unpack it yourself and name the folder")


def extract_archive(archive: Path, folder: Path) -> list[Path]:
    """Unpack the audio files of a zip or tar archive, packed in any way.

    No links, no hidden files, nothing outside `folder`, and no more than the disk has room for.

    Raises
    ------
    UserError
        If the archive is missing, damaged, encrypted, reaches outside `folder`, is too large, or holds no audio.
    """
    paths: list[Path] = []
    room = shutil.disk_usage(archive.parent).free if archive.exists() else 0
    try:
        for name, size, content in _zip_members(archive) if zipfile.is_zipfile(archive) else _tar_members(archive):
            if not is_audio(name.name):
                continue
            if name.is_absolute() or ".." in name.parts:
                raise UserError(f"{archive}: unsafe, not unpacked ({name} is outside); take another archive")
            if any(map(is_hidden, name.parts)):
                continue
            room -= size
            if room < 0:
                raise UserError(
                    f"{archive}: holds more than the disk has room for; free some, or unpack a part yourself"
                )
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with content() as source, path.open("wb") as target:
                shutil.copyfileobj(source, target)
            paths.append(path)
    except FileNotFoundError:
        raise UserError(f"{archive}: no such file; download it first") from None
    except (RuntimeError, NotImplementedError) as error:  # a password is needed, or a compression unknown to zipfile
        raise UserError(f"{archive}: {error}; unpack it yourself and point noise.path at the folder") from None
    except tarfile.ReadError:
        raise UserError(
            f"{archive}: neither a zip nor a tar archive, or damaged; give a whole one (in downloads/ it is "
            "fetched again once you delete it), or unpack it yourself and point noise.path at the folder"
        ) from None
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"{archive}: damaged or cut short ({error}); give a whole one (in downloads/ it is "
            "fetched again once you delete it)"
        ) from None
    if not paths:
        raise UserError(f"{archive}: holds no audio ({', '.join(sorted(AUDIO_SUFFIXES))}); name another archive")
    return sorted(set(paths))


def _zip_members(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as packed:
        for info in ProgressBar(packed.infolist(), desc=f"extract {archive.name}", unit=" files"):
            if not info.is_dir() and not stat.S_ISLNK(info.external_attr >> 16):
                name = PurePosixPath(info.filename.replace("\\", "/"))
                yield name, info.file_size, partial(packed.open, info)


def _tar_members(archive: Path) -> Iterator[Member]:
    with tarfile.open(archive) as packed:
        for info in ProgressBar(packed, desc=f"extract {archive.name}", unit=" files"):
            if info.isfile():
                yield PurePosixPath(info.name), info.size, partial(_tar_content, packed, info)


def _tar_content(packed: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    content = packed.extractfile(info)
    assert content is not None  # of a file it never is
    return content
