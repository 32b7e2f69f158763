"""Folders as people have them: which clips each layout gives, of which split, and what is refused by name."""

import csv
import io
import json
import os
import random
import unicodedata
from pathlib import Path
from typing import NamedTuple

import pytest

from dqlora.data.audio import BadAudio, read_audio
from dqlora.data.layouts import SPLITS, read_folder, split_named, unlisted
from dqlora.errors import UserError


class Clip(NamedTuple):
    id: str
    audio: Path
    transcript: str
    problem: str


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    return folder


def table(*rows: tuple[str, str], header: tuple[str, ...] = ("file_name", "transcription")) -> str:
    file = io.StringIO()
    csv.writer(file).writerows([header, *rows])
    return file.getvalue()


def jsonl(*rows: tuple[str, str]) -> str:
    return "".join(f'{{"file_name": "{name}", "transcription": "{text}"}}\n' for name, text in rows)


def splits(folder: Path, seed: int = 0) -> dict[str, list[Clip]]:
    return {
        split: [Clip(row.id, path, row.transcript, row.problem) for row, path in read_folder(folder, split, seed)]
        for split in SPLITS
    }


def recordings(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "")


THREE = (("train/a.wav", "one"), ("validation/b.wav", "two"), ("test/c.wav", "three"))
COMMON_VOICE = "client_id\tpath\tsentence\tage\n"
# Each has the clip "one" to train on, "two" to validate, "three" to test.
LAYOUTS: dict[str, dict[str, str]] = {
    "in the folders": {name.replace(name[-5:], "metadata.csv"): table((name[-5:], text)) for name, text in THREE},
    "at the root": {"metadata.csv": table(*THREE)},
    "at the root, jsonl": {"metadata.jsonl": jsonl(*THREE)},
    "at the root, backslashes": {"metadata.csv": table(*((name.replace("/", "\\"), text) for name, text in THREE))},
    "at the root, ./": {"metadata.csv": table(*((f"./{name}", text) for name, text in THREE))},
    "at the root, without suffixes": {"metadata.csv": table(*((name[:-4], text) for name, text in THREE))},
    "in the folders, jsonl": {
        name.replace(name[-5:], "metadata.jsonl"): jsonl((name[-5:], text)) for name, text in THREE
    },
    "in the folders, named from the root": {
        name.replace(name[-5:], "metadata.csv"): table((name, text)) for name, text in THREE
    },
    "a column": {
        "metadata.csv": "file_name,split,text\ntrain/a.wav,train,one\nvalidation/b.wav,dev,two\ntest/c.wav,test,three\n"
    },
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_own_splits_are_kept(tmp_path: Path, layout: str) -> None:
    write(tmp_path, LAYOUTS[layout] | recordings(*(name for name, _ in THREE)))
    found = splits(tmp_path)
    assert {split: [clip.transcript for clip in clips] for split, clips in found.items()} == {
        "train": ["one"], "validation": ["two"], "test": ["three"],
    }  # fmt: skip
    for clip in (clip for clips in found.values() for clip in clips):
        assert not clip.problem
        assert clip.audio.is_file()


OTHERS: dict[str, tuple[dict[str, str], dict[str, str]]] = {  # files, and the ids that each split has
    "common voice": (
        {
            "train.tsv": COMMON_VOICE + '1\ta.mp3\t"one""\t\n', "dev.tsv": COMMON_VOICE + "1\tb.mp3\ttwo\t\n",
            "test.tsv": COMMON_VOICE + "1\tc.mp3\tthree\t\n", "validated.tsv": COMMON_VOICE + "1\td.mp3\tfour\t\n",
            **recordings("clips/a.mp3", "clips/b.mp3", "clips/c.mp3"),
        },
        {"train": "a.mp3", "validation": "b.mp3", "test": "c.mp3"},
    ),
    "nemo": (
        {
            "train_manifest.jsonl": '{"audio_filepath": "x/a.wav", "text": "one"}\n',
            "val_manifest.jsonl": '{"audio_filepath": "x/b.wav", "text": "two"}\n',
            "test_manifest.jsonl": '{"audio_filepath": "x/c.wav", "text": "three"}\n',
            **recordings("x/a.wav", "x/b.wav", "x/c.wav"),
        },
        {"train": "x/a.wav", "validation": "x/b.wav", "test": "x/c.wav"},
    ),
    "librispeech": (
        {
            "train-clean-100/1/2/1-2.trans.txt": "1-2-0000 ONE\n",
            "train-other-500/3/4/3-4.trans.txt": "3-4-0000 TWO\n",
            "dev-other/5/6/5-6.trans.txt": "5-6-0000 THREE\n", "test-clean/7/8/7-8.trans.txt": "7-8-0000 FOUR\n",
            **recordings(
                "train-clean-100/1/2/1-2-0000.flac", "train-other-500/3/4/3-4-0000.flac",
                "dev-other/5/6/5-6-0000.flac", "test-clean/7/8/7-8-0000.flac",
            ),
        },
        {"train": "1-2-0000 3-4-0000", "validation": "5-6-0000", "test": "7-8-0000"},
    ),
    "kaldi": (
        {
            **{f"data/{split}/wav.scp": f"{split}-1 wav/{split}.wav\n" for split in ("train", "dev", "test")},
            **{f"data/{split}/text": f"{split}-1 {split} text\n" for split in ("train", "dev", "test")},
            **recordings("wav/train.wav", "wav/dev.wav", "wav/test.wav"),
        },
        {"train": "train-1", "validation": "dev-1", "test": "test-1"},
    ),
    "several tables a split": (
        {
            **{f"train/{name}/metadata.csv": table(("a.wav", name)) for name in ("kim", "lee")},
            "val/metadata.csv": table(("a.wav", "two")), "test/metadata.csv": table(("a.wav", "three")),
            **recordings("train/kim/a.wav", "train/lee/a.wav", "val/a.wav", "test/a.wav"),
        },
        {"train": "train/kim/a.wav train/lee/a.wav", "validation": "a.wav", "test": "a.wav"},
    ),
    "tables of splits win over one of all": (
        {
            "metadata.csv": table(("a.wav", "one"), ("b.wav", "two"), ("c.wav", "three")),
            "train.csv": table(("a.wav", "one")), "valid.csv": table(("b.wav", "two")),
            "test.csv": table(("c.wav", "three")),
            **recordings("a.wav", "b.wav", "c.wav"),
        },
        {"train": "a.wav", "validation": "b.wav", "test": "c.wav"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", OTHERS)
def test_layouts(tmp_path: Path, layout: str) -> None:
    files, expected = OTHERS[layout]
    found = splits(write(tmp_path, files))
    assert {split: " ".join(clip.id for clip in clips) for split, clips in found.items()} == expected
    assert all(clip.audio.is_file() and not clip.problem for clips in found.values() for clip in clips)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"), ("Train", "train"), ("train-clean-100", "train"), ("train_si284", "train"),
        ("training", "train"), ("dev", "validation"), ("val", "validation"), ("valid", "validation"),
        ("dev-other", "validation"), ("validation", "validation"), ("test", "test"), ("test_eval92", "test"),
        ("testing", "test"), ("test2", "test"), ("trains", None), ("contest", None), ("developers", None), ("", None),
    ],
)  # fmt: skip
def test_names_of_splits(name: str, split: str | None) -> None:
    assert split_named(name) == split


@pytest.mark.parametrize("name", ["dev", "val", "valid", "eval", "Validation"])
def test_a_validation_folder_is_seen_by_any_of_its_names(tmp_path: Path, name: str) -> None:
    for split in ("train", name, "test"):
        write(tmp_path / split, {"metadata.csv": table((f"{split}.wav", split))} | recordings(f"{split}.wav"))
    assert [clip.transcript for clip in splits(tmp_path)["validation"]] == [name]


def test_eval_is_the_test_split_where_there_is_no_other(tmp_path: Path) -> None:
    write(tmp_path, {"metadata.csv": table(("train/a.wav", "one"), ("dev/b.wav", "two"), ("eval/c.wav", "three"))})
    assert {split: [clip.id for clip in clips] for split, clips in splits(tmp_path).items()} == {
        "train": ["train/a.wav"], "validation": ["dev/b.wav"], "test": ["eval/c.wav"],
    }  # fmt: skip


NEMO = '{{"audio_filepath": "x/{0}.wav", "duration": 1.0, "text": "{0}"}}\n'


def three(pattern: str, content: str = "file_name,transcription\n{0}.wav,{0}\n", audio: str = "") -> dict[str, str]:
    """A table of each of train, dev and test with one clip; `{0}` is the split, its recording beside the table."""
    files = {}
    for split in ("train", "dev", "test"):
        path = pattern.format(split)
        recording = audio.format(split) if audio else f"{path.rpartition('/')[0]}/{split}.wav".lstrip("/")
        files |= {path: content.format(split), recording: ""}
    return files


KALDI = {
    path: content for split in ("train", "dev", "test")
    for path, content in {
        f"dump/raw/{split}/text": f"{split}-1 {split}\n", f"dump/raw/{split}/wav.scp": f"{split}-1 wav/{split}.wav\n",
        f"dump/raw/{split}/utt2spk": f"{split}-1 {split}\n", f"wav/{split}.wav": "",
    }.items()
}  # fmt: skip
AS_PEOPLE_NAME_THEM: dict[str, dict[str, str]] = {
    "capitals": {name.upper() if name.endswith("csv") else name: text for name, text in three("{0}.csv").items()},
    "METADATA.CSV": three("{0}/METADATA.CSV"),
    "Train.TSV": three("{0}.TSV", "path\tsentence\n{0}.wav\t{0}\n", "clips/{0}.wav"),
    "nemo's suffix": three("{0}_manifest.json", NEMO, "x/{0}.wav"),
    "manifest in front": three("manifest_{0}.json", NEMO, "x/{0}.wav"),
    "metadata.json of lines": three("{0}/metadata.json", '{{"file_name": "{0}.wav", "text": "{0}"}}\n'),
    "json that is something else": three("{0}/metadata.csv") | {"metadata.json": '{"licence": "CC0"}'},
    "one level above": three("de/{0}.tsv", "path\tsentence\n{0}.wav\t{0}\n", "de/clips/{0}.wav"),
    "two levels above": three("cv-corpus-17.0/de/{0}.tsv", "path\tsentence\n{0}.wav\t{0}\n"),
    "corpus/v1": three("corpus/v1/{0}/metadata.csv"),
    "a table in each split's folder": three("{0}/{0}.csv"),
    "espnet": KALDI,
    "librispeech above": three("a/b/{0}-clean/1/2/1-2.trans.txt", "{0} {0}\n", "a/b/{0}-clean/1/2/{0}.flac"),
    "mac": three("{0}/metadata.csv") | {
        "__MACOSX/train/metadata.csv": "\0\5", "__MACOSX/metadata.csv": "\0", "train/._metadata.csv": "\0\5\x16\7",
        ".Trash/train/metadata.csv": "file_name,transcription\ngone.wav,gone\n", ".Trash/train/gone.wav": "",
    },
    "wham": {
        name.replace("train/", "tr/").replace("dev/", "cv/").replace("test/", "tt/"): text
        for name, text in three("{0}/metadata.csv").items()
    },
    "turkish": three("tr/{0}/metadata.csv"),
    "turkish and tatar": three("tr/{0}/metadata.csv") | {"tt/x/y.bin": "", "cv/x/y.bin": ""},
}  # fmt: skip


@pytest.mark.parametrize("layout", AS_PEOPLE_NAME_THEM)
def test_tables_are_found_as_people_name_them(tmp_path: Path, layout: str) -> None:
    found = splits(write(tmp_path, AS_PEOPLE_NAME_THEM[layout]))
    assert {split: [clip.transcript.lower() for clip in clips] for split, clips in found.items()} == {
        "train": ["train"], "validation": ["dev"], "test": ["test"],
    }  # fmt: skip
    assert all(clip.audio.is_file() and not clip.problem for clips in found.values() for clip in clips)
    assert unlisted(tmp_path) == []


BARE = recordings(*(f"speech/{split}/{number}.wav" for split in ("train", "dev", "test") for number in range(3)))
TRANSCRIPTS = [  # that are not read, beside bare recordings
    "transcripts.csv", "train.txt", "TRAIN/DR1/SA1.TXT", "speech/train/0.txt", "speech/test/0.srt", "etc/PROMPTS",
    "text", "etc/an4_train.transcription", "speech/test/transcripts.txt", "txt/p225/p225_001.txt", "talk.stm",
    "transcript/aishell_transcript_v0.8.txt", "metadata.xlsx", "texts.ods", "speakers_and_texts.csv", "speech/1.lab",
    "metadata (1).csv", "a.TextGrid", "validated.tsv", "index.yaml", "sentences", "info.json", "speaker1.txt",
    "cv-valid-train.csv", "de/train.tsv de/test.tsv en/train.tsv en/test.tsv",
]  # fmt: skip
HARMLESS = [
    "README", "README.txt", "readme.md", "README_en.txt", "LICENSE", "Licence.txt", "LICENSE-CC-BY.txt", "COPYING",
    "CHANGELOG.md", "md5sum.txt", "SHA256SUMS", "speech/checksums.txt", "a.sha1", "a.wav.md5", "speaker-info.txt",
    "SPEAKERS.TXT", "speakers.csv", "spkrinfo.txt", "utt2spk", "record.py", "session.log", "desktop.ini", "train.dvc",
    ".notes.txt", "__MACOSX/train.csv", ".git/config.txt", "CITATION.cff", "empty.txt", "cover.jpg",
]  # fmt: skip


@pytest.mark.parametrize(
    ("names", "tables"),
    [
        (names, tables)
        for names in TRANSCRIPTS
        for tables in (False, True)
        if not (tables and "train/" in names.lower())
    ],
)
def test_a_corpus_with_texts_beside_it_is_not_taken_for_bare(tmp_path: Path, names: str, tables: bool) -> None:
    """Nor is the one split that has no table."""
    write(tmp_path, BARE | dict.fromkeys(names.split(), "a.wav\tone\n"))
    if tables:
        write(tmp_path / "speech", {f"{split}/metadata.csv": table(("0.wav", split)) for split in ("train", "dev")})
        if "speech/train" in names:
            return  # beside a table
    with pytest.raises(UserError, match=r"\(.* is not read.*, or move it away to have the recordings transc") as error:
        list(read_folder(tmp_path, "train", 0))
    assert "\n" not in str(error.value) and any(name in str(error.value) for name in names.split())
    assert ("name " + str(tmp_path / "de") in str(error.value)) == names.startswith("de/")


@pytest.mark.parametrize("name", HARMLESS)
def test_files_that_say_what_they_are_do_no_harm(tmp_path: Path, name: str) -> None:
    write(tmp_path, BARE | {name: "" if name.startswith("empty") else "a.wav\tone\n"})
    (tmp_path / "cover.jpg").write_bytes(b"\xff\xd8\xff\xe0\0\x10JFIF")
    assert {split: len(clips) for split, clips in splits(tmp_path).items()} == {"train": 3, "validation": 3, "test": 3}


def test_the_split_without_a_table_is_named(tmp_path: Path) -> None:
    write(tmp_path, BARE | {"speech/test/0.txt": "one"})
    write(tmp_path / "speech", {f"{split}/metadata.csv": table(("0.wav", split)) for split in ("train", "dev")})
    with pytest.raises(UserError, match=r"no transcripts in test; put a metadata\.csv .*test/0\.txt is not read: "):
        list(read_folder(tmp_path, "train", 0))


def test_a_text_in_utf_16_is_a_text(tmp_path: Path) -> None:
    write(tmp_path, BARE)
    (tmp_path / "texts.txt").write_text("a.wav one", encoding="utf-16")
    with pytest.raises(UserError, match=r"texts\.txt is not read"):
        list(read_folder(tmp_path, "train", 0))


@pytest.mark.parametrize("name", ["test.txt", "dev.csv", "val", "eval_manifest.json"])
def test_a_list_of_a_split_is_not_passed_over(tmp_path: Path, name: str) -> None:
    rows = [(f"{word}.wav", f"sentence {word}") for word in "abcdef"]
    write(tmp_path, {"metadata.csv": table(*rows), name: "a.wav\n"} | recordings(*(f"{word}.wav" for word in "abcdef")))
    with pytest.raises(UserError, match=f"{name}: not read, and by its name a split of yours; put a column split"):
        list(read_folder(tmp_path, "train", 0))
    (tmp_path / name).unlink()
    assert all(splits(tmp_path).values())


def test_linked_folders_are_followed_and_links_back_end(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", three("{0}-clean/1/2/1-2.trans.txt", "{0} {0}\n", "{0}-clean/1/2/{0}.flac"))
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for folder in (tmp_path / "elsewhere").iterdir():
        (corpus / folder.name).symlink_to(folder)
    (corpus / "back").symlink_to(corpus)
    (corpus / "loop").symlink_to("loop")
    (corpus / "train-clean/1/up").symlink_to(corpus / "train-clean")
    assert {split: [clip.transcript for clip in clips] for split, clips in splits(corpus).items()} == {
        "train": ["train"], "validation": ["dev"], "test": ["test"],
    }  # fmt: skip


def test_bare_recordings_in_linked_folders_and_links_to_nothing(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", recordings("a.wav", "b/c.wav", ".Trash/gone.wav"))
    write(tmp_path / "corpus", recordings("train/x.wav", "test/y.wav", "dev/z.wav", "train/.hidden/w.wav"))
    (tmp_path / "corpus/train/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "corpus/train/missing.wav").symlink_to(tmp_path / "nowhere.wav")
    assert [clip.id for clip in splits(tmp_path / "corpus")["train"]] == [
        "train/missing.wav", "train/more/a.wav", "train/more/b/c.wav", "train/x.wav"
    ]  # fmt: skip


def test_recordings_that_no_table_names(tmp_path: Path) -> None:
    write(tmp_path, {"metadata.csv": table(*THREE, ("d", "four")), **recordings(*(name for name, _ in THREE))})
    write(tmp_path, recordings("d.flac", "train/new.wav", "clips/old.mp3"))
    assert unlisted(tmp_path) == ["clips/old.mp3", "train/new.wav"]


LJ = "".join(
    f"LJ-{number}|Sentence {name}, No. 1|sentence {name}, number one\n" for number, name in enumerate("abcdef")
)
WHOLE: dict[str, dict[str, str]] = {
    "ljspeech": {"metadata.csv": LJ, **recordings(*(f"wavs/LJ-{number}.wav" for number in range(6)))},
    "audiofolder": {"metadata.csv": table(*((f"{name}.wav", f"sentence {name}") for name in "abcdef"))},
    "only train": {"train/metadata.csv": table(*((f"{name}.wav", f"sentence {name}") for name in "abcdef"))},
    "only train, at the root": {
        "metadata.csv": table(*((f"train/{name}.wav", f"sentence {name}") for name in "abcdef"))
    },
    "by day": {f"day {name}/metadata.csv": table(("a.wav", f"sentence {name}")) for name in "abcdef"},
    "one part of librispeech": {f"{name}/1/{name}-1.trans.txt": f"{name}-1-0 sentence {name}\n" for name in "abcdef"},
    "kaldi": {
        "text": "".join(f"{name} sentence {name}\n" for name in "abcdef"),
        "wav.scp": "".join(f"{name} {name}.wav\n" for name in "abcdef"),
    },
}


@pytest.mark.parametrize("layout", WHOLE)
@pytest.mark.parametrize("seed", range(5))
def test_a_corpus_without_splits_is_split_by_sentence(tmp_path: Path, layout: str, seed: int) -> None:
    found = splits(write(tmp_path, WHOLE[layout]), seed)
    assert all(found.values())
    ids = [clip.id for clips in found.values() for clip in clips]
    assert len(set(ids)) == len(ids) == 6
    if layout == "ljspeech":
        texts = {clip.transcript for clips in found.values() for clip in clips}
        assert "sentence a, number one" in texts
        assert all(clip.audio.is_file() for clips in found.values() for clip in clips)


def test_the_splits_of_a_large_corpus_are_those_of_the_hash_alone(tmp_path: Path) -> None:
    """As they were before splits of few clips were filled up: another clip moves no other."""
    rows = [(f"{number}.wav", f"sentence number {number}") for number in range(300)]
    first = splits(write(tmp_path, {"metadata.csv": table(*rows)}))
    more = splits(write(tmp_path, {"metadata.csv": table(*rows, ("new.wav", "another"))}))
    assert {split: len(clips) for split, clips in first.items()} == {"test": 38, "validation": 24, "train": 238}
    for split in SPLITS:
        assert [clip for clip in more[split] if clip.id != "new.wav"] == first[split]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("sentences", [3, 4, 5, 8])
def test_few_clips_give_every_split_one(tmp_path: Path, sentences: int, seed: int) -> None:
    rows = [(f"{number}.wav", f"sentence {'abcdefgh'[number % sentences]}") for number in range(2 * sentences)]
    found = splits(write(tmp_path, {"metadata.csv": table(*rows)}), seed)
    texts = {split: {clip.transcript for clip in clips} for split, clips in found.items()}
    assert all(texts.values())
    assert sum(map(len, texts.values())) == len(set.union(*texts.values())) == sentences


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["hello", "bye"], "2 usable rows with 2 different sentences"),
        (["hello", "Hello!", "bye", "bye"], "4 usable rows with 2 different sentences"),
        (["", "hello", "..."], "1 usable rows with 1 different"),
        ([], "0 usable rows with 0 different"),
    ],
)
def test_too_few_clips_are_counted(tmp_path: Path, texts: list[str], message: str) -> None:
    write(tmp_path, {"metadata.csv": table(*((f"{number}.wav", text) for number, text in enumerate(texts)))})
    with pytest.raises(
        UserError, match=f"{message}.* are too few to split into test, validation, train; add recordings"
    ):
        list(read_folder(tmp_path, "test", 0))


def test_where_no_row_can_be_used_the_first_reason_is_told(tmp_path: Path) -> None:
    rows = "".join(f"{number}.wav,well, sentence {number}\n" for number in range(12))
    write(tmp_path, {"metadata.csv": f"file_name,transcription\n{rows}"})
    with pytest.raises(UserError, match=r"\(12 are not usable; the first: 3 cells where the table has 2 \(.*line 2\)"):
        list(read_folder(tmp_path, "test", 0))


def names_of_files(folder: Path) -> dict[str, tuple[str, str]]:
    composed, decomposed = (unicodedata.normalize(form, "Grüße") for form in ("NFC", "NFD"))
    return {  # the name in the table, the file on the disk
        "decomposed file": (f"{composed}.wav", f"{decomposed}.wav"),
        "decomposed name": (f"{decomposed}.wav", f"{composed}.wav"),
        "decomposed folder": (f"{composed}/{composed}.wav", f"{decomposed}/{decomposed}.wav"),
        "decomposed, without suffix": (composed, f"{decomposed}.flac"),
        "hangul": (unicodedata.normalize("NFC", "한국.wav"), unicodedata.normalize("NFD", "한국.wav")),
        "absolute": (str(folder / "speech/deep/a.wav"), "deep/a.wav"),
        "above": ("../beside/a.wav", "../beside/a.wav"),
        "./": ("./a.wav", "a.wav"),
        "backslashes": (r"deep\er\a.wav", "deep/er/a.wav"),
        "no suffix": ("a", "a.ogg"),
        "a dot in the name": ("take.2", "take.2.wav"),
        "in clips/": ("a.wav", "clips/a.wav"),
        "spaces": ("my talk, 1.wav", "my talk, 1.wav"),
    }


@pytest.mark.parametrize("kind", names_of_files(Path()))
def test_names_of_files(tmp_path: Path, kind: str) -> None:
    name, file = names_of_files(tmp_path)[kind]
    rows = [("1.wav", "one"), ("2.wav", "two"), (name, "three")]
    write(tmp_path / "speech", {"metadata.csv": table(*rows)} | recordings("1.wav", "2.wav", file))
    [clip] = [clip for clips in splits(tmp_path / "speech").values() for clip in clips if clip.transcript == "three"]
    assert not clip.problem
    assert clip.audio.samefile(tmp_path / "speech" / file)


def test_a_link_is_followed(tmp_path: Path) -> None:
    write(
        tmp_path, {"speech/metadata.csv": table(("a.wav", "one"), ("b.wav", "two"), ("c.wav", "three")), "else.wav": ""}
    )
    (tmp_path / "speech/a.wav").symlink_to(tmp_path / "else.wav")
    [clip] = [clip for clips in splits(tmp_path / "speech").values() for clip in clips if clip.id == "a.wav"]
    assert not clip.problem and clip.audio.is_file()


def test_absolute_names_below_folders_of_splits_decide(tmp_path: Path) -> None:
    """What all of them share, here a folder `test`, decides nothing."""
    outside = tmp_path / "test" / "elsewhere"
    rows = [(str(outside / name), text) for name, text in THREE]
    write(tmp_path / "speech", {"metadata.csv": table(*rows)})
    assert {split: [clip.transcript for clip in clips] for split, clips in splits(tmp_path / "speech").items()} == {
        "train": ["one"], "validation": ["two"], "test": ["three"],
    }  # fmt: skip


def test_a_clip_of_another_split_is_never_taken_for_a_missing_one(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "train/metadata.csv": table(("0.wav", "one"), ("1.wav", "two")),
            "test/metadata.csv": table(("0.wav", "three")),
        }
        | recordings("0.wav", "train/1.wav", "clips/0.wav", "test/0.wav"),
    )
    found = {clip.transcript: clip.audio for clips in splits(tmp_path).values() for clip in clips}
    assert found["one"] == tmp_path / "train/0.wav" and not (tmp_path / "train/0.wav").exists()


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    write(tmp_path, {"metadata.csv": table(*((name, f"text {name}") for name in ("a", "b", "c", "pipe", "/dev/zero")))})
    (tmp_path / "a").mkdir()
    os.mkfifo(tmp_path / "pipe")
    found = {clip.id: clip.problem for clips in splits(tmp_path).values() for clip in clips}
    assert found == {"a": "not a file", "b": "", "c": "", "pipe": "not a file", "/dev/zero": "not a file"}


def test_a_row_outside_of_the_splits_is_named(tmp_path: Path) -> None:
    write(tmp_path, {"metadata.csv": table(*THREE, ("d.wav", "four"))})
    [problem] = [clip.problem for clip in splits(tmp_path)["train"] if clip.id == "d.wav"]
    assert problem.startswith("belongs to no split, and others do")


def test_a_broken_row_comes_with_the_split_of_its_folder(tmp_path: Path) -> None:
    write(tmp_path, {"metadata.csv": table(*THREE) + "test/d.wav,four, five\n"})
    assert [clip.id for clip in splits(tmp_path)["test"]] == ["test/c.wav", "test/d.wav"]


def test_bare_recordings_are_split_by_their_names(tmp_path: Path) -> None:
    names = [f"speaker {number % 4}/{number}.wav" for number in range(200)]
    write(tmp_path, recordings(*names, "notes.txt", ".hidden.wav"))
    found = splits(tmp_path)
    assert sorted(clip.id for clips in found.values() for clip in clips) == sorted(names)
    assert all(not clip.transcript and clip.audio.is_file() for clips in found.values() for clip in clips)
    assert {split: len(clips) for split, clips in found.items()} == {"test": 30, "validation": 15, "train": 155}
    assert splits(tmp_path, seed=1) != found == splits(tmp_path)
    write(tmp_path, recordings("new.wav"))
    for split in SPLITS:
        assert [clip for clip in splits(tmp_path)[split] if clip.id != "new.wav"] == found[split]


@pytest.mark.parametrize("count", [3, 4, 9])
def test_a_few_bare_recordings_give_every_split_one(tmp_path: Path, count: int) -> None:
    write(tmp_path, recordings(*(f"{number}.flac" for number in range(count))))
    assert all(splits(tmp_path).values())


def test_folders_of_bare_recordings_are_the_splits(tmp_path: Path) -> None:
    write(tmp_path, recordings("train-1/a.wav", "train-2/a.wav", "dev/b.ogg", "test/c.wav"))
    found = {split: [clip.id for clip in clips] for split, clips in splits(tmp_path).items()}
    assert found == {"train": ["train-1/a.wav", "train-2/a.wav"], "validation": ["dev/b.ogg"], "test": ["test/c.wav"]}


@pytest.mark.parametrize("validation", [True, False])
def test_a_test_table_beside_bare_recordings_to_train_on(tmp_path: Path, validation: bool) -> None:
    write(tmp_path, {"test/metadata.csv": table(("c.wav", "three"))} | recordings("test/c.wav", "test/d.wav"))
    write(tmp_path, recordings(*(f"train/{number}.wav" for number in range(5))))
    write(tmp_path, recordings("val/b.wav") if validation else {})
    found = splits(tmp_path)
    assert [(clip.id, clip.transcript) for clip in found["test"]] == [("c.wav", "three")]
    assert found["validation"] and {clip.transcript for clip in found["train"] + found["validation"]} == {""}
    assert len(found["train"]) + len(found["validation"]) == 5 + validation
    assert all(clip.audio.is_file() for clips in found.values() for clip in clips)


@pytest.mark.parametrize("sentences", [1, 2, 3, 8])
def test_what_has_a_transcript_is_tested_on_before_what_has_none(tmp_path: Path, sentences: int) -> None:
    rows = [(f"{number}.wav", f"sentence {'abcdefgh'[number]}" if number < sentences else "") for number in range(40)]
    found = splits(write(tmp_path, {"metadata.csv": table(*rows)}))
    assert found["test"] and all(clip.transcript for clip in found["test"])
    assert found["validation"] and found["train"]
    assert sum(map(len, found.values())) == 40


BAD: dict[str, tuple[dict[str, str], str]] = {
    "nothing": ({"notes.txt": ""}, r"no recordings in it; name a folder of recordings"),
    "two bare recordings": ({"a.wav": "", "b.wav": ""}, r"and 2 without a transcript, are too few to split into test"),
    "a split of bare recordings": ({"train/a.wav": ""}, r"1 without a transcript, are too few"),
    "another name": ({"transcripts.csv": table(("a.wav", "one"))}, r"transcripts\.csv is not read: rename it"),
    "no test": (
        {f"{split}/metadata.csv": table(("a.wav", "x")) for split in ("train", "val")},
        "has train, validation but",
    ),
    "only test": ({"metadata.csv": table(("test/a.wav", "one"), ("rest/b.wav", "two"))}, "has test but not both"),
    "above and in the folders": (
        {
            "metadata.csv": table(*THREE),
            **{f"{split}/metadata.csv": table(("a.wav", "x")) for split in ("train", "test")},
        },
        r"metadata\.csv: belongs to no split, but .*test/metadata\.csv to test; remove one",
    ),
    "in two formats": ({"metadata.csv": table(*THREE), "metadata.jsonl": jsonl(*THREE)}, "is there too; keep one"),
    "kaldi without text": ({"data/train/wav.scp": "a a.wav\n"}, "train/text: no such file"),
}


@pytest.mark.parametrize("layout", BAD)
def test_a_bad_layout_is_named(tmp_path: Path, layout: str) -> None:
    files, message = BAD[layout]
    with pytest.raises(UserError, match=message) as error:
        list(read_folder(write(tmp_path, files), "train", 0))
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize("seed", range(100))
def test_any_names_of_files_are_found_or_named(tmp_path: Path, seed: int) -> None:
    """No name in a table ends in a traceback, and each row is in exactly one split."""
    generator = random.Random(seed)
    parts = [
        "a",
        "train",
        "test",
        "dev",
        "..",
        ".",
        "/",
        "\\",
        "~",
        "é",
        "e\u0301",
        "\0",
        "\ud83d",
        "x" * 300,
        ".wav",
        " ",
        "*",
    ]
    names = ["".join(generator.choices(parts, k=generator.randint(0, 6))) for _ in range(12)]
    rows = [json.dumps({"file_name": name, "text": f"sentence {'abcdefghijkl'[n]}"}) for n, name in enumerate(names)]
    write(tmp_path / "speech", {"metadata.jsonl": "\n".join(rows), "a.wav": "", "train/a.wav": "", "test/a.wav": ""})
    try:
        found = [clip for clips in splits(tmp_path / "speech").values() for clip in clips]
    except UserError as error:
        assert "but not both train and test" in str(error) or "too few" in str(error)
        return
    assert len(found) == len(names)
    for clip in found:
        assert clip.id.encode() and clip.id.isprintable()
        if not clip.problem:
            with pytest.raises(BadAudio):
                read_audio(clip.audio)
