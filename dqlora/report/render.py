"""The report: one HTML page with numbers, charts and clips to listen to, that asks for nothing outside itself."""

import base64
import io
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import soundfile

from dqlora.config import OUT_OF_DOMAIN
from dqlora.data.audio import SAMPLE_RATE
from dqlora.evaluation.metrics import CONFIDENCE, FEWEST_SENTENCES
from dqlora.evaluation.results import (
    CLEAN,
    LM_SYSTEMS,
    SYSTEMS,
    Estimate,
    Row,
    Scores,
    best_and_worst,
    compare,
    shown,
    verdict,
)
from dqlora.report.charts import Curve, Form, cost_chart, curve_chart, legend, noise_chart, snr_chart
from dqlora.report.templates import template

# libsndfile maps 0..1 onto 160..8 kbit/s at 16 kHz: 24 kbit/s, so that 24 players of 30 s stay below 3 MB in base64
MP3_COMPRESSION = (160 - 24) / (160 - 8)

FEW_SENTENCES = 50  # of a test, under which the page says that they are few

FORMS = {  # of what transcribes: name, and the system it is made of
    "base": ("base student", "base"),
    "base_lm": ("base student, language model", "base"),
    "distilled": ("distilled student", "distilled"),
    "distilled_lm": ("distilled student, language model", "distilled"),
    "merged": ("distilled, merged, always on", "distilled"),
    "onnx": ("distilled, ONNX int8", "distilled"),
    "teacher": ("Whisper", "teacher"),
}

Sounds = Callable[[Row], tuple[np.ndarray, np.ndarray]]  # a row's clean and noisy clip, int16 or float32 [samples]


@dataclass(frozen=True)
class RunSettings:
    """What the page says of how the run was made."""

    preset: str
    seed: int
    lambda_distill: float
    teacher_input: str
    quantize: str
    adapt: str
    rank: int
    target: str
    gate_quantile: float
    gated: bool  # not where the adapter is better on clean speech too
    language: str
    bootstrap_draws: int


Example = tuple[str, dict[str, Any], np.ndarray]  # split, a line of what pseudo_label wrote, int16 [samples]


@dataclass(frozen=True)
class Labels:
    """What the teacher transcribed: metrics/<preset>/pseudo_label.json, and examples."""

    counts: dict[str, Any]
    kept: list[Example] = field(default_factory=list)
    rejected: list[Example] = field(default_factory=list)


@dataclass(frozen=True)
class Inputs:
    """What the stages before left behind; a metric, a curve or a whole file may be missing (empty)."""

    settings: RunSettings
    evaluate: dict[str, Any]
    costs: dict[str, Any]
    export: dict[str, Any]
    train: dict[str, Any]
    teacher: dict[str, Any]
    loss: Curve
    validation_wer: Curve
    predictions: list[Row]
    rejected: list[tuple[str, str, str, str]]  # made by, split, id, reason
    labels: Labels = Labels({})
    noise_recordings: tuple[int, int] | None = None  # of the test split: those in its mixtures, and all


def render(inputs: Inputs, sounds: Sounds) -> str:
    """The page.

    Parameters
    ----------
    inputs
        metrics, curves and predictions of one run.
    sounds
        finds the clean and the noisy audio of a noisy prediction, 16 kHz; asked only for the clips that are shown.
    """
    rows = inputs.predictions
    settings = inputs.settings
    scores = Scores(rows, settings.language, settings.bootstrap_draws, settings.seed)
    reductions = {
        f"{domain}{condition}": _reduction(inputs.evaluate, f"{domain}wer_reduction.{condition}")
        for domain in ("", f"{OUT_OF_DOMAIN}.", f"{OUT_OF_DOMAIN}.lm_")
        for condition in ("noisy", CLEAN)
    }
    reductions["with_lm"] = _reduction(inputs.evaluate, "wer_reduction_with_lm.noisy")
    conditions = scores.by("condition", noisy_only=False)
    in_order = sorted(conditions, key=lambda group: math.inf if group.name == CLEAN else group.snr_db, reverse=True)
    categories = scores.by("category", noisy_only=True)
    best, worst = best_and_worst(rows, {system: scores.errors[system].word_edits for system in SYSTEMS})
    best_step = metric(inputs.train, "best_step")
    labelled = [inputs.labels.counts.get("train", {}).get(kind, {}) for kind in ("human", "kept")]
    return template("report", "report.html.j2").render(
        run=settings,
        trained_on={amount: sum(each.get(amount, 0) for each in labelled) for amount in ("clips", "hours")},
        confidence=CONFIDENCE,
        systems=SYSTEMS,
        shown=shown(scores.errors),
        evaluate=lambda name: metric(inputs.evaluate, name),
        costs=lambda name: metric(inputs.costs, name),
        forms=(forms := forms_of(inputs)),
        cost_chart=cost_chart(forms) if forms else None,
        choices={condition: choices(forms, condition) for condition in ("noisy", CLEAN)},
        train=lambda name: metric(inputs.train, name),
        teacher=lambda name: metric(inputs.teacher, name),
        overall={
            condition: {"wer": scores.overall(condition == "noisy"), "cer": scores.overall(condition == "noisy", "cer")}
            for condition in ("noisy", CLEAN)
        },
        lm_systems={system: name for system, name in LM_SYSTEMS.items() if system in scores.errors},
        reductions=reductions,
        verdicts={condition: verdict(reduction) for condition, reduction in reductions.items()},
        out_of_domain=OUT_OF_DOMAIN in inputs.evaluate,
        utterances=len({row["id"] for row in rows}),
        sentences=len({row["reference"] for row in rows}),
        few_sentences=FEW_SENTENCES,
        noise_recordings=inputs.noise_recordings,
        conditions=in_order,
        categories=categories,
        fewest=FEWEST_SENTENCES,
        legend=legend,
        snr_chart=snr_chart(in_order) if in_order else None,
        noise_chart=noise_chart(categories) if categories else None,
        loss_chart=curve_chart(inputs.loss, "Training loss (nats)", "loss", best_step),
        wer_chart=curve_chart(inputs.validation_wer, "Validation WER, noisy (%)", "distilled", best_step, 100),
        rejected=group_rejected(inputs.rejected),
        labels=label_amounts(inputs.labels.counts),
        teacher_is_reference=bool(metric(inputs.labels.counts, "test.kept.clips")),
        examples={
            name: [{"split": split, **line, "sound": mp3_uri(samples)} for split, line, samples in found]
            for name, found in (("kept", inputs.labels.kept), ("rejected", inputs.labels.rejected))
        },
        clips=[
            (
                "Where the distilled student improves most",
                [_clip(scores, at, settings.language, sounds) for at in best],
            ),
            ("Where it improves least", [_clip(scores, at, settings.language, sounds) for at in worst]),
        ],
    )


