"""Train the mini preset's student within a given time and score it.

python -m research.pretrain.train --synthetic FOLDER:1 --real FOLDER:8 --test name=PATH --out FOLDER --seconds 450

--init continues from a saved folder, with a fresh optimiser and a shorter warm-up. On several GPUs start it by
`accelerate launch --num_processes 2 -m research.pretrain.train`: each holds its own shard of the synthetic
clips. Clips that are synthesised meanwhile come in from the next epoch on.
"""

import argparse
import copy
import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import remove_parametrizations
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

from dqlora.data.batching import length_mask, pad_waves
from dqlora.data.text import Vocabulary
from dqlora.evaluation.metrics import count_errors
from dqlora.models.wav2vec2 import load_student, normalise_waves
from dqlora.seeding import generator_for, seed_torch
from dqlora.training.cuda_graphs import CudaGraphs, InBfloat16, blocked_convolution
from dqlora.training.loop import all_reduce_gradients
from research.pretrain import augment
from research.pretrain.data import Clips, Encoded, Shards, Speech, encode, read_folder, read_tests

STUDENT = Path("presets/mini/student")
SEED = 0
WARMUP_RATIO, WARMUP_RATIO_INIT = 0.06, 0.02  # of the time; the latter with --init
FINAL_RATIO = 0.01  # of the learning rate, at the end
WEIGHT_DECAY = 0.02
BETAS = (0.9, 0.98)
GRADIENT_CLIP = 1.0
BATCH_SECONDS = 480  # of audio, padding counted
AUX_LAYER, AUX_WEIGHT = 6, 0.3  # CTC on a middle layer too (Lee and Watanabe 2021)
MASK_SPAN = 9  # SpecAugment: frames hidden in a row (180 ms)
SAVE_EVERY = 100  # s
RESERVE = 15  # s of the time kept for saving and scoring
LOG_EVERY = 50  # steps
TEST_BATCH = 16  # clips


def cnn(model: Wav2Vec2ForCTC, waves: Tensor, lengths: Tensor) -> Tensor:
    """The feature extractor, channels last throughout, which saves its many transposes; [clips, frames, channels]."""
    first, *layers = model.wav2vec2.feature_extractor.conv_layers
    weight = first.conv.weight[:, 0]  # [channels, kernel]
    hidden = F.linear(waves.unfold(1, weight.shape[1], first.conv.stride[0]), weight, first.conv.bias)
    if isinstance(first.layer_norm, nn.GroupNorm):
        frames = (lengths - weight.shape[1]) // first.conv.stride[0] + 1
        hidden = norm_over_time(first.layer_norm, hidden.transpose(1, 2), frames).transpose(1, 2)
    else:
        hidden = first.layer_norm(hidden)
    hidden = F.gelu(hidden)
    for layer in layers:
        image = hidden[:, None].permute(0, 3, 1, 2)  # [clips, channels, 1, frames], channels last in memory
        weight = layer.conv.weight[:, :, None].contiguous(memory_format=torch.channels_last)
        image = F.conv2d(image, weight, layer.conv.bias, stride=(1, layer.conv.stride[0]))
        hidden = image.permute(0, 2, 3, 1)[:, 0]
        hidden = F.gelu(layer.layer_norm(hidden) if hasattr(layer, "layer_norm") else hidden)
    return hidden


def norm_over_time(norm: nn.GroupNorm, hidden: Tensor, frames: Tensor) -> Tensor:
    """A group norm of one channel a group, [clips, channels, longest], over each clip's own `frames`, int64 [clips]."""
    inside = length_mask(frames, hidden.shape[2])[:, None]
    count = frames[:, None, None]
    centred = hidden - (hidden * inside).sum(-1, keepdim=True) / count
    variance = (centred.square() * inside).sum(-1, keepdim=True) / count
    return centred / (variance + norm.eps).sqrt() * norm.weight[:, None] + norm.bias[:, None]


