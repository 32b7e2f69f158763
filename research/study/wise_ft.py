"""What `budget.wise_ft_alpha` trades where the adapter is always on: WER on clean and on noisy speech.

python -m research.study.wise_ft --preset mini

Reads what the stages up to train left, with params.yaml as it was then. A LoRA update is scaled without training again:
one adapter gives all rows.
Choose by the validation columns; those of the test are there to see whether the choice holds.
"""

from typing import Annotated

import torch
import typer

from dqlora.config import Paths, load_params, load_preset
from dqlora.data.audio import FRAMES_PER_SECOND, to_float32
from dqlora.data.labels import labelled
from dqlora.data.storage import RaggedArray, rerun
from dqlora.data.text import Vocabulary
from dqlora.device import default_device
from dqlora.errors import UserError, run_stage
from dqlora.evaluation.metrics import count_errors
from dqlora.models.lora import load_adapted
from dqlora.models.wav2vec2 import EncoderCTC, cnn_features, transcribe_batch
from dqlora.progress import ProgressBar

ALPHAS = [round(0.1 * number, 1) for number in range(11)]
Clips = list[tuple[torch.Tensor, str]]  # CNN features [frames, conv_dim], text


def clips_of(model: torch.nn.Module, paths: Paths, split: str) -> dict[str, Clips]:
    """A split's clips, clean and noisy."""
    clean, noisy = labelled(paths, split), RaggedArray(paths.noisy / split)
    found: dict[str, Clips] = {f"{split}, clean": [], f"{split}, noisy": []}
    for item in ProgressBar(clean.items, f"{split}, clean", unit=" clips"):
        found[f"{split}, clean"].append((cnn_features(model, to_float32(clean[item["id"]])), item["text"]))
    for item in ProgressBar(noisy.items, f"{split}, noisy", unit=" clips"):
        text = clean.item(item["utterance"])["text"]
        found[f"{split}, noisy"].append((cnn_features(model, to_float32(noisy[item["id"]])), text))
    return found


@torch.inference_mode()
def main(preset: Annotated[str, typer.Option(help="Whose artifacts to read.")] = "mini") -> None:
    params, paths = load_params(), Paths(preset)
    settings = load_preset(preset)
    if not (paths.adapter / "adapter_config.json").exists():
        raise UserError(f"{paths.adapter}: no LoRA adapter; {rerun('train')} (with student.adapt: lora)")
    device = default_device()
    vocabulary = Vocabulary.load(paths.student / "vocab.json")
    model = load_adapted(paths.student, paths.adapter, params.student.quantize, device)
    trained = {name: weight.clone() for name, weight in model.named_parameters() if "lora_B" in name}
    tests = clips_of(model, paths, "validation") | clips_of(model, paths, "test")
    longest = round(settings.budget.batch_seconds * FRAMES_PER_SECOND)
    print(f"| WiSE-FT alpha | {' | '.join(tests)} |\n|{' --- |' * (1 + len(tests))}")
    for alpha in ALPHAS:
        for name, weight in model.named_parameters():
            if name in trained:
                weight.copy_(trained[name] * (alpha / settings.budget.wise_ft_alpha))
        cells = []
        for clips in tests.values():
            texts = transcribe_batch(EncoderCTC(model), [features for features, _ in clips], vocabulary, longest)
            wer = count_errors([text for _, text in clips], texts, settings.speech.language).wer
            cells.append(f"{100 * wer:.1f}")
        print(f"| {alpha} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    run_stage(lambda: typer.run(main))
