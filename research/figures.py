"""Draw the figures of README.md and docs/ out of the result files: docs/figures/*.svg.

python -m research.figures

Nothing is measured here. The line through a point is its 95 % interval, of a paired bootstrap over utterances.
"""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dqlora.data.storage import atomic_write, read_json, rerun
from dqlora.errors import UserError, run_stage
from dqlora.report.templates import MINUS, number
from research.study.table import (
    ALL,
    CLEAN,
    NOISY,
    Groups,
    Run,
    of_same_seeds,
    read_runs,
    reduction_with_interval,
    summed_edits,
    wer,
)
from research.study.variants import ALPHAS, BASE, CTC, at_alpha, gated
from research.svg import BLUE, GREEN, INK, MONO, ORANGE, PURPLE, Drawing, Panel, Point, Scale

OUTPUT = Path("docs/figures")
METRICS = Path("metrics/mini/evaluate.json")
STUDY, BENCHMARKS = Path("research/study/results"), Path("benchmarks/results")
NINE_HOURS, SIXTY_HOURS = STUDY / "all_variants_9h.jsonl", STUDY / "features_vs_ctc_60h.jsonl"
UNLABELLED, SETTINGS = STUDY / "unlabelled_synthetic_student.jsonl", STUDY / "settings_wav2vec2_base_31min.jsonl"
TERMS = STUDY / "terms_78h.jsonl"
FEATURES = "base features of layer 8, λ 1"
PROJECTION, RANK_64 = "and projection, no masks", "LoRA r 64 and projection, no masks"
DISTILLED, CTC_RANK_64 = f"{FEATURES}, {RANK_64}", f"{CTC}, {RANK_64}"  # the default, and the same without targets
WIDTH = 860  # user units of every figure, about the width of a page on GitHub

# column and row, what the stage makes, and a colour: what it hears
STAGES = {
    "fetch_models": (0, 0, "student and teacher", INK),
    "fetch_speech": (0, 1, "clips and transcripts", INK),
    "fetch_noise": (0, 2, "recordings", INK),
    "pseudo_label": (1, 1, "transcripts, if none", GREEN),
    "fit_gate": (5, 2, "where the adapter runs", PURPLE),
    "encode_teacher": (2, 1, "Whisper’s features", GREEN),
    "train_teacher_head": (3, 1, "tokens from features", GREEN),
    "make_targets": (4, 1, "a target per frame", GREEN),
    "mix": (2, 2, "speech in noise", BLUE),
    "extract_features": (3, 2, "the frozen CNN, once", BLUE),
    "train": (4, 2, "LoRA on a 4-bit student", BLUE),
    "build_lm": (2, 3, "n-grams of words", PURPLE),
    "fit_decoder": (5, 3, "weights of the search", PURPLE),
    "transcribe_teacher": (3, 4, "Whisper’s transcripts", INK),
    "evaluate": (6, 0, "WER, before and after", INK),
    "export": (6, 1, "merged and ONNX", INK),
    "profile": (6, 2, "RTF and memory", INK),
    "report": (6, 3, "one page", INK),
}
STAGE_WIDTH, STAGE_HEIGHT, COLUMN, ROW = 146, 46, 176, 90


