"""Fetch noise recordings: data/<preset>/noise/{train,test,out_of_domain}, 16 kHz mono, no recording in two."""

import hashlib
import re
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from dqlora.config import OUT_OF_DOMAIN, Noise, Paths, load_params, load_preset
from dqlora.data.archives import check_archive, extract_archive
from dqlora.data.audio import SAMPLE_RATE, BadAudio, check_sound, read_audio, to_float32, to_int16
from dqlora.data.download import RemoteFile, download_all, read_url_list
from dqlora.data.folders import as_text, files_below
from dqlora.data.mixing import sounding_part
from dqlora.data.noise import (
    Recording,
    find_recordings,
    outside_splits,
    synthetic_recordings,
    test_recordings,
    unused_files,
)
from dqlora.data.origin import common_address, write_origin
from dqlora.data.storage import RaggedArray, RaggedArrayWriter, atomic_directory
from dqlora.data.tables import TEXT_COLUMNS
from dqlora.errors import Rejected, UserError, named, run_stage
from dqlora.progress import ProgressBar

Named = tuple[str, str, np.ndarray]  # id, category, float32 [samples]
SPLITS = ("test", "train")  # test first: a recording found in both stays out of training
LONGEST_HEADER = 10_000  # characters that are read of a table's first line
PEAK = 0.5  # every recording is stored at this peak: the SNR sets its level, and quiet ones keep their 16 bits


def synthetic(noise: Noise, split: str, paths: Paths, seed: int) -> Iterator[Named]:
    clean = RaggedArray(paths.clean / split)
    voices = [to_float32(clean[item["id"]]) for item in clean.items]
    return synthetic_recordings(split, getattr(noise.recordings, split), noise.seconds, seed, voices)


def recorded(recordings: list[Recording], split: str, seconds: float, rejected: Rejected) -> Iterator[Named]:
    for recording in recordings:
        try:
            samples = read_audio(recording.path)
            check_sound(samples)
            samples = sounding_part(samples, round(seconds * SAMPLE_RATE))
            check_sound(samples)
        except BadAudio as reason:
            rejected.add(split, recording.id, str(reason))
            continue
        yield recording.id, recording.category, samples


def write_split(
    recordings: Iterable[Named],
    split: str,
    wanted: int | None = None,
    *,
    out: Path,
    contents: dict[str, str],
    rejected: Rejected,
) -> dict[str, float]:
    """Write at most `wanted` recordings, none whose `contents` stand there already; how many, and how long."""
    written = samples_written = 0
    with (
        RaggedArrayWriter(out / split, "int16") as writer,
        ProgressBar(desc=f"noise {split}", unit=" recordings", leave=False) as progress,
    ):
        for name, category, samples in recordings:
            stored = to_int16(samples * (PEAK / np.abs(samples).max()))
            content = hashlib.sha256(stored.tobytes()).hexdigest()
            if content in contents:
                rejected.add(split, name, f"the same sound as {contents[content]}")
                continue
            contents[content] = f"{split}/{name}"
            writer.append(stored, id=name, category=category)
            written += 1
            samples_written += len(stored)
            progress.update()
            if written == wanted:
                break
    print(f"{split}: {written} recordings, {rejected.count(split)} rejected")
    return {"recordings": written, "seconds": samples_written / SAMPLE_RATE}


def source_folder(path: str, paths: Paths) -> Path:
    """The folder of recordings that noise.path names, downloaded and unpacked first where it is no folder."""
    if path.endswith(".csv"):
        files, folder = read_url_list(Path(path)), paths.downloads / "noise"
        download_all(files, folder, paths.checksums, read_audio)
        for name in set(files_below(folder)) - {file.name for file in files}:
            (folder / name).unlink()  # of an earlier list or archive
        return folder
    if path.startswith(("http://", "https://")):
        remote = RemoteFile(path.rpartition("/")[2], path)
        [archive] = download_all([remote], paths.downloads, paths.checksums, check_archive)
    else:
        archive = Path(path).expanduser()
    if archive.is_file():
        with atomic_directory(paths.downloads / "noise") as folder:
            extract_archive(archive, folder)
        return paths.downloads / "noise"
    return archive


def address_of(path: str) -> str:
    """Where the files of a list of URLs come from; empty for other noise."""
    return common_address([file.url for file in read_url_list(Path(path))]) if path.endswith(".csv") else ""


def tell_unused(why: str, names: list[str]) -> None:
    if names:
        print(as_text(f"not used, {why}: {len(names)} ({named(names)})"))


def check_is_not_speech(noise: str, speech: str) -> None:
    """Raise UserError if the folder of noise is that of the speech, or holds it."""
    if Path(speech).is_dir() and Path(speech).resolve().is_relative_to(Path(noise).resolve()):
        raise UserError(
            f"noise.path: {noise}: speech.path ({speech}) lies in it, and its speech would be taken for noise; name a "
            "folder of noise alone"
        )


def warn_of_transcripts(folder: Path, names: list[str]) -> None:
    """Warn if one of the folder's other files is a table of transcripts: what lies there may be speech."""
    for name in names:
        if name.endswith((".csv", ".tsv")) and (folder / name).is_file():
            with (folder / name).open(encoding="utf-8", errors="replace") as table:
                columns = re.findall(r"\w+", table.readline(LONGEST_HEADER).lower())
            if set(TEXT_COLUMNS) & set(columns):
                print(
                    f"warning: noise.path: {folder}: {name} holds transcripts; if these are recordings of speech, name "
                    "a folder of noise instead",
                    file=sys.stderr,
                )


def main() -> None:
    params = load_params()
    preset, paths = load_preset(params.preset), Paths(params.preset)
    noise = preset.noise
    check_is_not_speech(noise.path, preset.speech.path)
    source = None if noise.path == "synthetic" else source_folder(noise.path, paths)
    rejected = Rejected()
    contents: dict[str, str] = {}
    found = find_recordings(source, params.seed) if source else {}
    if source:
        unused = unused_files(source)
        tell_unused("by their names no recordings", unused)
        warn_of_transcripts(source, unused)
        tell_unused("in neither of the splits train and test", outside_splits(source))
    with atomic_directory(paths.noise) as out:
        writer = partial(write_split, out=out, contents=contents, rejected=rejected)
        amounts = {}
        for split in SPLITS:
            recordings = (
                recorded(found[split], split, noise.seconds, rejected)
                if source
                else synthetic(noise, split, paths, params.seed)
            )
            amounts[split] = writer(recordings, split, getattr(noise.recordings, split))
            if not amounts[split]["recordings"]:
                rejected.show()
                raise UserError(f"noise.path: {noise.path}: no usable recording in {split} (reasons above)")
        if preset.out_of_domain == "none":
            with RaggedArrayWriter(out / OUT_OF_DOMAIN, "int16"):
                pass
        else:
            folder = preset.out_of_domain.noise
            others = recorded(test_recordings(Path(folder)), OUT_OF_DOMAIN, noise.seconds, rejected)
            amount = writer(others, OUT_OF_DOMAIN)
            if not amount["recordings"]:
                rejected.show()
                raise UserError(f"out_of_domain.noise: {folder}: no usable recording (reasons above)")
            write_origin(out / OUT_OF_DOMAIN, folder, "noise", None, test=amount)
        write_origin(out, noise.path, "noise", None, address=address_of(noise.path), **amounts)
        rejected.write(out)


if __name__ == "__main__":
    run_stage(main)
