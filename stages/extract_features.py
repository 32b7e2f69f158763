"""The student's CNN features of the noisy clips, once, since the CNN stays frozen: data/<preset>/cnn_features."""

from dqlora.config import Paths, load_params
from dqlora.data.storage import RaggedArray, atomic_directory
from dqlora.device import default_device
from dqlora.errors import run_stage
from dqlora.models.wav2vec2 import load_student
from dqlora.training.precompute import write_cnn_features


def main() -> None:
    params = load_params()
    paths = Paths(params.preset)
    model = load_student(paths.student, "none", default_device())  # the CNN is never quantised
    with atomic_directory(paths.cnn_features) as folder:
        for split in ("train", "validation"):
            write_cnn_features(model, RaggedArray(paths.noisy / split), folder / split)


if __name__ == "__main__":
    run_stage(main)
