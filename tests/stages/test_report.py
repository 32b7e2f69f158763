"""The report on a small made-up run: what it shows, what it says is missing, and that it stands alone."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml

from dqlora.config import Paths
from dqlora.data.audio import SAMPLE_RATE
from dqlora.data.storage import RaggedArrayWriter, write_json
from dqlora.errors import UserError, run_stage
from stages import report

ROOT = Path(__file__).parents[2]
GRID = (10.0, 0.0)
SENTENCES = {
    "tea": "The kettle <script>alert('x')</script> boils & whistles",
    "rain": "Rain fell on the quiet harbour",
    "bread": "She baked two loaves of bread",
    "crow": "A crow sat upon the fence",
}
WER = {"base": (0.21, 0.4321), "distilled": (0.205, 0.3875), "teacher": (0.031, 0.1234)}  # clean, noisy


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """A folder with everything that the stages before leave behind."""
    monkeypatch.chdir(tmp_path)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params |= {"preset": "tiny", "seed": 7, "lambda_distill": 0.25}
    params["evaluate"]["bootstrap_draws"] = 200
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    (tmp_path / "presets").mkdir()
    shutil.copy(ROOT / "presets" / "mini.yaml", tmp_path / "presets" / "tiny.yaml")
    paths = Paths("tiny", tmp_path)
    write_predictions(paths)
    write_json(paths.metrics / "evaluate.json", metrics(low=0.021, high=0.186))
    write_json(
        paths.metrics / "test" / "record.json",
        {"entropy_threshold": 0.1, "used": {"noise_recordings": 3}, "noise": {"test": {"recordings": 4}}},
    )
    best = {"best_step": 100, "best_validation_wer": 0.4044}
    size = {"trainable_parameters": 147456, "trainable_ratio": 0.0154}
    write_json(paths.metrics / "train.json", {"steps": 150} | best | size)
    write_json(paths.costs, {"distilled": {"rtf": 0.0712, "peak_rss_mb": 812.3, "peak_gpu_mb": 0}})
    write_json(paths.metrics / "teacher.json", {"head": {"wer": 0.183, "cer": 0.071}})
    curves = paths.metrics / "curves" / "plots" / "metrics"
    curves.mkdir(parents=True)
    (curves / "train_loss.tsv").write_text("step\ttrain_loss\n50\t210.5\n100\t150.25\n150\t140\n")
    (curves / "validation_wer.tsv").write_text("step\tvalidation_wer\n0\t0.71\n50\t0.5\n100\t0.4044\n150\t0.41\n")
    (paths.clean / "rejected.csv").write_text("split,id,reason\ntrain,hush,silent\n")
    return paths


def write_predictions(paths: Paths) -> None:
    rows: list[dict[str, Any]] = []
    generator = np.random.default_rng(0)
    with (
        RaggedArrayWriter(paths.clean / "test", "int16") as clean,
        RaggedArrayWriter(paths.noisy / "test", "int16") as noisy,
    ):
        for number, (name, sentence) in enumerate(SENTENCES.items()):
            samples = generator.integers(-3000, 3000, SAMPLE_RATE + 777 * number)
            clean.append(samples, id=name, transcript=sentence, text=sentence.upper())
            texts = {"reference": sentence, "base": "nothing like it", "distilled": sentence, "teacher": sentence}
            rows.append({"id": name, "condition": "clean"} | texts)
            for snr in GRID:
                heard = {"snr_db": snr, "noise": f"kitchen-{number}", "category": "kitchen" if number % 2 else "road"}
                noisy.append(samples, id=f"{name}@{snr:g}dB", utterance=name, **heard)
                worse = {"distilled": "<b>gone</b>"} if name == "crow" else {}
                rows.append({"id": name, "condition": f"{snr:g} dB"} | heard | texts | worse)
    (paths.metrics / "test").mkdir(parents=True)
    (paths.metrics / "test" / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def metrics(low: float, high: float) -> dict[str, Any]:
    values: dict[str, Any] = {
        system: {"clean": {"wer": clean, "cer": clean / 2}, "noisy": {"wer": noisy, "cer": noisy / 2}}
        for system, (clean, noisy) in WER.items()
    }
    reduction = {"relative": 0.1032, "ci_low": low, "ci_high": high}
    return values | {"wer_reduction": {"noisy": reduction}, "adapter_mb": 0.594}


def page(paths: Paths) -> str:
    report.main()
    return (paths.metrics / "report.html").read_text(encoding="utf-8")


def shown(html: str) -> str:
    """The page's text, without tags and audio, white space as one space."""
    text: list[str] = []
    parser = HTMLParser()
    parser.handle_data = text.append  # type: ignore[method-assign]
    parser.feed(html)
    return " ".join(" ".join(text).split())


