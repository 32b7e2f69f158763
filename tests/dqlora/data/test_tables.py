"""Tables as people have them: every row is read right, or comes with a problem that names file and line."""

import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dqlora.data.tables import Row, read_kaldi, read_librispeech, read_table
from dqlora.errors import UserError

HELLO, BYE = ("a.wav", "hello there"), ("b.wav", "good bye")


def read(folder: Path, content: str | bytes, name: str = "metadata.csv") -> list[Row]:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_table(path))


def usable(rows: list[Row]) -> list[tuple[str, str]]:
    return [(row.file, row.transcript) for row in rows if not row.problem]


def problems(rows: list[Row]) -> dict[str, str]:
    return {row.id: row.problem for row in rows if row.problem}


DIALECTS: dict[str, str | bytes] = {
    "comma": "file_name,transcription\na.wav,hello there\nb.wav,good bye\n",
    "semicolon": "file_name;transcription\na.wav;hello there\nb.wav;good bye\n",
    "tab": "file_name\ttranscription\na.wav\thello there\nb.wav\tgood bye\n",
    "pipe": "file_name|transcription\na.wav|hello there\nb.wav|good bye\n",
    "ljspeech": "a.wav|Hello, there|hello there\nb.wav|Good bye|good bye\n",
    "ljspeech with some normalised": "a.wav|Hello|hello there\nb.wav|good bye|\n",
    "ljspeech with none normalised": "a.wav|hello there|\nb.wav|good bye| \n",
    "ljspeech without the normalised": "a.wav|hello there\nb.wav|good bye\n",
    "quoted": '"file_name","transcription"\n"a.wav","hello there"\n"b.wav","good bye"\n',
    "quoted after a space": 'file_name, transcription\na.wav, "hello there"\nb.wav, "good bye"\n',
    "byte order mark": b"\xef\xbb\xbffile_name,transcription\na.wav,hello there\nb.wav,good bye\n",
    "windows": "file_name,transcription\r\na.wav,hello there\r\nb.wav,good bye\r\n",
    "old mac": "file_name,transcription\ra.wav,hello there\rb.wav,good bye\r",
    "no last line end": "file_name,transcription\na.wav,hello there\nb.wav,good bye",
    "empty rows": "\nfile_name,transcription\n\na.wav,hello there\n,\n  \nb.wav,good bye\n\n",
    "empty cells behind": "file_name,transcription\na.wav,hello there,,\nb.wav,good bye,\n",
    "more columns": "speaker,file_name,age,transcription\nkim,a.wav,31,hello there\nlee,b.wav,,good bye\n",
    "capitals": "File_Name,Transcription\na.wav,hello there\nb.wav,good bye\n",
    "common voice": "client_id\tpath\tsentence\tup_votes\n1\ta.wav\thello there\t2\n1\tb.wav\tgood bye\t3\n",
    "coqui": "wav_filename,wav_filesize,transcript\na.wav,1,hello there\nb.wav,1,good bye\n",
    "file and text": "file,text\na.wav,hello there\nb.wav,good bye\n",
    "audio and sentence": "audio,sentence\na.wav,hello there\nb.wav,good bye\n",
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_dialects(tmp_path: Path, dialect: str) -> None:
    rows = read(tmp_path, DIALECTS[dialect])
    assert usable(rows) == [HELLO, BYE]
    assert not problems(rows)


TEXTS = [
    "hello, there",
    "hello; there",
    'she said "hello"',
    "hello\nthere",
    "don’t",
    "नमस्ते",
    "a | b",
    " hello\u2028there",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_quoted_transcript_is_whole(tmp_path: Path, text: str) -> None:
    quoted = text.replace('"', '""')
    rows = read(tmp_path, f'file_name,transcription\na.wav,"{quoted}"\nb.wav,good bye\n')
    assert usable(rows) == [("a.wav", text.strip()), BYE]


@pytest.mark.parametrize("text", TEXTS)
def test_a_transcript_in_json_is_whole(tmp_path: Path, text: str) -> None:
    values = {"file_name": "a.wav", "duration": 1.5, "transcription": text}
    assert usable(read(tmp_path, json.dumps(values) + "\n", "metadata.jsonl")) == [("a.wav", text)]


BAD_ROWS = {  # a line between two good ones, and why it is rejected
    "comma": ("c.wav,hello, this is the office", "3 cells where the table has 2"),
    "two commas": ("c.wav,no, no, no", "4 cells where the table has 2"),
    "no transcript": ("c.wav", "1 cells where the table has 2"),
    "two rows in one": ("c.wav,helloe.wav,bye", "3 cells where the table has 2"),
    "open quote": ('c.wav,"hello there', "a quote is opened and not closed"),
    "open quote, comma": ('c.wav,"hello, there', "a quote is opened and not closed"),
    "quote goes on": ('c.wav,"hello" there', "not valid CSV"),
    "escaped by backslash": (r'c.wav,"say \"hello\" now"', "not valid CSV"),
    "curly quotes": ("c.wav,“hello, there”", "3 cells where the table has 2"),
    "no name": (",hello", "no file name"),
    "null in the name": ("c\0.wav,hello", "control characters in the file's name"),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_a_bad_row_is_named_and_no_other_is_lost(tmp_path: Path, kind: str) -> None:
    line, reason = BAD_ROWS[kind]
    rows = read(tmp_path, f"file_name,transcription\na.wav,hello there\n{line}\nb.wav,good bye\n")
    assert usable(rows) == [HELLO, BYE]
    [(name, problem)] = problems(rows).items()
    assert name in ("c.wav", "line 3")
    assert problem.startswith(reason)
    assert f"({tmp_path / 'metadata.csv'}, line 3)" in problem


def test_two_open_quotes_swallow_nothing(tmp_path: Path) -> None:
    """The second would close the first, and the rows between would be one's transcript."""
    rows = read(tmp_path, 'file_name,transcription\na.wav,"hello\nb.wav,good bye\nc.wav,so long"\nd.wav,"later\n')
    assert usable(rows) == [BYE, ("c.wav", 'so long"')]
    assert list(problems(rows)) == ["a.wav", "d.wav"]


@pytest.mark.parametrize("delimiter", ",;\t|")
def test_a_broken_line_rejects_both_parts(tmp_path: Path, delimiter: str) -> None:
    table = f"file_name{delimiter}text\nc.wav{delimiter}hello\nthere you go\nb.wav{delimiter}good bye\n"
    rows = read(tmp_path, table)
    assert usable(rows) == [BYE]
    assert "its transcript may go on in the next line" in problems(rows)["c.wav"]
    assert "line 3)" in problems(rows)["there you go"]


BAD_LINES = {  # of JSON
    "cut": ('{"file_name": "c.wav", "transcription": "hel', "not valid JSON"),
    "two objects": ('{"file_name": "c.wav", "text": "a"}{"file_name": "d.wav", "text": "b"}', "not valid JSON"),
    "list": ('["c.wav", "hello"]', "not an object of columns"),
    "no text": ('{"file_name": "c.wav"}', "needs the keys file_name and transcription"),
    "null": ('{"file_name": "c.wav", "transcription": null}', "a name or transcript that is no text"),
    "number": ('{"file_name": "c.wav", "transcription": 7}', "a name or transcript that is no text"),
    "deep": ("[" * 100_000, "not valid JSON"),
    "half a character": (r'{"file_name": "c.wav", "transcription": "\ud83d"}', "half a character"),
    "half a character in the name": (r'{"file_name": "c\ud83d.wav", "transcription": "x"}', "control characters"),
}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_line_of_json_is_named(tmp_path: Path, kind: str) -> None:
    line, reason = BAD_LINES[kind]
    good = [json.dumps({"audio_filepath": name, "text": text}) for name, text in (HELLO, BYE)]
    rows = read(tmp_path, f"{good[0]}\n{line}\n{good[1]}\n", "metadata.jsonl")
    assert usable(rows) == [HELLO, BYE]
    [problem] = problems(rows).values()
    assert problem.startswith(reason) and "metadata.jsonl, line 2)" in problem


BAD_TABLES = {
    "empty": (b"", "needs a header"),
    "no header": (b"a.wav,hello\nb.wav,bye\n", r"needs a header .*; its first line is 'a.wav,hello'"),
    "no transcripts": (b"file_name,speaker\na.wav,kim\n", "needs a header"),
    "no files": (b"transcription\thours\nhello\t1\n", "needs a header"),
    "twice": (b"file_name,text,text\na.wav,hello,bye\n", "two columns are named text"),
    "utf-16": ("file_name,transcription\na.wav,hello\n".encode("utf-16"), "UTF-16, not UTF-8; .*iconv -f UTF-16"),
    "utf-16 without a mark": ("file_name,text\n".encode("utf-16-le"), "UTF-16, not UTF-8"),
    "latin-1": ("file_name,text\na.wav,hello\nb.wav,grüße\n".encode("latin-1"), "line 3 is not UTF-8 .*iconv"),
    "one long line": (b"x," * 200_000, "needs a header"),
}


@pytest.mark.parametrize("kind", BAD_TABLES)
def test_a_bad_table_is_named(tmp_path: Path, kind: str) -> None:
    content, message = BAD_TABLES[kind]
    with pytest.raises(UserError, match=f"^{re.escape(str(tmp_path))}/metadata.csv: .*{message}") as error:
        read(tmp_path, content)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("mark", [True, False])
def test_the_advice_on_an_encoding_is_right(tmp_path: Path, encoding: str, mark: bool) -> None:
    content = "file_name,text\na.wav,grüße\n"
    with pytest.raises(UserError, match=f": {encoding[:6].upper()}, not UTF-8; .*iconv -f UTF-") as error:
        read(tmp_path, ("\ufeff" * (mark and len(encoding) > 6) + content).encode(encoding))
    advised = str(error.value).split("iconv -f ")[1].split()[0]
    assert (tmp_path / "metadata.csv").read_bytes().decode(advised).lstrip("\ufeff") == content


PARTS = {
    "nemo.jsonl": [{"audio_filepath": "a.wav", "offset": start, "duration": 2.0, "text": "x"} for start in (0.0, 2.0)],
    "nemo.json": [{"audio_filepath": "a.wav", "offset": start, "duration": 2.0, "text": "x"} for start in (0.0, 2.0)],
    "seconds.csv": "file_name,start,end,text\na.wav,0,2,x\na.wav,2,4,y\n",
    "times.tsv": "path\tstart_time\tend_time\tsentence\na.wav\t0:00\t0:02\tx\na.wav\t0:02\t0:04\ty\n",
    "samples.csv": "file_name;start_sample;text\na.wav;0;x\na.wav;32000;y\n",
    "begin.csv": "Begin,File,Text\n0,a.wav,x\n1.5,a.wav,y\n",
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_of_one_recording_are_refused(tmp_path: Path, name: str) -> None:
    rows = PARTS[name]
    content = rows if isinstance(rows, str) else "".join(f"{json.dumps(row)}\n" for row in rows)
    with pytest.raises(UserError, match=r"a\.wav is named from \S+ and from \S+: parts of recordings cannot be read"):
        read(tmp_path, content, name)


def test_a_start_and_a_length_of_each_recording_are_read(tmp_path: Path) -> None:
    table = "file_name,offset,duration,text\na.wav,0.0,2.5,x\nb.wav,0.0,,y\nc.wav,12,-1,z\n"
    assert [(row.start, row.seconds) for row in read(tmp_path, table)] == [("0.0", 2.5), ("0.0", None), ("12", None)]


@pytest.mark.parametrize(
    "content",
    [
        '[{"file_name": "a.wav", "text": "x"}]', '[\n  {"file_name": "a.wav"}\n]',
        '{"a": {"wav": "a.wav", "words": "x"}}',
        '{\n  "file_name": "a.wav"\n}', "", "null", '{"licence": "CC0"}', "[" * 100_000,
    ],
)  # fmt: skip
def test_json_without_a_row_in_each_line_is_named(tmp_path: Path, content: str) -> None:
    with pytest.raises(UserError, match=r"metadata\.json: not an object with file_name and transcription in each line"):
        read(tmp_path, content, "metadata.json")


def kaldi(folder: Path, scp: str, text: str) -> list[Row]:
    (folder / "wav.scp").write_text(scp)
    (folder / "text").write_text(text)
    return list(read_kaldi(folder / "text"))


def test_kaldi(tmp_path: Path) -> None:
    rows = kaldi(tmp_path, "u1 a.wav\nu2\tmy clips/b.wav \n", "u2 good bye\nu1  hello there\n\n")
    assert [(row.id, *one) for row, one in zip(rows, usable(rows), strict=True)] == [
        ("u2", "my clips/b.wav", "good bye"),
        ("u1", *HELLO),
    ]


@pytest.mark.parametrize(
    ("scp", "text", "name", "reason"),
    [
        ("u1 a.wav\nu3 sox c.wav -t wav - |\n", "u1 hello there\nu3 three\n", "u3", "a command, which is not run"),
        ("u1 a.wav\nu3 touch {} |\n", "u1 hello there\nu3 three\n", "u3", "a command, which is not run"),
        ("u1 a.wav\n", "u1 hello there\nu3 three\n", "u3", "its id does not stand in wav.scp"),
        ("u1 a.wav\nu3 c.wav\n", "u1 hello there\n", "u3", "its id does not stand in text"),
        ("u1 a.wav\nu3\n", "u1 hello there\nu3 three\n", "u3", "no file name"),
        ("u1 a.wav\nu1 c.wav\n", "u1 hello there\n", "u1", "stands twice"),
    ],
)
def test_a_bad_row_of_kaldi_is_named(tmp_path: Path, scp: str, text: str, name: str, reason: str) -> None:
    rows = kaldi(tmp_path, scp.format(tmp_path / "touched"), text)
    assert usable(rows) == [HELLO]
    assert problems(rows)[name].startswith(reason)
    assert re.search(r"(wav\.scp|text), line \d\)", problems(rows)[name])
    assert not (tmp_path / "touched").exists()


def test_kaldis_segments_are_refused(tmp_path: Path) -> None:
    (tmp_path / "segments").write_text("u1 r1 0 1\n")
    with pytest.raises(UserError, match="segments: parts of recordings cannot be read; cut them"):
        kaldi(tmp_path, "r1 a.wav\n", "u1 hello\n")


# Any table: rows 0.wav ... with the texts of `words`, mutated.

ROWS = [
    (f"{number}.wav", f"sentence number {name}") for number, name in enumerate(["one", "two", "three", "four", "five"])
]
FORMATS: dict[str, tuple[str, list[str], Callable[[Path], Iterator[Row]]]] = {
    "metadata.csv": ("file_name,transcription", [f"{name},{text}" for name, text in ROWS], read_table),
    "quoted.csv": ("file_name,transcription", [f'{name},"{text}"' for name, text in ROWS], read_table),
    "semicolon.csv": ("transcription;file_name", [f'"{text}";{name}' for name, text in ROWS], read_table),
    "train.tsv": ("client\tpath\tsentence\tage", [f"x\t{name}\t{text}\t" for name, text in ROWS], read_table),
    "lj.csv": (f"{ROWS[0][0]}|{ROWS[0][1]}", [f"{name}|{text}" for name, text in ROWS[1:]], read_table),
    "metadata.jsonl": ("", [json.dumps({"file_name": name, "text": text}) for name, text in ROWS], read_table),
    "1.trans.txt": ("", [f"{name} {text}" for name, text in ROWS], read_librispeech),
    "text": ("", [f"{name} {text}" for name, text in ROWS], read_kaldi),
}
TEXT_FIRST = ("semicolon.csv",)  # a part of a line may be the beginning of the next row's transcript: both are rejected
SPECIAL = [
    "\t",
    "|",
    '"',
    "\n",
    "\r\n",
    "\r",
    ",",
    ";",
    "\\",
    "'",
    "{",
    "\0",
    "\u2028",
    "\ufeff",
    "\x1a",
    "é",
    " ",
    '""',
]


def write_format(folder: Path, name: str, content: str | bytes) -> Path:
    scp = folder / "wav.scp"
    if name == "text" and not scp.exists():
        scp.write_text("".join(f"{file} {file}\n" for file, _ in ROWS))
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return path


def letters(text: str) -> str:
    return "".join(char for char in text if char.isalpha() and char.isascii())


@pytest.mark.parametrize("name", FORMATS)
def test_no_character_anywhere_in_a_row_cuts_a_label(tmp_path: Path, name: str) -> None:
    """A transcript has all letters or is rejected, and the rows beside it are as they were."""
    header, lines, reader = FORMATS[name]
    for char in SPECIAL:
        if char in ("\n", "\r\n", "\r") and reader is not read_table:
            continue  # a line of these formats is a row
        if char == "\\" and name.endswith("jsonl"):
            continue  # an escape, which stands for another letter
        for at in range(len(lines[2]) + 1):
            changed = [*lines[:2], lines[2][:at] + char + lines[2][at:], *lines[3:]]
            rows = list(reader(write_format(tmp_path, name, "\n".join([header, *changed]) + "\n")))
            texts = {row.file: row.transcript for row in rows if not row.problem}
            rejected = problems(rows)
            file, text = next(row for row in ROWS if row[0] in lines[2])
            for other, other_text in ROWS:
                if other != file and f"{other}" in "\n".join(lines[:1] + lines[3:]):
                    assert texts.get(other) == other_text or (name in TEXT_FIRST and other in rejected), (char, at)
            if file in texts:
                assert letters(text) in letters(texts[file]), (char, at, texts[file])
            else:
                assert any(row.problem or row.file not in dict(ROWS) for row in rows), (char, at)


def mutated(generator: random.Random, lines: list[str]) -> tuple[bytes, set[int]]:
    """A table's bytes after one to three changes, and the lines that were left alone."""
    lines, untouched = list(lines), set(range(len(lines)))
    for _ in range(generator.randint(1, 3)):
        line = generator.randrange(len(lines))
        at = generator.randint(0, len(lines[line]))
        untouched -= {line, line - 1} if line else {line}  # the one before may go on in this one
        change = generator.choice(["insert", "delete", "cut", "junk", "repeat", "empty"])
        if change == "insert":
            lines[line] = lines[line][:at] + "".join(generator.choices(SPECIAL, k=2)) + lines[line][at:]
        elif change == "delete":
            lines[line] = lines[line][:at] + lines[line][at + generator.randint(1, 8) :]
        elif change == "cut":
            lines[line] = lines[line][:at]
        elif change == "junk":
            lines[line] = "".join(
                chr(generator.choice([generator.randrange(1, 128), generator.randrange(0xD7FF)])) for _ in range(20)
            )
        elif change == "repeat":
            lines[line] = f"{lines[line]}\n{lines[line]}"
        else:
            lines[line] = ""
    content = ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass")
    if generator.random() < 0.1:
        at = generator.randrange(len(content))
        content = content[:at] + generator.randbytes(3) + content[at:]
        untouched = set()
    return content, untouched


@pytest.mark.parametrize("name", FORMATS)
def test_any_table_is_read_or_named(tmp_path: Path, name: str) -> None:
    """400 mutated tables of each format: no traceback, and every row that was left alone is read as it is."""
    header, lines, reader = FORMATS[name]
    names = [next(file for file, _ in ROWS if file in line) for line in lines]
    read_whole = 0
    for seed in range(400):
        content, untouched = mutated(random.Random(f"{name} {seed}"), lines)
        path = write_format(tmp_path, name, header.encode() + b"\n" + content)
        try:
            rows = list(reader(path))
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error), seed
            continue
        read_whole += 1
        for row in rows:
            assert not row.problem or re.search(r", line \d+\)", row.problem), seed
            assert row.id.encode(), seed
        found = {(row.file, row.transcript) for row in rows}
        rejected = problems(rows)
        for line in untouched:
            row = names[line], dict(ROWS)[names[line]]
            assert row in found or (name in TEXT_FIRST and names[line] in rejected), (seed, content)
    assert read_whole > 300
