"""A noisy clip as the loop needs it: features, labels and target."""

from dqlora.data.batching import Example
from dqlora.data.storage import RaggedArray
from dqlora.data.text import Vocabulary, frames_needed
from dqlora.errors import Rejected, UserError


def load_examples(
    split: str,
    *,
    noisy: RaggedArray,
    clean: RaggedArray,
    features: RaggedArray,
    targets: RaggedArray | None,
    vocabulary: Vocabulary,
    rejected: Rejected,
) -> list[Example]:
    """One example a noisy clip, in the order of `noisy`; texts that do not fit their frames are rejected, never cut.

    Parameters
    ----------
    noisy, clean
        whose indices name each mixture's utterance, and each utterance's text.
    features
        CNN features of the noisy clips.
    targets
        by mixture, or by utterance; None: examples without.

    Raises
    ------
    UserError
        if no example is left.
    """
    examples = []
    for item in noisy.items:
        text = clean.item(item["utterance"])["text"]
        labels, rows = vocabulary.encode(text), features[item["id"]]
        if frames_needed(labels) > len(rows):
            rejected.add(split, item["id"], "more labels than frames")
            continue
        target = None
        if targets is not None:
            target = targets[item["id"] if item["id"] in targets else item["utterance"]]
        examples.append(Example(rows, labels, text, target))
    if not examples:
        raise UserError(f"{split}: every transcript has more labels than its audio has frames; check the transcripts")
    return examples
