"""Tables that say which recording says what: CSV in its dialects, JSON lines, and the lists of LibriSpeech and Kaldi.

A row that cannot be understood is never guessed at: it comes with its `problem`, which names file and line.
"""

import codecs
import csv
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dqlora.errors import UserError, first_line

# Names of columns that corpora use, the first that a table has: Hugging Face, Common Voice, NeMo, Coqui.
FILE_COLUMNS = ("file_name", "filename", "path", "file", "audio", "audio_filepath", "wav_filename")
TEXT_COLUMNS = ("transcription", "sentence", "transcript", "text")
SPLIT_COLUMN = "split"
# Of tables that name parts of recordings: NeMo's offset and duration, and start and end, in seconds.
START_COLUMN = re.compile(r"(offset|start|begin)([-_ ]?(time|seconds|secs?|s|ms|samples?|frames?))?")
DURATION_COLUMN = "duration"
END_COLUMN = re.compile(r"(end|stop)([-_ ]?(time|seconds|secs?|s))?")
HEADER = "needs a header file_name,transcription and a line a recording"
QUOTED_DELIMITERS, PLAIN_DELIMITERS = ",;", "\t|"  # as Common Voice and LJSpeech use the latter: a quote is a letter
NAME_OF_A_FILE = re.compile(r"\.(?=\w*[A-Za-z])\w{2,5}\s*\"?\s*$")  # ends in a suffix


Part = tuple[str, float | None]  # where in a recording a row begins, and how many seconds it lasts
WHOLE: Part = ("", None)


@dataclass(frozen=True)
class Row:
    """One recording and its transcript, as a table has them."""

    id: str
    file: str
    transcript: str
    split: str = ""  # of the table's own column
    problem: str = ""  # why the row cannot be used, with file and line
    start: str = ""  # in the recording, as the table has it
    seconds: float | None = None  # from there, where the table says it


def read_table(path: Path) -> Iterator[Row]:
    """The rows of a table by its columns: FILE_COLUMNS, TEXT_COLUMNS and, where there is one, SPLIT_COLUMN.

    Parameters
    ----------
    path
        `.jsonl` or `.json`: an object a line; else cells between commas, semicolons, tabs or pipes below a header, or
        LJSpeech's `id|transcript|normalised transcript` without one.

    Raises
    ------
    UserError
        if the file is not UTF-8, has no such columns, or names several parts of one recording.
    """
    lines = _lines(path)
    if path.suffix.lower() == ".json":
        _check_json_lines(path, lines)
    rows = _json_rows if path.suffix.lower() in (".json", ".jsonl") else _delimited_rows
    return _whole_recordings(path, rows(path, lines))


def _whole_recordings(path: Path, rows: Iterable[Row]) -> Iterator[Row]:
    starts: dict[str, str] = {}
    for row in rows:
        if row.start and starts.setdefault(row.file, row.start) != row.start:
            raise UserError(
                f"{path}: {row.file} is named from {starts[row.file]} and from {row.start}: parts of recordings cannot "
                "be read; cut each into a file of its own (ffmpeg -ss START -t SECONDS -i OLD NEW) and name those"
            )
        yield row


def read_librispeech(path: Path) -> Iterator[Row]:
    """The rows of a `*.trans.txt`: `<id> <transcript>`; the recording is `<id>.flac` (Panayotov et al. 2015)."""
    for number, line in enumerate(_lines(path), 1):
        name, transcript = _id_and_rest(line)
        if name:
            yield _row(path, number, name, name, transcript)


def read_kaldi(path: Path) -> Iterator[Row]:
    """The rows of Kaldi's `text`, `<id> <transcript>`, with the files of `wav.scp` beside it, `<id> <file>`.

    Commands in wav.scp are not run. Format: kaldi-asr.org/doc/data_prep.html.

    Raises
    ------
    UserError
        if there is a `segments`, whose utterances are parts of recordings.
    """
    scp, segments = path.with_name("wav.scp"), path.with_name("segments")
    if segments.exists():
        raise UserError(
            f"{segments}: parts of recordings cannot be read; cut them with Kaldi's extract-segments, name those files "
            "in wav.scp and remove segments"
        )
    files: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(_lines(scp), 1):
        name, file = _id_and_rest(line)
        if name in files:
            yield _row(scp, number, name, file, "", problem=_place("stands twice", scp, number))
        elif name:
            files[name] = number, file
    without_text = dict(files)
    for number, line in enumerate(_lines(path), 1):
        name, transcript = _id_and_rest(line)
        if not name:
            continue
        without_text.pop(name, None)
        scp_line, file = files.get(name, (0, ""))
        problem = ""
        if not scp_line:
            problem = _place("its id does not stand in wav.scp", path, number)
        elif file.endswith("|"):
            problem = _place("a command, which is not run", scp, scp_line) + "; write its output to a file, name that"
        yield _row(path, number, name, file, transcript, problem=problem)
    for name, (number, file) in without_text.items():
        yield _row(scp, number, name, file, "", problem=_place("its id does not stand in text", scp, number))


