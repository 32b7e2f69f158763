"""The weights of the beam search, and that it is left where it does not help."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from dqlora.config import Paths
from dqlora.data.storage import RaggedArrayWriter, read_json, write_json
from dqlora.data.text import Vocabulary
from dqlora.errors import UserError
from dqlora.models.decoding import greedy, load_decoder
from dqlora.models.language_model import as_decoded, train_arpa
from stages import fit_decoder
from tests.dqlora.models.test_decoding import heard
from tests.stages.test_bad_input import set_preset

RIGHT, HEARD = ["THE FERRY IS SMALL", "THE HARBOR IS CLOSED"], ["THE VERRY IS SMALL", "THE HARPOR IS CLOSED"]
NEARLY = [{4: "F"}, {7: "B"}]


@pytest.fixture
def clips(project: Path, student_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """Validation clips that the student hears nearly right, a number each instead of their sound."""
    paths = Paths("local")
    set_preset(project)
    paths.student.parent.mkdir(parents=True)
    paths.student.symlink_to(student_folder)
    vocabulary = Vocabulary.load(paths.student / "vocab.json")
    paths.lm.mkdir()
    (paths.lm / "model.arpa").write_text(as_decoded(train_arpa(RIGHT * 3, 3, 0.0), vocabulary))
    for folder in (paths.clean, paths.noisy):
        folder.mkdir(parents=True)
        with RaggedArrayWriter(folder / "validation", "int16") as out:
            for number, text in enumerate(RIGHT):
                names = {"id": f"{number}", "utterance": f"{number}"}
                out.append(np.full(10, number, np.int16), **names, transcript=text.capitalize(), text=text, snr_db=5.0)
    student = type("Student", (), {"eval": lambda self: self})()
    monkeypatch.setattr(fit_decoder, "load_distilled", lambda *_: student)

    def clip_logits(_: object, samples: np.ndarray) -> np.ndarray:
        number = round(float(samples[0]) * 2**15)
        return heard(HEARD[number], vocabulary, NEARLY[number])

    monkeypatch.setattr(fit_decoder, "clip_logits", clip_logits)
    return paths


def decode_settings(**changed: object) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text())
    Path("params.yaml").write_text(yaml.safe_dump(params | {"decode": params["decode"] | changed}))


def test_a_model_that_corrects_is_used(clips: Paths) -> None:
    fit_decoder.main()
    settings = read_json(clips.decoder, "")
    assert settings["method"] == "beam" and settings["language_model"] == "lm/model.arpa"
    vocabulary = Vocabulary.load(clips.student / "vocab.json")
    path = load_decoder(clips.decoder.parent, vocabulary)(heard(HEARD[0], vocabulary, NEARLY[0]))
    assert vocabulary.decode(path.tolist()) == RIGHT[0].lower()


@pytest.mark.parametrize("why", ["greedy is asked for", "there is none", "it is of something else"])
def test_else_decoding_stays_greedy(why: str, clips: Paths) -> None:
    vocabulary = Vocabulary.load(clips.student / "vocab.json")
    if why == "greedy is asked for":
        decode_settings(method="greedy")
    elif why == "there is none":
        (clips.lm / "model.arpa").unlink()
    else:
        other = as_decoded(train_arpa(["A B C D", "A B"], 2, 0.0), vocabulary)
        (clips.lm / "model.arpa").write_text(other)
    fit_decoder.main()
    assert load_decoder(clips.decoder.parent, vocabulary) is greedy


def test_a_runs_hot_words_are_kept_and_checked_first(clips: Paths) -> None:
    decode_settings(hotwords="Kowalski, Anna", method="greedy", beam_width=7)
    fit_decoder.main()
    settings = read_json(clips.decoder, "")
    assert settings["hotwords"] == ["Kowalski", "Anna"] and settings["method"] == "greedy"
    assert settings["beam_width"] == 7  # the search for them has it
    write_json(clips.decoder, {})
    decode_settings(hotwords="Ковальский")
    with pytest.raises(UserError, match="hot word 'Ковальский'"):
        fit_decoder.main()
    assert read_json(clips.decoder, "") == {}
