"""Under which licence an adapter may be published, by those of what it was made of."""

import re
from collections.abc import Mapping

UNKNOWN = "unknown"
# Licences, as the hub names them, that let others publish what they make of a work under terms of their own, as long
# as they name its source, which the card does. Share-alike, non-commercial, no-derivatives ones are not among them.
PERMISSIVE = frozenset(
    (
        "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc-by-2.0", "cc-by-3.0", "cc-by-4.0", "cc0-1.0", "isc", "mit",
        "unlicense",
    )
)  # fmt: skip
REMARK = re.compile(r"\s*\([^)]*\)$")  # apache-2.0 (made for this project)


def adapter_licence(licences: Mapping[str, str]) -> tuple[str | None, str]:
    """The licence to publish an adapter under, None where not all parts allow one, and the reason in a sentence.

    Conservative: that of the base, if the licence of every part is one of `PERMISSIVE` and nothing else is said of it
    but a remark in brackets.

    Parameters
    ----------
    licences
        of each part by its name, `base` among them.
    """
    names = {part: REMARK.sub("", text.strip().lower()) for part, text in licences.items()}
    barred = {part: licences[part] for part, name in names.items() if name not in PERMISSIVE}
    if not barred:
        return names["base"], "The base's licence; those of all parts allow it."
    said = ", ".join(f"the {part}'s is {text or UNKNOWN}" for part, text in barred.items())
    return None, f"No licence is given, because not all parts are known to allow one: {said}."
