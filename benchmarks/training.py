"""Training, encoding, evaluating, mixing and loading at the real size, against what a user would write instead.

python -m benchmarks.training [--small] [--rounds 3] [--profile] [--output FILE.json]

The student has wav2vec2-base's architecture, the teacher whisper-base's encoder, both with random weights: speed does
not depend on them. Ours and the peers take turns; the table has the medians of throughput, × real time. Needs a
GPU and no network; --small is for a CPU. The floor is the arithmetic of a step at the rate that a large bf16 matrix
product reaches on the same machine in the same run.
"""

import itertools
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from transformers import (
    BitsAndBytesConfig,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from dqlora.config import Budget, Params, load_params
from dqlora.data.audio import FRAMES_PER_SECOND, SAMPLE_RATE, to_float32, to_int16
from dqlora.data.batching import Batch, Example, collate, endless_batches, prefetch
from dqlora.data.mixing import mix_int16
from dqlora.data.storage import RaggedArray, RaggedArrayWriter, write_json
from dqlora.data.text import Vocabulary
from dqlora.device import default_device
from dqlora.errors import UserError, quieten_libraries, run_stage
from dqlora.models.lora import adapt
from dqlora.models.wav2vec2 import EncoderCTC, load_student, transcribe_batch
from dqlora.models.whisper import Teacher
from dqlora.seeding import seed_torch
from dqlora.training.loop import Plan, Progress, TrainingData, train_student
from dqlora.training.objective import DistillationLoss
from dqlora.training.precompute import write_cnn_features
from dqlora.training.targets import make_target

CLIP = 10  # seconds
LABELS = 120  # a clip
STRETCHES = 3  # of training, each ending with a validation and a checkpoint, as it does in use
LONG_GAP = 20  # us between two kernels, more than a graph leaves
ATTENTION = ["q_proj", "k_proj", "v_proj", "out_proj"]
VOCABULARY = Path("presets/mini/student/vocab.json")
SMALL_STUDENT = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
# GFLOP per second of audio of wav2vec2-base's layers: 85.5 M weights x 50 frames x 2, and the attention products
FORWARD_GFLOP = FRAMES_PER_SECOND * (85.5e6 * 2 + 12 * 4 * FRAMES_PER_SECOND * CLIP * 768) / 1e9


def matrix_rate(device: torch.device, size: int) -> float:
    """FLOP per second of a square bf16 matrix product."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / seconds_of(lambda: left @ right, repeats=10)


def seconds_of(call: Callable[[], Any], repeats: int) -> float:
    """Seconds a call, after one to warm up."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    call()
    wait()
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    wait()
    return (time.perf_counter() - started) / repeats


class Sizes:
    """What is measured: models in a temporary folder, clips, repeats."""

    def __init__(self, small: bool, folder: Path, device: torch.device | None = None):
        self.small, self.folder = small, folder
        self.device = device or default_device()
        self.clips, self.batch_seconds, self.steps = (12, 40, 6) if small else (320, 320, 300)
        self.repeats = 1 if small else 10
        torch.manual_seed(0)
        self.student_config = Wav2Vec2Config(vocab_size=32, pad_token_id=0, **(SMALL_STUDENT if small else {}))
        Wav2Vec2ForCTC(self.student_config).save_pretrained(folder / "student")
        width, layers, heads = (64, 2, 2) if small else (512, 6, 8)
        config = WhisperConfig(
            d_model=width, encoder_layers=layers, encoder_attention_heads=heads, encoder_ffn_dim=4 * width,
            decoder_layers=1, decoder_attention_heads=heads, decoder_ffn_dim=64, vocab_size=64, num_mel_bins=80,
            pad_token_id=1, bos_token_id=1, eos_token_id=1, decoder_start_token_id=1, suppress_tokens=None,
            begin_suppress_tokens=None,
        )  # fmt: skip
        WhisperForConditionalGeneration(config).half().save_pretrained(folder / "teacher")
        WhisperFeatureExtractor(feature_size=80).save_pretrained(folder / "teacher")
        self.rng = np.random.default_rng(0)

    def examples(self, target_width: int) -> list[Example]:
        """Random CNN features, labels and targets of clips."""
        frames = CLIP * FRAMES_PER_SECOND - 1
        return [
            Example(
                self.rng.normal(size=(frames, self.student_config.conv_dim[-1])).astype(np.float16),
                self.rng.integers(5, 32, LABELS).tolist(),
                "HELLO",
                self.rng.normal(size=(frames, target_width)).astype(np.float16),
            )
            for _ in range(self.clips)
        ]


def train_ours(
    sizes: Sizes,
    examples: list[Example],
    changes: dict[str, Any],
    validations: int,
    on_point: Callable[..., None],
    learning_rate: float = 5e-4,
) -> Progress:
    """Training as stages.train does it, `validations` times a stretch of the same number of steps."""
    params = Params.model_validate({**load_params().model_dump(), **changes})
    model = load_student(sizes.folder / "student", "nf4", sizes.device)
    model = adapt(model, params.student.adapt, params.lora, params.train.dropout, params.seed)
    data = TrainingData(examples, examples[:1], Vocabulary.load(VOCABULARY), "en")
    assert examples[0].target is not None
    width = examples[0].target.shape[1]
    seed_torch(params.seed, "objective")
    loss = DistillationLoss(model, data.vocabulary.blank, make_target(params.distill), width, lambda_distill=1.0)
    every = max(1, sizes.steps // validations)
    budget = Budget(
        steps=validations * every,
        learning_rate=learning_rate,
        wise_ft_alpha=1.0,
        batch_seconds=sizes.batch_seconds,
        validate_every=every,
    )
    plan = Plan(params.train.model_copy(update={"patience": 10**6}), budget, seed=0)
    with tempfile.TemporaryDirectory() as temporary:
        return train_student(loss, data, plan, Path(temporary) / "state.safetensors", Accelerator(), on_point)


def stretches(progress: Progress, times: list[float]) -> list[float]:
    """Throughput of each stretch of training, given when each point of the curve came."""
    audio = progress.audio_seconds / (len(times) - 1)
    return [audio / (after - before) for before, after in itertools.pairwise(times)]


def our_training(
    sizes: Sizes, examples: list[Example], changes: dict[str, Any], profile: bool = False
) -> dict[str, float]:
    """Between the first validation, with which graphs are recorded, and the last."""
    times: list[float] = []
    profiler = torch.profiler.profile() if profile else None

    def at_point(point: dict[str, float]) -> None:
        times.append(time.perf_counter())
        if profiler and len(times) == 2:
            profiler.start()
        if profiler and len(times) == 3:
            profiler.stop()

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    progress = train_ours(sizes, examples, changes, STRETCHES, at_point)
    if profiler:
        print_kernels(profiler, progress.step // STRETCHES)
    return {
        "rtfx": statistics.median(stretches(progress, times)[2 if profile else 1 :]),
        "warm_up_seconds": times[1] - times[0],
        "gib": torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0,
    }


def print_kernels(profiler: torch.profiler.profile, steps: int) -> None:
    """What a step's milliseconds go to: kernels by name, and the gaps between them, by the kernel before the gap."""
    events = [event for event in profiler.events() if event.device_type == torch.profiler.DeviceType.CUDA]
    if not events:
        raise UserError("--profile: no kernel was seen; it needs a GPU")
    events.sort(key=lambda event: event.time_range.start)  # in us
    busy, idle, end = defaultdict(list), defaultdict(list), events[0].time_range.start
    name = ""
    for event in events:
        start = max(event.time_range.start, end)
        idle[name, "short" if start - end < LONG_GAP else "long"].append(start - end)
        busy[event.name].append(max(0.0, event.time_range.end - start))
        if event.time_range.end > end:
            end, name = event.time_range.end, event.name
    print(f"{len(events) / steps:.0f} kernels and copies a step; milliseconds of a step, and how many:")
    for title, table in (("kernels", busy), ("gaps after", idle)):
        total = sum(sum(each) for each in table.values()) / 1e3 / steps
        print(f"{title}: {total:.2f}")
        for key, each in sorted(table.items(), key=lambda item: -sum(item[1]))[:30]:
            label = key if isinstance(key, str) else f"{key[1]}: {key[0]}"
            print(f"{sum(each) / 1e3 / steps:8.3f} {len(each) / steps:7.1f}x {label[:90]}")
    for length in ("short", "long"):
        gaps = [gap for (_, which), each in idle.items() if which == length for gap in each]
        print(f"{length} gaps: {sum(gaps) / 1e3 / steps:.2f} ms, {len(gaps) / steps:.1f} of them")


def usual_training(sizes: Sizes, clips: int, quantised: bool) -> dict[str, float]:
    """A batch through transformers' own forward, waveforms in, under autocast; QLoRA with cached targets or full."""
    options: dict[str, Any] = {"mask_time_prob": 0.0, "layerdrop": 0.0}
    if quantised:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16, llm_int8_skip_modules=["lm_head", "projection"],
        )  # fmt: skip
        options["dtype"] = torch.bfloat16
    model: Any = Wav2Vec2ForCTC.from_pretrained(sizes.folder / "student", device_map={"": sizes.device}, **options)
    if quantised:
        lora = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.1, target_modules=ATTENTION)
        model = get_peft_model(model, lora)
    else:
        model.freeze_feature_encoder()
    model.train()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-4)
    waves = torch.randn(clips, CLIP * SAMPLE_RATE, device=sizes.device, dtype=model.dtype)
    labels = torch.randint(5, 32, (clips, LABELS), device=sizes.device)
    targets = torch.randn(clips, CLIP * FRAMES_PER_SECOND - 1, 32, device=sizes.device).softmax(-1)

    def step() -> None:
        with torch.autocast(sizes.device.type, torch.bfloat16):
            logits = model(waves).logits.float()
        log_probs = logits.log_softmax(-1)
        lengths = torch.full((clips,), logits.shape[1]), torch.full((clips,), LABELS)
        loss = F.ctc_loss(log_probs.transpose(0, 1), labels, *lengths, blank=0, zero_infinity=True)
        if quantised:
            loss = loss + F.kl_div(log_probs, targets, reduction="none").sum(-1).mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return measured(step, clips * CLIP, sizes.repeats)


