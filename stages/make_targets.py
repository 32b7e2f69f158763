"""What the student is to learn at each frame of the training clips, once: data/<preset>/targets.

A target is made on the clean speech, has the utterance's id and serves all its mixtures; only where Whisper encodes
the mixture (teacher_input: noisy), each has its own.
"""

import sys

import torch

from dqlora.config import Paths, load_params, load_preset
from dqlora.data.audio import to_float32
from dqlora.data.labels import labelled
from dqlora.data.storage import RaggedArray, atomic_directory
from dqlora.data.text import Vocabulary
from dqlora.device import default_device
from dqlora.errors import run_stage
from dqlora.evaluation.metrics import count_errors
from dqlora.models.teacher_head import load_head
from dqlora.models.wav2vec2 import EncoderCTC, backbone_of, load_student, transcribe
from dqlora.training.target_writer import TargetWriter
from dqlora.training.targets import Sources, make_target


def warn_of_weak_teacher(
    model: torch.nn.Module, vocabulary: Vocabulary, clean: RaggedArray, head_wer: float, language: str
) -> None:
    """Say so where the teacher's head transcribes clean speech worse than the student does: it can then only hurt."""
    student = EncoderCTC(model)
    hypotheses = [transcribe(student, vocabulary, to_float32(clean[item["id"]])) for item in clean.items]
    student_wer = count_errors([item["text"] for item in clean.items], hypotheses, language).wer
    print(f"clean validation WER: teacher's head {head_wer:.1%}, student {student_wer:.1%}")
    if head_wer > student_wer:
        print(
            "warning: the teacher's head transcribes clean speech worse than the student does, so distilling it can "
            "only hurt; raise the preset's teacher_head.steps or the amount of speech, or set lambda_distill: 0",
            file=sys.stderr,
        )


def main() -> None:
    params = load_params()
    language = load_preset(params.preset).speech.language
    paths, device = Paths(params.preset), default_device()
    target = make_target(params.distill)
    vocabulary = Vocabulary.load(paths.student / "vocab.json")
    model = load_student(paths.student, params.student.quantize, device)
    head = None
    if target.uses_head:
        head, head_wer = load_head(paths.teacher_head, device)
        if target.limited_by_head and params.teacher_input == "clean":
            warn_of_weak_teacher(model, vocabulary, labelled(paths, "validation"), head_wer, language)
    sources = Sources(EncoderCTC(model, target.base_layer), vocabulary.blank, params.seed, head)
    if target.base_layer:  # nothing above it is asked for
        del backbone_of(model).encoder.layers[target.base_layer :]
    whisper = RaggedArray(paths.teacher_features / "train") if target.uses_whisper else None
    with atomic_directory(paths.targets) as folder:
        TargetWriter(target, sources, vocabulary, labelled(paths, "train"), whisper).write(folder)


if __name__ == "__main__":
    run_stage(main)
