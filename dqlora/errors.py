"""Mistakes of the user's: one line that names the file or parameter and the way out, no traceback."""

import csv
import errno
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path


class UserError(Exception):
    """What went wrong, in one line that names the file or parameter and the way out."""


class BadAudio(ValueError):
    """A recording that cannot be used; the message is the reason, in a few words."""


def first_line(error: BaseException) -> str:
    """Of an error's message; the name of its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def named(names: Sequence[str], most: int = 10) -> str:
    """Names in one line: the first, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def most_frequent(reasons: dict[str, int]) -> str:
    """The three most frequent reasons in one line, each with its count."""
    return ", ".join(f"{reason} ({count})" for reason, count in Counter(reasons).most_common(3))


def counted(reasons: Iterable[str]) -> dict[str, int]:
    """How often each reason stands there, details aside: what follows a colon, or stands in brackets."""
    return dict(Counter(reason.split(":")[0].split(" (")[0] for reason in reasons))


def run_stage(main: Callable[[], None]) -> None:
    """Run a stage; what is the user's to mend, or the disk's, ends it with one line and exit code 1."""
    quieten_libraries()
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # names need not be UTF-8
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except Exception as error:
        file = getattr(error, "filename2", None) or getattr(error, "filename", None)
        if is_of_full_disk(error):
            sys.exit(f"error: no space left on the disk ({file or 'output'}); free some and run `dvc repro` again")
        if is_not_allowed(error):
            sys.exit(f"error: {file or first_line(error)}: not allowed; change its rights and run `dvc repro` again")
        raise
    except KeyboardInterrupt:
        sys.exit("interrupted; `dvc repro` goes on from here")


def is_of_full_disk(error: Exception) -> bool:
    """Whether a disk or a quota is full; safetensors and others in Rust say so in their message alone."""
    return _is_of(error, errno.ENOSPC, errno.EDQUOT)


def is_not_allowed(error: Exception) -> bool:
    """Whether a file may not be read or written, by its rights or because its disk is read-only."""
    return _is_of(error, errno.EACCES, errno.EPERM, errno.EROFS)


def _is_of(error: Exception, *numbers: int) -> bool:
    return getattr(error, "errno", None) in numbers or any(f"(os error {number})" in str(error) for number in numbers)


def quieten_libraries() -> None:
    """Leave the terminal to the stage's own lines and progress bars."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if "transformers" in sys.modules:
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()


class Rejected:
    """Items that a stage rejects, each with its reason: counted, named, written beside the stage's output."""

    def __init__(self) -> None:
        self.items: list[tuple[str, str, str]] = []

    def add(self, split: str, item: str, reason: str) -> None:
        self.items.append((split, item, reason))

    def count(self, split: str) -> int:
        return sum(of == split for of, _, _ in self.items)

    def counts(self, split: str | None = None) -> dict[str, int]:
        """How many items were rejected for each reason, details aside; of one split or of all."""
        return counted(reason for of, _, reason in self.items if split in (None, of))

    def write(self, folder: Path) -> None:
        """Write rejected.csv (split, id, reason), and show what stands in it."""
        with (folder / "rejected.csv").open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("split", "id", "reason"))
            rows.writerows(self.items)
        self.show(", all in rejected.csv")

    def show(self, others: str = "", named: int = 20) -> None:
        """Print the first `named` items, and of the others their number and where they are."""
        if self.items:
            print(f"rejected: {len(self.items)}")
        for split, item, reason in self.items[:named]:
            print(f"  {split}/{item}: {reason}")
        if len(self.items) > named:
            print(f"  and {len(self.items) - named} more{others}")
