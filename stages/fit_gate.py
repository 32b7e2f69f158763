"""How uncertain the base student may be of a clip for the adapter to stay off: models/<preset>/gate.json."""

import numpy as np

from dqlora.config import Paths, load_params
from dqlora.data.audio import to_float32
from dqlora.data.labels import labelled
from dqlora.data.storage import write_json
from dqlora.device import default_device
from dqlora.errors import run_stage
from dqlora.models.gate import entropies
from dqlora.models.wav2vec2 import EncoderCTC, cnn_features, load_student


def main() -> None:
    params = load_params()
    paths, quantile = Paths(params.preset), params.gate.quantile
    threshold = None
    if quantile:
        model = load_student(paths.student, params.student.quantize, default_device())
        clean = labelled(paths, "validation")
        features = [cnn_features(model, to_float32(clean[item["id"]])) for item in clean.items]
        threshold = float(np.quantile(entropies(EncoderCTC(model), features), quantile))
        print(f"gate: the adapter runs above {threshold:.4f} nats per frame")
    write_json(paths.gate, {"entropy_threshold": threshold})


if __name__ == "__main__":
    run_stage(main)
