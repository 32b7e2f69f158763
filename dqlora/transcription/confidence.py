"""How certain a student is of a frame."""

import numpy as np

from dqlora.models.decoding import log_softmax

ORDER = 1 / 3  # of the entropy, as NeMo has it: the smaller, the more a token counts that is hardly probable


def frame_confidence(logits: np.ndarray) -> np.ndarray:
    """float32 [frames], 1 where one token is certain and 0 where all are equally probable, of [frames, vocabulary].

    The exponentially normalised Tsallis entropy of the student's distribution (Laptev and Ginsburg 2022, "Fast
    Entropy-Based Methods of Word-Level Confidence Estimation for End-to-End Automatic Speech Recognition").
    """
    entropy = (np.exp(ORDER * log_softmax(logits)).sum(-1) - 1) / (1 - ORDER)
    uniform = (logits.shape[-1] ** (1 - ORDER) - 1) / (1 - ORDER)
    return (np.exp(-entropy) - np.exp(-uniform)) / (1 - np.exp(-uniform))
