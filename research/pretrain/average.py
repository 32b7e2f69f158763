"""Average the weights of two students of which the second was trained on from the first, and score the mean.

python -m research.pretrain.average FIRST SECOND --weight 0.5 --out FOLDER --test name=PATH
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import save_file
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

from dqlora.data.text import Vocabulary
from research.pretrain.data import read_tests
from research.pretrain.train import STUDENT, load_weights, score


def main(
    first: Annotated[Path, typer.Argument(help="A folder that research.pretrain.train saved.")],
    second: Annotated[Path, typer.Argument(help="Another, which it saved with --init FIRST.")],
    out: Annotated[Path, typer.Option(help="Where to write model.safetensors, float16.")],
    weight: Annotated[float, typer.Option(min=0, max=1, help="Of the second; the first has the rest.")] = 0.5,
    test: Annotated[list[str] | None, typer.Option(help="NAME=PATH, a Parquet file or an audio folder.")] = None,
) -> None:
    start, end = load_weights(first), load_weights(second)
    if start.keys() != end.keys():
        raise typer.BadParameter(f"{second}: not the weights of the model in {first}")
    mean = {name: torch.lerp(tensor.float(), end[name].float(), weight).half() for name, tensor in start.items()}
    out.mkdir(parents=True, exist_ok=True)
    save_file(mean, out / "model.safetensors", metadata={"format": "pt"})
    if test:
        model = Wav2Vec2ForCTC(Wav2Vec2Config.from_pretrained(STUDENT))
        model.load_state_dict(mean)
        score(model, read_tests(test), Vocabulary.load(STUDENT / "vocab.json"), torch.device("cpu"))


if __name__ == "__main__":
    typer.run(main)
