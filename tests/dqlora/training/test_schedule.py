import math

import pytest

from dqlora.training.schedule import warmup_cosine


def test_the_learning_rate_warms_up_and_falls() -> None:
    factors = [warmup_cosine(step, 100, 0.1) for step in range(100)]
    assert factors[0] < 0.1
    assert max(factors) == pytest.approx(1.0) == factors[10]
    assert factors[-1] < 0.01
    assert all(math.isfinite(warmup_cosine(0, 1, ratio)) for ratio in (0.0, 0.5))
