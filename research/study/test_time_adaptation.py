"""Whether a student that adapts itself to each clip, without its text, makes fewer errors of it (SUTA).

python -m research.study.test_time_adaptation SPEECH... --noise NOISE [--run models/mini]

SUTA (Lin, Li and Lee 2022, "Listen, Adapt, Better WER: Source-free Single-utterance Test-time Adaptation for Automatic
Speech Recognition"): some steps of AdamW on the clip alone lower the entropy of the frames that are no blank, and the
confusion of tokens with each other (Jin et al. 2020), of logits smoothed by a temperature. Layer norms and the CNN
change, and go back after the clip. Here for the base student and the distilled one (the gate chooses which of the two
models a clip is adapted from), in float32, decoded greedily and as the run decodes.
"""

import time
from collections import defaultdict
from itertools import product
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Wav2Vec2ForCTC

from dqlora.data.audio import SAMPLE_RATE
from dqlora.data.text import Vocabulary
from dqlora.errors import quieten_libraries, run_stage
from dqlora.evaluation.metrics import Errors, count_errors, per_sentence, relative_wer_reduction
from dqlora.evaluation.test_set import CLEAN
from dqlora.models.decoding import Decoder, greedy, load_decoder
from dqlora.models.export import merge, widened
from dqlora.models.gate import entropy_threshold, mean_entropy
from dqlora.models.run import base_of_run
from dqlora.models.wav2vec2 import backbone_of, normalise_audio
from research.study.mixtures import mixtures

SNR_DB = (10.0, 5.0, 0.0)
STEPS = (0, 1, 3, 5, 10)  # after which a clip is transcribed; 0: as it is
TEMPERATURE, ENTROPY_WEIGHT = 2.5, 0.3  # the paper's
DRAWS = 10_000


def adapted_weights(model: Wav2Vec2ForCTC) -> list[nn.Parameter]:
    """Those of the layer norms and of the CNN."""
    norms = [weight for module in model.modules() if isinstance(module, nn.LayerNorm) for weight in module.parameters()]
    chosen = {id(weight): weight for weight in [*norms, *backbone_of(model).feature_extractor.parameters()]}
    return list(chosen.values())


def loss(logits: Tensor, blank: int) -> Tensor:
    """Of one clip's logits [frames, vocabulary]."""
    log_probs = F.log_softmax(logits / TEMPERATURE, -1)
    probs = log_probs.exp()
    entropy = -(probs * log_probs).sum(-1)
    spoken = logits.argmax(-1) != blank
    of_entropy = entropy[spoken].mean() if spoken.any() else entropy.new_zeros(())
    weight = 1 + (-entropy.detach()).exp()
    weight = len(weight) * weight / weight.sum()
    confusion = (probs * weight[:, None]).T @ probs
    confusion = confusion / confusion.sum(1)
    of_confusion = (confusion.sum() - confusion.trace()) / len(confusion)
    return ENTROPY_WEIGHT * of_entropy + (1 - ENTROPY_WEIGHT) * of_confusion


def adapt(
    model: Wav2Vec2ForCTC, samples: np.ndarray, learning_rate: float, blank: int
) -> tuple[list[np.ndarray], list[float]]:
    """Logits float32 [frames, vocabulary] after each of STEPS, and after how many seconds; the model stays."""
    weights = adapted_weights(model)
    before = [weight.detach().clone() for weight in weights]
    optimiser = torch.optim.AdamW(weights, learning_rate, weight_decay=0.0)
    values = torch.from_numpy(normalise_audio(samples))[None]
    found, seconds, started = [], [], time.perf_counter()
    for weight in weights:
        weight.requires_grad_(True)
    for step in range(STEPS[-1] + 1):
        logits = model(values).logits[0]
        if step in STEPS:
            found.append(logits.detach().numpy())
            seconds.append(time.perf_counter() - started)
        if step < STEPS[-1]:
            optimiser.zero_grad()
            loss(logits, blank).backward()
            optimiser.step()
    for weight, old in zip(weights, before, strict=True):
        weight.requires_grad_(False).copy_(old)
    return found, seconds


