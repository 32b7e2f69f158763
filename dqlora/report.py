"""The report: one HTML page with numbers, charts and clips to listen to, that asks for nothing outside itself."""

import base64
import io
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jinja2
import jiwer
import numpy as np
import soundfile
from markupsafe import Markup

from dqlora.audio import SAMPLE_RATE
from dqlora.config import Params
from dqlora.scoring import Errors, count_errors, relative_gain
from dqlora.text import scoring_normaliser

SYSTEMS = {"base": "Base student", "distilled": "Distilled student", "teacher": "Teacher"}
CLEAN = "clean"
CLIPS_A_LIST = 6
FEWEST_UTTERANCES = 5  # for an interval: a bootstrap over fewer looks surer than it is
# libsndfile maps 0..1 onto 160..8 kbit/s at 16 kHz: 24 kbit/s, so that 24 players of 30 s stay below 3 MB in base64
MP3_COMPRESSION = (160 - 24) / (160 - 8)
NO_BREAK = "\N{NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"

Row = dict[str, Any]  # one prediction: id, condition, reference, base, distilled, teacher; noisy ones snr_db, category
Curve = list[tuple[int, float]]  # (optimiser step, value)
Sounds = Callable[[Row], tuple[np.ndarray, np.ndarray]]  # a row's clean and noisy clip, int16 or float32 [samples]


@dataclass(frozen=True)
class Estimate:
    """A share (0.1 is 10 %) with its 95 % interval; None where it was not measured."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @property
    def has_interval(self) -> bool:
        return self.low is not None and self.high is not None


@dataclass(frozen=True)
class Inputs:
    """What the stages before left behind; a metric, a curve or a whole file may be missing (empty)."""

    params: Params
    language: str
    evaluate: dict[str, Any]
    train: dict[str, Any]
    teacher: dict[str, Any]
    loss: Curve
    validation_wer: Curve
    predictions: list[Row]
    set_aside: list[tuple[str, str, str, str]]  # made by, split, id, reason


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
    scores = Scores(rows, inputs.language, inputs.params.evaluate.bootstrap_draws, inputs.params.seed)
    gains = {condition: _gain(inputs.evaluate, condition) for condition in ("noisy", CLEAN)}
    conditions = scores.by("condition", noisy_only=False)
    in_order = sorted(conditions, key=lambda group: math.inf if group.name == CLEAN else _snr(group), reverse=True)
    categories = scores.by("category", noisy_only=True)
    best, worst = best_and_worst(rows, {system: scores.errors[system].word_edits for system in SYSTEMS})
    best_step = metric(inputs.train, "best_step")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dqlora", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"percent": percent, "number": number}
    return environment.get_template("report.html.j2").render(
        params=inputs.params,
        systems=SYSTEMS,
        evaluate=lambda name: metric(inputs.evaluate, name),
        train=lambda name: metric(inputs.train, name),
        teacher=lambda name: metric(inputs.teacher, name),
        overall={condition: scores.overall(condition == "noisy") for condition in ("noisy", CLEAN)},
        gains=gains,
        verdicts={condition: verdict(gain) for condition, gain in gains.items()},
        utterances=len({row["id"] for row in rows}),
        conditions=in_order,
        categories=categories,
        fewest=FEWEST_UTTERANCES,
        legend=legend(),
        snr_chart=snr_chart(in_order) if in_order else None,
        noise_chart=noise_chart(categories) if categories else None,
        loss_chart=curve_chart(inputs.loss, "Training loss (nats)", "loss", best_step),
        wer_chart=curve_chart(inputs.validation_wer, "Validation WER, noisy (%)", "distilled", best_step, 100),
        set_aside=group_set_aside(inputs.set_aside),
        clips=[
            ("Where the distilled student improves most", [_clip(scores, at, inputs.language, sounds) for at in best]),
            ("Where it does worst", [_clip(scores, at, inputs.language, sounds) for at in worst]),
        ],
    )


# Numbers


def metric(values: dict[str, Any], name: str) -> float | None:
    """The metric of a dotted name, None where it is missing or no finite number."""
    value: Any = values
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def number(value: float | None, digits: int = 0) -> str:
    """With spaces between thousands; `not measured` where there is none."""
    return "not measured" if value is None else f"{value:,.{digits}f}".replace(",", NO_BREAK).replace("-", MINUS)


def percent(share: float | None) -> str:
    """0.123 as `12.3 %`."""
    return number(share) if share is None else number(share * 100, 1) + NO_BREAK + "%"


def _gain(evaluate: dict[str, Any], condition: str) -> Estimate:
    names = ("wer_relative", "ci_low", "ci_high")
    return Estimate(*(metric(evaluate, f"gain.{condition}.{name}") for name in names))


Verdict = Literal["gain", "no difference shown", "worse", "no verdict"]


def verdict(gain: Estimate) -> Verdict:
    """What the 95 % interval of a relative gain allows to say."""
    if gain.low is None or gain.high is None:
        return "no verdict"
    if gain.low > 0:
        return "gain"
    return "worse" if gain.high < 0 else "no difference shown"


@dataclass(frozen=True)
class Group:
    """Predictions that share a condition or a noise category: how many, and each system's WER."""

    name: str
    clips: int
    wer: dict[str, Estimate]


