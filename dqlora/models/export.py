"""A trained student as others load it: one transformers folder, one ONNX file in 8 bits, and how to use them."""

import json
import logging
import shutil
import tempfile
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Wav2Vec2ForCTC

from dqlora.data.audio import SAMPLE_RATE
from dqlora.data.storage import read_json, rerun, write_json
from dqlora.data.text import Vocabulary
from dqlora.errors import UserError, first_line
from dqlora.models.decoding import DECODER, Weights, decoder_settings
from dqlora.models.gate import entropy_threshold, mean_entropy
from dqlora.models.lora import add_trained_lora
from dqlora.models.wav2vec2 import backbone_of, frame_geometry, load_student, normalise_waves, project_features

PROCESSOR = ("vocab.json", "tokenizer_config.json", "preprocessor_config.json")
ONNX = "model.onnx"
LONGEST = 60  # s that the ONNX model takes at once
README = """\
# A student that transcribes noisy speech

Both folders hold the same student. The lines below run in this folder, on a recording of up to {seconds} s, and need
nothing of the project that made it.{notes}

## merged/, for transformers

`pip install transformers torch soundfile{decoder}` (on Linux this torch brings 2 GB of CUDA; without a GPU take its CPU
build, pytorch.org)

```python
import json

import numpy as np
import soundfile
import torch
from transformers import Wav2Vec2ForCTC

{read}
audio = (audio - audio.mean()) / np.sqrt(audio.var() + 1e-7)
model = Wav2Vec2ForCTC.from_pretrained("merged").eval()
with torch.inference_mode():
    logits = model(torch.from_numpy(audio[None])).logits[0].numpy()

with open("merged/vocab.json", encoding="utf-8") as file:
    tokens = json.load(file)
{merged_decode}```

## onnx/, for onnxruntime

`pip install onnxruntime soundfile{decoder}`

```python
import json

import numpy as np
import onnxruntime
import soundfile

{read}
session = onnxruntime.InferenceSession("onnx/model.onnx")
logits = session.run(None, {{"audio": audio[None]}})[0][0]

with open("onnx/vocab.json", encoding="utf-8") as file:
    tokens = json.load(file)
{onnx_decode}```
"""
GREEDY_LINES = """\
letters = {{index: token for token, index in tokens.items() if {is_letter}}}
best = logits.argmax(-1)
text = "".join(letters.get(index, "") for index in best[np.diff(best, prepend=-1) != 0].tolist())
print(" ".join(text.replace({delimiter}, " ").lower().split()))
"""
BEAM_LINES = """\
from ctc_beam_decoder import build_ctcdecoder

writes = {{{blank}: "", {delimiter}: " "}}
labels = [writes.get(token, token) for token in sorted(tokens, key=tokens.get)]
logits[:, [index for token, index in tokens.items() if len(token) > 1 and token != {blank}]] = -100
decoder = build_ctcdecoder(
    labels, {language_model}, alpha={alpha}, beta={beta}, unk_score_offset={unknown}
)
print(decoder.decode(logits, beam_width={beam_width}).lower())
"""
READ = """\
audio, rate = soundfile.read("recording.wav", always_2d=True)  # or FLAC, OGG, MP3
audio = audio.mean(axis=1)
if rate != 16000:
    samples = round(len(audio) * 16000 / rate)
    audio = np.fft.irfft(np.fft.rfft(audio), samples) * samples / len(audio)
audio = audio.astype(np.float32)
"""
GATED = """

The student's adapter runs only where its base is uncertain. `onnx/` does so; `merged/` is one plain model, which
cannot: its adapter is always on, which costs words on clean speech."""

HOTWORDS = """

The run listens for hot words, as `decoder.json` names them; the lines below do not."""


def write_exports(student: Path, adapter: Path, quantize: str, folder: Path) -> None:
    """Write merged/, for transformers, onnx/, for onnxruntime, and README.md of what a run left in `adapter`.

    A gated student is two models: model.onnx holds both; a transformers folder can hold one, the adapter merged, for
    all clips.
    """
    for name in ("merged", "onnx"):
        (folder / name).mkdir(parents=True)
        settings = save_decoder(adapter.parent, folder / name)
    merged, threshold = merge(student, adapter, quantize), entropy_threshold(adapter)
    save_merged(merged, student, folder / "merged")
    audio = FromAudio(merged) if threshold is None else GatedFromAudio(merged, widened(student, quantize), threshold)
    save_onnx(audio, student, folder / "onnx")
    (folder / "README.md").write_text(readme(student, threshold is not None, settings), encoding="utf-8")