def interval(before: Errors, after: Errors, references: list[str]) -> str:
    """How much lower the WER is, in %, with its interval over sentences."""
    found = relative_wer_reduction(per_sentence(before, references), per_sentence(after, references), DRAWS, 0)
    low, high = 100 * found["ci_low"], 100 * found["ci_high"]
    return f"{100 * found['relative']:.1f} % ({low:.1f} to {high:.1f})"


def main(
    speech: Annotated[list[Path], typer.Argument(help="Folders with metadata.csv, or Parquet files.")],
    noise: Annotated[Path, typer.Option(help="A folder of noise recordings.")],
    run: Annotated[Path, typer.Option(help="models/<preset>, after `dvc repro evaluate`.")] = Path("models/mini"),
    learning_rate: Annotated[list[float], typer.Option(help="May be given again.")] = [1e-4],  # noqa: B006
    limit: Annotated[int | None, typer.Option(help="Clips of each.")] = None,
) -> None:
    quieten_libraries()
    student, quantize = base_of_run(run / "adapter")
    vocabulary = Vocabulary.load(student / "vocab.json")
    base = widened(student, quantize)
    distilled = merge(student, run / "adapter", quantize)
    threshold = entropy_threshold(run / "adapter")
    decoders: dict[str, Decoder] = {"greedy": greedy, "language model": load_decoder(run, vocabulary)}
    references: dict[str, list[str]] = defaultdict(list)
    found: dict[tuple[str, str, float, str], list[list[str]]] = defaultdict(list)  # a text for each of STEPS
    seconds, audio = np.zeros(len(STEPS)), 0.0
    for one in mixtures(speech, noise, SNR_DB, limit):
        if one.condition == CLEAN:
            continue
        references[one.condition].append(one.reference)
        with torch.inference_mode():
            heard = base(torch.from_numpy(normalise_audio(one.samples))[None]).logits
            uncertain = threshold is None or mean_entropy(heard, torch.tensor([heard.shape[1]])).item() > threshold
        models = {"base": base, "distilled": distilled if uncertain else base}
        for rate, (name, model) in product(learning_rate, models.items()):
            logits, took = adapt(model, one.samples, rate, vocabulary.blank)
            seconds, audio = seconds + took, audio + len(one.samples) / SAMPLE_RATE
            for kind, decoder in decoders.items():
                texts = [vocabulary.decode(decoder(each).tolist()) for each in logits]
                found[name, kind, rate, one.condition].append(texts)
    steps = " | ".join(f"{step} steps" for step in STEPS)
    print(f"\n| student | decoded | learning rate | condition | {steps} | lower after {STEPS[-1]} |")
    print("|" + " --- |" * (5 + len(STEPS)))
    for (name, kind, rate, condition), texts in sorted(found.items()):
        errors = [count_errors(references[condition], list(each), "en") for each in zip(*texts, strict=True)]
        cells = [f"{100 * each.wer:.1f}" for each in errors]
        cells.append(interval(errors[0], errors[-1], references[condition]))
        print(f"| {' | '.join([name, kind, f'{rate:g}', condition, *cells])} |")
    print(
        f"\n| student | decoded | learning rate | {steps.replace('0 steps | ', '', 1)} |\n|"
        + " --- |" * (2 + len(STEPS))
    )
    for name, kind, rate in dict.fromkeys(key[:3] for key in sorted(found)):
        texts = [each for condition in references for each in found[name, kind, rate, condition]]
        spoken = [each for condition in references for each in references[condition]]
        errors = [count_errors(spoken, list(each), "en") for each in zip(*texts, strict=True)]
        print(
            f"| {name} | {kind} | {rate:g} | {' | '.join(interval(errors[0], each, spoken) for each in errors[1:])} |"
        )
    print(f"\nRTF after {steps}: {', '.join(f'{each / audio:.3f}' for each in seconds)}")


if __name__ == "__main__":
    run_stage(lambda: typer.run(main))
