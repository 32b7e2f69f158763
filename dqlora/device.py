"""Where models run, and how many clips at a time."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

CPU = torch.device("cpu")


def default_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def map_on_cores(
    function: Callable[[Item], Result], items: Iterable[Item], device: torch.device = CPU
) -> Iterator[Result]:
    """`function` of each item, in order; on a CPU as many items at a time as torch has threads, each on one of them.

    Threads that share one clip's work wait for each other after every operation, on a busy machine many times as long
    as they compute. And what a clip gives does not depend on the number of cores.

    Parameters
    ----------
    function
        safe to run in several threads; in each, torch records gradients unless it says otherwise.
    """
    if device.type != "cpu":
        yield from map(function, items)
        return
    threads, rest = torch.get_num_threads(), iter(items)
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            waiting = deque(pool.submit(function, item) for item in itertools.islice(rest, 2 * threads))
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(function, item) for item in itertools.islice(rest, 1))
    finally:
        torch.set_num_threads(threads)
