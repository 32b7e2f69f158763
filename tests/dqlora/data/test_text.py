import json
from pathlib import Path

import pytest

from dqlora.data.text import BadText, Vocabulary, frames_needed, scoring_normaliser, spell_out
from dqlora.errors import UserError


@pytest.mark.parametrize(
    ("transcript", "spoken"),
    [
        ("Hello, World!", "hello world"),
        ("In 1987 it rose by 3.5%", "in nineteen eighty seven it rose by three point five percent"),
        ("the 21st of May, 2024", "the twenty first of may twenty twenty four"),
        ("1,234 people paid $5", "one thousand two hundred and thirty four people paid five dollars"),
        ("don\u2019t 'quote' rock 'n' roll", "don't quote rock n roll"),
        ("a-b  c\td", "a b c d"),
        ("R&B", "r and b"),
        ("...", ""),
    ],
)
def test_transcripts_are_spelt_out(transcript: str, spoken: str) -> None:
    assert spell_out(transcript, "en") == spoken


def test_digits_in_other_languages() -> None:
    assert spell_out("21 Äpfel", "de") == "einundzwanzig äpfel"
    with pytest.raises(BadText, match="language 'xx'"):
        spell_out("21", "xx")
    assert spell_out("Привет", "xx") == "привет"


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", "empty transcript"), ("привет мир", "outside the student's vocabulary"), ("hi 世界", "vocabulary: 世 界")],
)
def test_what_the_student_cannot_write_is_refused(vocabulary: Vocabulary, text: str, reason: str) -> None:
    with pytest.raises(BadText, match=reason):
        vocabulary.fit(text)


def test_accents_are_dropped_only_where_the_vocabulary_lacks_them(vocabulary: Vocabulary) -> None:
    assert vocabulary.fit("café naïve") == "CAFE NAIVE"
    german = Vocabulary({"<pad>": 0, "|": 1, **{letter: 2 + n for n, letter in enumerate("abcdefä")}})
    assert german.fit("bäd é") == "bäd e"


def test_encode_then_decode_is_the_text(vocabulary: Vocabulary) -> None:
    labels = vocabulary.encode(vocabulary.fit("all's well that ends well"))
    with_blanks = [token for label in labels for token in (vocabulary.blank, label, label)]
    assert vocabulary.decode(with_blanks) == "all's well that ends well"
    assert vocabulary.decode([]) == ""
    assert vocabulary.decode([1, 2, 3, 0]) == ""  # <s> </s> <unk> are never written


def test_frames_needed_counts_repeats() -> None:
    assert frames_needed([1, 2, 3]) == 3
    assert frames_needed([1, 1, 1, 2]) == 6
    assert frames_needed([]) == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2]", "not a wav2vec 2.0 vocabulary"),
        ("{}", "not a wav2vec 2.0 vocabulary"),
        ('{"|": 4}', "not a wav2vec 2.0 vocabulary"),
        ("not json", "cannot be read as JSON"),
        (None, "no such file"),
    ],
)
def test_a_bad_vocabulary_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "vocab.json").write_text(content)
    with pytest.raises(UserError) as refused:
        Vocabulary.load(tmp_path / "vocab.json")
    assert str(refused.value).startswith(f"{tmp_path / 'vocab.json'}: {message}")
    assert str(refused.value).endswith("; check the preset's student, then run `dvc repro fetch_models`")


def test_a_lower_case_vocabulary_with_its_own_blank_and_delimiter(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"[PAD]": 3, "_": 0, "a": 1, "b": 2}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": "[PAD]", "word_delimiter_token": "_"}))
    vocabulary = Vocabulary.load(tmp_path / "vocab.json")
    assert (vocabulary.blank, vocabulary.encode(vocabulary.fit("ab a")), len(vocabulary)) == (3, [1, 2, 0, 1], 4)


def test_scoring_reads_digits_and_words_alike() -> None:
    normalise = scoring_normaliser("en")
    assert normalise("Twenty-one colours cost five dollars") == normalise("21 colors cost $5")
    assert scoring_normaliser("de")("Straße, ja!").split() == ["straße", "ja"]
