"""The command `dqlora`. What takes seconds to import is imported once nothing cheaper can be wrong any more."""

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, NoReturn

import typer
from typer.core import TyperGroup

from dqlora.errors import BadAudio, UserError, is_not_allowed, is_of_full_disk, named, quieten_libraries
from dqlora.models.run import base_of_run, find_model, find_run, newest_run, read_run

if TYPE_CHECKING:
    from dqlora.transcription.recogniser import Recogniser
    from dqlora.transcription.words import Word

# oneDNN keeps what it prepared for each length of input: of a long recording, hundreds. Read when torch is loaded.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")


class Commands(TyperGroup):
    """Ends each command with one line where what went wrong is the user's to mend: a mistake, or a file or a disk."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            _fail(str(error))
        except OSError as error:
            if is_of_full_disk(error):
                _fail(f"no space left on the disk ({error.filename or 'output'}); free some and run it again")
            if error.filename is None:  # of no file of the user's; a broken pipe, too
                raise
            way_out = "change its rights, or name another" if is_not_allowed(error) else "name another"
            _fail(f"{error.filename}: {error.strerror}; {way_out}")


app = typer.Typer(
    cls=Commands,
    help="Speech recognition in noise.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
HotWord = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="A name or term to listen for; may be given again.")
]
HotWordFile = Annotated[Path | None, typer.Option(metavar="FILE", help="A text file of them, one a line.")]
INTERRUPTED = 130  # the exit code of shells: 128 + SIGINT


class Format(StrEnum):
    TXT = "txt"
    JSON = "json"
    SRT = "srt"
    VTT = "vtt"


@app.command(short_help="Turn recordings into text, subtitles or JSON.")
def transcribe(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Recordings; - is standard input.")],
    form: Annotated[Format, typer.Option("--format", help="What to write.")] = Format.TXT,
    model: Annotated[
        str | None,
        typer.Option(help="A run's adapter folder, a model folder, or owner/name@revision; else the newest run."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="A folder to write FILE.FORMAT to, instead of the screen.")
    ] = None,
    hotword: HotWord = None,
    hotwords: HotWordFile = None,
    adapt: Annotated[
        bool,
        typer.Option("--adapt", help="Adapt to each piece of noisy speech first: fewer errors in new noise."),
    ] = False,
) -> None:
    """Transcribe recordings of any format, rate, number of channels and length."""
    if output is None and len(files) > 1 and form in (Format.SRT, Format.VTT):
        _fail(f"--format {form}: several files need --output FOLDER")
    if output is not None:
        _check_distinct(files, output, form)
    names = _hot_words(hotword, hotwords)
    usable = _each(files, _check_exists)
    found = find_model(model) if usable else ""
    if not (usable := _each(usable, _check_is_audio)):
        raise typer.Exit(1)
    if output is not None:
        _make_folder(output)

    from dqlora.data.storage import atomic_write
    from dqlora.device import default_device
    from dqlora.transcription.recogniser import load_recogniser

    quieten_libraries()
    with _working(f"loading {found}"):
        recogniser = load_recogniser(found, default_device(), names, adapt)

    said: list[str] = []

    def transcribe_one(name: str) -> None:
        words = _transcribe(recogniser, name)
        said.extend(word.text for word in words)
        if output is None:
            print(_format(name, words, form, named=len(files) > 1), end="", flush=True)
        else:
            atomic_write(_written_to(name, output, form), _format(name, words, form, named=False))

    done = _each(usable, transcribe_one)
    _name_missing(names, recogniser, said)
    if len(done) < len(files):
        raise typer.Exit(1)


@app.command(short_help="Open a page that compares transcripts in noise.")
def demo(
    model: Annotated[
        str | None,
        typer.Option(help="A run's adapter folder, a model folder, or owner/name@revision; else the newest run."),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="On 127.0.0.1; 0 is any that is free.")] = 8000,
    hotword: HotWord = None,
    hotwords: HotWordFile = None,
) -> None:
    """Open a page to record or choose speech, add noise, and compare the transcripts of base, distilled and teacher."""
    from dqlora.config import load_params

    try:
        load_params()
        names = _hot_words(hotword, hotwords)
        found = find_model(model)

        from dqlora.demo.server import listen, load, serve
        from dqlora.device import default_device

        quieten_libraries()
        listener = listen(port)
        with _working(f"loading {found}"):
            page = load(found, default_device(), names)
            page.warm_up()
        serve(page, listener)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


@app.command(short_help="Write a run's student for transformers and onnxruntime.")
def export(
    output: Annotated[Path, typer.Argument(help="A folder to write merged/, onnx/ and README.md to.")],
    model: Annotated[Path | None, typer.Option(help="A run's adapter folder; else the newest run.")] = None,
) -> None:
    """Write a run's student as others load it: merged/ for transformers, onnx/ in 8 bits for onnxruntime.

    Its README.md holds a few lines for each that turn a recording into text. The pipeline does so for its own run and
    measures both: models/<preset>/exported, metrics/<preset>/export.json.
    """
    try:
        adapter = find_run(model or newest_run())
        student, quantize = base_of_run(adapter)

        from dqlora.data.storage import atomic_directory
        from dqlora.models.export import size_mb, write_exports

        quieten_libraries()
        output.mkdir(parents=True, exist_ok=True)
        with _working(f"exporting {adapter}", minutes=True), atomic_directory(output / ".new") as folder:
            write_exports(student, adapter, quantize, folder)
        for made in (output / ".new").iterdir():  # in place of an earlier export; nothing else in the folder is touched
            if (output / made.name).is_dir():
                shutil.rmtree(output / made.name)
            made.replace(output / made.name)
        (output / ".new").rmdir()
        for path in (output / "merged", output / "onnx"):
            print(f"{path}: {size_mb(path):.1f} MB")
    except OSError as error:
        _fail(f"{output}: {error.strerror or error}")


@app.command(short_help="Put a run's adapter on the hub, with a model card.")
def push(
    repository: Annotated[str, typer.Argument(help="owner/name on the hub; made if it is not there.")],
    private: Annotated[bool, typer.Option(help="Whether a new repository is to be seen by its owner alone.")] = False,
    card: Annotated[bool, typer.Option("--card", help="Only print the model card that would be pushed.")] = False,
) -> None:
    """Put the adapter of params.yaml's preset on the hub, with a model card of what its run recorded."""
    from dqlora.config import Paths, load_params, load_preset

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        _fail(f"push {repository}: no name of a repository; write owner/name, owner being you or an organisation")
    params = load_params()
    preset, paths = load_preset(params.preset), Paths(params.preset)
    read_run(paths.adapter)

    from dqlora.report.model_card import model_card
    from dqlora.report.model_card import push as push_adapter

    quieten_libraries()
    with _working("writing the model card" if card else f"pushing to {repository}"):
        done = model_card(repository, preset, paths) if card else push_adapter(repository, private, preset, paths)
    print(done)


