"""How the pages are written: their templates, and numbers in their sentences."""

from pathlib import Path

import jinja2

HERE = Path(__file__).parent
NO_BREAK = "\N{NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"


def number(value: float | None, digits: int = 0) -> str:
    """With spaces between thousands; `not measured` where there is none."""
    return "not measured" if value is None else f"{value:,.{digits}f}".replace(",", NO_BREAK).replace("-", MINUS)


def percent(ratio: float | None) -> str:
    """0.123 as `12.3 %`."""
    return number(ratio) if ratio is None else number(ratio * 100, 1) + NO_BREAK + "%"


def template(package: str, name: str) -> jinja2.Template:
    """A template of dqlora/<package>, which may include those of dqlora/report.

    It escapes what it is given, and a name that it is not given is an error.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([HERE.parent / package, HERE]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"percent": percent, "number": number}
    return environment.get_template(name)
