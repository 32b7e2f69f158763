"""The demo: a page on loopback that mixes speech with noise, plays it, and shows each system's transcript."""

import base64
import io
import json
import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import soundfile
import torch
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from dqlora.config import Paths, load_params, load_preset
from dqlora.data.audio import (
    MAX_SECONDS,
    SAMPLE_RATE,
    BadAudio,
    audible,
    check_speech,
    read_audio,
    stream_audio,
    to_float32,
    to_int16,
)
from dqlora.data.labels import labelled
from dqlora.data.mixing import mix_int16
from dqlora.data.noise import SYNTHETIC, synthetic_noise
from dqlora.data.storage import RaggedArray
from dqlora.data.text import Vocabulary
from dqlora.errors import UserError
from dqlora.evaluation.metrics import count_errors
from dqlora.evaluation.results import SYSTEMS, compare
from dqlora.models.decoding import load_decoder
from dqlora.models.run import RUN, base_of_run, find_model
from dqlora.models.wav2vec2 import EncoderCTC, load_student
from dqlora.models.whisper import Teacher
from dqlora.report.charts import ticks
from dqlora.report.spectrogram import grey_png, spectrogram
from dqlora.report.templates import template
from dqlora.seeding import generator_for
from dqlora.transcription.recogniser import Recogniser, load_recogniser, transcribe_file
from dqlora.transcription.words import Word, text_of