def save_decoder(run: Path, folder: Path) -> dict[str, Any]:
    """Write how a run's folder decodes into another, decoder.json with its language model; what stands in it."""
    settings = decoder_settings(run)
    if settings["language_model"]:
        source = run / settings["language_model"]
        settings |= {"language_model": source.name}
        try:
            shutil.copyfile(source, folder / source.name)
        except FileNotFoundError:
            raise UserError(
                f"{source}: no such file; {rerun('build_lm')}, or copy it along with the adapter's folder"
            ) from None
    write_json(folder / DECODER, settings)
    return settings


def readme(student: Path, gated: bool, settings: dict[str, Any]) -> str:
    """How to turn a recording into text with each of the two folders, in lines that run as they stand."""
    vocabulary = Vocabulary.load(student / "vocab.json")

    def lines(folder: str) -> str:
        return decode_lines(vocabulary, settings, json.dumps(f"{folder}/{settings['language_model']}"))

    return README.format(
        seconds=LONGEST,
        notes=(GATED if gated else "") + (HOTWORDS if settings["hotwords"] else ""),
        read=READ,
        decoder=" ctc-beam-decoder" if settings["method"] == "beam" else "",
        merged_decode=lines("merged"),
        onnx_decode=lines("onnx"),
    )


def decode_lines(vocabulary: Vocabulary, settings: dict[str, Any], language_model: str) -> str:
    """Python that prints the text of `logits`, a NumPy array [frames, vocabulary], where `tokens` have their index.

    Parameters
    ----------
    settings
        of decoder.json.
    language_model
        an expression for the path of the language model.
    """
    blank = blank_token(vocabulary)
    named = {"blank": json.dumps(blank), "delimiter": json.dumps(vocabulary.delimiter)}
    if settings["method"] == "greedy":
        is_letter = "len(token) == 1" + (f" and token != {named['blank']}" if len(blank) == 1 else "")
        return GREEDY_LINES.format(is_letter=is_letter, **named)
    weights = asdict(Weights(**settings["weights"]))
    model = language_model if settings["language_model"] else "None"
    return BEAM_LINES.format(language_model=model, beam_width=settings["beam_width"], **weights, **named)


def blank_token(vocabulary: Vocabulary) -> str:
    """The token that stands for CTC's blank."""
    return next(token for token, index in vocabulary.token_ids.items() if index == vocabulary.blank)


def widened(student: Path, quantize: str) -> Wav2Vec2ForCTC:
    """The student in float32, its weights those that their 4-bit codes stand for."""
    base = load_student(student, quantize, torch.device("cpu"))
    return base if quantize == "none" else base.dequantize()


def merge(student: Path, adapter: Path, quantize: str) -> Wav2Vec2ForCTC:
    """The student with its adapter's updates added to its weights, in float32; 4-bit weights are widened first.

    Merged into what it was trained on, that is, not into the weights before they were quantised.
    """
    if not (adapter / "adapter_config.json").exists():
        return load_student(adapter, "none", torch.device("cpu"))
    return add_trained_lora(widened(student, quantize), adapter).merge_and_unload().eval()


def save_merged(model: Wav2Vec2ForCTC, student: Path, folder: Path) -> None:
    """Write what `transformers.pipeline("automatic-speech-recognition", folder)` loads; `student` has the processor."""
    model.save_pretrained(folder)
    save_processor(student, folder)


def save_processor(student: Path, folder: Path) -> None:
    """Write what turns audio into a student's input, and tokens into text: in small letters, as `Vocabulary.decode`."""
    for name in PROCESSOR:
        shutil.copyfile(student / name, folder / name)
    letters = Vocabulary.load(student / "vocab.json").letters
    for name, changed in (
        # transformers' `do_lower_case` goes with a vocabulary of capitals; of Turkish's it makes other letters
        ("tokenizer_config.json", {"do_lower_case": any(map(str.isupper, letters)) and "İ" not in letters}),
        ("preprocessor_config.json", {"do_normalize": True}),  # as `normalise_audio`, by which it was trained
    ):
        settings = read_json(folder / name, rerun("fetch_models"))
        write_json(folder / name, settings | changed)


