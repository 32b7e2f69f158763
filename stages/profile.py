"""What transcribing costs, by the run's student and its exports: RTF and memory, metrics/<preset>/costs.json.

The only stage whose output differs from run to run, so that all others come from DVC's cache.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from dqlora.config import Paths, load_params
from dqlora.data.storage import write_json
from dqlora.data.text import Vocabulary
from dqlora.device import default_device
from dqlora.errors import run_stage
from dqlora.evaluation.profiling import peak_memory_mb, real_time_factor
from dqlora.evaluation.test_set import test_clips
from dqlora.models.decoding import Decoder, greedy, load_decoder
from dqlora.models.export import OnnxStudent
from dqlora.models.gate import load_distilled
from dqlora.models.wav2vec2 import EncoderCTC, clip_logits, load_student, transcribe

CLIPS = 60  # of the test set, spread evenly over its conditions: a sample is enough


def decoded(student: EncoderCTC, decoder: Decoder, vocabulary: Vocabulary, samples: np.ndarray) -> str:
    return vocabulary.decode(decoder(clip_logits(student, samples)).tolist())


def main() -> None:
    params = load_params()
    paths = Paths(params.preset)
    vocabulary = Vocabulary.load(paths.student / "vocab.json")
    _, clips = test_clips(paths)
    clips = clips[:: -(-len(clips) // CLIPS)]

    distilled = load_distilled(paths.student, paths.adapter, params.student.quantize, default_device())
    rtf = real_time_factor(partial(transcribe, distilled, vocabulary), clips, "distilled student")
    costs = {"distilled": {"rtf": rtf, **peak_memory_mb()}}  # nothing else has been loaded yet
    decoder = load_decoder(paths.decoder.parent, vocabulary)
    if decoder is not greedy:
        with_decoder = partial(decoded, distilled, decoder, vocabulary)
        rtf = real_time_factor(with_decoder, clips, "distilled student, decoded by beam search")
        costs["distilled_lm"] = {"rtf": rtf, **peak_memory_mb()}
    del distilled
    merged = EncoderCTC(load_student(paths.exported / "merged", "none", torch.device("cpu")))
    onnx = OnnxStudent(paths.exported / "onnx")
    exports: dict[str, Callable[[np.ndarray], str]] = {
        "merged": partial(transcribe, merged, vocabulary),
        "onnx": lambda samples: vocabulary.decode(onnx.token_ids(samples).tolist()),
    }
    costs |= {name: {"rtf": real_time_factor(run, clips, name)} for name, run in exports.items()}
    write_json(paths.costs, costs)
    for name, found in costs.items():
        print(f"{name:>12}: RTF {found['rtf']:.3f}")


if __name__ == "__main__":
    run_stage(main)
