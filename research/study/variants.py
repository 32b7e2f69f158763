"""What is compared. A variant is a name and what it changes of params.yaml and preset, as `dvc exp run -S` would."""

from typing import Any

Variant = dict[str, Any]

ATTENTION = ["q_proj", "k_proj", "v_proj", "out_proj"]
ALL_LINEAR = [*ATTENTION, "intermediate_dense", "output_dense"]
PROJECTION = "feature_projection.projection"  # from the CNN's width to the transformer's
UP_TO_LAYER_8 = [
    f"layers.{layer}.{'attention' if name in ATTENTION else 'feed_forward'}.{name}"
    for layer in range(8)
    for name in ALL_LINEAR
]

# every variant's, unless it says otherwise
COMMON: Variant = {
    "lambda_distill": 0.0,
    "lora.r": 16,
    "lora.alpha": 32,
    "lora.target_modules": ALL_LINEAR,
    "lora.dropout": 0.0,
    "budget.learning_rate": 2e-3,
    "train.dropout": 0.0,
    "train.mask_time_prob": 0.05,
}
ALPHAS = (1.0, 0.7, 0.5, 0.3)  # of WiSE-FT: every run is scored with each
RANK_32: Variant = {"lora.r": 32, "lora.alpha": 64}
RANK_64: Variant = {"lora.r": 64, "lora.alpha": 128}
RANK_128: Variant = {"lora.r": 128, "lora.alpha": 256}
RANK_256: Variant = {"lora.r": 256, "lora.alpha": 512}
NO_MASKS: Variant = {"train.mask_time_prob": 0.0}
FULL: Variant = {"student.quantize": "none", "student.adapt": "full", "budget.learning_rate": 3e-4}
DROPOUT: Variant = {"train.dropout": 0.1, "lora.dropout": 0.1}


def at_alpha(name: str, alpha: float) -> str:
    """The variant with this WiSE-FT alpha."""
    return name if alpha == 1.0 else f"{name}, WiSE-FT alpha {alpha}"


def gated(name: str) -> str:
    """The variant behind the confidence gate."""
    return f"{name}, gated"


def has_adapter(name: str) -> bool:
    """Whether a variant, at whatever WiSE-FT alpha, trains an adapter, which can be switched off."""
    return VARIANTS.get(name.partition(", WiSE-FT alpha")[0], {}).get("student.adapt") != "full"


def to(target: str, weight: float, **changes: Any) -> Variant:
    """Distil `target` at lambda `weight`."""
    return {"lambda_distill": weight, "distill.target": target, **{f"distill.{k}": v for k, v in changes.items()}}