def clipwise_training(sizes: Sizes) -> dict[str, float]:
    """A clip at a time, the teacher online, its spectrogram on the CPU, in float32, every parameter."""
    model = Wav2Vec2ForCTC.from_pretrained(sizes.folder / "student", mask_time_prob=0.0).to(sizes.device).train()
    teacher = WhisperForConditionalGeneration.from_pretrained(sizes.folder / "teacher", dtype=torch.float32)
    encoder = teacher.to(sizes.device).eval().model.encoder
    extractor = WhisperFeatureExtractor.from_pretrained(sizes.folder / "teacher")
    head = torch.nn.Linear(encoder.config.d_model, 32).to(sizes.device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    wave = torch.randn(1, CLIP * SAMPLE_RATE)
    labels = torch.randint(5, 32, (1, LABELS), device=sizes.device)

    def step() -> None:
        with torch.no_grad():
            mel = extractor(wave[0].numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
            features = encoder(mel.to(sizes.device)).last_hidden_state
        log_probs = model(wave.to(sizes.device)).logits.log_softmax(-1)
        frames = log_probs.shape[1]
        ctc = F.ctc_loss(log_probs.transpose(0, 1), labels, torch.tensor([frames]), torch.tensor([LABELS]), blank=0)
        targets = F.interpolate(head(features).transpose(1, 2), size=frames, mode="linear").transpose(1, 2)
        (ctc + 0.7 * F.kl_div(log_probs, targets.softmax(-1), reduction="batchmean")).backward()
        optimiser.step()
        optimiser.zero_grad()
        ctc.item()

    return measured(step, CLIP, sizes.repeats)


def measured(call: Callable[[], Any], audio_seconds: float, repeats: int) -> dict[str, float]:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    rate = audio_seconds / seconds_of(call, repeats)
    gib = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    return {"rtfx": rate, "gib": gib}


def clips_of(sizes: Sizes, count: int, seconds: float) -> list[np.ndarray]:
    return [sizes.rng.normal(0, 0.1, round(seconds * SAMPLE_RATE)).astype(np.float32) for _ in range(count)]


def our_encoding(sizes: Sizes, seconds: float) -> dict[str, float]:
    """Samples in, features out, both in the CPU's memory."""
    teacher = Teacher(sizes.folder / "teacher", sizes.device)
    clips = [to_int16(clip) for clip in clips_of(sizes, 2 if sizes.small else round(256 * 30 / seconds), seconds)]
    return measured(lambda: teacher.encode(clips), len(clips) * seconds, sizes.repeats)


def usual_encoding(sizes: Sizes, seconds: float) -> dict[str, float]:
    """transformers' feature extractor and encoder, each clip padded to 30 s."""
    dtype = torch.bfloat16 if sizes.device.type == "cuda" else torch.float32
    teacher = WhisperForConditionalGeneration.from_pretrained(sizes.folder / "teacher", dtype=dtype)
    encoder = teacher.to(sizes.device).eval().model.encoder
    extractor = WhisperFeatureExtractor.from_pretrained(sizes.folder / "teacher")
    clips = clips_of(sizes, 2 if sizes.small else 64, seconds)

    @torch.inference_mode()
    def encode() -> None:
        mel = extractor(clips, sampling_rate=SAMPLE_RATE, return_tensors="pt", device=str(sizes.device)).input_features
        encoder(mel.to(sizes.device, dtype)).last_hidden_state.half().cpu()

    return measured(encode, len(clips) * seconds, max(1, sizes.repeats // 3))


def our_cnn_features(sizes: Sizes) -> dict[str, float]:
    """Clips of 3 to 14 s, from disk to disk."""
    model = load_student(sizes.folder / "student", "nf4", sizes.device)
    clips = spoken(sizes)
    seconds = clips.values.shape[0] / SAMPLE_RATE
    return measured(lambda: write_cnn_features(model, clips, sizes.folder / "cnn"), seconds, 1)


def usual_cnn_features(sizes: Sizes) -> dict[str, float]:
    """The same clips by transformers, one at a time, nothing written."""
    model = Wav2Vec2ForCTC.from_pretrained(sizes.folder / "student").to(sizes.device).eval()
    extractor, clips = Wav2Vec2FeatureExtractor(), spoken(sizes)

    @torch.inference_mode()
    def encode() -> None:
        for item in clips.items:
            audio = extractor(to_float32(clips[item["id"]]), sampling_rate=SAMPLE_RATE, return_tensors="pt")
            model.wav2vec2.feature_extractor(audio.input_values.to(sizes.device)).half().cpu()

    return measured(encode, clips.values.shape[0] / SAMPLE_RATE, 1)


def spoken(sizes: Sizes) -> RaggedArray:
    """Clips of different lengths, on disk."""
    with RaggedArrayWriter(sizes.folder / "clips", "int16") as out:
        for number in range(3 if sizes.small else 1000):
            seconds = 3 + 11 * (number * 0.618 % 1)  # spread evenly
            out.append(to_int16(clips_of(sizes, 1, seconds)[0]), id=str(number))
    return RaggedArray(sizes.folder / "clips")


def our_transcribing(sizes: Sizes, examples: list[Example]) -> dict[str, float]:
    """Greedy transcripts of CNN features, batched."""
    model = EncoderCTC(load_student(sizes.folder / "student", "nf4", sizes.device)).eval()
    vocabulary = Vocabulary.load(VOCABULARY)
    features = [example.features for example in examples]
    longest = sizes.batch_seconds * FRAMES_PER_SECOND
    return measured(lambda: transcribe_batch(model, features, vocabulary, longest), len(features) * CLIP, 1)


def loading(sizes: Sizes, examples: list[Example]) -> dict[str, float]:
    """Batches as training gets them, and nothing done with them."""
    lengths = [len(example.features) for example in examples]
    longest = sizes.batch_seconds * FRAMES_PER_SECOND

    def batch_of(positions: list[int]) -> Batch:
        on_gpu = sizes.device.type == "cuda"
        return collate([examples[position] for position in positions], pinned=on_gpu).to(sizes.device)

    def epoch() -> None:
        left = len(examples)
        batches = endless_batches(lengths, longest, seed=0)
        made = prefetch(batch_of, batches, sizes.device)
        while left > 0:
            left -= len(next(made).labels)
        made.close()

    return measured(epoch, len(examples) * CLIP, sizes.repeats)


def mixing(sizes: Sizes) -> dict[str, float]:
    """On one core."""
    speech, noise = (sizes.rng.normal(0, 3000, CLIP * SAMPLE_RATE * n).astype(np.int16) for n in (1, 6))
    return measured(lambda: mix_int16(speech, noise, 5.0, sizes.rng), CLIP, sizes.repeats)


def main(
    small: Annotated[bool, typer.Option("--small", help="Tiny models, for a CPU.")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Of each measurement; the table has the medians.")] = 3,
    profile: Annotated[bool, typer.Option("--profile", help="Print the kernels of a training step.")] = False,
    only: Annotated[str, typer.Option(help="Only the measurements whose name holds this.")] = "",
    output: Annotated[Path | None, typer.Option(help="JSON to write the table to as well.")] = None,
) -> None:
    quieten_libraries()
    with tempfile.TemporaryDirectory() as temporary:
        sizes = Sizes(small, Path(temporary))
        width = sizes.student_config.hidden_size
        logits, features = sizes.examples(32), sizes.examples(width)
        layer = sizes.student_config.num_hidden_layers
        params = load_params()
        narrow = {
            "lora": {**params.lora.model_dump(), "r": 8, "alpha": 16, "target_modules": ATTENTION},
            "distill": {**params.distill.model_dump(), "target": "base_logits"},
        }
        default = {"distill": {**params.distill.model_dump(), "layer": min(params.distill.layer, layer)}}
        short = 30 if small else 10
        measurements: dict[str, Callable[[], dict[str, float]]] = {
            "train: one clip at a time, teacher online": lambda: clipwise_training(sizes),
            "train: usual full fine-tuning, 32 clips": lambda: usual_training(sizes, 2 if small else 32, False),
            "train: usual QLoRA, 32 clips": lambda: usual_training(sizes, 2 if small else 32, True),
            "train: ours, LoRA r 8 on attention, logits": lambda: our_training(sizes, logits, narrow, profile),
            "train: ours, params.yaml": lambda: our_training(sizes, features, default, profile),
            "encode 30 s clips: transformers": lambda: usual_encoding(sizes, 30),
            "encode 30 s clips: ours": lambda: our_encoding(sizes, 30),
            f"encode {short} s clips: transformers": lambda: usual_encoding(sizes, short),
            f"encode {short} s clips: ours": lambda: our_encoding(sizes, short),
            "student's CNN, clips of 3 to 14 s: transformers": lambda: usual_cnn_features(sizes),
            "student's CNN, clips of 3 to 14 s: ours": lambda: our_cnn_features(sizes),
            "transcribe test clips from CNN features: ours": lambda: our_transcribing(sizes, logits),
            "load batches: ours": lambda: loading(sizes, features),
            "mix, one core: ours": lambda: mixing(sizes),
        }
        # forward, and the gradients of the inputs; a small student has another
        floor = None if small else matrix_rate(sizes.device, 8192) / (2 * FORWARD_GFLOP * 1e9)
        found: dict[str, list[dict[str, float]]] = {}
        for _ in range(rounds):
            for name, measure in measurements.items():
                if only in name:
                    found.setdefault(name, []).append(measure())
                    print(name, found[name][-1], flush=True)
    table = {
        name: {key: statistics.median(one[key] for one in several) for key in several[0]}
        for name, several in found.items()
    }
    if floor is not None:
        print(f"floor of a training step: {floor:.0f} × real time")
    print("\n| | × real time | ratio to the peer | GiB |")
    print("| --- | --- | --- | --- |")
    for name, row in table.items():
        peer = PEERS.get(name)
        rate = row["rtfx"]
        ratio = f"{rate / table[peer]['rtfx']:.1f}" if peer in table else ""
        print(f"| {name} | {rate:.0f} | {ratio} | {row['gib']:.1f} |")
    if output:
        write_json(output, {"floor": floor, "table": table})


PEERS = {
    "train: ours, LoRA r 8 on attention, logits": "train: usual QLoRA, 32 clips",
    "train: ours, params.yaml": "train: usual QLoRA, 32 clips",
    "encode 30 s clips: ours": "encode 30 s clips: transformers",
    "encode 10 s clips: ours": "encode 10 s clips: transformers",
    "student's CNN, clips of 3 to 14 s: ours": "student's CNN, clips of 3 to 14 s: transformers",
}

if __name__ == "__main__":
    run_stage(lambda: typer.run(main))