def pipeline() -> Drawing:
    """The stages of dvc.yaml and what each needs of the others, without the needs that other arrows imply."""
    drawing = Drawing(
        WIDTH + 2 * COLUMN, 460, "The pipeline: targets come from clean speech, the student hears the same in noise."
    )
    needs = direct_needs(yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"])
    if misplaced := sorted(needs.keys() ^ STAGES.keys()):
        raise UserError(f"research/figures.py: STAGES and dvc.yaml differ in {', '.join(misplaced)}")
    corner = {name: (4 + COLUMN * column, 40 + ROW * row) for name, (column, row, _, _) in STAGES.items()}
    for name, sources in needs.items():
        (x, y), half = corner[name], STAGE_HEIGHT / 2
        for from_x, from_y in sorted(corner[source] for source in sources):
            if x == from_x:  # straight up or down
                ends = (from_y + STAGE_HEIGHT, y - 2) if y > from_y else (from_y, y + STAGE_HEIGHT + 2)
                drawing.arrow([(x + STAGE_WIDTH / 2, end) for end in ends])
            else:  # along its own row to the gap before the column, then to the row
                gap = x - (COLUMN - STAGE_WIDTH) / 2
                turns = [] if y == from_y else [(gap, from_y + half), (gap, y + half)]
                drawing.arrow([(from_x + STAGE_WIDTH, from_y + half), *turns, (x - 2, y + half)])
    for name, (_, _, caption, colour) in STAGES.items():
        x, y = corner[name]
        drawing.box((x, y), STAGE_WIDTH, STAGE_HEIGHT, fill=colour, fill_opacity=0.12, stroke=colour, stroke_width=1.5)
        middle = x + STAGE_WIDTH / 2
        drawing.text((middle, y + 20), name, "middle", colour, font_family=MONO, font_size=12, font_weight=600)
        drawing.text((middle, y + 37), caption, "middle", font_size=11.5)
    for stage, shift, anchor, text, colour in (
        ("encode_teacher", (0, -9), "start", "the teacher hears clean speech", GREEN),
        ("mix", (0, -9), "start", "the student hears noisy speech", BLUE),
        ("train", (STAGE_WIDTH / 2 - 8, -19), "end", "CTC + λ · distance", BLUE),
    ):
        at = (corner[stage][0] + shift[0], corner[stage][1] + shift[1])
        drawing.text(at, text, anchor, colour, font_weight=600)
    return drawing


def direct_needs(stages: dict[str, Any]) -> dict[str, set[str]]:
    """The stages that each stage of dvc.yaml needs, without those that another of them needs already."""

    def paths(listed: list[Any]) -> list[str]:
        return [path if isinstance(path, str) else next(iter(path)) for path in listed]

    makers = {
        out: name
        for name, stage in stages.items()
        for out in paths([*stage.get("outs", []), *stage.get("metrics", []), *stage.get("plots", [])])
    }
    needs = {}
    for name, stage in stages.items():
        inputs = [f"{path}/".replace("${teacher_input}", "clean") for path in paths(stage["deps"])]
        needs[name] = {maker for out, maker in makers.items() if any(path.startswith(f"{out}/") for path in inputs)}

    def all_needs(name: str) -> set[str]:
        return needs[name].union(*(all_needs(source) for source in needs[name]))

    return {name: own.difference(*(all_needs(source) for source in own)) for name, own in needs.items()}


@cache
def study(results: Path) -> Groups:
    return read_runs(results)


def mean_wer(runs: list[Run], conditions: tuple[str, ...] = NOISY) -> float:
    """In %, over conditions and seeds."""
    return float(np.mean([wer(run, ALL, conditions) for run in runs]))


def reduction(over: list[Run], runs: list[Run], conditions: tuple[str, ...] = NOISY) -> tuple[float, float, float]:
    """Relative WER reduction in % and the ends of its interval, over the seeds that both have; the base has one run."""
    relative, low, high = reduction_with_interval(
        *(summed_edits(each, ALL, conditions) for each in of_same_seeds(over, runs))
    )
    return 100 * relative, 100 * low, 100 * high


def signed(value: float, digits: int = 0) -> str:
    return f"{value:+.{digits}f}".replace("-", MINUS)


def wer_by_snr() -> Drawing:
    """Two panels: the mini preset, and the study's longest training."""
    drawing = Drawing(WIDTH, 330, "WER by SNR of base, distilled student and others: the mini preset, and the study.")
    metrics = read_json(METRICS, rerun("evaluate"))
    snrs = sorted(metrics["base"]["snr"], key=float, reverse=True)
    systems = [("base", INK, "base"), ("distilled", BLUE, "distilled"), ("Whisper tiny.en", GREEN, "teacher")]
    mini = [
        (
            name,
            colour,
            [100 * one["wer"] for one in (metrics[key]["clean"], *(metrics[key]["snr"][snr] for snr in snrs))],
        )
        for name, colour, key in systems
    ]
    snr_panel(drawing, 40, "mini, what `make` runs: a smoke test", ["clean", *snrs], mini)
    runs = study(SIXTY_HOURS)[6000] | study(SIXTY_HOURS)[0]
    compared = [("base", INK, BASE), ("CTC only", ORANGE, gated(CTC_RANK_64)), ("distilled", BLUE, gated(DISTILLED))]
    conditions = (*CLEAN, *NOISY)
    sixty = [(name, colour, [mean_wer(runs[key], (one,)) for one in conditions]) for name, colour, key in compared]
    snr_panel(
        drawing,
        475,
        "study: 60 h of speech, unheard real noise",
        [one.removesuffix(" dB") for one in conditions],
        sixty,
    )
    return drawing


def snr_panel(
    drawing: Drawing,
    left: float,
    heading: str,
    conditions: list[str],
    systems: list[tuple[str, str, list[float]]],
    top: int = 100,
) -> None:
    """WER of each system, name, colour and values in %, by condition; the axis ends at `top`."""
    panel = Panel(drawing, Scale(0, len(conditions) - 1, left + 20, left + 240), Scale(0, top, 280, 70))
    panel.heading(heading)
    panel.y_axis(range(0, top + 1, 20), "WER (%)")
    panel.x_axis(dict(enumerate(conditions)), "SNR (dB)")
    for _, colour, wers in systems:
        panel.curve(list(enumerate(wers)), colour)
    ends = [(panel.y(wers[-1]), f"{name} {wers[-1]:.0f} %", colour) for name, colour, wers in systems]
    drawing.labels(panel.x.end + 12, ends)


LABELLED = (  # name, colour, variant
    ("base", INK, BASE),
    ("no labels", PURPLE, "features only, no labels"),
    ("Whisper’s", GREEN, "Whisper's labels"),
    ("people’s", BLUE, "people's labels"),
)


def labels() -> Drawing:
    """WER by SNR on speakers that the base never heard, by whose labels it was adapted with."""
    drawing = Drawing(
        WIDTH,
        330,
        "WER by SNR on speakers that the base never heard, adapted with nobody’s, Whisper’s and people’s labels.",
    )
    groups = study(UNLABELLED)
    runs = groups[0] | groups[350]
    for left, corpus, heading in ((40, "prompts", "prompts, one speaker"), (475, "commands", "orders, more than 50")):
        systems = [
            (
                name,
                colour,
                [float(np.mean([wer(run, corpus, (one,)) for run in runs[variant]])) for one in (*CLEAN, *NOISY)],
            )
            for name, colour, variant in LABELLED
        ]
        conditions = [one.removesuffix(" dB") for one in (*CLEAN, *NOISY)]
        snr_panel(drawing, left, heading, conditions, systems, top=120)
    return drawing


def settings() -> Drawing:
    """Noisy WER by learning rate and rank, of a student of wav2vec2-base's size."""
    drawing = Drawing(WIDTH, 330, "Noisy WER by learning rate and LoRA rank, for a student of wav2vec2-base’s size.")
    groups = study(SETTINGS)
    panel = Panel(drawing, Scale(2e-4, 2e-3, 60, 500, log=True), Scale(50, 90, 280, 70))
    panel.heading("95 M parameters, 500 steps of 320 s, nf4")
    panel.y_axis(range(50, 91, 10), "noisy WER (%)")
    rates = (2e-4, 5e-4, 1e-3, 2e-3)
    panel.x_axis({rate: f"{rate:g}" for rate in rates}, "learning rate")
    ends = []
    for rank, colour in ((8, ORANGE), (64, BLUE)):
        named = {rate: f"learning rate {rate:g}, LoRA r {rank}, nf4" for rate in rates}
        points = [(rate, mean_wer(groups[500][name])) for rate, name in named.items() if name in groups[500]]
        panel.curve(points, colour)
        ends.append((panel.y(points[-1][1]), f"rank {rank}", colour))
    base = mean_wer(groups[0][BASE])
    panel.curve([(rate, base) for rate in rates], INK, stroke_dasharray="5 4")
    drawing.labels(panel.x.end + 12, [*ends, (panel.y(base) - 14, "base", INK)])
    return drawing


TARGETS = (  # name, colour, settings: how the results call them
    ("base_features", BLUE, {f"λ {weight}": f"base features of layer 8, λ {weight}" for weight in (0.3, 1, 3)}),
    ("base_ctc_posterior", BLUE, {f"λ {weight}": f"base CTC posterior, λ {weight}" for weight in (0.3, 1, 3)}),
    ("base_logits", BLUE, {f"λ {weight}": f"base logits, λ {weight}" for weight in (1, 3, 10)}),
    ("mean_logits", PURPLE, {f"λ {weight}": f"mean logits, λ {weight}" for weight in (1, 3)}),
    ("whisper_logits", GREEN, {f"λ {weight}": f"whisper logits, λ {weight}" for weight in (0.1, 0.3, 1)}),
    ("whisper_ctc_posterior", GREEN, {f"λ {weight}": f"whisper CTC posterior, λ {weight}" for weight in (1, 3)}),
    ("whisper_features", GREEN, {f"layer {at}, λ 0.1": f"whisper features at layer {at}, λ 0.1" for at in (8, 12)}),
    ("untrained_head", INK, {"λ 0.3": "untrained head, stretched, λ 0.3"}),
)
Row = tuple[str, str, str, tuple[float, float, float]]  # name, setting, colour, and the value with its interval


def mini_settings() -> Drawing:
    """The mini preset with one setting changed: errors in noise fewer than the base's, a dot a seed."""
    runs = [json.loads(line) for line in (BENCHMARKS / "mini_settings_h200.jsonl").read_text().splitlines()]
    by_settings: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        by_settings.setdefault(run["settings"], []).append(run["noisy"])

    def mean(of: list[dict[str, Any]], where: str) -> float:
        return 100 * float(np.mean([each[where] for each in of]))

    order = sorted(by_settings, key=lambda name: -mean(by_settings[name], "home"))
    bottom = 80 + 20 * len(order)
    title = (
        "Errors in noise fewer than the base's by settings of the mini preset, three seeds each, at home and elsewhere."
    )
    drawing = Drawing(WIDTH, bottom + 60, title)
    at_home = Panel(drawing, Scale(18, 34, 290, 580), Scale(0, 1, bottom, 60))
    elsewhere = Panel(drawing, Scale(0, 16, 610, 850), Scale(0, 1, bottom, 60))
    for panel, where, heading in ((at_home, "home", "home"), (elsewhere, "out_of_domain", "out of domain")):
        panel.heading(heading)
        ticks = range(int(panel.x.low), int(panel.x.high) + 1, 4)
        panel.x_axis({tick: f"{tick}" for tick in ticks}, "errors in noise, fewer than the base's (%)", grid=True)
        for row, name in enumerate(order):
            y = 76 + 20 * row
            colour = ORANGE if name == "the default" else BLUE
            for each in by_settings[name]:
                drawing.dot((panel.x(100 * each[where]), y), colour, 3)
            middle = panel.x(mean(by_settings[name], where))
            drawing.line([(middle, y - 7), (middle, y + 7)], colour)
            if panel is at_home:
                drawing.text((panel.x.start - 12, y + 4), name.replace("-5", f"{MINUS}5"), "end", colour)
    return drawing


def targets() -> Drawing:
    """Above, each target at each weight, rank 16; below, the default against CTC only at its own rank."""
    nine, sixty = study(NINE_HOURS), study(SIXTY_HOURS)
    rows = [
        (name if not place else "", setting, colour, reduction(nine[350][CTC], nine[350][variant]))
        for name, colour, settings in TARGETS
        for place, (setting, variant) in enumerate(settings.items())
    ]
    nearest = f"{CTC}, LoRA r 64, no masks"  # with 9 h, CTC only was not run with the projection
    default: list[Row] = [
        (name, "", BLUE, reduction(runs[gated(over)], runs[gated(DISTILLED)]))
        for name, runs, over in (
            ("9 h, 350 steps", nine[350], nearest),
            ("9 h, 1000 steps", nine[1000], nearest),
            ("60 h, 1000 steps", sixty[1000], CTC_RANK_64),
            ("60 h, 6000 steps", sixty[6000], CTC_RANK_64),
        )
    ]
    return forests(
        "Word errors in noise against CTC only, by distillation target.",
        {
            "each target at each λ tried: rank 16, 9 h of speech, 350 steps": rows,
            "the default, base_features at rank 64, against CTC only at rank 64": default,
        },
    )


OTHER_TERMS = (  # name, setting, colour, variant: how the results call it
    ("features: the default", "", BLUE, "features"),
    ("mean of three adapters of it", "", BLUE, "mean of the seeds' adapters: features"),
    ("features of layers 4, 8 and 12", "", GREEN, "features of layers 4, 8 and 12"),
    ("features, variance, covariance", "1", GREEN, "features, variance and covariance 1"),
    ("features and correlation", "1", GREEN, "features and correlation 1"),
    ("features and consistency", "0.3", PURPLE, "features and consistency 0.3"),
    ("", "1", PURPLE, "features and consistency 1"),
    ("consistency (CR-CTC)", "0.3", ORANGE, "consistency 0.3"),
    ("", "1", ORANGE, "consistency 1"),
    ("", "1, masks", ORANGE, "consistency 1, masks"),
)


def terms() -> Drawing:
    """Other terms beside CTC, against CTC only at the same rank; below, those that were trained for longer."""
    groups = study(TERMS)
    above, below = (
        [
            (name, setting, colour, reduction(groups[steps][CTC], groups[steps][variant]))
            for name, setting, colour, variant in OTHER_TERMS
            if variant in groups[steps]
        ]
        for steps in (2000, 6000)
    )
    return forests(
        "Word errors in noise against CTC only, by what is learnt beside it.",
        {"rank 64, 78 h of speech, 2000 steps, three seeds": above, "6000 steps": below},
    )


def forests(title: str, tables: dict[str, list[Row]]) -> Drawing:
    """A `forest` under each heading, one below the other."""
    bottoms = np.cumsum([17 * len(rows) + 90 for rows in tables.values()]) - 20
    drawing = Drawing(WIDTH, int(bottoms[-1]) + 30, title)
    for bottom, (heading, rows) in zip(bottoms.tolist(), tables.items(), strict=True):
        forest(drawing, bottom - 17 * len(rows), bottom, heading, rows)
    return drawing


def forest(drawing: Drawing, top: float, bottom: float, heading: str, rows: list[Row]) -> None:
    """A row for each comparison with CTC only, its interval a line."""
    panel = Panel(drawing, Scale(-15, 25, 260, 750), Scale(0, len(rows), top, bottom))
    drawing.text((8, top - 34), heading, font_weight=600)
    panel.x_axis({tick: signed(tick) if tick else "CTC only" for tick in range(-15, 26, 5)}, "", grid=True)
    drawing.line([panel.at(0, 0), panel.at(0, len(rows))])
    drawing.text((panel.x.start, top - 10), "← more errors in noise (%)")
    drawing.text((panel.x.end, top - 10), "fewer errors in noise (%) →", "end")
    for place, (name, setting, colour, (value, low, high)) in enumerate(rows):
        y = panel.y(place + 0.5)
        drawing.text((8, y + 4), name, colour=colour)
        drawing.text((panel.x.start - 12, y + 4), setting, "end")
        drawing.line([(panel.x(low), y), (panel.x(high), y)], colour)
        drawing.dot((panel.x(value), y), colour, 4)
        drawing.text((panel.x.end + 20, y + 4), signed(value, 1), colour=colour)


def noise_vs_clean() -> Drawing:
    """What an adapter saves in noise against what it costs on clean speech: by WiSE-FT alpha, and behind the gate."""
    drawing = Drawing(WIDTH, 400, "Word errors saved in noise against those added on clean speech, gated and not.")
    runs, base = study(SIXTY_HOURS)[6000], study(SIXTY_HOURS)[0][BASE]
    panel = Panel(drawing, Scale(-5, 40, 60, 780), Scale(20, 50, 345, 40))
    panel.y_axis(range(20, 51, 10), "fewer word errors in noise than the base (%)")
    ticks = {tick: signed(tick) if tick else "0" for tick in range(0, 41, 10)}
    panel.x_axis(ticks, "more word errors on clean speech than the base (%)", grid=True)
    for variant, colour, shift in ((CTC_RANK_64, ORANGE, (9, 16)), (DISTILLED, BLUE, (-8, -9))):
        points = {
            alpha: (-reduction(base, each, CLEAN)[0], reduction(base, each)[0])
            for alpha in ALPHAS
            for each in [runs[at_alpha(variant, alpha)]]
        }
        panel.curve(list(points.values()), colour, stroke_dasharray="5 4")
        for alpha, point in points.items():
            x, y = panel.at(*point)
            drawing.text((x + shift[0], y + shift[1]), f"α {alpha:g}", "end" if shift[0] < 0 else "start", colour)
    for variant, colour in ((CTC_RANK_64, ORANGE), (DISTILLED, BLUE)):
        clean, low_clean, high_clean = (-each for each in reduction(base, runs[gated(variant)], CLEAN))
        noisy, low_noisy, high_noisy = reduction(base, runs[gated(variant)])
        drawing.line([panel.at(low_clean, noisy), panel.at(high_clean, noisy)], colour)
        drawing.line([panel.at(clean, low_noisy), panel.at(clean, high_noisy)], colour)
        drawing.dot(panel.at(clean, noisy), colour, 8)
    for place, (colour, text) in enumerate(((BLUE, "distilled: base_features, the default"), (ORANGE, "CTC only"))):
        drawing.dot((390, 264 + 18 * place), colour)
        drawing.text((408, 268 + 18 * place), text, colour=colour)
    drawing.dot((390, 304), INK, 8)
    drawing.text((408, 308), "gated: the adapter runs only where the base is uncertain")
    drawing.line([(378, 326), (402, 326)], stroke_dasharray="5 4")
    drawing.text((408, 330), "always on, its update scaled by WiSE-FT alpha")
    return drawing


def budget() -> Drawing:
    """Noisy WER by LoRA rank, and by steps and hours of speech."""
    drawing = Drawing(WIDTH, 330, "Noisy WER by LoRA rank, and by steps and hours of speech, distilled and CTC only.")
    nine, sixty = study(NINE_HOURS), study(SIXTY_HOURS)
    panel = Panel(drawing, Scale(8, 256, 60, 340, log=True), Scale(40, 60, 280, 70))
    panel.heading("LoRA rank: 9 h, 350 steps, always on")
    panel.y_axis(range(40, 61, 5), "noisy WER (%)")
    panel.x_axis({rank: f"{rank}" for rank in (8, 16, 32, 64, 128, 256)}, "rank")
    for name, colour, ranks in ((CTC, ORANGE, (8, 16, 32, 64)), (FEATURES, BLUE, (16, 32, 64, 128))):
        named = {rank: name if rank == 16 else f"{name}, LoRA r {rank}" for rank in ranks}
        panel.curve([(rank, mean_wer(nine[350][variant])) for rank, variant in named.items()], colour)
    widest = f"{FEATURES}, LoRA r 256 {PROJECTION}, learning rate 5e-4"
    ends = {64: nine[350][DISTILLED], 256: nine[350][widest]}
    panel.curve([(rank, mean_wer(runs)) for rank, runs in ends.items()], BLUE, stroke_dasharray="5 4")
    drawing.text(panel.at(70, 57), "CTC only", colour=ORANGE)
    drawing.text(panel.at(140, 51.3), "base_features", colour=BLUE)
    drawing.text(panel.at(54, 46.3), "and projection, no masks", colour=BLUE)

    panel = Panel(drawing, Scale(350, 6000, 490, 730, log=True), Scale(40, 60, 280, 70))
    panel.heading("steps and hours of speech: rank 64, gated")
    panel.y_axis(range(40, 61, 5), "noisy WER (%)")
    panel.x_axis({steps: f"{steps}" for steps in (350, 1000, 6000)}, "steps")
    for groups, steps, over, dashes in (
        (nine, (350, 1000), f"{CTC}, LoRA r 64, no masks", "5 4"),
        (sixty, (1000, 6000), CTC_RANK_64, "none"),
    ):
        for variant, colour in ((over, ORANGE), (DISTILLED, BLUE)):
            curve = [(each, mean_wer(groups[each][gated(variant)])) for each in steps]
            panel.curve(curve, colour, stroke_dasharray=dashes)
    for variant, colour, name in ((CTC_RANK_64, ORANGE, "CTC only"), (DISTILLED, BLUE, "distilled")):
        end = panel.at(6000, mean_wer(sixty[6000][gated(variant)]))
        drawing.text((end[0] + 10, end[1] + 4), f"{name}, 60 h", colour=colour)
    drawing.text(panel.at(430, 56.1), "CTC only, 9 h", colour=ORANGE)
    drawing.text(panel.at(355, 43.7), "distilled, 9 h", colour=BLUE)
    return drawing


def cpu() -> Drawing:
    """RTF against WER on one core, clean and in noise."""
    drawing = Drawing(WIDTH, 460, "Real-time factor against WER on one CPU core, clean and in noise, and peak memory.")
    table = read_json(BENCHMARKS / "cpu.json", "run `python -m benchmarks.cpu --output benchmarks/results/cpu.json`")
    ticks = {rtf: f"{rtf:g}" for rtf in (0.03, 0.05, 0.1, 0.2, 0.4)}
    for condition, heading, left in (("clean", "clean speech", 50), ("noisy", "noise at 10 dB", 480)):
        panel = Panel(drawing, Scale(0.03, 0.5, left, left + 350, log=True), Scale(0, 70, 280, 60))
        panel.heading(heading)
        panel.y_axis(range(0, 71, 10), "WER (%)")
        panel.x_axis(ticks, "RTF: seconds of computing per second of audio")
        for at, (name, row) in enumerate(table.items()):
            _numbered_dot(drawing, panel.at(row["rtf"][condition], 100 * row["wer"][condition]), at, name)
    for at, (name, row) in enumerate(table.items()):
        x, y = 50 + 430 * (at % 2), 350 + 26 * (at // 2)
        _numbered_dot(drawing, (x, y), at, name)
        drawing.text((x + 16, y + 4), f"{name}, {row['peak_rss_mb']:.0f} MB", colour=_colour_of_form(name))
    return drawing


def _numbered_dot(drawing: Drawing, at: Point, index: int, form: str) -> None:
    drawing.dot(at, _colour_of_form(form), 9)
    drawing.text((at[0], at[1] + 4), f"{index + 1}", "middle", "white", font_size=12)


def _colour_of_form(name: str) -> str:
    return GREEN if "whisper" in name else INK if name.startswith("base") else BLUE


BARS = {  # heading: rows of label, colour, file and row of the results
    "Training wav2vec2-base on one H200": (
        ("one clip at a time, teacher online", INK, "h200", "train: one clip at a time, teacher online"),
        ("usual QLoRA, bf16, cached targets", INK, "h200", "train: usual QLoRA, 32 clips"),
        ("usual full fine-tuning, bf16", INK, "h200", "train: usual full fine-tuning, 32 clips"),
        ("here, params.yaml: rank 64", BLUE, "h200_r64", "train: ours, params.yaml"),
        ("here, rank 8 on attention", BLUE, "h200_r64", "train: ours, LoRA r 8 on attention, logits"),
    ),
    "Encoding with whisper-base on one H200": (
        ("transformers, clips of 10 s", INK, "h200", "encode 10 s clips: transformers"),
        ("here, clips of 10 s", BLUE, "h200", "encode 10 s clips: ours"),
        ("transformers, clips of 30 s", INK, "h200", "encode 30 s clips: transformers"),
        ("here, clips of 30 s", BLUE, "h200", "encode 30 s clips: ours"),
    ),
}


def throughput() -> Drawing:
    """Seconds of audio a second on one GPU, against what a user would write instead."""
    drawing = Drawing(WIDTH, 330, "Throughput on one GPU, here and by the usual means, in seconds of audio per second.")
    y = 20
    for heading, rows in BARS.items():
        drawing.text((8, y), heading, font_weight=600)
        rates = [read_json(BENCHMARKS / f"{file}.json", "")["table"][row]["rtfx"] for _, _, file, row in rows]
        across = Scale(0, max(rates), 250, 760)
        for (label, colour, _, _), rate in zip(rows, rates, strict=True):
            y += 24
            drawing.text((240, y + 4), label, "end", colour)
            drawing.box((across(0), y - 8), across(rate) - across(0), 16, fill=colour, fill_opacity=0.75)
            drawing.text((across(rate) + 8, y + 4), f"{number(round(rate, -1))} ×", colour=colour)
        y += 50
    drawing.text((8, y - 12), "× real time: seconds of audio per second")
    return drawing


FIGURES: dict[str, Callable[[], Drawing]] = {
    figure.__name__: figure
    for figure in (
        pipeline,
        wer_by_snr,
        labels,
        targets,
        terms,
        noise_vs_clean,
        budget,
        settings,
        mini_settings,
        cpu,
        throughput,
    )
}


def main() -> None:
    OUTPUT.mkdir(parents=True, exist_ok=True)
    for name, figure in FIGURES.items():
        atomic_write(OUTPUT / f"{name}.svg", figure().svg())
        print(OUTPUT / f"{name}.svg")


if __name__ == "__main__":
    run_stage(main)
