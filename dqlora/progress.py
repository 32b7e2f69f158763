"""Progress of a long loop: a bar on a terminal, one line at its end in a log."""

from typing import Any

from tqdm import tqdm


class ProgressBar(tqdm):
    """A tqdm bar; where stderr is no terminal, only `what: count unit, seconds` when it is closed.

    With `leave=False` nothing of it stays, in a log neither.
    """

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        if self.fp.isatty():
            return super().display(msg, pos)
        if msg is None and pos == 0:  # as `close` calls it, which then ends the line
            seconds = self.format_dict["elapsed"]
            self.fp.write(f"{self.desc.removesuffix(': ')}: {self.n} {self.unit.strip()}, {seconds:.0f} s")
        return None
