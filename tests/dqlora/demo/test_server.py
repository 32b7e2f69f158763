"""The demo's page: what it shows, what it refuses and why, and that it asks for nothing outside itself."""

import base64
import io
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import requests
import soundfile
import soxr
import torch
from starlette.testclient import TestClient
from typer.testing import CliRunner

from dqlora.cli import app
from dqlora.data.audio import MAX_SECONDS, read_audio, to_float32, to_int16
from dqlora.data.mixing import power
from dqlora.data.noise import SYNTHETIC
from dqlora.data.storage import RaggedArray, RaggedArrayWriter, write_json
from dqlora.demo import server as module
from dqlora.demo.server import Demo, application, listen, serve
from dqlora.evaluation.metrics import count_errors
from dqlora.transcription.recogniser import load_recogniser, transcribe_file
from dqlora.transcription.words import text_of
from tests.conftest import RATE, ROOT, cut_data_chunk, tone, wav_bytes
from tests.recordings import of_unknown_length

SAID = "The cat sat <b>down</b> & slept"
ADDRESS = "http://127.0.0.1:8000"


def write_corpus(data: Path) -> tuple[RaggedArray, RaggedArray]:
    with RaggedArrayWriter(data / "clean" / "test", "int16") as clean:
        clean.append(to_int16(tone(2.0)), id="cat.wav", transcript=SAID, text="THE CAT SAT DOWN AND SLEPT")
        clean.append(to_int16(tone(1.0, 150)), id="dog.wav", transcript="A dog barked", text="A DOG BARKED")
        clean.append(to_int16(0.05 * tone(2.0)), id="quiet.wav", transcript="Hush", text="HUSH")
    with RaggedArrayWriter(data / "noise" / "test", "int16") as noise:
        fan = 0.2 * np.random.default_rng(0).standard_normal(3 * RATE).astype(np.float32)
        noise.append(to_int16(fan), id="fan <1>", category="fan")
    return RaggedArray(data / "clean" / "test"), RaggedArray(data / "noise" / "test")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[RaggedArray, RaggedArray]:
    return write_corpus(tmp_path_factory.mktemp("data"))


@pytest.fixture
def demo(corpus: tuple[RaggedArray, RaggedArray]) -> Demo:
    systems = {
        "Base student": lambda mixture: "the cap sat",
        "Distilled student": lambda mixture: "the cat sat down",
        "Whisper": lambda mixture: "The cat sat <i>down</i> & slept.",
    }
    return Demo(systems, *corpus, language="en", seed=0)


@pytest.fixture
def client(demo: Demo) -> TestClient:
    return TestClient(application(demo), base_url=ADDRESS)


def ask(client: TestClient, upload: bytes = b"", **query: object) -> dict[str, str]:
    """The HTML of each place on the page."""
    answer = client.post("/transcribe", params=query, content=upload)
    assert answer.status_code == 200, answer.text
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [line["place"] for line in lines] == ["mixture", *(f"transcript-{at}" for at in range(len(lines) - 1))]
    return {line["place"]: line["html"] for line in lines}


def heard(places: dict[str, str]) -> np.ndarray:
    """The mixture that the page plays, int16 [samples]."""
    [data] = re.findall(r'<audio[^>]*src="data:audio/wav;base64,([^"]+)"', places["mixture"])
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(data)), dtype="int16")
    assert rate == RATE
    return samples


