"""Whether several processes train as one does, and how much faster: one on each GPU, or on the cores of a CPU.

python -m benchmarks.processes [--processes 2] [--small] [--rounds 2] [--output FILE.json]

Starts itself with one process and with several, in turns, on the same clips, batches, masks and
seeds. Two things are to hold: the loss curve is that of one process, and the throughput grows with them.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from accelerate import Accelerator

from benchmarks.training import Sizes, stretches, train_ours
from dqlora.config import load_params
from dqlora.data.storage import write_json
from dqlora.errors import UserError, quieten_libraries, run_stage

LEARNING_RATE = 2e-4  # at 2e-3 and rank 64 curves of random weights parted for a while, by 3 %, and met again
STEPS, VALIDATIONS = 600, 3  # the latter, each with a checkpoint as every 200 steps of a run, are the curve's points


def launch(processes: int, small: bool, batch_seconds: int, result: Path) -> dict[str, Any]:
    """Train on `processes` processes; the loss curve and the throughput."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command += ["-m", "benchmarks.processes", "--result", str(result), "--batch-seconds", str(batch_seconds)]
    ended = subprocess.run(
        [*command, *["--small"] * small],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if ended.returncode:
        raise UserError(
            f"--processes: training on {processes} failed; on GPUs each needs one of its own:\n{ended.stderr[-3000:]}"
        )
    found = json.loads(result.read_text())
    if found["processes"] != processes:
        raise UserError(f"--processes: {processes} were asked for and {found['processes']} trained")
    return found


def train(small: bool, batch_seconds: int, result: Path) -> None:
    """What each process does."""
    quieten_libraries()
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    with accelerator.main_process_first():  # transformers saves a model in the first process alone
        sizes = Sizes(small, result.parent, accelerator.device)
    sizes.batch_seconds, sizes.steps = batch_seconds, 12 if small else STEPS
    params = load_params()
    changes = {"distill": {**params.distill.model_dump(), "target": "base_logits"}}
    times: list[float] = []
    examples = sizes.examples(32)
    progress = train_ours(
        sizes, examples, changes, VALIDATIONS, lambda _: times.append(time.perf_counter()), LEARNING_RATE
    )
    if accelerator.is_main_process:
        rates = stretches(progress, times)[1:]  # graphs are recorded in the first
        losses = [point["train_loss"] for point in progress.curve[1:]]
        rate = statistics.median(rates)
        write_json(result, {"processes": accelerator.num_processes, "losses": losses, "rtfx": rate})


def main(
    processes: Annotated[int, typer.Option(min=2, help="To compare with one.")] = 2,
    small: Annotated[bool, typer.Option("--small", help="Tiny models, for a CPU.")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Of each; the table has the medians.")] = 2,
    batch_seconds: Annotated[int, typer.Option(help="Seconds of audio a step, over all processes.")] = 640,
    output: Annotated[Path | None, typer.Option(help="JSON to write the table to as well.")] = None,
    result: Annotated[Path | None, typer.Option(hidden=True, help="Set in the processes that train.")] = None,
) -> None:
    if result:
        train(small, batch_seconds, result)
        return
    found: dict[int, list[dict[str, Any]]] = {1: [], processes: []}
    with tempfile.TemporaryDirectory() as temporary:
        for _ in range(rounds):
            for number, runs in found.items():
                runs.append(launch(number, small, batch_seconds, Path(temporary) / "result.json"))
                print(f"{number} processes: {runs[-1]['rtfx']:.0f} × real time", flush=True)
    alone, together = (found[number][0]["losses"] for number in found)
    apart = max(abs(one - other) / one for one, other in zip(alone, together, strict=True))
    rates = {n: statistics.median(run["rtfx"] for run in runs) for n, runs in found.items()}
    print("\n| processes | × real time | ratio | first loss | last loss |\n| --- | --- | --- | --- | --- |")
    for number, runs in found.items():
        losses = runs[0]["losses"]
        print(
            f"| {number} | {rates[number]:.0f} | {rates[number] / rates[1]:.2f} | {losses[0]:.4f} | {losses[-1]:.4f} |"
        )
    print(f"loss curves apart by at most {apart:.1e} of the loss")
    if output:
        write_json(output, {"rates": rates, "curves_apart": apart, "runs": found})


if __name__ == "__main__":
    run_stage(lambda: typer.run(main))