class FromAudio(nn.Module):
    """Logits [batch, frames, vocabulary] of audio [batch, samples] as it is, in [-1, 1] at 16 kHz."""

    def __init__(self, model: Wav2Vec2ForCTC):
        super().__init__()
        self.model = model

    def forward(self, audio: Tensor) -> Tensor:
        return self.logits(self.model, self.features(audio))

    def features(self, audio: Tensor) -> Tensor:
        """CNN features [batch, frames, conv_dim]."""
        return backbone_of(self.model).feature_extractor(normalise_waves(audio)).transpose(1, 2)

    @staticmethod
    def logits(model: Wav2Vec2ForCTC, features: Tensor) -> Tensor:
        backbone = backbone_of(model)
        return model.lm_head(backbone.encoder(project_features(backbone, features)).last_hidden_state)


class GatedFromAudio(FromAudio):
    """The same of a `GatedStudent`: both models' logits, of which one is given out."""

    def __init__(self, model: Wav2Vec2ForCTC, base: Wav2Vec2ForCTC, threshold: float):
        super().__init__(model)
        self.base, self.threshold = base, threshold

    def forward(self, audio: Tensor) -> Tensor:
        features = self.features(audio)
        adapted, base = self.logits(self.model, features), self.logits(self.base, features)
        frames = torch.full((base.shape[0],), base.shape[1])
        return torch.where(mean_entropy(base, frames)[:, None, None] > self.threshold, adapted, base)


def save_onnx(audio: FromAudio, student: Path, folder: Path) -> None:
    """Write model.onnx, and beside it vocab.json and config.json.

    Weights of matrix products are int8, a scale for each column, and their inputs are quantised as they come
    (onnxruntime's dynamic quantisation); convolutions stay in float32.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxscript.optimizer import fold_constants, remove_unused_nodes

    _, hop = frame_geometry(audio.model.config)
    hops = torch.export.Dim("hops", min=3, max=LONGEST * SAMPLE_RATE // hop)  # any other length does in the file
    example = torch.randn(1, 2 * SAMPLE_RATE, generator=torch.Generator().manual_seed(0))
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = Path(temporary) / ONNX
        program = torch.onnx.export(
            audio.eval(),
            (example,),
            input_names=["audio"],
            output_names=["logits"],
            dynamic_shapes=({1: hop * hops},),
            dynamo=True,
            verbose=False,
            optimize=False,  # takes half of the time; of it, only this lets weights be quantised
        )
        assert program is not None
        fold_constants(program.model)
        remove_unused_nodes(program.model)
        ClearMetadataAndDocStringPass()(program.model)  # the paths of this machine's source files
        program.save(whole)
        root = logging.getLogger()
        level = root.level
        root.setLevel(logging.ERROR)  # it recommends a preprocessing that changes nothing here
        quantize_dynamic(
            whole, folder / ONNX, weight_type=QuantType.QInt8, per_channel=True, op_types_to_quantize=["MatMul", "Gemm"]
        )
        root.setLevel(level)
    audio.model.config.save_pretrained(folder)
    shutil.copyfile(student / "vocab.json", folder / "vocab.json")
    shutil.copyfile(student / "tokenizer_config.json", folder / "tokenizer_config.json")


class OnnxStudent:
    """What `save_onnx` wrote, on the CPU."""

    def __init__(self, folder: Path):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # as `map_on_cores`
        try:
            self.session = onnxruntime.InferenceSession(folder / ONNX, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's have no other base
            raise UserError(
                f"{folder / ONNX}: cannot be loaded ({first_line(error)}); export or copy it again"
            ) from None
        self.vocabulary = Vocabulary.load(folder / "vocab.json")

    def logits(self, samples: np.ndarray) -> np.ndarray:
        """float32 [frames, vocabulary] of float32 [samples]."""
        return self.session.run(None, {"audio": samples[None].astype(np.float32)})[0][0]

    def token_ids(self, samples: np.ndarray) -> np.ndarray:
        """The best token of each frame, int64 [frames], of float32 [samples]."""
        return self.logits(samples).argmax(-1)


def size_mb(folder: Path) -> float:
    """Of all its files, in MB (10^6 bytes)."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