HOST = "127.0.0.1"
MAX_UPLOAD = 32_000_000  # bytes: 30 s of stereo in float32 at 96 kHz take 23 MB
SNR_DB = (-10, 30)  # dB: ends of the page's scale
VOICES = 12  # test clips that generated babble is mixed of
HEADERS = {
    "Content-Security-Policy": "default-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

# of int16 [samples]: words with their confidences, or the transcript alone where a system gives none
Transcribe = Callable[[np.ndarray], list[Word] | str]


class BadRequest(Exception):
    """What is wrong with a request, in a few words for whoever looks at the page."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


class Demo:
    """The systems to compare, and the test clips and noise to try them on.

    Parameters
    ----------
    systems
        by name as shown; where the text of a recording is not known, the second is compared with the first.
    clean, noise
        test clips with their transcripts, and noise recordings, int16.
    language
        ISO 639-1: how transcripts are scored.
    """

    def __init__(
        self, systems: dict[str, Transcribe], clean: RaggedArray, noise: RaggedArray, language: str, seed: int
    ):
        self.systems, self.clean, self.noise, self.language, self.seed = systems, clean, noise, language, seed
        self._one_at_a_time = threading.Lock()

    def warm_up(self) -> None:
        """Transcribe a clip with each system, so that the first times shown are no longer than the others."""
        for transcribe in self.systems.values():
            transcribe(self.clean[self.clean.items[0]["id"]])

    def speech(self, clip: str | None, upload: bytes) -> tuple[np.ndarray, str]:
        """A test clip, or an uploaded recording: int16 [samples], and its text, empty where that is not known.

        Raises
        ------
        BadRequest
            if there is no such clip, or the recording cannot be used.
        """
        if clip is not None:
            if clip not in self.clean:
                raise BadRequest(404, "there is no such test clip")
            return self.clean[clip], self.clean.item(clip)["transcript"]
        try:
            seconds, blocks = stream_audio(io.BytesIO(upload))
            if seconds is None:
                seconds = 0.0
                while seconds <= MAX_SECONDS and (block := next(blocks, None)) is not None:
                    seconds += len(block) / SAMPLE_RATE
            if seconds > MAX_SECONDS:  # before the whole is decoded: a small file may hold hours
                raise BadAudio(f"{seconds:.1f} s, longer than the {MAX_SECONDS:.0f} s of the teacher's window")
            samples = read_audio(upload)
            check_speech(samples)
        except BadAudio as reason:
            raise BadRequest(422, str(reason)) from None
        return to_int16(audible(samples)), ""

    def mix(self, speech: np.ndarray, noise: str, snr_db: float) -> np.ndarray:
        """The speech in noise, int16 [samples]: the same for the same speech, noise and SNR.

        Parameters
        ----------
        noise
            `none`, `recording:` and a test recording's id, or `generated:` and one of SYNTHETIC.

        Raises
        ------
        BadRequest
            if there is no such noise.
        """
        kind, _, name = noise.partition(":")
        generator = generator_for(self.seed, "demo", noise)
        if noise == "none":
            return speech
        if kind == "recording" and name in self.noise:
            return mix_int16(speech, self.noise[name], snr_db, generator)
        if kind == "generated" and name in SYNTHETIC:
            voices = [to_float32(self.clean[item["id"]]) for item in self.clean.items[:VOICES]]
            made = synthetic_noise(name, len(speech), generator, voices)
            return mix_int16(speech, to_int16(made), snr_db, generator)
        raise BadRequest(404, "there is no such noise")

    def transcripts(self, mixture: np.ndarray, reference: str) -> Iterator[dict[str, Any]]:
        """Each system's transcript, one after another, as demo_transcript.html.j2 shows it."""
        texts: list[str] = []
        for transcribe in self.systems.values():
            with self._one_at_a_time:
                started = time.perf_counter()
                found = transcribe(mixture)
                seconds = time.perf_counter() - started
            texts.append(text := found if isinstance(found, str) else text_of(found))
            against, wanted = "", text
            if reference:
                against, wanted = "reference", reference
            elif len(texts) == 2:
                against, wanted = next(iter(self.systems)).lower(), texts[0]
            errors = count_errors([wanted], [text], self.language)
            yield {
                "seconds": seconds,
                "against": against,
                "words": compare(wanted, text, self.language),
                "edits": int(errors.word_edits[0]),
                "of": int(errors.words[0]),
                "confidences": [] if isinstance(found, str) else found,
            }


def load(source: str | None, device: torch.device, hotwords: Sequence[str] = ()) -> Demo:
    """A run's base, distilled student and teacher, or another model beside the teacher of params.yaml's preset.

    Parameters
    ----------
    source
        as for `load_recogniser`.
    hotwords
        names and terms that the students listen for.

    Raises
    ------
    UserError
        if there is no run, or one of its artifacts is missing.
    """
    params = load_params()
    model = find_model(source)
    folder = Path(model)
    systems: dict[str, Transcribe] = {}
    preset = params.preset
    if (folder / RUN).exists():
        student, quantize = base_of_run(folder)
        preset = student.parents[1].name
        unadapted = EncoderCTC(load_student(student, quantize, device))
        vocabulary = Vocabulary.load(student / "vocab.json")
        base = Recogniser(unadapted, vocabulary, load_decoder(folder.parent, vocabulary, hotwords))
        systems[SYSTEMS["base"]] = partial(student_words, base)
        systems[SYSTEMS["distilled"]] = partial(student_words, load_recogniser(model, device, hotwords))
    else:
        systems["Student"] = partial(student_words, load_recogniser(model, device, hotwords))
    paths, language = Paths(preset), load_preset(preset).speech.language
    clean, noise = labelled(paths, "test"), RaggedArray(paths.noise / "test")
    teacher = Teacher(paths.teacher, device)
    systems[SYSTEMS["teacher"]] = lambda mixture: teacher.transcribe([to_float32(mixture)], language)[0]
    return Demo(systems, clean, noise, language, params.seed)


def student_words(recogniser: Recogniser, mixture: np.ndarray) -> list[Word]:
    """As `dqlora transcribe` transcribes the file that the page plays."""
    return transcribe_file(recogniser, io.BytesIO(wav(mixture)))


def wav(samples: np.ndarray) -> bytes:
    """A WAV file of int16 [samples] at 16 kHz."""
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


def application(demo: Demo) -> Starlette:
    """The page at /, and POST /transcribe, which answers a recording or the name of a test clip.

    The body is a recording as a file; the query says `noise`, `snr_db` (dB) and, instead of a recording, `clip`. The
    answer is a line of JSON for the mixture and one for each system, as soon as it is ready. A mistake is answered with
    its reason, as text.
    """
    mixture_page, transcript_page = (
        template("demo", "demo_mixture.html.j2"),
        template("demo", "demo_transcript.html.j2"),
    )

    def page(request: Request) -> Response:
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}' blob:; style-src 'nonce-{nonce}'; img-src data:; "
            "media-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        html = template("demo", "demo.html.j2").render(
            nonce=nonce,
            systems=demo.systems,
            clips=[item | {"seconds": item["length"] / SAMPLE_RATE} for item in demo.clean.items],
            recordings=[item["id"] for item in demo.noise.items],
            generated=SYNTHETIC,
            snr_db=SNR_DB,
            max_seconds=MAX_SECONDS,
            max_upload=MAX_UPLOAD,
        )
        return HTMLResponse(html, headers=HEADERS | {"Content-Security-Policy": policy})

    async def transcribe(request: Request) -> Response:
        try:
            _refuse_other_sites(request)
            upload = await _body(request)
            return await run_in_threadpool(answer, request.query_params.get, upload)
        except BadRequest as error:
            return PlainTextResponse(str(error), error.status, HEADERS)

    def answer(query: Callable[[str], str | None], upload: bytes) -> Response:
        noise, snr_db = query("noise") or "none", _snr_db(query("snr_db"))
        speech, reference = demo.speech(query("clip"), upload)
        mixture = demo.mix(speech, noise, snr_db)

        def lines() -> Iterator[str]:
            yield _line("mixture", mixture_page.render(_picture(mixture), reference=reference))
            for number, transcript in enumerate(demo.transcripts(mixture, reference)):
                yield _line(f"transcript-{number}", transcript_page.render(transcript))

        return StreamingResponse(lines(), media_type="application/x-ndjson", headers=HEADERS)

    return Starlette(
        routes=[Route("/", page), Route("/transcribe", transcribe, methods=["POST"])],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])],
    )


