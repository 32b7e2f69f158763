"""What transcribing costs: real-time factor and peak memory."""

import resource
import time
from collections.abc import Callable

import numpy as np

from dqlora.data.audio import SAMPLE_RATE, to_float32
from dqlora.progress import ProgressBar


def real_time_factor(transcribe: Callable[[np.ndarray], str], clips: list[np.ndarray], name: str) -> float:
    """Seconds of computing per second of audio, one clip (int16 [samples]) at a time, after a first one unmeasured.

    Time of the CPU, all threads': what else runs on the machine does not count.

    Parameters
    ----------
    transcribe
        gives the text of float32 [samples].
    """
    transcribe(to_float32(clips[0]))
    started = time.process_time()
    for clip in ProgressBar(clips, f"{name} transcribes", unit=" clips"):
        transcribe(to_float32(clip))
    return (time.process_time() - started) / (sum(map(len, clips)) / SAMPLE_RATE)


def peak_memory_mb() -> dict[str, float]:
    """Peak memory so far in MB (10^6 bytes): of the process, and on the GPU (0 without one)."""
    import torch  # only here: it takes more memory than some of what is measured

    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {"peak_rss_mb": peak_rss_mb(), "peak_gpu_mb": gpu / 1e6}


def peak_rss_mb() -> float:
    """The process' largest resident set so far, libraries included, in MB (10^6 bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