class Scores:
    """The errors of every prediction, counted once, and WERs of groups of them with intervals."""

    def __init__(self, rows: list[Row], language: str, draws: int, seed: int):
        self.rows, self._draws, self._seed = rows, draws, seed
        references = [row["reference"] for row in rows]
        self.errors = {system: count_errors(references, [row[system] for row in rows], language) for system in SYSTEMS}

    def by(self, field: str, noisy_only: bool) -> list[Group]:
        """One group for each value of `field`, in the order of their names."""
        groups = defaultdict(list)
        for at, row in enumerate(self.rows):
            if not noisy_only or row["condition"] != CLEAN:
                groups[row[field]].append(at)
        return [Group(name, len(chosen), self._wer(chosen)) for name, chosen in sorted(groups.items())]

    def overall(self, noisy: bool) -> dict[str, Estimate]:
        """Each system's WER over all noisy conditions, or over the clean one."""
        return self._wer([at for at, row in enumerate(self.rows) if (row["condition"] != CLEAN) == noisy])

    def _wer(self, chosen: list[int]) -> dict[str, Estimate]:
        names = [self.rows[at]["id"] for at in chosen]
        return {
            system: wer_with_interval(_per_utterance(names, errors, chosen), self._draws, self._seed)
            for system, errors in self.errors.items()
        }


def _per_utterance(names: list[str], errors: Errors, chosen: list[int]) -> Errors:
    """Errors of the chosen predictions, added up utterance by utterance: that is what the bootstrap draws."""
    _, utterance = np.unique(np.array(names, dtype=str), return_inverse=True)
    fields = (errors.word_edits, errors.words, errors.char_edits, errors.chars)
    return Errors(*(np.bincount(utterance, field[chosen]).astype(np.int64) for field in fields))


def wer_with_interval(errors: Errors, draws: int, seed: int) -> Estimate:
    """WER and its 95 % bootstrap interval over utterances, if there are enough of them.

    1 - WER is the relative gain over a system that gets every word wrong, so that the bootstrap is the one of
    `relative_gain`.
    """
    if errors.words.sum() == 0:
        return Estimate(None)
    if len(errors.words) < FEWEST_UTTERANCES:
        return Estimate(errors.wer)
    all_wrong = Errors(errors.words, errors.words, errors.chars, errors.chars)
    gain = relative_gain(all_wrong, errors, draws, seed)
    return Estimate(errors.wer, 1 - gain["ci_high"], 1 - gain["ci_low"])


def _snr(group: Group) -> float:
    return float(group.name.removesuffix(" dB"))


def group_set_aside(items: list[tuple[str, str, str, str]]) -> list[dict[str, Any]]:
    """Utterances and recordings set aside, by who did it, split and reason, the most frequent first."""
    names = defaultdict(list)
    for made_by, split, item, reason in items:
        names[made_by, split, reason].append(item)
    fields = ("made_by", "split", "reason")
    grouped = [dict(zip(fields, key, strict=True)) | {"ids": ids} for key, ids in names.items()]
    return sorted(grouped, key=lambda group: -len(group["ids"]))


# Clips


