"""How uncertain the base student may be of a clip for the adapter to stay off: models/<preset>/gate.json.

Where the adapter makes measurably fewer errors on clean speech too, as where the base does not know the speakers, there
is nothing to keep: it always runs.
"""

import numpy as np

from dqlora.config import Paths, load_params, load_preset
from dqlora.data.audio import to_float32
from dqlora.data.labels import labelled
from dqlora.data.storage import write_json
from dqlora.data.text import Vocabulary
from dqlora.device import default_device
from dqlora.errors import run_stage
from dqlora.evaluation.metrics import FEWEST_SENTENCES, count_errors, per_sentence, relative_wer_reduction
from dqlora.models.gate import entropies
from dqlora.models.lora import add_trained_lora
from dqlora.models.wav2vec2 import EncoderCTC, cnn_features, load_student, transcribe_batch, with_same_weights
from dqlora.progress import ProgressBar

POOR_WER = 0.5  # of the base on clean speech, above which its own features have been seen to cost (docs/unlabelled.md)


def main() -> None:
    params = load_params()
    paths, quantile, language = Paths(params.preset), params.gate.quantile, load_preset(params.preset).speech.language
    threshold = None
    if quantile and params.student.adapt == "lora":
        base = load_student(paths.student, params.student.quantize, default_device())
        adapted = add_trained_lora(with_same_weights(base), paths.adapter)
        clean, vocabulary = labelled(paths, "validation"), Vocabulary.load(paths.student / "vocab.json")
        features = [
            cnn_features(base, to_float32(clean[item["id"]]))
            for item in ProgressBar(clean.items, "student's CNN validation", unit=" clips")
        ]
        references = [item["text"] for item in clean.items]
        longest = max(map(len, features))
        without, adapting = (
            count_errors(references, transcribe_batch(EncoderCTC(model), features, vocabulary, longest), language)
            for model in ProgressBar((base, adapted), "clean clips without and with the adapter", unit=" students")
        )
        of_base, of_adapter = (per_sentence(errors, references, language) for errors in (without, adapting))
        gain = relative_wer_reduction(of_base, of_adapter, params.evaluate.bootstrap_draws, params.seed)
        before, after = (f"{100 * each.wer:.1f} %" for each in (without, adapting))
        print(f"clean validation clips: WER {before} without the adapter, {after} with it")
        if gain["ci_low"] > 0 and len(of_base.words) >= FEWEST_SENTENCES:
            print("gate: none, the adapter is better on clean speech too")
        else:
            threshold = float(np.quantile(entropies(EncoderCTC(base), features), quantile))
            print(f"gate: the adapter runs above {threshold:.4f} nats per frame")
        if without.wer > POOR_WER and params.lambda_distill and params.distill.target.startswith("base_"):
            print(f"hint: the base's own features teach little where its WER is {before}; try -S lambda_distill=0")
    write_json(paths.gate, {"entropy_threshold": threshold})


if __name__ == "__main__":
    run_stage(main)