@app.command(short_help="Show experiments side by side.")
def compare(
    two: Annotated[
        list[str] | None, typer.Argument(metavar="[BEFORE AFTER]", help="How much lower WER is in AFTER, paired.")
    ] = None,
    commits: Annotated[int, typer.Option(min=1, help="Of how many commits, from the newest on.")] = 1,
) -> None:
    """Show the workspace, the newest commits and those of their experiments that evaluated: WER, gain, what differs.

    Of two that are named, experiments, commits or `workspace`: how much lower WER is in the second than in the first,
    on the same clips, with the 95 % interval of a paired bootstrap over sentences.
    """
    from rich.console import Console

    from dqlora.report.compare import comparison, differences, experiments

    if two and len(two) != 2:
        _fail("compare: give two names, or none for a table of all")
    if two:
        print(*differences(*two), sep="\n")
        return
    console = Console()
    console.print(comparison(*experiments(commits), console.width))


def _working(what: str, minutes: bool = False) -> AbstractContextManager[Any]:
    """Says what is done for as long as it takes, on a terminal; once in a log, if it may take `minutes`."""
    from rich.console import Console

    console = Console(stderr=True)
    if minutes and not console.is_terminal:
        print(f"{what}; this may take minutes", file=sys.stderr)
    return console.status(what)


def _hot_words(words: list[str] | None, file: Path | None) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines() if file else []
    except (OSError, UnicodeDecodeError):
        raise UserError(f"--hotwords {file}: no text file in UTF-8 there; give one, a name a line") from None
    return [*(words or []), *(line.strip() for line in lines if line.strip())]