def _lines(path: Path) -> list[str]:
    """Lines of a UTF-8 file, each with its end, whichever of the three common ones that is."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if wide := wide_encoding(content[:4]):
        raise UserError(f"{path}: {wide[:6]}, not UTF-8; save it as UTF-8, or: iconv -f {wide} -t UTF-8 OLD > NEW")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}: line {line} is not UTF-8 but perhaps Latin-1; save it as UTF-8, or: "
            "iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW"
        ) from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return [f"{line}\n" for line in text.split("\n")]


def wide_encoding(start: bytes) -> str | None:
    """The encoding of text whose characters take two or four bytes, by its mark or the zeros in its first four."""
    if start in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE):
        return "UTF-32"
    if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "UTF-16"
    zeros = [at for at, byte in enumerate(start) if not byte]
    order = "BE" if zeros[:1] == [0] else "LE"
    return f"UTF-{32 if len(zeros) > 2 else 16}{order}" if zeros else None


def _id_and_rest(line: str) -> tuple[str, str]:
    parts = line.strip().split(maxsplit=1)
    return parts[0] if parts else "", parts[1] if len(parts) > 1 else ""


def _place(problem: str, path: Path, line: int) -> str:
    return f"{problem} ({path}, line {line})"


def _row(
    path: Path, line: int, name: str, file: str, transcript: str, split: str = "", problem: str = "", part: Part = WHOLE
) -> Row:
    """A row whose name can be a file's and whose text can be written; else one with that problem."""
    unprintable = any(ord(char) < 32 or 0xD800 <= ord(char) < 0xE000 for char in name + file)
    if not problem and unprintable:
        problem = _place("control characters in the file's name", path, line)
    if not problem and not file:
        problem = _place("no file name", path, line)
    if not problem and any(0xD800 <= ord(char) < 0xE000 for char in transcript):
        problem = _place("half a character (a lone surrogate)", path, line)
    if problem:
        named = name and not unprintable
        return Row(name if named else f"line {line}", file if named else "", "", split, problem)
    return Row(name, file, transcript, split, "", *part)


@dataclass(frozen=True)
class _Columns:
    count: int
    file: int
    text: int
    split: int | None = None
    otherwise: int | None = None  # where the transcript stands if the cell at `text` is empty
    start: int | None = None
    duration: int | None = None
    end: int | None = None

    @classmethod
    def of(cls, path: Path, header: list[str]) -> "_Columns | None":
        """Where the columns stand; None if the header does not name them."""
        names = [name.strip().lower() for name in header]
        while names and not names[-1]:
            names.pop()
        file = next((name for name in FILE_COLUMNS if name in names), None)
        text = next((name for name in TEXT_COLUMNS if name in names), None)
        if file is None or text is None:
            return None
        if twice := next((name for name in (file, text) if names.count(name) > 1), None):
            raise UserError(f"{path}: two columns are named {twice}; rename one")

        def found(matches: Callable[[str], Any]) -> int | None:
            return next((at for at, name in enumerate(names) if matches(name)), None)

        return cls(
            len(names),
            names.index(file),
            names.index(text),
            split=found(SPLIT_COLUMN.__eq__),
            start=found(START_COLUMN.fullmatch),
            duration=found(DURATION_COLUMN.__eq__),
            end=found(END_COLUMN.fullmatch),
        )

    def part(self, cells: list[Any]) -> Part:
        """Where in its recording a row begins, and how many seconds it lasts, where the table has both columns."""
        start, duration, end = (
            str(cells[at]).strip() if at is not None and at < len(cells) else ""
            for at in (self.start, self.duration, self.end)
        )
        if not start:
            return WHOLE
        try:
            seconds = float(duration) if duration else float(end) - float(start)
        except ValueError:
            return start, None
        return start, seconds if 0 < seconds < math.inf else None


def _delimited_rows(path: Path, lines: list[str]) -> Iterator[Row]:
    first = next((number for number, line in enumerate(lines) if line.strip()), None)
    if first is None:
        raise UserError(f"{path}: empty; {HEADER}")
    for delimiter in QUOTED_DELIMITERS + PLAIN_DELIMITERS:
        header: list[str] = next(
            _cells([lines[first][:100_000]], delimiter, strict=False), []
        )  # below csv's limit of a cell
        if columns := _Columns.of(path, header):
            return _records(path, lines, first + 1, delimiter, columns)
    cells = lines[first].split("|")
    if len(cells) in (2, 3):  # LJSpeech, of which some have transcripts normalised
        return _records(path, lines, first, "|", _Columns(len(cells), 0, len(cells) - 1, otherwise=1))
    raise UserError(f"{path}: {HEADER}; its first line is {lines[first].strip()[:80]!r}")


