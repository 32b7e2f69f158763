"""Whether a student that adapts itself to each clip, without its text, makes fewer errors of it (SUTA).

python -m research.study.test_time_adaptation SPEECH... --noise NOISE [--run models/mini]

The distilled student as `dqlora transcribe --adapt` has it, decoded greedily and as the run decodes, after each number
of steps. Seconds are those of one core's work, whatever else the machine does.
"""

import time
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from dqlora.data.audio import SAMPLE_RATE
from dqlora.data.text import Vocabulary
from dqlora.device import CPU
from dqlora.errors import quieten_libraries, run_stage
from dqlora.evaluation.metrics import count_errors, per_sentence, relative_wer_reduction
from dqlora.evaluation.results import in_words
from dqlora.evaluation.test_set import CLEAN
from dqlora.models.decoding import Decoder, greedy, load_decoder
from dqlora.models.gate import load_distilled
from dqlora.models.run import base_of_run
from dqlora.models.test_time_adaptation import LEARNING_RATE, STEPS, adapted_logits
from research.study.mixtures import Mixture, mixtures

SNR_DB = [10.0, 5.0, 0.0]
DRAWS = 10_000


def print_table(clips: list[Mixture], texts: list[list[str]], steps: list[int], title: str) -> None:
    """WER in % after each of `steps`, and its change from the first, of each condition and of all noisy ones.

    Parameters
    ----------
    texts
        of each clip, after each of `steps`.
    """
    groups = {
        f"{Path(corpus).parent.name}/{Path(corpus).name}, {condition}": [
            at for at, clip in enumerate(clips) if (clip.corpus, clip.condition) == (corpus, condition)
        ]
        for corpus, condition in dict.fromkeys((clip.corpus, clip.condition) for clip in clips)
    }
    groups["all in noise"] = [at for at, clip in enumerate(clips) if clip.condition != CLEAN]
    names = [f"{step} steps" for step in steps]
    print(f"\n{title}\n\n| clips | {' | '.join([*names, *names[1:]])} |\n|{' --- |' * (2 * len(steps))}")
    for name, chosen in groups.items():
        references = [clips[at].reference for at in chosen]
        errors = [count_errors(references, [texts[at][column] for at in chosen], "en") for column in range(len(steps))]
        sentences = [per_sentence(each, references, "en") for each in errors]
        changes = [in_words(relative_wer_reduction(sentences[0], each, DRAWS, 0)) for each in sentences[1:]]
        print(f"| {name} | {' | '.join([*(f'{100 * each.wer:.1f}' for each in errors), *changes])} |")


def main(
    speech: Annotated[list[Path], typer.Argument(help="Folders with metadata.csv, or Parquet files.")],
    noise: Annotated[Path, typer.Option(help="A folder of noise recordings.")],
    run: Annotated[Path, typer.Option(help="models/<preset>, after `dvc repro fit_decoder`.")] = Path("models/mini"),
    learning_rate: Annotated[list[float], typer.Option(help="May be given again.")] = [LEARNING_RATE],  # noqa: B006
    steps: Annotated[list[int], typer.Option(help="Beside none; may be given again.")] = [STEPS],  # noqa: B006
    snr: Annotated[list[float], typer.Option(help="dB; may be given again.")] = SNR_DB,
    clean: Annotated[bool, typer.Option(help="Whether the clips are heard without noise as well.")] = True,
    limit: Annotated[int | None, typer.Option(help="Clips of each.")] = None,
) -> None:
    quieten_libraries()
    torch.set_num_threads(1)
    base, quantize = base_of_run(run / "adapter")
    vocabulary = Vocabulary.load(base / "vocab.json")
    student = load_distilled(base, run / "adapter", quantize, CPU)
    decoders: dict[str, Decoder] = {"greedy": greedy, "language model": load_decoder(run, vocabulary)}
    wanted = [0, *sorted(steps)]
    clips = [clip for clip in mixtures(speech, noise, tuple(snr), limit) if clean or clip.condition != CLEAN]
    texts: dict[tuple[float, str], list[list[str]]] = defaultdict(list)
    seconds: dict[tuple[float, bool], np.ndarray] = defaultdict(lambda: np.zeros(len(wanted)))
    audio = {noisy: sum(len(clip.samples) for clip in clips if (clip.condition != CLEAN) == noisy) / SAMPLE_RATE
             for noisy in (False, True)}  # fmt: skip
    for clip in clips:
        for rate in learning_rate:
            found = []
            for column, count in enumerate(wanted):
                started = time.process_time()
                found.append(adapted_logits(student, clip.samples, vocabulary.blank, steps=count, learning_rate=rate))
                seconds[rate, clip.condition != CLEAN][column] += time.process_time() - started
            for kind, decoder in decoders.items():
                texts[rate, kind].append([vocabulary.decode(decoder(logits).tolist()) for logits in found])
    for (rate, kind), each in texts.items():
        print_table(clips, each, wanted, f"learning rate {rate:g}, {kind}")
    for (rate, noisy), each in seconds.items():
        rtf = ", ".join(f"{one / audio[noisy]:.3f}" for one in each)
        print(f"\nRTF after {wanted} steps, learning rate {rate:g}, {'noisy' if noisy else 'clean'}: {rtf}")


if __name__ == "__main__":
    run_stage(lambda: typer.run(main))
