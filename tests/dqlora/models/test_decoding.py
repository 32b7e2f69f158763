"""Greedy decoding and beam search over logits that are made by hand, with a small language model."""

import base64
import zlib
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dqlora.config import load_params
from dqlora.data.storage import write_json
from dqlora.data.text import Vocabulary, frames_needed
from dqlora.errors import UserError
from dqlora.models.decoding import (
    BeamSearch,
    Weights,
    align,
    decoder_settings,
    fit_hotwords,
    greedy,
    load_decoder,
    log_softmax,
    words_of_binary,
)
from dqlora.models.language_model import train_arpa
from tests.conftest import ROOT

SENTENCES = ["THE FERRY LEAVES THE HARBOR", "THE FERRY IS SMALL", "A SMALL HARBOR", "THE HARBOR IS CLOSED"] * 3

# the fixture `arpa` as KenLM's build_binary writes it, compressed
BINARY = (
    "c-qU&O)OBz$yLZGDJihh*U!#KO-##7%}LQq&d=3P&QD2INXswEO)OC;OD!tS%+FIW<zhg9274f}pAks>2Lg}?BUFYNOdhaD7UPD}{Ae@-l6*"
    "m(;$F+PQn(%%xODKt;f+7m#xkRcUrBy#`Xi5{k%<8}U~lO1zr-bK&Ix2o+$xeVQ0>cL0kS#7uS*^9>0xIFvbl1;f2=Kjkj(~UbFO$=tuK0D9"
    "|w?~^Y@Z?^Vj8vSn-(ezo=LBX5_imppe=AS!h2fU>F#V9f~=5YyWxsMtlC9z5Bl%Uv7UUHV;ha_LqRg4ZpVS_sb3ig;4{D50VGbg4Yt@>R|e"
    "C*}d4<HAGYE+Qi1Evit2kzwG1q#FWvp(O6iiZ=)TEZ&J>(=DyTA%jXK-b|8B?8D4~YE%n-!c$?L}`P%IL0#8^ka3rUzfz*TeiUC?40tH(FKz"
    "xw;;77vTB~wxz%yX=5A^xHauv9Xd9J(=+^UrgZeIWPcmHnTlBfljaWIo9LWl?=Bk0(iA0ofnz)4HFKdHW}sN#%LUbi&-<BXG;7>==I=$iK4{"
    "X6@5#GrzFsP_qKae2{swteLLm^Io3=@;}IauKRzZ1U1&lz`~2?H2b`%@*DbhoU-00n7R6H=vxc%>{Sc*>0NI8Y5Hb{CWx)>BU?S)Pc-JgW#J"
    "xVw*+39s*n<|T!bz@|L2zXftP9zfy6c9<HI@ga}3ed-~v7`_+@`oE8Rs`U!lXkJoV|bNg#3Ax{~>O)YX@R*cSWsB}CgQSApDVt^9xLft@<8A"
    "aRK!Da`JLTUMf*vx%*VTmMA*YwpXx_u1~v(0J!<RSwc?Q<|4;$6!-z#}MM-%HZZ26cowe<LVgZ8qDC~806$1#9*Tjl=KW{2=;aK@nLXeaQ5*"
    "Jc6DI@08`>S3j"
)


@pytest.fixture(scope="module")
def arpa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lm") / "model.arpa"
    path.write_text(train_arpa(SENTENCES, 3, 0.0))
    return path


def heard(text: str, vocabulary: Vocabulary, instead: dict[int, str] | None = None, sure: float = 6.0) -> np.ndarray:
    """Logits of a student that hears `text`, two frames a letter and a blank; nearly as well what `instead` says."""
    logits = []
    for at, token in enumerate(vocabulary.encode(text)):
        frame = np.zeros(len(vocabulary), np.float32)
        frame[token] = sure
        if instead and at in instead:
            frame[vocabulary.encode(instead[at])[0]] = sure - 1
        blank = np.zeros(len(vocabulary), np.float32)
        blank[vocabulary.blank] = sure
        logits += [frame, frame, blank]
    return np.array(logits)


def text_of(path: np.ndarray, vocabulary: Vocabulary) -> str:
    return vocabulary.decode(path.tolist())


def test_the_language_model_corrects_what_is_heard_nearly_as_well(arpa: Path, vocabulary: Vocabulary) -> None:
    logits = heard("THE VERRY IS SMALL", vocabulary, {4: "F"})
    search = BeamSearch(vocabulary, arpa, Weights(0.5, 0.0, -5.0))
    assert text_of(greedy(logits), vocabulary) == "the verry is small"
    assert text_of(search(logits), vocabulary) == "the ferry is small"
    assert search.words(logits) == "THE FERRY IS SMALL"


def test_it_leaves_what_is_heard_clearly(arpa: Path, vocabulary: Vocabulary) -> None:
    logits = heard("ZEBRAS YAWN", vocabulary, sure=15.0)
    assert text_of(BeamSearch(vocabulary, arpa, Weights(0.5, 0.0, -5.0))(logits), vocabulary) == "zebras yawn"


def test_its_path_is_that_of_its_words_and_as_long_as_the_clip(arpa: Path, vocabulary: Vocabulary) -> None:
    """So that what takes a greedy path takes it; where both find the same words, the times are the same."""
    logits = heard("THE HARBOR IS CLOSED", vocabulary)
    path = BeamSearch(vocabulary, arpa, Weights(0.3))(logits)
    assert path.dtype == np.int64 and np.array_equal(path, greedy(logits))


@pytest.mark.parametrize("frames", [0, 1])
def test_no_speech_gives_no_words(frames: int, vocabulary: Vocabulary) -> None:
    logits = np.zeros((frames, len(vocabulary)), np.float32)
    logits[:, vocabulary.blank] = 9
    assert BeamSearch(vocabulary, None, Weights())(logits).tolist() == [vocabulary.blank] * frames