@pytest.mark.parametrize("threshold, said", [(0.1, "“Distilled” is gated"), (None, "There is no gate")])
def test_says_whether_there_is_a_gate(threshold: float | None, said: str, run: Paths) -> None:
    write_json(
        run.metrics / "test" / "record.json",
        {"entropy_threshold": threshold, "used": {"noise_recordings": 3}, "noise": {"test": {"recordings": 4}}},
    )
    text = shown(page(run))
    assert said in text and ("is gated" in text) == (threshold is not None)


def test_asks_for_nothing_outside_itself(run: Paths) -> None:
    html = page(run)
    attributes: list[tuple[str, str, str]] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, pairs: attributes.extend((tag, *pair) for pair in pairs)  # type: ignore
    parser.feed(html)
    sources = [value for _, name, value in attributes if name in ("src", "href", "srcset", "action", "poster")]
    assert sources and all(source.startswith(("data:", "#")) for source in sources)
    assert not re.search(r"https?://|url\(|@import|<script", html)


def test_numbers_are_the_metrics(run: Paths) -> None:
    text = shown(page(run))
    for _, (clean, noisy) in WER.items():
        assert f"{clean:.1%}".replace("%", " %") in text
        assert f"{noisy:.1%}".replace("%", " %") in text
    assert "In noise: 10.3 % [2.1, 18.6] (positive: fewer words wrong than the base student)" in text
    assert "Better: distilled, the student gets fewer words wrong in noise." in text
    assert "Preset tiny, lambda_distill 0.25, seed 7" in text
    assert "distillation (distill.target base_features)" in text
    for number in (
        "0.071",
        "812 MB",
        "0.59 MB",
        "147 456",
        "1.5 % of all parameters",
        "18.3 %",
        "40.4 %",
    ):
        assert number in text
    assert "fetch_speech, train 1 silent hush" in text


@pytest.mark.parametrize(
    ("low", "high", "said"), [(-0.03, 0.2, "No difference shown: the interval spans zero"), (-0.3, -0.1, "Worse:")]
)
def test_verdict_follows_the_interval(run: Paths, low: float, high: float, said: str) -> None:
    write_json(run.metrics / "evaluate.json", metrics(low, high))
    text = shown(page(run))
    assert said in text
    assert "Better:" not in text
    assert f"[{low * 100:.1f}, {high * 100:.1f}]".replace("-", "−") in text