def metric(values: dict[str, Any], name: str) -> float | None:
    """The metric of a dotted name, None where it is missing or no finite number."""
    value: Any = values
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def forms_of(inputs: Inputs) -> list[Form]:
    """Those of FORMS whose cost and WER were measured, the cheapest first, each with a letter.

    An export is scored on a sample: its WER is the student's of all clips and how far it is from it there.
    """
    found = []
    for form, (name, system) in FORMS.items():
        rtf, memory = metric(inputs.costs, f"{form}.rtf"), metric(inputs.costs, f"{form}.peak_rss_mb")
        scored = "distilled" if form in inputs.export else form
        clean, noisy = (metric(inputs.evaluate, f"{scored}.{condition}.wer") for condition in (CLEAN, "noisy"))
        if rtf and memory and clean is not None and noisy is not None:
            if form in inputs.export:
                clean += metric(inputs.export, f"{form}.wer_difference.clean") or 0.0
                noisy += metric(inputs.export, f"{form}.wer_difference.noisy") or 0.0
            found.append(Form("", name, system, rtf, memory, {CLEAN: clean, "noisy": noisy}))
    in_order = sorted(found, key=lambda form: form.rtf)
    return [replace(form, letter=chr(ord("A") + at)) for at, form in enumerate(in_order)]


def choices(forms: list[Form], condition: str) -> list[Form]:
    """The forms with fewer errors than every cheaper one, of `forms` with the cheapest first."""
    best: list[Form] = []
    for form in forms:
        if not best or form.wer[condition] < best[-1].wer[condition]:
            best.append(form)
    return best


def _reduction(evaluate: dict[str, Any], name: str) -> Estimate:
    return Estimate(*(metric(evaluate, f"{name}.{value}") for value in ("relative", "ci_low", "ci_high")))


def group_rejected(items: list[tuple[str, str, str, str]]) -> list[dict[str, Any]]:
    """Utterances and recordings rejected, by who did it, split and reason, the most frequent first."""
    names = defaultdict(list)
    for made_by, split, item, reason in items:
        names[made_by, split, reason].append(item)
    fields = ("made_by", "split", "reason")
    grouped = [dict(zip(fields, key, strict=True)) | {"ids": ids} for key, ids in names.items()]
    return sorted(grouped, key=lambda group: -len(group["ids"]))


def label_amounts(counts: dict[str, Any]) -> list[dict[str, Any]]:
    """Of each split hours and clips by who transcribed them, and why labels were rejected; none where none was made."""
    made = sum(counts[split][kind]["clips"] for split in counts for kind in ("kept", "rejected"))
    in_order = sorted(counts, key=("train", "validation", "test").index)
    return [{"split": split, **counts[split]} for split in in_order] if made else []


def mp3_uri(samples: np.ndarray) -> str:
    """16 kHz mono audio [samples] as a data URI that every browser plays."""
    file = io.BytesIO()
    soundfile.write(
        file,
        samples,
        SAMPLE_RATE,
        format="MP3",
        subtype="MPEG_LAYER_III",
        bitrate_mode="CONSTANT",
        compression_level=MP3_COMPRESSION,
    )
    return "data:audio/mpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _clip(scores: Scores, at: int, language: str, sounds: Sounds) -> dict[str, Any]:
    row = scores.rows[at]
    clean, noisy = sounds(row)
    transcripts = []
    for system, name in shown(scores.errors).items():
        words = compare(row["reference"], row[system], language)
        transcripts.append({"name": name, "words": words, "edits": int(scores.errors[system].word_edits[at])})
    return {
        "row": row,
        "clean": mp3_uri(clean),
        "noisy": mp3_uri(noisy),
        "seconds": len(noisy) / SAMPLE_RATE,
        "words": int(scores.errors["base"].words[at]),
        "saved": int(scores.errors["base"].word_edits[at] - scores.errors["distilled"].word_edits[at]),
        "transcripts": transcripts,
    }