def _refuse_other_sites(request: Request) -> None:
    """Browsers say which site's page sends a POST."""
    own = f"http://{request.headers['host']}"
    if request.headers.get("origin", own) != own:
        raise BadRequest(403, "asked for by another site's page")


async def _body(request: Request) -> bytes:
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
            if len(body) > MAX_UPLOAD:
                raise BadRequest(413, f"larger than {MAX_UPLOAD / 1e6:.0f} MB")
    except ClientDisconnect:
        raise BadRequest(400, "the upload broke off") from None
    return bytes(body)


def _snr_db(text: str | None) -> float:
    try:
        value = float(text or 0)
    except ValueError:
        value = float("nan")
    if not SNR_DB[0] <= value <= SNR_DB[1]:
        raise BadRequest(422, f"the SNR must be a number from {SNR_DB[0]} to {SNR_DB[1]} dB")
    return value


def _picture(mixture: np.ndarray) -> dict[str, Any]:
    seconds = len(mixture) / SAMPLE_RATE
    picture = grey_png(spectrogram(to_float32(mixture)))
    return {
        "seconds": seconds,
        "ticks": ticks(seconds),
        "audio": "data:audio/wav;base64," + base64.b64encode(wav(mixture)).decode(),
        "spectrogram": "data:image/png;base64," + base64.b64encode(picture).decode(),
    }


def _line(place: str, html: str) -> str:
    return json.dumps({"place": place, "html": html}) + "\n"


def listen(port: int) -> socket.socket:
    """A socket on loopback; port 0 is any that is free. Raises UserError if the port cannot be had."""
    try:
        return socket.create_server((HOST, port))
    except OSError as error:
        raise UserError(f"--port {port}: {error.strerror}; --port 0 takes any that is free") from None


def serve(demo: Demo, listener: socket.socket) -> None:
    """Print the page's address and answer requests until interrupted."""

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # no traceback of answers that are broken off
            super().handle_exit(sig, frame)

    config = uvicorn.Config(application(demo), log_level="warning", server_header=False, timeout_graceful_shutdown=1)
    print(f"http://{HOST}:{listener.getsockname()[1]} (Ctrl-C ends it)", flush=True)
    with suppress(KeyboardInterrupt):
        Server(config).run(sockets=[listener])