def test_what_it_does_out_of_domain_stands_in_the_headline_and_in_the_last_line(
    run: Paths, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "Out of domain" not in shown(page(run))
    lost = {"relative": -0.044, "ci_low": -0.08, "ci_high": -0.01}
    other = {name: metrics(0, 0)[name] for name in ("base", "distilled")}
    other["wer_reduction"] = {"noisy": lost, "clean": {"relative": 0.0, "ci_low": 0.0, "ci_high": 0.0}}
    write_json(run.metrics / "evaluate.json", metrics(0.021, 0.186) | {"out_of_domain": other})
    text = shown(page(run))
    assert "Out of domain, on speech and noise neither trained nor chosen on: noisy WER" in text
    assert "[−8.0, −1.0] , worse; clean" in text
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("warning: out of domain: noisy WER 4.4 % higher [1.0, 8.0]")


def write_labels(paths: Paths, split: str, kept: int, rejected: int) -> None:
    labels = [
        {
            "id": f"{split}{number}.wav", "transcript": f"words <{number}>", "log_probability": -0.25, "no_speech": 0.1,
            "compression_ratio": 0.9, "language": None, "second": f"other {number}", "wer": 0.5,
            "kept": number < kept, "reason": "" if number < kept else "no speech: 0.9, over 0.6",
        }
        for number in range(kept + rejected)
    ]  # fmt: skip
    if split != "test":
        with RaggedArrayWriter(paths.clean / split, "int16") as clean:
            for label in labels:
                clean.append(np.ones(SAMPLE_RATE), id=label["id"], transcript="", text="")
    paths.pseudo_labels.mkdir(exist_ok=True)
    (paths.pseudo_labels / f"{split}.jsonl").write_text("".join(json.dumps(label) + "\n" for label in labels))
    metrics = paths.metrics / "pseudo_label.json"
    amount = {"human": 0, "kept": kept, "rejected": rejected}
    counts = {name: {"clips": clips, "hours": clips / 60} for name, clips in amount.items()}
    before = json.loads(metrics.read_text()) if metrics.exists() else {}
    write_json(metrics, before | {split: {**counts, "reasons": {"no speech": rejected} if rejected else {}}})


def test_labels_of_the_teacher_are_counted_and_ten_of_each_are_shown(run: Paths) -> None:
    assert "Transcripts by Whisper" not in shown(page(run))
    write_labels(run, "test", 0, 0)
    write_labels(run, "train", 14, 2)
    html = page(run)
    text = shown(html)
    assert "Transcripts by Whisper" in text and "counted against Whisper" not in text
    assert "train 0.0 min 0 clips 14.0 min 14 clips 2.0 min 2 clips no speech (2)" in text
    assert "10 labels kept" in text and "2 labels rejected" in text
    assert "Rejected: no speech: 0.9, over 0.6. Log-probability −0.25, no speech 10.0 %" in text
    assert "words <15>" in text and "words <15>" not in html
    assert html.count('<audio controls preload="none"') == 12
    assert page(run) == html


def test_a_test_that_the_teacher_labelled_is_said_in_the_headline(run: Paths) -> None:
    write_labels(run, "train", 3, 0)
    counts = json.loads((run.metrics / "pseudo_label.json").read_text())
    (run.pseudo_labels / "test.jsonl").write_text("")
    test = {"human": {"clips": 0, "hours": 0}, "kept": {"clips": 4, "hours": 1}, "rejected": {"clips": 0, "hours": 0}}
    write_json(run.metrics / "pseudo_label.json", counts | {"test": test | {"reasons": {}}})
    text = shown(page(run))
    headline, _, _ = text.partition("Noisy WER")
    assert "Errors are counted against Whisper's transcripts: no test clip has a human one." in headline


def test_transcripts_are_escaped(run: Paths) -> None:
    html = page(run)
    assert "<script" not in html
    assert "&lt;script&gt;alert(" in html
    assert "boils &amp; whistles" in html
    assert "<b>gone</b>" not in html


def test_players_hold_the_same_stretch_of_audio(run: Paths) -> None:
    players = re.findall(r'<audio[^>]*aria-label="([^"]+)"[^>]*src="data:audio/mpeg;base64,([^"]+)"', page(run))
    assert len(players) == 2 * len(SENTENCES)
    lengths = []
    for _, data in players:
        samples, rate = soundfile.read(io.BytesIO(base64.b64decode(data)))
        assert rate == SAMPLE_RATE
        lengths.append(len(samples))
    assert lengths[0::2] == lengths[1::2]
    assert all(SAMPLE_RATE <= length < 1.4 * SAMPLE_RATE for length in lengths)
    assert all(label.startswith("Clean") for label, _ in players[0::2])


@pytest.mark.parametrize("missing", ["evaluate.json", "test/predictions.jsonl"])
def test_missing_evaluation_ends_with_one_line(run: Paths, missing: str, capsys: pytest.CaptureFixture[str]) -> None:
    (run.metrics / missing).unlink()
    with pytest.raises(UserError, match=f"metrics/tiny/{missing}: no such file; run `dvc repro evaluate`"):
        report.main()
    with pytest.raises(SystemExit) as ended:
        run_stage(report.main)
    assert str(ended.value.code).count("\n") == 0
    assert not (run.metrics / "report.html").exists()


def test_truncated_metrics_are_named(run: Paths) -> None:
    (run.metrics / "evaluate.json").write_text('{"base": ')
    with pytest.raises(UserError, match=r"metrics/tiny/evaluate\.json: cannot be read as JSON .*dvc repro evaluate"):
        report.main()


def test_says_what_is_missing(run: Paths) -> None:
    write_json(run.metrics / "evaluate.json", {"base": {"noisy": {"wer": float("nan")}}})
    (run.metrics / "train.json").unlink()
    (run.metrics / "teacher.json").unlink()
    shutil.rmtree(run.metrics / "curves")
    (run.clean / "rejected.csv").unlink()
    (run.metrics / "test" / "predictions.jsonl").write_text("")
    text = shown(page(run))
    assert "Noisy WER not measured → not measured" in text
    assert "No verdict" in text
    for file in ("train_loss.tsv", "validation_wer.tsv"):
        assert f"No curve: metrics/tiny/curves/plots/metrics/{file} has no points." in text
    assert "There are no predictions" in text
    assert "Nothing was rejected." in text


def test_with_a_language_model_both_students_stand_once_more(run: Paths) -> None:
    assert "with the language model" not in shown(page(run))
    predictions = run.metrics / "test" / "predictions.jsonl"
    rows = [json.loads(line) for line in predictions.read_text().splitlines()]
    decoded = [row | {f"{name}_lm": row["reference"] for name in ("base", "distilled")} for row in rows]
    predictions.write_text("".join(json.dumps(row) + "\n" for row in decoded))
    rates = {"clean": {"wer": 0.0123}, "noisy": {"wer": 0.0456}}
    gained = {"noisy": {"relative": 0.25, "ci_low": 0.2, "ci_high": 0.3}}
    of_lm = {"distilled_lm": rates, "wer_reduction_with_lm": gained}
    write_json(run.metrics / "evaluate.json", metrics(low=0.021, high=0.186) | of_lm)
    html = page(run)
    text = shown(html)
    assert "With the language model, as dqlora transcribe writes: noisy WER 4.6 %" in text
    assert "in noise 25.0 % [20.0, 30.0] fewer words wrong than the base with it, better." in text
    assert "Distilled student, language model 0 errors in" in text
    for chart in ("Word error rate by SNR", "Word error rate by noise"):
        assert 'class="mark distilled_lm"' in html[html.index(chart) :].partition("</svg>")[0]


COSTS = {  # RTF and MB; merged is dearer and worse than onnx, and so no choice
    "onnx": (0.0101, 211.4),
    "merged": (0.0202, 655.0),
    "base": (0.0303, 660.0),
    "distilled": (0.0404, 812.3),
    "teacher": (0.3303, 901.0),
}


def test_what_to_use_for_which_budget(run: Paths) -> None:
    """A form is named if no cheaper one has as few errors."""
    sample = {"clean": {"wer": 0.1}, "noisy": {"wer": 0.3}}  # easier clips than all
    rates = sample | {"wer_difference": {"clean": 0.0045, "noisy": 0.0124}}
    write_json(run.costs, {name: {"rtf": rtf, "peak_rss_mb": memory} for name, (rtf, memory) in COSTS.items()})
    write_json(run.metrics / "export.json", {"onnx": rates, "merged": rates})
    html = page(run)
    text = shown(html)
    noisy = "0.010 s, distilled, ONNX int8 (40.0 %, 211 MB); 0.040 s, distilled student (38.8 %"
    spent = "the fewest errors for what one core may spend on a second of audio:"
    assert f"For noisy speech, {spent} {noisy}" in text
    assert "0.330 s, Whisper (3.1 %, 901 MB)." in text
    assert "E Whisper 0.330 901 12.3 % 3.1 %" in text
    chart = html[html.index("against the real-time factor") :].partition("</svg>")[0]
    assert re.findall(r">([A-E])</text>", chart) == list("ABCDE")


def test_forms_that_were_not_measured_are_left_out(run: Paths) -> None:
    """The fixture's costs are the distilled student's alone; then there are none."""
    assert "A distilled student 0.071 812 38.8 % 20.5 %" in shown(page(run))
    run.costs.unlink()
    assert "metrics/tiny/costs.json has no RTF and memory" in shown(page(run))