def test_page_offers_clips_and_noise_and_asks_for_nothing_outside_itself(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.status_code == 200
    [nonce] = set(re.findall(r'nonce="([^"]+)"', answer.text))
    assert answer.headers["content-security-policy"] == (
        f"default-src 'none'; script-src 'nonce-{nonce}' blob:; style-src 'nonce-{nonce}'; img-src data:; "
        "media-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    assert client.get("/").headers["content-security-policy"] != answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert not re.search(r"https?://|url\(|@import|<link(?! rel=\"icon\" href=\"data:,\")", answer.text)
    assert 'value="cat.wav"' in answer.text and 'value="recording:fan &lt;1&gt;"' in answer.text
    assert all(f'value="generated:{kind}"' in answer.text for kind in SYNTHETIC)
    assert "The cat sat &lt;b&gt;down&lt;/b&gt; &amp; slept" in answer.text


def test_every_input_has_a_name_that_is_read_out(client: TestClient) -> None:
    html = client.get("/").text
    inputs = re.findall(r"<(?:input|select|audio)\b[^>]*>", html)
    labelled = set(re.findall(r'<label\b[^>]*\bfor="([^"]+)"', html))
    wrapped = set(re.findall(r"<label\b[^>]*>(<input[^>]*>) \S", html))
    assert len(inputs) > 5
    for tag in inputs:
        assert "aria-label=" in tag or tag in wrapped or labelled & set(re.findall(r'\bid="([^"]+)"', tag)), tag


def test_a_test_clip_is_scored_against_its_text(client: TestClient) -> None:
    places = ask(client, clip="cat.wav", noise="recording:fan <1>", snr_db=5)
    assert "The cat sat &lt;b&gt;down&lt;/b&gt; &amp; slept" in places["mixture"]
    assert "data:image/png;base64," in places["mixture"]
    assert re.search(r"WER \d+\.\d.%, \d errors in \d words; took 0\.00", places["transcript-0"])
    assert 'title="reference: cat"' in places["transcript-0"] and "<del>slept</del>" in places["transcript-0"]
    assert "≠" not in places["transcript-1"] and "<del>slept</del>" in places["transcript-1"]
    assert not any("<i>" in html or "<b>down" in html for html in places.values())


@pytest.mark.parametrize("noise", ["recording:fan <1>", *(f"generated:{kind}" for kind in SYNTHETIC)])
@pytest.mark.parametrize("snr_db", [-10, 5.5, 30])
def test_the_mixture_has_the_snr_and_is_the_same_again(
    client: TestClient, corpus: tuple[RaggedArray, RaggedArray], noise: str, snr_db: float
) -> None:
    mixture = heard(ask(client, clip="quiet.wav", noise=noise, snr_db=snr_db))
    np.testing.assert_array_equal(mixture, heard(ask(client, clip="quiet.wav", noise=noise, snr_db=snr_db)))
    speech = to_float32(corpus[0]["quiet.wav"])  # so quiet that nothing is scaled down: what is not speech is noise
    assert 10 * np.log10(power(speech) / power(to_float32(mixture) - speech)) == pytest.approx(snr_db, abs=0.05)


def test_no_noise_leaves_the_speech_as_it_is(client: TestClient, corpus: tuple[RaggedArray, RaggedArray]) -> None:
    np.testing.assert_array_equal(heard(ask(client, clip="dog.wav", noise="none")), corpus[0]["dog.wav"])
    upload = wav_bytes(tone(0.7))
    samples, _ = soundfile.read(io.BytesIO(upload), dtype="int16")
    np.testing.assert_array_equal(heard(ask(client, upload, noise="none")), samples)


def test_without_a_text_the_distilled_student_is_compared_with_the_base(client: TestClient) -> None:
    places = ask(client, wav_bytes(tone(1.0)), noise="none")
    assert "What was said" not in places["mixture"]
    assert not any("WER" in places[f"transcript-{at}"] for at in range(3))
    assert "word" not in places["transcript-0"].replace('class="words"', "")
    assert "2 differences from the base student" in places["transcript-1"]
    assert 'title="base student: cap"' in places["transcript-1"] and "+down" in places["transcript-1"]
    assert "≠" not in places["transcript-2"]


@pytest.mark.parametrize(("form", "rate", "channels"), [("WAV", 48_000, 1), ("FLAC", 44_100, 2), ("MP3", 16_000, 1)])
def test_an_upload_is_transcribed_as_by_dqlora_transcribe(
    corpus: tuple[RaggedArray, RaggedArray], form: str, rate: int, channels: int
) -> None:
    table = pyarrow.parquet.read_table(ROOT / "presets/mini/speech/test/0000.parquet", columns=["audio"])
    samples = read_audio(table.to_pylist()[0]["audio"]["bytes"])
    file = io.BytesIO()
    soundfile.write(file, np.stack([soxr.resample(samples, RATE, rate)] * channels, axis=1), rate, format=form)
    mini = load_recogniser(str(ROOT / "presets/mini/student"), torch.device("cpu"))
    demo = Demo({"Student": lambda mixture: module.student_words(mini, mixture)}, *corpus, "en", 0)
    places = ask(TestClient(application(demo), base_url=ADDRESS), file.getvalue(), noise="none")
    [found] = re.findall(r'<p class="words">(.*?)</p>', places["transcript-0"], re.DOTALL)
    shown = re.findall(r'(\w+)&nbsp;<span class="soft">(\d\.\d\d)</span>', places["transcript-0"])
    expected = text_of(transcribe_file(mini, io.BytesIO(file.getvalue())))
    assert len(shown) == len(found.split()) and min(float(value) for _, value in shown) < 1
    assert len(expected.split()) > 5
    assert count_errors([expected], [found], "en").wer <= 0.1  # resampled as a whole, not as a stream


BAD = {
    "empty": (b"", "empty file"),
    "text": (b"not a sound " * 100, "not readable as audio"),
    "truncated": (cut_data_chunk(wav_bytes(tone(2.0))), "truncated file"),
    "nan": (wav_bytes(np.full(RATE, np.nan, np.float32), subtype="FLOAT"), "NaN or infinite samples"),
    "short": (wav_bytes(tone(0.01)), "0.01 s, shorter than 0.3 s"),
    "long": (wav_bytes(tone(30.5)), "30.5 s, longer than the 30 s of the teacher's window"),
    "silent": (wav_bytes(np.zeros(RATE, np.float32)), "silent"),
    "clipped": (wav_bytes(np.sign(tone(1.0))), "clipped"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_uploads_are_refused_with_the_reason(client: TestClient, name: str) -> None:
    upload, reason = BAD[name]
    answer = client.post("/transcribe", content=upload)
    assert answer.status_code == 422
    assert reason in answer.text and "\n" not in answer.text and "Traceback" not in answer.text
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.headers["content-security-policy"] == "default-src 'none'"


def test_ten_channels_are_averaged(client: TestClient) -> None:
    file = io.BytesIO()
    soundfile.write(file, np.stack([tone(1.0)] * 10, axis=1), RATE, format="WAV")
    assert len(heard(ask(client, file.getvalue()))) == RATE


def test_hours_in_a_small_file_are_not_decoded(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: bytes) -> np.ndarray:
        raise AssertionError("decoded")

    monkeypatch.setattr(module, "read_audio", fail)
    file = io.BytesIO()
    soundfile.write(file, np.zeros(1200 * RATE, np.int16), RATE, format="FLAC")
    assert len(file.getvalue()) < 500_000
    assert "1200.0 s, longer than" in client.post("/transcribe", content=file.getvalue()).text


@pytest.mark.parametrize("seconds", [2.0, 31.0])
def test_an_upload_that_does_not_say_its_length(client: TestClient, seconds: float) -> None:
    file = io.BytesIO()
    soundfile.write(file, tone(seconds), RATE, format="FLAC")
    upload = of_unknown_length(file.getvalue())
    if seconds <= MAX_SECONDS:
        assert len(heard(ask(client, upload))) == round(seconds * RATE)
    else:
        answer = client.post("/transcribe", content=upload)
        assert answer.status_code == 422 and "longer than the 30 s" in answer.text


def test_an_upload_that_is_too_large_is_refused(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_UPLOAD", 1_000_000)
    answer = client.post("/transcribe", content=bytes(1_000_001))
    assert (answer.status_code, answer.text) == (413, "larger than 1 MB")
    assert client.post("/transcribe", content=bytes(1_000_000)).status_code == 422


@pytest.mark.parametrize(
    "query",
    [
        {"noise": "nothing"},
        {"noise": "recording:fan"},
        {"noise": "recording:../noise/test/fan <1>"},
        {"noise": "generated:__class__"},
        {"clip": "../../secret.wav"},
        {"clip": "/etc/passwd"},
        {"clip": ""},
        *({"snr_db": value} for value in ("nan", "inf", "-inf", "1e9", "loud", "-10.1")),
    ],
)
def test_what_the_page_does_not_offer_is_refused(client: TestClient, query: dict[str, str]) -> None:
    answer = client.post("/transcribe", params={"clip": "cat.wav", "noise": "none", "snr_db": "0"} | query)
    assert answer.status_code == (422 if "snr_db" in query else 404)
    assert re.fullmatch(r"there is no such (noise|test clip)|the SNR must be a number from -10 to 30 dB", answer.text)


@pytest.mark.parametrize("path", ["/../pyproject.toml", "/%2e%2e/pyproject.toml", "/server.py", "//etc/passwd"])
def test_no_file_is_served(client: TestClient, path: str) -> None:
    assert client.get(ADDRESS + path).status_code == 404


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""])
def test_another_host_name_is_refused(client: TestClient, host: str) -> None:
    """A site whose name is made to point at loopback (DNS rebinding) would send its own name."""
    assert client.get("/", headers={"host": host}).status_code == 400
    assert client.post("/transcribe?clip=cat.wav", headers={"host": host}).status_code == 400


@pytest.mark.parametrize(
    ("origin", "status"),
    [(ADDRESS, 200), ("http://127.0.0.1:9999", 403), ("https://evil.example", 403), ("null", 403)],
)
def test_another_sites_page_cannot_ask(client: TestClient, origin: str, status: int) -> None:
    answer = client.post("/transcribe?clip=cat.wav", headers={"origin": origin})
    assert answer.status_code == status


SLOW = """
import sys, time
from pathlib import Path
from dqlora.data.storage import RaggedArray
from dqlora.demo.server import Demo, listen, serve
corpus = [RaggedArray(Path(sys.argv[1], name, "test")) for name in ("clean", "noise")]
serve(Demo({"Student": lambda mixture: time.sleep(3) or ""}, *corpus, "en", 0), listen(0))
"""


def test_an_interruption_breaks_off_an_answer_without_a_traceback(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    command = [sys.executable, "-c", SLOW, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout and process.stderr
    address = process.stdout.readline().split()[0]
    with requests.post(f"{address}/transcribe?clip=cat.wav", stream=True, timeout=20) as answer:
        assert json.loads(next(answer.iter_lines()))["place"] == "mixture"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    assert process.stderr.read() == ""


def test_the_page_answers_while_a_system_transcribes(corpus: tuple[RaggedArray, RaggedArray]) -> None:
    """Also: the mixture is sent before the transcripts are ready."""
    ready = threading.Event()

    def slow(mixture: np.ndarray) -> str:
        assert ready.wait(20)
        return "at last"

    listener = listen(0)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    threading.Thread(target=serve, args=(Demo({"Student": slow}, *corpus, "en", 0), listener), daemon=True).start()
    with requests.post(f"{address}/transcribe?clip=cat.wav", stream=True, timeout=20) as answer:
        lines = answer.iter_lines()
        assert json.loads(next(lines))["place"] == "mixture"
        assert requests.get(address, timeout=5).status_code == 200
        ready.set()
        assert json.loads(next(lines))["place"] == "transcript-0"


@pytest.fixture
def run(project: Path, student_folder: Path, teacher_folder: Path) -> Path:
    """A project in which `dvc repro` has run, with random students."""
    pretrained = project / "models/mini/pretrained"
    shutil.copytree(student_folder, pretrained / "student")
    shutil.copytree(teacher_folder, pretrained / "teacher")
    shutil.copytree(student_folder, project / "models/mini/adapter")
    made_of = {"student": "models/mini/pretrained/student", "quantize": "none"}
    write_json(project / "models/mini/adapter/run.json", made_of)
    write_json(project / "models/mini/decoder.json", {"method": "greedy"})
    write_corpus(project / "data/mini")
    return project


def test_the_command_serves_the_newest_run(run: Path) -> None:
    command = [sys.executable, "-m", "dqlora.cli", "demo", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=run)
    try:
        assert process.stdout
        address = process.stdout.readline().split()[0]
        assert address.startswith("http://127.0.0.1:")
        page = requests.get(address, timeout=10).text
        assert all(f"<h2>{name}</h2>" in page for name in ("Base student", "Distilled student", "Whisper"))
        query = {"noise": "generated:pink", "snr_db": "10"}
        answer = requests.post(f"{address}/transcribe", params=query, data=wav_bytes(tone(1.0)), timeout=60)
        assert len(answer.text.splitlines()) == 4
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def test_another_model_stands_beside_the_teacher(run: Path) -> None:
    demo = module.load(str(ROOT / "presets/mini/student"), torch.device("cpu"))
    assert list(demo.systems) == ["Student", "Whisper"]
    demo.warm_up()


def test_what_is_missing_is_said_in_one_line(run: Path) -> None:
    def fails(port: int = 0) -> str:
        result = CliRunner().invoke(app, ["demo", "--port", str(port)])
        assert result.exit_code == 1 and result.stderr.count("\n") == 1, result.stderr
        return result.stderr

    shutil.rmtree(run / "data")
    assert re.fullmatch(r"error: data/mini/clean/test: unreadable .*run `dvc repro`.*\n", fails())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"error: --port {port}: Address already in use" in fails(port)
    shutil.rmtree(run / "models")
    assert "error: no trained run here" in fails()