def _cells(lines: Iterable[str], delimiter: str, strict: bool = True) -> Any:
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if delimiter in QUOTED_DELIMITERS else csv.QUOTE_NONE
    return csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=strict, skipinitialspace=True)


def _records(path: Path, lines: list[str], start: int, delimiter: str, columns: _Columns) -> Iterator[Row]:
    """Rows, a line behind: where what is no row stands beside one, it may be a part of its transcript."""
    held: Row | None = None
    was_part = False
    held_line = at = start
    while at < len(lines):
        number, looks_like_a_row = at + 1, _row_detector(lines[at], delimiter, columns)
        reader = _cells(_until(lines, at, looks_like_a_row), delimiter)
        try:
            cells = next(reader)
            at += reader.line_num
        except csv.Error as error:
            cells = [cell.strip() for cell in lines[at].split(delimiter)]
            opens = "end of data" in str(error)
            problem = "a quote is opened and not closed" if opens else f"not valid CSV: {first_line(error)}"
            problem = _place(problem, path, number) + "; double the quotes inside a quoted transcript"
            at += 1
        else:
            while columns.text == columns.count - 1 < len(cells) - 1 and not cells[-1].strip():
                cells.pop()  # as spreadsheets write them
            if not any(cell.strip() for cell in cells):
                continue
            problem = ""
            if len(cells) != columns.count:
                problem = _place(f"{len(cells)} cells where the table has {columns.count}", path, number)
                if len(cells) > columns.count and delimiter in QUOTED_DELIMITERS:
                    problem += f'; put a transcript that has "{delimiter}" in double quotes'
        is_part = len(cells) < columns.count and not looks_like_a_row(lines[number - 1])
        if held and not held.problem and is_part and columns.text == columns.count - 1:
            cut = _place("its transcript may go on in the next line", path, held_line)
            held = replace(held, transcript="", problem=f"{cut}; put it in one line")
        if not problem and was_part and columns.text == 0:
            problem = _place("its transcript may begin in the line before", path, number) + "; put it in one line"
        was_part = is_part
        if held:
            yield held
        name, text, split = (
            cells[column].strip() if column is not None and column < len(cells) else ""
            for column in (columns.file, columns.text, columns.split)
        )
        if not text and columns.otherwise is not None and not problem:
            text = cells[columns.otherwise].strip()
        held, held_line = _row(path, number, name, name, text, split, problem, columns.part(cells)), number
    if held:
        yield held


def _until(lines: list[str], at: int, looks_like_a_row: Callable[[str], bool]) -> Iterator[str]:
    """The line at `at` and those that an open quote may take in: up to the next row."""
    yield lines[at]
    for number in range(at + 1, len(lines)):
        if looks_like_a_row(lines[number]):
            return
        yield lines[number]


def _row_detector(line: str, delimiter: str, columns: _Columns) -> Callable[[str], bool]:
    """Whether another line is a row of its own: has a file's name, if `line` has one, else as many cells as a row."""

    def names_a_file(other: str) -> bool:
        return any(NAME_OF_A_FILE.search(cell) for cell in other.split(delimiter))

    if names_a_file(line):
        return names_a_file
    return lambda other: other.count(delimiter) >= columns.count - 1


def _check_json_lines(path: Path, lines: list[str]) -> None:
    """`.json` may be anything; NeMo's manifests are objects with the columns, one a line."""
    try:
        first = json.loads(next(filter(str.strip, lines), ""))
    except (ValueError, RecursionError):
        first = None
    if not isinstance(first, dict) or _Columns.of(path, list(first)) is None:
        raise UserError(
            f"{path}: not an object with file_name and transcription in each line; write it so (an array of objects: "
            f"jq -c '.[]' {path.name} > {path.stem}.jsonl), or move it away"
        )


def _json_rows(path: Path, lines: list[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield _row(path, number, "", "", "", problem=_place(f"not valid JSON: {first_line(error)}", path, number))
            continue
        if not isinstance(values, dict):
            yield _row(path, number, "", "", "", problem=_place("not an object of columns", path, number))
            continue
        columns = _Columns.of(path, list(values))
        if columns is None:
            problem = _place("needs the keys file_name and transcription", path, number)
            yield _row(path, number, "", "", "", problem=problem)
            continue
        cells = list(values.values())
        name, text = cells[columns.file], cells[columns.text]
        split = cells[columns.split] if columns.split is not None else ""
        problem = ""
        if not all(isinstance(value, str) for value in (name, text, split)):
            problem = _place("a name or transcript that is no text", path, number)
            name, text, split = (value if isinstance(value, str) else "" for value in (name, text, split))
        yield _row(path, number, name.strip(), name.strip(), text, split, problem, columns.part(cells))