class AugmentedStudent(nn.Module):
    """The student on an augmented batch: all of a step that has fixed shapes, so that it can be one CUDA graph."""

    def __init__(self, model: Wav2Vec2ForCTC, strength: augment.Strength, teacher: Wav2Vec2ForCTC | None = None):
        super().__init__()
        self.model, self.strength, self.teacher = model, strength, teacher

    def forward(self, waves: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        """Log-probabilities of the last and of the middle layer, and the teacher's, [clips, frames, tokens]."""
        with torch.no_grad():
            waves = augment.place(augment.move_formants(waves, self.strength), self.strength)
            # the room's echo goes on beyond the clip
            waves = normalise_waves(waves * length_mask(lengths, waves.shape[1]), lengths).bfloat16()
            taught = forward(self.teacher, waves, lengths, mask_ratio=0.0)[:1] if self.teacher else ()
        heard = forward(self.model, waves, lengths, self.strength.mask_ratio)
        return tuple(logits.log_softmax(-1) for logits in (*heard, *taught))


def forward(model: Wav2Vec2ForCTC, waves: Tensor, lengths: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor]:
    """What the model's own forward computes, faster; logits of the last and of the middle layer.

    Parameters
    ----------
    waves
        [clips, samples], normalised
    lengths
        int64 [clips], in samples
    mask_ratio
        of the frames are hidden, in spans
    """
    hidden, _ = model.wav2vec2.feature_projection(cnn(model, waves, lengths))
    clips, frames, _ = hidden.shape
    counts = model._get_feat_extract_output_lengths(lengths)
    if mask_ratio:
        mask = augment.mask_spans(clips, frames, mask_ratio, MASK_SPAN, waves.device)
        hidden = torch.where(mask[..., None], model.wav2vec2.masked_spec_embed.to(hidden.dtype), hidden)
    filled = length_mask(counts, frames)
    hidden = hidden * filled[..., None]
    encoder, pre_norm = model.wav2vec2.encoder, model.config.do_stable_layer_norm
    positions = blocked_convolution(encoder.pos_conv_embed.conv, hidden.transpose(1, 2))[..., :frames]
    hidden = hidden + F.gelu(positions).transpose(1, 2)
    hidden = encoder.dropout(hidden if pre_norm else encoder.layer_norm(hidden))
    attended = filled[:, None, None, :].expand(-1, 1, frames, -1)
    middle = hidden
    for number, layer in enumerate(encoder.layers, start=1):
        hidden = layer(hidden, attention_mask=attended)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        if number == AUX_LAYER:
            middle = hidden
    last, middle = (encoder.layer_norm(each) if pre_norm else each for each in (hidden, middle))
    return model.lm_head(last).float(), model.lm_head(middle).float()


def ctc(log_probs: Tensor, frames: Tensor, labels: Tensor, label_counts: Tensor) -> Tensor:
    """CTC per label, blank 0."""
    loss = F.ctc_loss(
        log_probs.transpose(0, 1), labels, frames, label_counts, blank=0, reduction="sum", zero_infinity=True
    )
    return loss / label_counts.sum()


def divergence(log_probs: Tensor, teacher: Tensor, frames: Tensor) -> Tensor:
    """KL of the teacher's distribution from the student's, nats per frame."""
    inside = length_mask(to(frames, log_probs.device), log_probs.shape[1])
    return ((teacher.exp() * (teacher - log_probs)).sum(-1) * inside).sum() / inside.sum()


@torch.no_grad()
def make_batch(
    speech: Speech, clips: Tensor, samples: int, strength: augment.Strength, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Rows [clips, samples] on the device, each clip at a speed of its own, and their lengths on the CPU."""
    starts, counts = speech.starts[clips], speech.counts[clips]
    rates = torch.from_numpy(rng.uniform(*strength.rate, len(clips))).maximum(counts / samples)
    there = (to(each, speech.audio.device) for each in (starts, counts, rates))
    return augment.play(speech.audio, *there, samples), augment.played(counts, rates)


def to(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy without waiting for what the device does."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def schedule(progress: float, warmup: float, final: float = FINAL_RATIO) -> float:
    """Linear warm-up, then a cosine to `final`, relative to the peak; the first two are ratios of the time."""
    if progress < warmup:
        return max(progress / warmup, 1e-3)
    cosine = (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup)))) / 2
    return final + (1 - final) * cosine


def train(
    model: Wav2Vec2ForCTC,
    teacher: Wav2Vec2ForCTC | None,
    speech: Speech,
    arrivals: Callable[[], list[Encoded]],
    deadline: float,
    accelerator: Accelerator,
    args: argparse.Namespace,
) -> None:
    """Train until the deadline (on time.monotonic's clock), saving now and then."""
    strength = augment.STRENGTHS[args.augment]
    warmup = WARMUP_RATIO_INIT if args.init else WARMUP_RATIO
    device = accelerator.device
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, betas=BETAS, fused=device.type == "cuda")
    student = (CudaGraphs if device.type == "cuda" else InBfloat16)(AugmentedStudent(model, strength, teacher))
    rng = generator_for(SEED, "batches", accelerator.process_index)
    seed_torch(SEED, "augment", accelerator.process_index)
    model.train()
    if device.type == "cuda":
        begun = time.monotonic()
        # all graphs are recorded now: later, others would wait
        for clips, samples in reversed(speech.shapes(args.batch_seconds)):
            student(torch.zeros(clips, samples, device=device), torch.full((clips,), samples, device=device))
        accelerator.print(f"graphs recorded in {time.monotonic() - begun:.0f} s", flush=True)
    started = saved = time.monotonic()
    step, audio_seconds, epoch, total = 0, 0.0, 0, torch.zeros(2, device=device)
    batches: list[tuple[Tensor, int]] = []
    meanwhile = ThreadPoolExecutor(1)
    arriving = meanwhile.submit(arrivals)
    while True:
        if not batches:
            if arriving.done():
                for clips in arriving.result():
                    speech.add(clips)
                arriving = meanwhile.submit(arrivals)
            batches, epoch = speech.epoch(args.batch_seconds, rng), epoch + 1
        numbers, samples = batches.pop()
        audio_seconds += speech.seconds[numbers.numpy()].sum()
        passed = (time.monotonic() - started) / (deadline - started)
        rate = args.learning_rate * schedule(passed, warmup, args.final_ratio)
        for group in optimiser.param_groups:
            group["lr"] = rate
        waves, lengths = make_batch(speech, numbers, samples, strength, rng)
        log_probs, middle, *taught = student(waves, to(lengths, device))
        labels, label_counts = speech.labels[to(numbers, device)], speech.label_counts[numbers]
        frames = model._get_feat_extract_output_lengths(lengths)
        last, aux = (ctc(each, frames, labels, label_counts) for each in (log_probs, middle))
        loss = last + AUX_WEIGHT * aux + sum(divergence(log_probs, each, frames) for each in taught)
        (loss / accelerator.num_processes).backward()
        all_reduce_gradients(model.parameters(), accelerator)
        norm = nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_CLIP)
        if device.type == "cuda":
            optimiser.found_inf = (~norm.isfinite()).float()  # then the fused optimiser leaves the weights as they are
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        step += 1
        total += torch.stack([last.detach(), aux.detach()])
        if step % LOG_EVERY:
            continue
        now = time.monotonic()
        times = torch.tensor([audio_seconds, now - started, deadline - now], device=device)
        # the mean of all processes, so that they stop at the same step
        mean, aux_mean, audio, seconds, left = accelerator.reduce(
            torch.cat([total / LOG_EVERY, times]), "mean"
        ).tolist()
        total.zero_()
        rtfx = audio * accelerator.num_processes / seconds
        accelerator.print(f"step {step}  epoch {epoch} of {speech.hours():.1f} h  {seconds:.0f} s  loss {mean:.3f}  "
                          f"middle {aux_mean:.3f}  lr {rate:.2e}  {rtfx:.0f} × real time", flush=True)  # fmt: skip
        done = left < 0
        if accelerator.is_main_process and (done or time.monotonic() - saved > SAVE_EVERY):
            save(model, args.out)
            saved = time.monotonic()
        if done:
            meanwhile.shutdown(wait=False, cancel_futures=True)
            return


def save(model: Wav2Vec2ForCTC, out: Path) -> None:
    """float16 safetensors, in files of less than 10 MB."""
    copy.deepcopy(model).half().save_pretrained(out, max_shard_size="10MB")


def load_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of all safetensors files of a folder that `save` wrote."""
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        raise SystemExit(f"{folder}: no safetensors file in it; name one that research.pretrain.train saved (--out)")
    return {name: weight for shard in shards for name, weight in load_file(shard).items()}


def load_teacher(folder: Path, device: torch.device) -> Wav2Vec2ForCTC:
    model = load_student(folder, "none", device)
    remove_parametrizations(model.wav2vec2.encoder.pos_conv_embed.conv, "weight")  # exact before it is rounded
    return model.bfloat16()


@torch.inference_mode()
def transcribe(model: Wav2Vec2ForCTC, clips: Clips, vocabulary: Vocabulary, device: torch.device) -> list[str]:
    """Greedy transcripts by the model's own forward, in float32."""
    order = sorted(range(len(clips.samples)), key=lambda number: len(clips.samples[number]))
    transcripts = [""] * len(order)
    for first in range(0, len(order), TEST_BATCH):
        batch = order[first : first + TEST_BATCH]
        lengths = torch.tensor([len(clips.samples[number]) for number in batch], device=device)
        waves = pad_waves([clips.samples[number] for number in batch], device)
        mask = length_mask(lengths, waves.shape[1]).long()
        best = model(normalise_waves(waves, lengths), attention_mask=mask).logits.argmax(-1).cpu()
        frames = model._get_feat_extract_output_lengths(lengths)
        for number, row, count in zip(batch, best, frames, strict=True):
            transcripts[number] = vocabulary.decode(row[:count].tolist())
    return transcripts


def score(model: Wav2Vec2ForCTC, tests: dict[str, Clips], vocabulary: Vocabulary, device: torch.device) -> dict:
    model.eval().float()
    table = {}
    print("| test | clips | WER % | CER % |\n| --- | --- | --- | --- |")
    for name, clips in tests.items():
        references, transcripts = clips.texts, transcribe(model, clips, vocabulary, device)
        errors = count_errors(references, transcripts, "en")
        table[name] = {"wer": errors.wer, "cer": errors.cer}
        print(f"| {name} | {len(references)} | {100 * errors.wer:.1f} | {100 * errors.cer:.1f} |")
        table[name]["transcripts"] = list(zip(references, transcripts, strict=True))
    return table


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--synthetic", nargs="+", required=True, help="FOLDER:REPEATS, folders that synthesise wrote")
    parser.add_argument("--real", nargs="*", default=[], help="FOLDER:REPEATS, audio folders with metadata.csv")
    parser.add_argument("--test", nargs="+", required=True, help="NAME=PATH, a Parquet file or an audio folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", type=Path, default=STUDENT, help="a folder with config.json and vocab.json")
    parser.add_argument(
        "--teacher", type=Path, help="a student with the same tokens and frames, to learn from beside CTC"
    )
    parser.add_argument("--init", type=Path, help="a folder saved before, to continue from")
    parser.add_argument("--augment", choices=augment.STRENGTHS, default="strong")
    parser.add_argument("--learning-rate", type=float, default=1.5e-3, help="its peak")
    parser.add_argument("--final-ratio", type=float, default=FINAL_RATIO, help="of the learning rate, at the end")
    parser.add_argument("--batch-seconds", type=float, default=BATCH_SECONDS, help="of audio, padding counted")
    parser.add_argument("--dropout", type=float, default=0.1, help="after each layer and in its attention")
    parser.add_argument("--seconds", type=float, required=True, help="wall-clock time for all, loading to scoring")
    args = parser.parse_args()
    deadline = time.monotonic() + args.seconds - RESERVE

    accelerator = Accelerator()
    device = accelerator.device
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True  # a few fixed shapes
    torch.backends.cuda.enable_cudnn_sdp(False)  # as dqlora.training.cuda_graphs.prepare_for_gpu says
    seed_torch(SEED, "student")
    vocabulary = Vocabulary.load(args.config / "vocab.json")
    dropout = {"hidden_dropout": args.dropout, "attention_dropout": args.dropout}
    model = Wav2Vec2ForCTC(Wav2Vec2Config.from_pretrained(args.config, **dropout))
    if args.init:
        model.load_state_dict(load_weights(args.init))
    model.to(device)
    teacher = load_teacher(args.teacher, device) if args.teacher else None
    shards = [
        (Shards(Path(path), accelerator.process_index, accelerator.num_processes), int(times))
        for path, times in (source.split(":") for source in args.synthetic)
    ]

    def arrivals() -> list[Encoded]:
        return [encode(source.new(), vocabulary, times) for source, times in shards]

    folders = [(read_folder(Path(path)), int(times)) for path, times in (source.split(":") for source in args.real)]
    speech = Speech([*arrivals(), *(encode(clips, vocabulary, times) for clips, times in folders)], device)
    tests = read_tests(args.test)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters / 1e6:.1f} M parameters, {len(speech.seconds)} clips, {speech.seconds.sum() / 3600:.1f} h, "
          f"{speech.hours():.1f} h an epoch, rows of {np.round(speech.edges, 1)} s", flush=True)  # fmt: skip

    train(model, teacher, speech, arrivals, deadline, accelerator, args)
    accelerator.end_training()
    if not accelerator.is_main_process:
        return
    table = score(model, tests, vocabulary, device)
    (args.out / "wer.json").write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
