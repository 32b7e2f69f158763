"""What `train.interpolation` trades where the adapter reads all clips: WER on clean and on noisy speech.

python -m study.interpolation --preset mini

Reads what the stages up to train left, with params.yaml as it was then. A LoRA update is scaled without training again:
one adapter gives all rows.
Choose by the validation columns; those of the test are there to see whether the choice holds.
"""

from typing import Annotated

import torch
import typer
from tqdm import tqdm

from dqlora.audio import FRAMES_PER_SECOND, to_float32
from dqlora.config import Paths, load_params, load_preset
from dqlora.errors import UserError, run_stage
from dqlora.scoring import count_errors
from dqlora.storage import Packed
from dqlora.student import FromFeatures, cnn_features, load_adapted
from dqlora.text import Vocabulary
from dqlora.training import read_batched

SHARES = [round(0.1 * number, 1) for number in range(11)]
Clips = list[tuple[torch.Tensor, str]]  # CNN features [frames, conv_dim], text


def clips_of(model: torch.nn.Module, paths: Paths, split: str) -> dict[str, Clips]:
    """A split's clips, clean and noisy."""
    clean, noisy = Packed(paths.clean / split), Packed(paths.noisy / split)
    found: dict[str, Clips] = {f"{split}, clean": [], f"{split}, noisy": []}
    for item in tqdm(clean.items, f"{split}, clean", unit=" clips"):
        found[f"{split}, clean"].append((cnn_features(model, to_float32(clean[item["id"]])), item["text"]))
    for item in tqdm(noisy.items, f"{split}, noisy", unit=" clips"):
        text = clean.item(item["utterance"])["text"]
        found[f"{split}, noisy"].append((cnn_features(model, to_float32(noisy[item["id"]])), text))
    return found


@torch.inference_mode()
def main(preset: Annotated[str, typer.Option(help="Whose artifacts to read.")] = "mini") -> None:
    params, paths = load_params(), Paths(preset)
    settings = load_preset(preset)
    if not (paths.adapter / "adapter_config.json").exists():
        raise UserError(f"{paths.adapter}: no LoRA adapter; run `dvc repro train` (with student.adapt: lora)")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vocabulary = Vocabulary.load(paths.student / "vocab.json")
    model = load_adapted(paths.student, paths.adapter, params.student.quantize, device)
    kept = {name: weight.clone() for name, weight in model.named_parameters() if "lora_B" in name}
    tests = clips_of(model, paths, "validation") | clips_of(model, paths, "test")
    longest = round(settings.budget.batch_seconds * FRAMES_PER_SECOND)
    print(f"| interpolation | {' | '.join(tests)} |\n|{' --- |' * (1 + len(tests))}")
    for share in SHARES:
        for name, weight in model.named_parameters():
            if name in kept:
                weight.copy_(kept[name] * (share / params.train.interpolation))
        cells = []
        for clips in tests.values():
            texts = read_batched(FromFeatures(model), [features for features, _ in clips], vocabulary, longest)
            wer = count_errors([text for _, text in clips], texts, settings.speech.language).wer
            cells.append(f"{100 * wer:.1f}")
        print(f"| {share} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    run_stage(lambda: typer.run(main))