def _name_missing(names: list[str], recogniser: "Recogniser", said: list[str]) -> None:
    """Say which of the hot words given are in none of the transcripts."""
    from dqlora.models.decoding import HotWords

    if names and isinstance(recogniser.decoder, HotWords):
        text = f" {' '.join(said)} "
        written = recogniser.decoder.hotwords[-len(names) :]
        missing = [name for name, word in zip(names, written, strict=True) if word not in text]
        if missing:
            print(f"hot words not heard: {named(missing)}", file=sys.stderr)


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise typer.Exit(1)


def _each(names: list[str], do: Callable[[str], object]) -> list[str]:
    """The names with which `do` succeeds; for each other one, an error is printed in one line."""
    done = []
    for name in names:
        try:
            do(name)
            done.append(name)
        except (BadAudio, UserError) as error:
            print(f"error: {name}: {error}", file=sys.stderr)
        except BrokenPipeError:  # nobody reads on, as behind `| head -1`: the command ends
            raise
        except OSError as error:
            if is_of_full_disk(error):  # there is none for what comes after it either
                reason = "no space left to write its transcript; what came before it is written"
                print(f"error: {name}: {reason}", file=sys.stderr)
                raise typer.Exit(1) from None
            print(f"error: {error.filename or name}: {error.strerror or error}", file=sys.stderr)
        except KeyboardInterrupt:
            print(f"interrupted at {name}; what came before it is written", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
    return done


def _check_exists(name: str) -> None:
    """Raise OSError if a recording cannot be opened. A pipe is not tried: it can be opened only once."""
    if Path(name).is_dir():
        raise UserError("a folder; give FOLDER/*.wav")
    if name != "-" and not Path(name).is_fifo():
        Path(name).open("rb").close()


def _check_is_audio(name: str) -> None:
    """Raise BadAudio if the header of a recording is none; one from a pipe is checked when it is read."""
    from dqlora.data.audio import stream_audio

    if Path(name).is_file():
        with Path(name).open("rb") as file:
            stream_audio(file)


def _written_to(name: str, output: Path, form: Format) -> Path:
    return output / f"{'stdin' if name == '-' else Path(name).stem}.{form}"


def _make_folder(output: Path) -> None:
    """Raise UserError, before any work is done, if nothing can be written there."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "a file, not a folder" if output.is_file() else error.strerror
        raise UserError(f"--output {output}: {reason}; name a folder that can be written to") from None
    if not os.access(output, os.W_OK):
        raise UserError(f"--output {output}: may not be written to; name another folder")


def _check_distinct(files: list[str], output: Path, form: Format) -> None:
    """End with an error if one transcript would replace another."""
    sources: dict[Path, str] = {}
    for name in files:
        path = _written_to(name, output, form)
        if path in sources:
            _fail(f"{sources[path]} and {name} would both be written to {path}; use a folder for each")
        sources[path] = name


def _transcribe(recogniser: "Recogniser", name: str) -> "list[Word]":
    from dqlora.progress import ProgressBar
    from dqlora.transcription.recogniser import transcribe_file

    with _opened(name) as file, ProgressBar(desc=Path(name).name, unit="s", leave=False) as bar:

        def show(done: float, whole: float | None) -> None:
            bar.total = None if whole is None else round(whole)
            bar.update(round(done) - bar.n)

        return transcribe_file(recogniser, file, show)


@contextmanager
def _opened(name: str) -> Iterator[BinaryIO]:
    """The recording as a file in which one can go back; what comes through a pipe is first copied to the disk."""
    with nullcontext(sys.stdin.buffer) if name == "-" else Path(name).open("rb") as file:
        if name != "-" and file.seekable():
            yield file
            return
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(file, copy)
            yield copy


def _format(name: str, words: "list[Word]", form: Format, named: bool) -> str:
    from dqlora.data.folders import as_text
    from dqlora.transcription.words import as_json, subtitles, text_of

    name = as_text(name)
    if form == Format.TXT:
        return f"{name}: {text_of(words)}\n" if named else f"{text_of(words)}\n"
    if form == Format.JSON:
        return json.dumps(as_json(name, words), ensure_ascii=False) + "\n"
    return subtitles(words, form)


if __name__ == "__main__":
    app()
