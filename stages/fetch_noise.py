"""Fetch noise recordings: data/<preset>/noise/{train,test}, 16 kHz mono, no recording in both."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dqlora.config import Noise, Paths, load_params, load_preset
from dqlora.data.audio import SAMPLE_RATE, BadAudio, check_sound, read_audio, to_float32, to_int16
from dqlora.data.download import RemoteFile, download_all, extract_archive, read_url_list
from dqlora.data.noise import find_recordings, synthetic_recordings
from dqlora.data.storage import RaggedArray, RaggedArrayWriter, atomic_directory
from dqlora.errors import Rejected, UserError, run_stage

Named = tuple[str, str, np.ndarray]  # id, category, float32 [samples]
SPLITS = ("test", "train")  # test first: a recording found in both stays out of training
PEAK = 0.5  # every recording is stored at this peak: the SNR sets its level, and quiet ones keep their 16 bits


def synthetic(noise: Noise, split: str, paths: Paths, seed: int) -> Iterator[Named]:
    clean = RaggedArray(paths.clean / split)
    voices = [to_float32(clean[item["id"]]) for item in clean.items]
    return synthetic_recordings(split, getattr(noise.recordings, split), noise.seconds, seed, voices)


def recorded(noise: Noise, folder: Path, split: str, seed: int, rejected: Rejected) -> Iterator[Named]:
    for recording in find_recordings(folder, seed)[split]:
        try:
            samples = read_audio(recording.path)
            check_sound(samples)
        except BadAudio as reason:
            rejected.add(split, recording.id, str(reason))
            continue
        yield recording.id, recording.category, samples


def source_folder(path: str, paths: Paths) -> Path:
    """The folder of recordings that noise.path names, downloaded first where it is a list of URLs or an archive."""
    if path.endswith(".csv"):
        download_all(read_url_list(Path(path)), paths.downloads / "noise", paths.checksums)
        return paths.downloads / "noise"
    if path.startswith(("http://", "https://")):
        [archive] = download_all([RemoteFile(path.rpartition("/")[2], path)], paths.downloads, paths.checksums)
        with atomic_directory(paths.downloads / "noise") as folder:
            extract_archive(archive, folder)
        return paths.downloads / "noise"
    return Path(path)


def main() -> None:
    params = load_params()
    noise = load_preset(params.preset).noise
    paths = Paths(params.preset)
    source = None if noise.path == "synthetic" else source_folder(noise.path, paths)
    rejected = Rejected()
    contents: dict[str, str] = {}
    with atomic_directory(paths.noise) as out:
        for split in SPLITS:
            wanted, written = getattr(noise.recordings, split), 0
            recordings = (
                recorded(noise, source, split, params.seed, rejected)
                if source
                else synthetic(noise, split, paths, params.seed)
            )
            with (
                RaggedArrayWriter(out / split, "int16") as writer,
                tqdm(desc=f"noise {split}", unit=" recordings") as progress,
            ):
                for name, category, samples in recordings:
                    kept = samples[: round(noise.seconds * SAMPLE_RATE)]
                    stored = to_int16(kept * (PEAK / np.abs(kept).max(initial=1e-9)))
                    content = hashlib.sha256(stored.tobytes()).hexdigest()
                    if content in contents:
                        rejected.add(split, name, f"the same sound as {contents[content]}")
                        continue
                    contents[content] = f"{split}/{name}"
                    writer.append(stored, id=name, category=category)
                    written += 1
                    progress.update()
                    if written == wanted:
                        break
            if not written:
                rejected.write(out)
                raise UserError(f"noise.path: {noise.path}: no usable recording in {split} (reasons above)")
        rejected.write(out)


if __name__ == "__main__":
    run_stage(main)
