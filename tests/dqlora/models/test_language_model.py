"""The n-gram model of words, as an ARPA file."""

import math
from pathlib import Path

import pytest

from dqlora.data.text import Vocabulary
from dqlora.errors import UserError
from dqlora.models.language_model import (
    as_decoded,
    evaluate_arpa,
    language_model_in,
    read_arpa,
    train_arpa,
)

SENTENCES = ["THE FERRY LEAVES THE HARBOR", "THE FERRY IS SMALL", "THE HARBOR IS CLOSED"] * 2


@pytest.fixture
def arpa(tmp_path: Path) -> Path:
    path = tmp_path / "model.arpa"
    path.write_text(train_arpa(SENTENCES, 3, 0.0))
    return path


def test_its_probabilities_add_up_to_one_after_any_word(arpa: Path) -> None:
    model = read_arpa(arpa)
    words = set(model.vocabulary()) - {"<s>"}
    assert words == {*" ".join(SENTENCES).split(), "</s>", "<unk>"}
    for history in ((), ("<s>",), ("THE",), ("<s>", "THE"), ("SMALL",), ("FERRY", "IS")):
        assert sum(10 ** model.log_p_raw((*history, word)) for word in words) == pytest.approx(1, abs=1e-4), history


def test_what_it_was_trained_on_is_likelier_than_other_words_in_any_order(arpa: Path) -> None:
    seen, shuffled, unknown = (
        evaluate_arpa(arpa, [text]) for text in ("THE FERRY IS CLOSED", "CLOSED IS FERRY THE", "A CAT IS HERE")
    )
    assert seen["perplexity"] < shuffled["perplexity"] < math.inf and unknown["perplexity"] < math.inf
    assert (seen["unknown_ratio"], unknown["unknown_ratio"]) == (0, 0.75)
    assert set(seen["ngrams"]) == {"1", "2", "3"}


def test_the_same_sentences_give_the_same_file_and_pruning_a_smaller_one(arpa: Path, tmp_path: Path) -> None:
    assert train_arpa(SENTENCES, 3, 0.0) == arpa.read_text()
    (tmp_path / "pruned.arpa").write_text(train_arpa(SENTENCES, 3, 0.02))
    whole, pruned = (evaluate_arpa(path, SENTENCES) for path in (arpa, tmp_path / "pruned.arpa"))
    assert pruned["ngrams"]["1"] == whole["ngrams"]["1"] and sum(pruned["ngrams"].values()) < sum(
        whole["ngrams"].values()
    )
    assert whole["perplexity"] < pruned["perplexity"]


@pytest.mark.parametrize("sentences", [["A"], ["A B C"], ["A"] * 5])
def test_very_little_text_is_enough(sentences: list[str], tmp_path: Path) -> None:
    (tmp_path / "model.arpa").write_text(train_arpa(sentences, 3, 1e-7))
    assert evaluate_arpa(tmp_path / "model.arpa", sentences)["perplexity"] < 100


@pytest.mark.parametrize(
    "content",
    [
        "",
        "a sentence\n",
        "\\data\\\nngram 1=3\n\n\\1-grams:\n-1.0\tA\t0.0\n",
        "\\data\\\nngram x\n\\end\\\n",
    ],
)
def test_what_is_no_arpa_or_cut_short_is_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.arpa"
    path.write_text(content)
    with pytest.raises(UserError, match=r"mine\.arpa: not an ARPA language model") as raised:
        read_arpa(path)
    assert "\n" not in str(raised.value)


def test_somebody_elses_words_are_written_in_the_students_case(arpa: Path, vocabulary: Vocabulary) -> None:
    given = as_decoded(arpa.read_text(), vocabulary)
    assert as_decoded(given.lower(), vocabulary) == given
    assert as_decoded(given, Vocabulary({"<pad>": 0, "|": 1, "a": 2, "b": 3})) == given.lower()


def test_each_word_has_a_back_off_weight_since_the_decoder_knows_no_other(vocabulary: Vocabulary) -> None:
    arpa = "\\data\\\nngram 1=2\nngram 2=1\n\n\\1-grams:\n-0.5\ta\n-0.5\tb\t-0.1\n\n\\2-grams:\n-0.2\tb a\n\n\\end\\\n"
    assert as_decoded(arpa, vocabulary) == arpa.replace("a\n-0.5", "a\t0.0\n-0.5").replace("\ta", "\tA").replace(
        "\tb", "\tB"
    ).replace("B a", "B A")


def test_a_folder_without_a_model_has_none(tmp_path: Path) -> None:
    assert language_model_in(tmp_path) is None
    (tmp_path / "model.bin").touch()
    assert language_model_in(tmp_path) == tmp_path / "model.bin"