def best_and_worst(rows: list[Row], edits: dict[str, np.ndarray]) -> tuple[list[int], list[int]]:
    """Noisy predictions where the distilled student saves most word edits over base, and where it saves fewest.

    Every utterance stands at most once in the two lists together; the first list holds only what improved.

    Parameters
    ----------
    edits
        word edits of base and of distilled, [rows] each.
    """
    saved = edits["base"] - edits["distilled"]
    noisy = [at for at, row in enumerate(rows) if row["condition"] != CLEAN]
    limit = min(CLIPS_A_LIST, max(1, len({rows[at]["id"] for at in noisy}) // 2))
    taken: set[str] = set()

    def first(candidates: list[int]) -> list[int]:
        chosen: list[int] = []
        for at in candidates:
            if rows[at]["id"] not in taken and len(chosen) < limit:
                taken.add(rows[at]["id"])
                chosen.append(at)
        return chosen

    improved = [at for at in noisy if saved[at] > 0]
    best = first(sorted(improved, key=lambda at: (-saved[at], edits["distilled"][at], at)))
    worst = first(sorted(noisy, key=lambda at: (saved[at], -edits["distilled"][at], at)))
    return best, worst


@dataclass(frozen=True)
class Word:
    """A word of an aligned transcript: as in the reference, or how it differs from it."""

    kind: Literal["same", "substituted", "inserted", "deleted"]
    text: str
    instead_of: str = ""


def compare(reference: str, hypothesis: str, language: str) -> list[Word]:
    """The hypothesis word by word against the reference, both through the scoring normaliser, as WER counts them."""
    normalise = scoring_normaliser(language)
    wanted, heard = normalise(reference).split(), normalise(hypothesis).split()
    if not wanted:  # jiwer refuses an empty reference
        return [Word("inserted", word) for word in heard]
    words: list[Word] = []
    for chunk in jiwer.process_words(" ".join(wanted), " ".join(heard)).alignments[0]:
        expected = wanted[chunk.ref_start_idx : chunk.ref_end_idx]
        said = heard[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "equal":
            words += [Word("same", word) for word in said]
        elif chunk.type == "substitute":
            words += [Word("substituted", word, of) for word, of in zip(said, expected, strict=True)]
        elif chunk.type == "insert":
            words += [Word("inserted", word) for word in said]
        else:
            words += [Word("deleted", word) for word in expected]
    return words


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
    for system, name in SYSTEMS.items():
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


# Charts: inline SVG, coloured by the page's style sheet; every system has a shape and a line style of its own as well

WIDTH = 440  # user units of every chart; the page scales it to its column
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 30, 46  # margins around the plotted area
MARKERS = {
    "base": '<circle class="mark base" cx="{0:.1f}" cy="{1:.1f}" r="4.5"/>',
    "distilled": '<rect class="mark distilled" x="{0:.1f}" y="{1:.1f}" width="9" height="9" '
    'transform="translate(-4.5 -4.5)"/>',
    "teacher": '<path class="mark teacher" d="M0 -5.5L5.5 4.5H-5.5Z" transform="translate({0:.1f} {1:.1f})"/>',
}


def snr_chart(conditions: Sequence[Group]) -> Markup:
    """WER of the three systems on clean speech and along the SNR grid, the easiest condition on the left."""
    height = 290
    top = _top([wer for group in conditions for wer in group.wer.values()])
    step = (WIDTH - LEFT - RIGHT) / len(conditions)
    middle = [LEFT + step * (position + 0.5) for position in range(len(conditions))]
    shift = dict(zip(SYSTEMS, (-min(11, step / 4), 0, min(11, step / 4)), strict=True))
    parts = _vertical_axis(height, top, "WER (%)", 100)
    for x, group in zip(middle, conditions, strict=True):
        label = CLEAN if group.name == CLEAN else f"{_snr(group):g}".replace("-", MINUS)
        parts.append(_text(x, height - BOTTOM + 18, label, "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, height - 8, "SNR of the mixture (dB)", "middle"))

    def place(group: Group, x: float, system: str, share: float) -> tuple[float, float]:
        return x + shift[system], _up(share, top, height)

    for system in SYSTEMS:
        measured = [(x, group, group.wer[system].value) for x, group in zip(middle, conditions, strict=True)]
        line = [place(group, x, system, wer) for x, group, wer in measured if group.name != CLEAN and wer is not None]
        parts.append(_line(line, system))
        for x, group, wer in measured:
            if wer is None:
                continue
            estimate = group.wer[system]
            if estimate.low is not None and estimate.high is not None:
                ends = [place(group, x, system, share) for share in (estimate.low, estimate.high)]
                parts.append(_line(ends, f"{system} whisker"))
            parts.append(_marker(system, *place(group, x, system, wer)))
    return _svg(height, "Word error rate by SNR for the three systems; the table beside it has the numbers.", parts)


def noise_chart(categories: Sequence[Group]) -> Markup:
    """WER of the three systems for each noise category, one row of marks a system."""
    row, head = 15, 22
    block = head + row * len(SYSTEMS) + 10
    height = TOP + block * len(categories) + BOTTOM
    left = 14
    top = _top([wer for group in categories for wer in group.wer.values()])

    def across(share: float) -> float:
        return left + (WIDTH - left - RIGHT) * share / top

    parts = []
    for tick in _ticks(top * 100):
        x = across(tick / 100)
        parts.append(_line([(x, TOP - 6), (x, height - BOTTOM)], "grid"))
        parts.append(_text(x, height - BOTTOM + 18, f"{tick:g}", "middle"))
    parts.append(_text((left + WIDTH - RIGHT) / 2, height - 8, "WER (%), all SNRs", "middle"))
    for position, group in enumerate(categories):
        y = TOP + block * position
        parts.append(_text(left + 4, y + 9, group.name, "start", "label strong"))
        for place, system in enumerate(SYSTEMS):
            wer = group.wer[system]
            if wer.value is None:
                continue
            middle = y + head + row * place
            if wer.low is not None and wer.high is not None:
                parts.append(_line([(across(wer.low), middle), (across(wer.high), middle)], f"{system} whisker"))
            parts.append(_marker(system, across(wer.value), middle))
    return _svg(height, "Word error rate by noise category for the three systems; the table has the numbers.", parts)


def curve_chart(curve: Curve, label: str, colour: str, best_step: float | None, scale: float = 1) -> Markup | None:
    """One quantity over the optimiser steps, times `scale`, with the kept step marked; None without points."""
    if not curve:
        return None
    height = 240
    top = _top([Estimate(value) for _, value in curve], scale)
    last = max(step for step, _ in curve) or 1

    def across(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT - 8) * step / last

    parts = _vertical_axis(height, top, label, scale)
    for tick in _ticks(last):
        parts.append(_text(across(tick), height - BOTTOM + 18, f"{tick:g}", "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, height - 8, "optimiser step", "middle"))
    if best_step is not None and best_step <= last:
        parts.append(_line([(across(best_step), TOP), (across(best_step), height - BOTTOM)], "kept"))
        anchor, gap = ("end", -5) if best_step > last / 2 else ("start", 5)
        parts.append(_text(across(best_step) + gap, TOP + 8, f"kept: step {best_step:g}", anchor))
    points = [(across(step), _up(value, top, height)) for step, value in curve]
    parts.append(_line(points, colour))
    parts += [Markup('<circle class="mark {}" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(colour, *at) for at in points]
    ends = f"from {number(curve[0][1] * scale, 2)} to {number(curve[-1][1] * scale, 2)}"
    return _svg(height, f"{label} over {last} optimiser steps, {ends}.", parts)


def legend() -> list[tuple[str, Markup]]:
    """Each system's name and mark."""
    mark = Markup('<svg class="key" viewBox="0 0 28 14" aria-hidden="true">{}{}</svg>')
    return [
        (name, mark.format(_line([(0, 7), (28, 7)], system), _marker(system, 14, 7)))
        for system, name in SYSTEMS.items()
    ]


def _svg(height: float, label: str, parts: Sequence[Markup]) -> Markup:
    tag = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>')
    return tag.format(WIDTH, height, label, Markup("").join(parts))


def _vertical_axis(height: float, top: float, label: str, scale: float) -> list[Markup]:
    """Grid lines with their numbers and, above them, what they measure."""
    parts = [_text(4, 14, label, "start", "label strong")]
    for tick in _ticks(top * scale):
        y = _up(tick / scale, top, height)
        parts.append(_line([(LEFT, y), (WIDTH - RIGHT, y)], "grid"))
        parts.append(_text(LEFT - 7, y + 4, f"{tick:g}", "end"))
    return parts


def _up(value: float, top: float, height: float) -> float:
    return height - BOTTOM - (height - TOP - BOTTOM) * value / top


def _line(points: Sequence[tuple[float, float]], classes: str) -> Markup:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return Markup('<polyline class="line {}" points="{}"/>').format(classes, path)


def _text(x: float, y: float, text: str, anchor: str, classes: str = "label") -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        classes, x, y, anchor, text
    )


def _marker(system: str, x: float, y: float) -> Markup:
    return Markup(MARKERS[system]).format(x, y)


def _top(estimates: list[Estimate], scale: float = 100) -> float:
    """The end of an axis that starts at 0: the first tick above everything drawn."""
    drawn = [end for one in estimates for end in (one.value, one.high) if end is not None]
    highest = max(drawn, default=0) * scale or 1.0
    step = _tick_step(highest)
    return math.ceil(highest / step - 1e-9) * step / scale


def _tick_step(highest: float) -> float:
    """1, 2 or 5 times a power of ten, so that an axis up to `highest` has at most six steps."""
    power = 10 ** math.floor(math.log10(highest / 6))
    return next(step * power for step in (1, 2, 5, 10) if highest <= 6 * step * power * (1 + 1e-9))


def _ticks(highest: float) -> list[float]:
    step = _tick_step(highest)
    return [round(position * step, 12) for position in range(math.floor(highest / step + 1e-9) + 1)]
