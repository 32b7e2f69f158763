import itertools
import threading
from collections.abc import Iterator

import pytest
import torch

from dqlora.device import map_on_cores


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_results_come_in_order_from_threads_that_compute_alone() -> None:
    both = threading.Barrier(2, timeout=20)  # broken unless two items are under way at once

    def square(item: int) -> tuple[int, int]:
        both.wait()
        return item**2, torch.get_num_threads()

    assert list(map_on_cores(square, range(10))) == [(item**2, 1) for item in range(10)]
    assert torch.get_num_threads() == 2


def test_items_are_taken_as_results_are() -> None:
    taken = []

    def items() -> Iterator[int]:
        for item in itertools.count():
            taken.append(item)
            yield item

    results = map_on_cores(lambda item: item, items())
    assert [next(results) for _ in range(3)] == [0, 1, 2] and len(taken) <= 7
    results.close()
    assert torch.get_num_threads() == 2


def test_an_error_is_raised_where_its_result_would_be() -> None:
    results = map_on_cores(lambda item: 6 // item, [2, 3, 0, 1])
    assert [next(results), next(results)] == [3, 2]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert torch.get_num_threads() == 2


def test_on_a_gpu_it_is_a_map() -> None:
    names = map_on_cores(lambda _: threading.current_thread().name, range(2), torch.device("cuda"))
    assert set(names) == {threading.current_thread().name}
