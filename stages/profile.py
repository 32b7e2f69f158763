"""What transcribing costs on one core of the CPU, by each form of the student and by the teacher: RTF and memory.

metrics/<preset>/costs.json. Each model is loaded in a process of its own, so that its memory is its own. The only stage
whose output differs from run to run, so that all others come from DVC's cache.
"""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from dqlora.config import Paths, load_params, load_preset
from dqlora.data.audio import SAMPLE_RATE
from dqlora.data.storage import write_json
from dqlora.data.text import Vocabulary
from dqlora.errors import quieten_libraries, run_stage
from dqlora.evaluation.profiling import peak_rss_mb, real_time_factor
from dqlora.evaluation.sample import sample_utterances
from dqlora.evaluation.test_set import test_clips
from dqlora.models.decoding import Decoder, greedy, load_decoder

SECONDS = 45  # of the test set: a sample is enough
MODELS = ("base", "distilled", "merged", "onnx", "teacher")

Costs = dict[str, dict[str, float]]  # of a form: rtf, peak_rss_mb


def sample(paths: Paths) -> list[np.ndarray]:
    """int16 [samples] each, about SECONDS together, or one utterance in all its conditions."""
    rows, clips = test_clips(paths)
    whole = sum(map(len, clips)) / SAMPLE_RATE
    utterances = len({row["id"] for row in rows})
    return sample_utterances(rows, clips, max(1, round(utterances * SECONDS / whole)))[1]


def student_logits(model: str, paths: Paths, quantize: str) -> Callable[[np.ndarray], np.ndarray]:
    """Loads a form of the student; it gives logits float32 [frames, vocabulary] of float32 [samples]."""
    if model == "onnx":
        import onnxruntime  # and not torch, which the form does without

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            paths.exported / "onnx" / "model.onnx", options, providers=["CPUExecutionProvider"]
        )
        return lambda samples: session.run(None, {"audio": samples[None]})[0][0]
    import torch

    from dqlora.models.gate import load_distilled
    from dqlora.models.wav2vec2 import EncoderCTC, clip_logits, load_student

    quieten_libraries()
    cpu = torch.device("cpu")
    forms = {
        "base": lambda: EncoderCTC(load_student(paths.student, quantize, cpu)),
        "distilled": lambda: load_distilled(paths.student, paths.adapter, quantize, cpu),
        "merged": lambda: EncoderCTC(load_student(paths.exported / "merged", "none", cpu)),
    }
    student = forms[model]()
    return lambda samples: clip_logits(student, samples)


def measure_teacher(paths: Paths, language: str, clips: list[np.ndarray]) -> Costs:
    import torch

    from dqlora.models.whisper import Teacher

    quieten_libraries()
    teacher = Teacher(paths.teacher, torch.device("cpu"))
    rtf = real_time_factor(lambda samples: teacher.transcribe([samples], language)[0], clips, "teacher")
    return {"teacher": {"rtf": rtf, "peak_rss_mb": peak_rss_mb()}}


def measure(model: str, paths: Paths, quantize: str, language: str) -> Costs:
    """The costs of one of MODELS; those of base and distilled also, as `_lm`, decoded as the run does, if not greedily.

    To be called in a process of its own.
    """
    clips = sample(paths)
    if model == "teacher":
        return measure_teacher(paths, language, clips)
    vocabulary = Vocabulary.load(paths.student / "vocab.json")
    logits = student_logits(model, paths, quantize)
    costs: Costs = {}
    decoders: dict[str, Decoder] = {model: greedy}
    if model in ("base", "distilled") and (decoder := load_decoder(paths.decoder.parent, vocabulary)) is not greedy:
        decoders[f"{model}_lm"] = decoder
    for name, decode in decoders.items():

        def transcribe(samples: np.ndarray, decode: Decoder = decode) -> str:
            return vocabulary.decode(decode(logits(samples)).tolist())

        costs[name] = {"rtf": real_time_factor(transcribe, clips, name), "peak_rss_mb": peak_rss_mb()}
    return costs


def main() -> None:
    params = load_params()
    language = load_preset(params.preset).speech.language
    paths, quantize = Paths(params.preset), params.student.quantize
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes to come
    costs: Costs = {}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, max_tasks_per_child=1) as pool:
        for model in MODELS:
            costs |= pool.submit(measure, model, paths, quantize, language).result()
    write_json(paths.costs, costs)
    for name, found in costs.items():
        print(f"{name:>12}: RTF {found['rtf']:.3f}, {found['peak_rss_mb']:.0f} MB")


if __name__ == "__main__":
    run_stage(main)
