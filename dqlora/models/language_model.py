"""An n-gram model of words in the ARPA format: trained on sentences, or somebody's as it is."""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dqlora.data.text import Vocabulary
from dqlora.errors import UserError, first_line

UNKNOWN = "<unk>"
LARGEST_DISCOUNT = 0.9  # of little text, where nothing occurs twice, the estimate is 1 and takes all that was seen
NOT_WORDS = {"<s>", "</s>", UNKNOWN}


def train_arpa(sentences: Sequence[str], order: int, pruning: float) -> str:
    """An ARPA file of a back-off n-gram model, smoothed by Kneser-Ney (Kneser and Ney 1995), as SRILM makes it.

    Words that no sentence has share the probability that Good and Turing give to what was not seen: that of what was
    seen once.

    Parameters
    ----------
    sentences
        words joined by a space.
    pruning
        n-grams whose absence raises the perplexity by less than this ratio are left out (Stolcke 1998); 0: none is.
    """
    from kaldingram import prune
    from kaldingram.train import NgramCounts

    written = io.StringIO()
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars
        model = NgramCounts(order)
        for sentence in sentences:
            model.add_raw_counts_from_line(sentence)
        model.cal_discounting_constants()
        model.d = [min(discount, LARGEST_DISCOUNT) for discount in model.d]
        model.cal_f()
        unigrams = model.counts[0][()]
        occurrences = [len(contexts) for contexts in unigrams.word_to_context.values()]
        unseen = min(0.5, max(1, occurrences.count(1)) / max(1, sum(occurrences)))
        for word in unigrams.word_to_f:
            unigrams.word_to_f[word] *= 1 - unseen
        unigrams.word_to_f[UNKNOWN], unigrams.word_to_count[UNKNOWN] = unseen, 1
        model.cal_bow()
        model.print_as_arpa(written)
        if not pruning:
            return written.getvalue()
        parser = prune.ArpaParser()
        [pruned] = parser.loads(written.getvalue())
        prune.prune(pruned, pruning, 2)  # single words stay
        return parser.dumps(pruned)


def language_model_in(folder: Path) -> Path | None:
    """The file that `build_lm` left in a folder; None where there is none."""
    return next((path for name in ("model.arpa", "model.bin") if (path := folder / name).exists()), None)


def read_arpa(path: Path) -> Any:
    """kaldingram's model of an ARPA file.

    Raises
    ------
    UserError
        if the file is no ARPA, or is cut short.
    """
    from kaldingram.prune import ArpaParser

    try:
        with contextlib.redirect_stderr(io.StringIO()):
            text = path.read_text(encoding="utf-8")
            if "\\end\\" not in text:
                raise ValueError("it has no \\end\\: cut short?")
            [model] = ArpaParser().loads(text)
        return model
    except Exception as error:  # the library's own are of no narrower type
        raise UserError(
            f"{path}: not an ARPA language model ({first_line(error)}); give another, or lm.model: train"
        ) from None


def as_decoded(arpa: str, vocabulary: Vocabulary) -> str:
    """An ARPA file's text with its words in the case of the student's tokens, and a back-off weight for each.

    The decoder takes only what has a back-off weight for a known word.
    """
    change = str.upper if vocabulary.upper else str.lower
    lines, single = [], False
    for line in arpa.splitlines():
        fields = line.split("\t")
        if line.startswith("\\"):
            single = line.startswith("\\1-grams:")
        elif len(fields) > 1:
            fields[1] = " ".join(word if word in NOT_WORDS else change(word) for word in fields[1].split(" "))
            fields += ["0.0"] if single and len(fields) == 2 else []
        lines.append("\t".join(fields))
    return "\n".join(lines) + "\n"


def evaluate_arpa(path: Path, sentences: Sequence[str]) -> dict[str, Any]:
    """Its n-grams by order; on `sentences` the perplexity, sentence ends counted, and the ratio of unknown words.

    Raises
    ------
    UserError
        as `read_arpa`.
    """
    from kaldingram.ppl import compute_ppl

    model = read_arpa(path)
    with contextlib.redirect_stderr(io.StringIO()):
        found = compute_ppl(model, sentences)
    return {
        "ngrams": {str(order): count for order, count in model.counts()},
        "perplexity": found["ppl"],
        "unknown_ratio": found["num_oov"] / max(1, found["num_words"]),
    }
