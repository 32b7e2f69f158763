"""Make the language model that decoding uses: models/<preset>/lm, metrics/<preset>/lm.json."""

import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dqlora.config import OUT_OF_DOMAIN, Lm, Paths, load_params, load_preset
from dqlora.data.labels import labelled
from dqlora.data.origin import ORIGIN, text_source
from dqlora.data.sentences import read_sentences
from dqlora.data.storage import atomic_directory, write_json
from dqlora.data.text import BadText, Vocabulary, spell_out, without_spaces
from dqlora.errors import Rejected, UserError, run_stage
from dqlora.models.decoding import BeamSearch, Weights, words_of_binary
from dqlora.models.language_model import as_decoded, evaluate_arpa, language_model_in, read_arpa, train_arpa

MANY_UNKNOWN = 0.25  # of the validation transcripts' words: of 39 transcripts alone 0.36, which cost WER out of domain


def transcripts(paths: Paths, split: str) -> list[str]:
    """As the student's labels: spelt out, in its letters."""
    return [item["text"] for item in labelled(paths, split).items]


def usable(
    lines: Iterable[tuple[str, str]], vocabulary: Vocabulary, language: str, held_out: set[str], rejected: Rejected
) -> list[str]:
    """The lines as the student would write them, less those that it cannot write, and those that are held out."""
    sentences = []
    for place, line in lines:
        try:
            sentence = vocabulary.fit(spell_out(line, language))
        except BadText as reason:
            rejected.add("text", place, str(reason))
            continue
        if sentence in held_out:
            rejected.add("text", place, "a sentence of validation, test or out of domain")
        else:
            sentences.append(sentence)
    return sentences


def write_model(folder: Path, model: str, sentences: list[str], settings: Lm, vocabulary: Vocabulary) -> None:
    """Write model.arpa or model.bin, unless `model` is none."""
    if model == "none":
        return
    if model == "train":
        arpa = train_arpa(sentences, settings.order, settings.prune)
        (folder / "model.arpa").write_text(as_decoded(arpa, vocabulary), encoding="utf-8")
        return
    path = Path(model)
    if not path.is_file():
        raise UserError(f"lm.model: {model}: no such file; give an .arpa or .bin, or train, or none")
    BeamSearch(vocabulary, path, Weights())  # raises if decoding cannot read it
    if path.suffix == ".bin":
        shutil.copyfile(path, folder / "model.bin")
        words = words_of_binary(path)
    else:
        made = folder / "model.arpa"
        made.write_text(as_decoded(path.read_text(encoding="utf-8"), vocabulary), encoding="utf-8")
        words = read_arpa(made).vocabulary()
    if not any(vocabulary.letters.issuperset(word) for word in words):
        case = ", in the case of its vocab.json" if path.suffix == ".bin" else ""
        raise UserError(
            f"lm.model: {model}: no word in it is of the student's letters{case}; give another, train or none"
        )


def main() -> None:
    params = load_params()
    preset = load_preset(params.preset)
    paths, language, source = Paths(params.preset), preset.speech.language, preset.lm
    vocabulary = Vocabulary.load(paths.student / "vocab.json")
    # words are what stands between spaces: where a language has none, or its student writes none, there is no model
    spaced = not without_spaces(language) and vocabulary.delimiter in vocabulary.token_ids
    model = source.model if spaced else "none"
    rejected = Rejected()
    validation = transcripts(paths, "validation")
    held_out = {*validation, *transcripts(paths, "test"), *transcripts(paths, OUT_OF_DOMAIN)}
    sentences: list[str] = []
    if model == "train":
        sentences = [text for text in transcripts(paths, "train") if text not in held_out]
        text = usable(read_sentences(source.text), vocabulary, language, held_out, rejected)
        if source.text and not text:
            _, _, reason = rejected.items[0]
            raise UserError(f"lm.text: no line can be used: {reason}; give text in the student's letters, or none")
        sentences += text

    metrics: dict[str, Any] = {"model": model, "sentences": len(sentences), "rejected": rejected.counts()}
    with atomic_directory(paths.lm) as folder:
        write_model(folder, model, sentences, params.lm, vocabulary)
        rejected.write(folder)
        write_json(folder / ORIGIN, {"source": text_source(model, source.text), "commit": None})
        if made := language_model_in(folder):
            metrics |= evaluate_arpa(made, validation) if made.suffix == ".arpa" else {}
    write_json(paths.metrics / "lm.json", metrics)
    if "perplexity" in metrics:
        counts = ", ".join(f"{count} {order}-grams" for order, count in metrics["ngrams"].items())
        print(
            f"language model: {counts}; perplexity {metrics['perplexity']:.0f} on validation "
            f"transcripts, {metrics['unknown_ratio']:.1%} of their words unknown"
        )
        if metrics["unknown_ratio"] > MANY_UNKNOWN:
            print(
                "warning: of so many unknown words decoding makes known ones, most of all out of domain; give more "
                "text of the language by lm.text, or set decode.method: greedy where `evaluate` says that it loses",
                file=sys.stderr,
            )
    else:
        print(f"language model: {model if spaced else 'none: the language is written without spaces'}")


if __name__ == "__main__":
    run_stage(main)