BASE = "base, unadapted"
CTC = "CTC only"
FEATURES = to("base_features", 1.0, layer=8)
DEFAULT: Variant = {  # params.yaml's, but for the learning rate
    **FEATURES,
    **RANK_64,
    **NO_MASKS,
    "lora.target_modules": [*ALL_LINEAR, PROJECTION],
}
VARIANTS: dict[str, Variant] = {
    CTC: {},
    "base logits, λ 3": to("base_logits", 3.0),
    "base CTC posterior, λ 1": to("base_ctc_posterior", 1.0),
    "base features of layer 8, λ 0.3": to("base_features", 0.3, layer=8),
    "base features of layer 12, λ 1": to("base_features", 1.0, layer=12),
    "whisper logits, λ 0.3": to("whisper_logits", 0.3),
    "whisper CTC posterior, λ 1": to("whisper_ctc_posterior", 1.0),
    "mean logits, λ 1": to("mean_logits", 1.0),
    "whisper features at layer 12, λ 0.1": to("whisper_features", 0.1, layer=12),
    "CTC only, full fine-tuning": FULL,
    "base CTC posterior, λ 3": to("base_ctc_posterior", 3.0),
    "base features of layer 8, λ 1": FEATURES,
    "base features of layer 4, λ 0.3": to("base_features", 0.3, layer=4),
    "base logits, λ 1": to("base_logits", 1.0),
    "mean logits, λ 3": to("mean_logits", 3.0),
    "whisper logits, λ 1": to("whisper_logits", 1.0),
    "whisper CTC posterior, λ 3": to("whisper_ctc_posterior", 3.0),
    "untrained head, stretched, λ 0.3": to("untrained_head", 0.3),
    "CTC only, learning rate 1e-3": {"budget.learning_rate": 1e-3},
    "CTC only, learning rate 4e-3": {"budget.learning_rate": 4e-3},
    "CTC only, LoRA r 8 on attention": {"lora.r": 8, "lora.alpha": 16, "lora.target_modules": ATTENTION},
    "CTC only, LoRA r 8": {"lora.r": 8, "lora.alpha": 16},
    "CTC only, LoRA r 32": RANK_32,
    "CTC only, 16-bit base": {"student.quantize": "none"},
    "base CTC posterior, λ 0.3": to("base_ctc_posterior", 0.3),
    "base logits, λ 10": to("base_logits", 10.0),
    "whisper features at layer 8, λ 0.1": to("whisper_features", 0.1, layer=8),
    "whisper logits, λ 0.1": to("whisper_logits", 0.1),
    "whisper logits, λ 1, temperature 2": to("whisper_logits", 1.0, temperature=2.0),
    "whisper logits, λ 1, temperature 4": to("whisper_logits", 1.0, temperature=4.0),
    "whisper logits, λ 1, nonblank frames": to("whisper_logits", 1.0, frames="nonblank"),
    "whisper logits, λ 1, around nonblank frames": to("whisper_logits", 1.0, frames="around_nonblank"),
    "CTC only, dropout 0.1": DROPOUT,
    "base features of layer 8, λ 1, dropout 0.1": {**FEATURES, **DROPOUT},
    "base features of layer 8, λ 1, LoRA dropout 0.1": {**FEATURES, "lora.dropout": 0.1},
    "base features of layer 8, λ 1, no masks": {**FEATURES, **NO_MASKS},
    "base features of layer 8, λ 1, learning rate 1e-3": {**FEATURES, "budget.learning_rate": 1e-3},
    "base features of layer 8, λ 0.3, learning rate 1e-3": {
        **to("base_features", 0.3, layer=8),
        "budget.learning_rate": 1e-3,
    },
    "base features of layer 8, λ 1, LoRA r 32": {**FEATURES, **RANK_32},
    "base features of layer 8, λ 1, LoRA r 32, learning rate 1e-3": {
        **FEATURES,
        **RANK_32,
        "budget.learning_rate": 1e-3,
    },
    "base features of layer 8, λ 3, LoRA r 32": {**to("base_features", 3.0, layer=8), **RANK_32},
    "base features of layer 10, λ 1, LoRA r 32": {**to("base_features", 1.0, layer=10), **RANK_32},
    "base features of layer 10, λ 3, LoRA r 32": {**to("base_features", 3.0, layer=10), **RANK_32},
    "base features of layer 8, λ 1, LoRA r 64": {**FEATURES, **RANK_64},
    "base features of layer 8, λ 1, LoRA r 64, no masks": {**FEATURES, **RANK_64, **NO_MASKS},
    "base features of layer 8, λ 1, LoRA r 128, no masks": {**FEATURES, **RANK_128, **NO_MASKS},
    "base features of layer 8, λ 1, LoRA r 64 and projection, no masks": DEFAULT,
    "base features of layer 8, λ 1, LoRA r 64 on layers 1 to 8 and projection, no masks": {
        **FEATURES,
        **RANK_64,
        **NO_MASKS,
        "lora.target_modules": [*UP_TO_LAYER_8, PROJECTION],
    },
    "base features of layer 8, λ 1, LoRA r 256 and projection, no masks, learning rate 5e-4": {
        **FEATURES,
        **NO_MASKS,
        **RANK_256,
        "lora.target_modules": [*ALL_LINEAR, PROJECTION],
        "budget.learning_rate": 5e-4,
    },
    "base features of layer 8, λ 3, LoRA r 64, no masks": {
        **to("base_features", 3.0, layer=8),
        **RANK_64,
        **NO_MASKS,
    },
    "base features of layer 8, λ 1, full fine-tuning, no masks": {**FEATURES, **FULL, **NO_MASKS},
    "base features of layer 8, λ 1, full fine-tuning, no masks, learning rate 1e-3": {
        **FEATURES,
        **FULL,
        **NO_MASKS,
        "budget.learning_rate": 1e-3,
    },
    "CTC only, LoRA r 64, no masks": {**RANK_64, **NO_MASKS},
    "CTC only, LoRA r 64 and projection, no masks": {
        **RANK_64,
        **NO_MASKS,
        "lora.target_modules": [*ALL_LINEAR, PROJECTION],
    },
    "base features of layer 8, λ 1, LoRA r 64, learning rate 1e-3": {
        **FEATURES,
        **RANK_64,
        "budget.learning_rate": 1e-3,
    },
    "base features of layer 8, λ 3, LoRA r 64": {**to("base_features", 3.0, layer=8), **RANK_64},
    "base features of layer 8, λ 10, LoRA r 64": {**to("base_features", 10.0, layer=8), **RANK_64},
    "base features of layer 6, λ 1, LoRA r 64": {**to("base_features", 1.0, layer=6), **RANK_64},
    "base features of layer 10, λ 1, LoRA r 64": {**to("base_features", 1.0, layer=10), **RANK_64},
    "base features of layer 8, λ 1, LoRA r 128": {**FEATURES, **RANK_128},
    "CTC only, LoRA r 64": RANK_64,
    "base features of layer 8, λ 3": to("base_features", 3.0, layer=8),
    "base features of layer 6, λ 1": to("base_features", 1.0, layer=6),
    "base features of layer 10, λ 1": to("base_features", 1.0, layer=10),
}
# learning rate, rank and bits for a student of another size
SETTINGS: dict[str, Variant] = (
    {
        f"learning rate {rate:g}, LoRA r {rank}, {quantize}": {
            **DEFAULT,
            "budget.learning_rate": rate,
            "lora.r": rank,
            "lora.alpha": 2 * rank,
            "student.quantize": quantize,
        }
        for rank in (64, 8)
        for quantize in ("nf4", "none")
        for rate in (5e-4, 2e-4, 1e-3, 2e-3)
    }
    | {
        f"learning rate 0.0005, LoRA r 64, nf4, layer {layer}": {
            **DEFAULT,
            "budget.learning_rate": 5e-4,
            "distill.layer": layer,
        }
        for layer in (4, 6, 10, 12)
    }
    | {
        "learning rate 0.0005, LoRA r 64, nf4, CTC only": {
            **DEFAULT,
            "budget.learning_rate": 5e-4,
            "lambda_distill": 0.0,
        }
    }
)
# how a CPU's minutes are spent best: with --steps, as much audio in more or larger steps, by rank and learning rate
BUDGETS: dict[str, Variant] = {
    f"LoRA r {rank}, learning rate {rate:g}, {seconds} s a step": {
        **DEFAULT,
        "lora.r": rank,
        "lora.alpha": 2 * rank,
        "budget.learning_rate": rate,
        "budget.batch_seconds": seconds,
    }
    for rank in (64, 16)
    for rate in (1e-3, 2e-3, 4e-3)
    for seconds in (10, 20, 40, 80)
}
# other terms beside CTC, each at the default's rank: losses.py. With two views of a clip, half as many clips a step
TWO_VIEWS: Variant = {"budget.batch_seconds": 80}
MASKS: Variant = {"train.mask_time_prob": 0.05}
DEFAULT_CTC: Variant = {**DEFAULT, "lambda_distill": 0.0}
LOSSES: dict[str, Variant] = {
    "CTC only": DEFAULT_CTC,
    "features": DEFAULT,
    "consistency 1": {**DEFAULT_CTC, **TWO_VIEWS, "loss": {"consistency": 1.0}},
    "consistency 0.3": {**DEFAULT_CTC, **TWO_VIEWS, "loss": {"consistency": 0.3}},
    "consistency 1, masks": {**DEFAULT_CTC, **TWO_VIEWS, **MASKS, "loss": {"consistency": 1.0}},
    "features and consistency 1": {**DEFAULT, **TWO_VIEWS, "loss": {"consistency": 1.0}},
    "features and consistency 0.3": {**DEFAULT, **TWO_VIEWS, "loss": {"consistency": 0.3}},
    "features of layers 4, 8 and 12": {**DEFAULT, "loss": {"layers": (4, 8, 12)}},
    "features and correlation 1": {**DEFAULT, "loss": {"correlation": 1.0}},
    "features, variance and covariance 1": {**DEFAULT, "loss": {"variance": 1.0}},
}
LOSSES |= {
    f"mean of the seeds' adapters: {name}": {**DEFAULT, "loss": {"mean_of": name}}
    for name in ("features", "features, variance and covariance 1", "features of layers 4, 8 and 12")
}
# trained at a second budget too
FINALISTS = (
    CTC,
    "CTC only, LoRA r 64, no masks",
    "CTC only, LoRA r 64 and projection, no masks",
    "base features of layer 8, λ 1, LoRA r 64, no masks",
    "base features of layer 8, λ 1, LoRA r 64 and projection, no masks",
    "base features of layer 8, λ 1, full fine-tuning, no masks",
    "whisper logits, λ 0.3",
)
