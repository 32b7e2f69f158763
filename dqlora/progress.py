"""Progress of a long loop: a bar on a terminal, now and then a line in a log."""

from typing import Any

from tqdm import tqdm

LOG_EVERY = 30.0  # seconds


class ProgressBar(tqdm):
    """A tqdm bar; where stderr is no terminal, a line every LOG_EVERY seconds, and one when it is closed.

    `what: count of total unit, seconds, postfix`. With `leave=False` none stands for the end.
    """

    def __init__(self, *args: Any, **options: Any):
        self._logged = 0.0  # seconds from the start to the last line
        super().__init__(*args, **options)
        if not self.disable and not self.fp.isatty():
            self.mininterval, self.miniters, self.dynamic_miniters = LOG_EVERY, 0, False

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        if self.fp.isatty():
            return super().display(msg, pos)
        closing = msg is None and pos == 0  # `close` then ends the line
        seconds, under_way = self.format_dict["elapsed"], self.total is None or self.n < self.total
        if closing or (msg is None and under_way and seconds >= self._logged + LOG_EVERY):
            self._logged = seconds
            self.fp.write(self._line(seconds, closing) + ("" if closing else "\n"))
            self.fp.flush()
        return None

    def _line(self, seconds: float, closing: bool) -> str:
        count, total = (
            self.format_sizeof(number) if self.unit_scale and number else str(number) for number in (self.n, self.total)
        )
        of_total = f" of {total}" if self.total and not closing else ""
        postfix = f", {self.postfix}" if self.postfix else ""
        return f"{self.desc.removesuffix(': ')}: {count}{of_total} {self.unit.strip()}, {seconds:.0f} s{postfix}"
