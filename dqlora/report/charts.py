"""Charts as inline SVG, coloured by the page's style sheet; every system has a shape and a line style of its own."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from markupsafe import Markup

from dqlora.evaluation.results import Estimate, Group, shown
from dqlora.evaluation.test_set import CLEAN
from dqlora.report.templates import MINUS, number

WIDTH = 400  # user units of every chart; the page scales it to its column
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 30, 46  # margins around the plotted area
AROUND = ((0, -13), (-13, 0), (13, 0))  # where the letter of a mark may stand, the first that is free
LETTER = 12  # what it needs around it
MARKERS = {
    "base": '<circle class="mark base" cx="{0:.1f}" cy="{1:.1f}" r="4.5"/>',
    "distilled": '<rect class="mark distilled" x="{0:.1f}" y="{1:.1f}" width="9" height="9" '
    'transform="translate(-4.5 -4.5)"/>',
    "distilled_lm": '<rect class="mark distilled_lm" x="{0:.1f}" y="{1:.1f}" width="8" height="8" '
    'transform="rotate(45 {0:.1f} {1:.1f}) translate(-4 -4)"/>',
    "teacher": '<path class="mark teacher" d="M0 -5.5L5.5 4.5H-5.5Z" transform="translate({0:.1f} {1:.1f})"/>',
}

Curve = list[tuple[int, float]]  # (optimiser step, value)


@dataclass(frozen=True)
class Form:
    """What one may transcribe with, what it costs on one core, and its WER clean and noisy."""

    letter: str
    name: str
    system: str  # one of MARKERS
    rtf: float
    peak_rss_mb: float
    wer: dict[str, float]


def snr_chart(conditions: Sequence[Group]) -> Markup:
    """WER of each system on clean speech and along the SNR grid, the easiest condition on the left."""
    height = 290
    top = _top([wer for group in conditions for wer in group.wer.values()])
    step = (WIDTH - LEFT - RIGHT) / len(conditions)
    middle = [LEFT + step * (position + 0.5) for position in range(len(conditions))]
    systems = shown(conditions[0].wer)
    gap = 2 * min(11, step / 4) / (len(systems) - 1)
    shift = {system: gap * (place - (len(systems) - 1) / 2) for place, system in enumerate(systems)}
    parts = _vertical_axis(height, top, "WER (%)", 100)
    for x, group in zip(middle, conditions, strict=True):
        label = CLEAN if group.name == CLEAN else f"{group.snr_db:g}".replace("-", MINUS)
        parts.append(_text(x, height - BOTTOM + 18, label, "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, height - 8, "SNR of the mixture (dB)", "middle"))

    def place(group: Group, x: float, system: str, ratio: float) -> tuple[float, float]:
        return x + shift[system], _up(ratio, top, height)

    for system in systems:
        measured = [(x, group, group.wer[system].value) for x, group in zip(middle, conditions, strict=True)]
        line = [place(group, x, system, wer) for x, group, wer in measured if group.name != CLEAN and wer is not None]
        parts.append(_line(line, system))
        for x, group, wer in measured:
            if wer is None:
                continue
            estimate = group.wer[system]
            if estimate.low is not None and estimate.high is not None:
                ends = [place(group, x, system, ratio) for ratio in (estimate.low, estimate.high)]
                parts.append(_line(ends, f"{system} whisker"))
            parts.append(_marker(system, *place(group, x, system, wer)))
    return _svg(height, "Word error rate by SNR for each system; the table beside it has the numbers.", parts)


def noise_chart(categories: Sequence[Group]) -> Markup:
    """WER of each system for each noise category, one row of marks a system."""
    row, head, systems = 15, 26, shown(categories[0].wer)
    block = head + row * len(systems)
    height = block * len(categories) + BOTTOM
    left = 14
    top = _top([wer for group in categories for wer in group.wer.values()])

    def across(ratio: float) -> float:
        return left + (WIDTH - left - RIGHT) * ratio / top

    parts = []
    for tick in ticks(top * 100):
        x = across(tick / 100)
        parts.append(_line([(x, 0), (x, height - BOTTOM)], "grid"))
        parts.append(_text(x, height - BOTTOM + 18, f"{tick:g}", "middle"))
    parts.append(_text((left + WIDTH - RIGHT) / 2, height - 8, "WER (%), all SNRs", "middle"))
    for position, group in enumerate(categories):
        y = block * position
        parts.append(_line([(left, y + block), (WIDTH - RIGHT, y + block)], "grid"))
        parts.append(_text(left + 4, y + 14, group.name, "start", "label strong"))
        for place, system in enumerate(systems):
            wer = group.wer[system]
            if wer.value is None:
                continue
            middle = y + head + row * place
            if wer.low is not None and wer.high is not None:
                parts.append(_line([(across(wer.low), middle), (across(wer.high), middle)], f"{system} whisker"))
            parts.append(_marker(system, across(wer.value), middle))
    return _svg(height, "Word error rate by noise category for each system; the table has the numbers.", parts)


def cost_chart(forms: Sequence[Form]) -> Markup:
    """WER against RTF, which is logarithmic: each form a line from its WER on clean speech up to that in noise."""
    height = 290
    top = _top([Estimate(wer) for form in forms for wer in form.wer.values()])
    first, last = min(form.rtf for form in forms) / 1.3, max(form.rtf for form in forms) * 1.3

    def across(rtf: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(rtf / first) / math.log(last / first)

    parts = _vertical_axis(height, top, "WER (%)", 100)
    powers = range(math.floor(math.log10(first)), math.ceil(math.log10(last)))
    for rtf in (float(f"{step}e{power}") for power in powers for step in (1, 2, 5)):
        if first <= rtf <= last:
            parts.append(_line([(across(rtf), TOP), (across(rtf), height - BOTTOM)], "grid"))
            parts.append(_text(across(rtf), height - BOTTOM + 18, f"{rtf:g}", "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, height - 8, "RTF on one core", "middle"))
    places = [
        (form, across(form.rtf), _up(form.wer[CLEAN], top, height), _up(form.wer["noisy"], top, height))
        for form in forms
    ]
    taken = [(x, y) for _, x, clean, noisy in places for y in (clean, noisy)]
    for form, x, clean, noisy in places:
        parts.append(_line([(x, clean), (x, noisy)], f"{form.system} whisker"))
        parts.append(Markup('<circle class="mark {}" cx="{:.1f}" cy="{:.1f}" r="2.5"/>').format(form.system, x, clean))
        parts.append(_marker(form.system, x, noisy))
        letter = max(((x + right, noisy + down) for right, down in AROUND), key=partial(_room, taken=taken))
        taken.append(letter)
        parts.append(_text(letter[0], letter[1] + 4, form.letter, "middle", "label strong"))
    return _svg(
        height, "Word error rate, clean and noisy, against the real-time factor; the table has the numbers.", parts
    )


def _room(place: tuple[float, float], taken: list[tuple[float, float]]) -> float:
    """How far the nearest of the taken places is, no more than LETTER."""
    return min(LETTER, *(math.dist(place, other) for other in taken))


def curve_chart(curve: Curve, label: str, colour: str, best_step: float | None, scale: float = 1) -> Markup | None:
    """One quantity over the optimiser steps, times `scale`, with the best step marked; None without points."""
    if not curve:
        return None
    height = 240
    top = _top([Estimate(value) for _, value in curve], scale)
    last = max(step for step, _ in curve) or 1

    def across(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT - 8) * step / last

    parts = _vertical_axis(height, top, label, scale)
    for tick in ticks(last):
        parts.append(_text(across(tick), height - BOTTOM + 18, f"{tick:g}", "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, height - 8, "optimiser step", "middle"))
    if best_step is not None and best_step <= last:
        parts.append(_line([(across(best_step), TOP), (across(best_step), height - BOTTOM)], "best"))
        anchor, gap = ("end", -5) if best_step > last / 2 else ("start", 5)
        parts.append(_text(across(best_step) + gap, TOP + 8, f"best: step {best_step:g}", anchor))
    points = [(across(step), _up(value, top, height)) for step, value in curve]
    parts.append(_line(points, colour))
    parts += [Markup('<circle class="mark {}" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(colour, *at) for at in points]
    ends = f"from {number(curve[0][1] * scale, 2)} to {number(curve[-1][1] * scale, 2)}"
    return _svg(height, f"{label} over {last} optimiser steps, {ends}.", parts)


def legend(systems: Mapping[str, str]) -> list[tuple[str, Markup]]:
    """The name and mark of each system, given their names."""
    mark = Markup('<svg class="key" viewBox="0 0 28 14" aria-hidden="true">{}{}</svg>')
    return [
        (name, mark.format(_line([(0, 7), (28, 7)], system), _marker(system, 14, 7)))
        for system, name in systems.items()
    ]


def _svg(height: float, label: str, parts: Sequence[Markup]) -> Markup:
    tag = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>')
    return tag.format(WIDTH, height, label, Markup("").join(parts))


def _vertical_axis(height: float, top: float, label: str, scale: float) -> list[Markup]:
    """Grid lines with their numbers and, above them, what they measure."""
    parts = [_text(4, 14, label, "start", "label strong")]
    for tick in ticks(top * scale):
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


def ticks(highest: float) -> list[float]:
    """Where to mark an axis from 0 to `highest`, at round numbers."""
    step = _tick_step(highest)
    return [round(position * step, 12) for position in range(math.floor(highest / step + 1e-9) + 1)]