def test_what_writes_nothing_is_never_found(vocabulary: Vocabulary) -> None:
    logits = heard("A SMALL HARBOR", vocabulary)
    logits[:, vocabulary.token_ids["<unk>"]] = 9
    assert text_of(BeamSearch(vocabulary, None, Weights())(logits), vocabulary) == "a small harbor"


@pytest.mark.parametrize("seed", range(5))
def test_the_alignment_is_the_best_of_all_paths(seed: int) -> None:
    rng = np.random.default_rng(seed)
    frames, blank, tokens = 6, 0, [1, 1, 2] if seed % 2 else [2, 1]
    log_probs = log_softmax(rng.normal(size=(frames, 3)).astype(np.float32))
    assert frames_needed(tokens) <= frames

    def spelt(path: tuple[int, ...]) -> list[int]:
        merged = [token for before, token in zip((None, *path), path, strict=False) if token != before]
        return [token for token in merged if token != blank]

    paths = [path for path in product(range(3), repeat=frames) if spelt(path) == tokens]
    best = max(paths, key=lambda path: log_probs[range(frames), path].sum())
    assert tuple(align(log_probs, tokens, blank).tolist()) == best


# Hot words


@pytest.mark.parametrize("method", ["beam", "greedy"])
def test_a_name_that_is_heard_wrong_comes_right(
    method: str, arpa: Path, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    (tmp_path / "model.arpa").write_text(arpa.read_text())
    settings: dict[str, Any] = {"method": method}
    if method == "beam":
        settings |= {"language_model": "model.arpa", "weights": {"alpha": 0.3, "unknown": -5.0}}
    logits = heard("THE COVALSKI IS SMALL", vocabulary, {4: "K", 6: "W"}, sure=4.0)
    write_json(tmp_path / "decoder.json", settings)
    without, listening = (load_decoder(tmp_path, vocabulary, words) for words in ([], ["Kowalski"]))
    assert "kowalski" not in text_of(without(logits), vocabulary)
    assert text_of(listening(logits), vocabulary) == "the kowalski is small"
    for other in ("THE FERRY IS SMALL", "A COW WALKS", "CLOSED"):
        logits = heard(other, vocabulary, {0: "K", 2: "O"}, sure=4.0)
        assert np.array_equal(listening(logits), without(logits))


@pytest.mark.parametrize(
    ("word", "reason"), [("Ковальский", "letters outside the student's vocabulary"), ("!", "empty"), ("", "empty")]
)
def test_a_hot_word_that_cannot_be_written_is_named(word: str, reason: str, vocabulary: Vocabulary) -> None:
    with pytest.raises(UserError, match=reason) as raised:
        fit_hotwords(["Anna", word], vocabulary, "en")
    assert repr(word) in str(raised.value) and "\n" not in str(raised.value)


def test_hot_words_are_written_as_labels_are(vocabulary: Vocabulary) -> None:
    assert fit_hotwords(["Café Müller", "route 66"], vocabulary, "en") == ["CAFE MULLER", "ROUTE SIXTY SIX"]


# Files


def kenlm_binary() -> bytes:
    return zlib.decompress(base64.b85decode(BINARY))


def test_kenlms_binary_form_gives_the_words_of_the_arpa(arpa: Path, vocabulary: Vocabulary, tmp_path: Path) -> None:
    binary = tmp_path / "model.bin"
    binary.write_bytes(kenlm_binary())
    assert words_of_binary(binary)[:4] == ["<unk>", "<s>", "THE", "FERRY"]
    weights = Weights(0.5, 0.0, -5.0)
    searches = [BeamSearch(vocabulary, path, weights) for path in (arpa, binary)]
    for seed in range(20):
        logits = heard("THE HARPOR IS SNALL", vocabulary, {7: "B", 15: "M"}, sure=4.0)
        logits += np.random.default_rng(seed).normal(size=logits.shape).astype(np.float32)
        found = [search.words(logits) for search in searches]
        assert found[0] == found[1] != ""


def test_without_a_decoder_the_best_token_of_each_frame_is_taken(vocabulary: Vocabulary, tmp_path: Path) -> None:
    assert load_decoder(tmp_path, vocabulary) is greedy


def test_what_is_no_runs_has_the_beam_width_of_params(tmp_path: Path) -> None:
    assert decoder_settings(tmp_path)["beam_width"] == load_params(ROOT / "params.yaml").decode.beam_width


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.arpa", "\\data\\\nngram 1=3\nngram 2=2\n\n\\1-grams:\n-1.0\tA\t0.0\n-1.0\tB"),
        ("model.arpa", ""),
        ("model.bin", "no language model"),
        ("model.bin", "mmap lm http://kheafield.com/code format version 5\n<unk>\0THE\0"),
    ],
)
def test_a_language_model_that_cannot_be_read_is_named(
    name: str, content: str, vocabulary: Vocabulary, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(content)
    write_json(tmp_path / "decoder.json", {"method": "beam", "language_model": name})
    with pytest.raises(UserError, match=name) as raised:
        load_decoder(tmp_path, vocabulary)
    assert "\n" not in str(raised.value)
    assert capfd.readouterr().err == ""


def test_a_language_model_that_is_gone_is_named(vocabulary: Vocabulary, tmp_path: Path) -> None:
    write_json(tmp_path / "decoder.json", {"method": "beam", "language_model": "lm/model.arpa"})
    with pytest.raises(UserError, match=r"lm/model\.arpa"):
        load_decoder(tmp_path, vocabulary)
