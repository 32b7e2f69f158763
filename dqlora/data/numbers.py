"""Numbers as they are spoken, where that is certain; CLDR's rules spell them, this module says what a piece of text is.

"Certain" is strict on purpose: a wrong label is trained on, a rejected clip is only missed. Rejected is therefore what
people read in more than one way (10:30, 007, 3/4, $5k, July 4, telephone numbers), what is said otherwise than it is
written (5 km, 5 USD, No. 5, 5 > 3, www.example.com), what a separator leaves open (1,000 in German), and every number
whose words differ by gender, case or counter in CLDR's rules of the language (1 in German).
"""

import unicodedata
from dataclasses import dataclass
from functools import cache, lru_cache

import regex
from unicode_rbnf import RbnfEngine

LARGEST_DIGITS = 12  # of a number that is spelt: CLDR's rules go further, speakers hardly
UNGROUPED_DIGITS = 6  # longer ones without separators are telephone numbers and the like
NAMED_CHARS = 60  # of a piece in a message
YEAR = "spellout-numbering-year"  # names of CLDR's rule sets
NUMBERING = "spellout-numbering"
CARDINAL = "cardinal"  # every cardinal rule set, which must agree
AS_NUMBERS = (CARDINAL, CARDINAL)
IN_HUNDREDS = (YEAR, None)


class BadText(ValueError):
    """A transcript that cannot be used; the message is the reason, in a few words."""


@dataclass(frozen=True)
class Reading:
    """How a language writes and reads numbers. Its separators are CLDR's."""

    rules: str  # name of CLDR's spelling rules
    decimal: str
    group: str  # separators of thousands; space is any kind of space
    point: str = ""  # how the decimal separator is spoken; "" rejects decimals
    singly: bool = False  # more than one decimal is read digit by digit; else rejected
    years: tuple[str | None, str | None] = (None, None)  # rule sets for 1100 to 1999, 2010 to 2099; None rejects
    dot_ordinals: bool = False  # "3." is an ordinal
    doubtful: str = ""  # pattern of words that others say otherwise
    counters: str = ""  # letters after which a number has its plain form, whatever it is before others
    signs: tuple[tuple[str, str], ...] = ()  # how signs are spoken


_DATES = "年月日号號"
# Languages of which it was reviewed that CLDR's words are those people say; most were compared with num2words' too.
# Left out are those whose numbers are declined (Russian, Polish, Finnish ...) or agree with the noun (Arabic, Swahili
# ...), whose rules have mistakes or forms that few say (Greek, Tamil, Lao, Azerbaijani, Romanian ...), and those that
# CLDR has no rules for (Bengali, Urdu ...).
READINGS = {
    "af": Reading("af", ",", " ", "komma", years=IN_HUNDREDS),
    "da": Reading("da", ",", ".", "komma", years=IN_HUNDREDS, dot_ordinals=True, signs=(("%", "procent"), ("&", "og"))),
    "de": Reading("de", ",", ".", "Komma", True, (YEAR, CARDINAL), True, signs=(("%", "Prozent"), ("&", "und"))),
    "en": Reading(
        "en",
        ".",
        ",",
        "point",
        True,
        (YEAR, YEAR),
        doubtful="^nine hundred and eleven$",
        signs=(("%", "percent"), ("&", "and"), ("@", "at")),
    ),
    "es": Reading("es", ",", ". ", "coma", years=(None, CARDINAL), signs=(("&", "y"),)),
    "fa": Reading("fa", "٫", "٬,", doubtful="یک هزار"),
    "fr": Reading("fr", ",", " ", "virgule", years=AS_NUMBERS, signs=(("%", "pour cent"), ("&", "et"))),
    "hi": Reading("hi", ".", ",", "दशमलव", True),
    "id": Reading("id", ",", ".", "koma", True, years=AS_NUMBERS, signs=(("%", "persen"), ("&", "dan"))),
    "it": Reading("it", ",", ".", "virgola", years=AS_NUMBERS, signs=(("&", "e"),)),
    "ja": Reading("ja", ".", ",", "点", True, AS_NUMBERS),
    "kk": Reading("kk", ",", " "),
    "ko": Reading("ko", ".", ",", counters="년일분초원"),
    "ky": Reading("ky", ",", " "),
    "ms": Reading("ms", ".", ",", "perpuluhan", True, years=AS_NUMBERS, signs=(("%", "peratus"), ("&", "dan"))),
    "nl": Reading("nl", ",", ".", "komma", years=(YEAR, CARDINAL), signs=(("%", "procent"), ("&", "en"))),
    "nn": Reading("nn", ",", " ", "komma", years=IN_HUNDREDS, dot_ordinals=True, signs=(("%", "prosent"), ("&", "og"))),
    "no": Reading(
        "no",
        ",",
        " ",
        "komma",
        years=IN_HUNDREDS,
        dot_ordinals=True,
        doubtful="sju|tjue|tretti",
        signs=(("%", "prosent"), ("&", "og")),
    ),
    "pt": Reading("pt", ",", ". ", "vírgula", years=(None, CARDINAL), signs=(("%", "por cento"), ("&", "e"))),
    "sv": Reading("sv", ",", " ", "komma", years=IN_HUNDREDS, signs=(("%", "procent"), ("&", "och"))),
    "th": Reading("th", ".", ",", "จุด", True, years=AS_NUMBERS, doubtful=r"\u200bหนึ่ง$"),
    "tr": Reading("tr", ",", ".", years=AS_NUMBERS, dot_ordinals=True),
    "vi": Reading("vi", ",", ".", "phẩy", years=AS_NUMBERS, doubtful="tư|linh|lẻ", signs=(("%", "phần trăm"),)),
    "yue": Reading("yue", ".", ",", "點", True, AS_NUMBERS, counters=_DATES),
    "zh": Reading("zh", ".", ",", "点", True, AS_NUMBERS, counters=_DATES),
    "zh_Hant": Reading("zh_Hant", ".", ",", "點", True, AS_NUMBERS, counters=_DATES),
}
_GERMANIC_MONTHS = (
    "jan(?:uar[yi]?)?|feb(?:r?uar[yi]?)?|mar(?:ch|s|ts)?|märz|apr(?:il)?|ma[yij]|jun[ei]?|jul[yi]?|aug(?:usti?)?"
    "|sept?(?:ember)?|o[ck]t(?:ober)?|nov(?:ember)?|de[csz](?:ember)?"
)
# By language, patterns of months beside which a day is an ordinal, or read in more than one way (July 4, 4 July).
MONTHS = {
    **dict.fromkeys(("da", "de", "en", "nn", "no", "sv"), _GERMANIC_MONTHS),
    "fa": "ژانویه|فوریه|مارس|آوریل|مه|ژوئن|ژوئیه|اوت|سپتامبر|اکتبر|نوامبر|دسامبر|فروردین|اردیبهشت|خرداد|تیر"
    "|مرداد|شهریور|مهر|آبان|آذر|دی|بهمن|اسفند",
    "kk": r"(?:қаңтар|ақпан|наурыз|сәуір|мамыр|маусым|шілде|тамыз|қыркүйек|қазан|қараша|желтоқсан)\p{L}*",
    "ky": r"(?:январ|феврал|март|апрел|май|июн|июл|август|сентябр|октябр|ноябр|декабр)\p{L}*",
}
# By language, patterns of other words beside which a number is in doubt: codes, ordinals, abbreviations.
BESIDE = {
    "en": "flights?|boeing|airbus",
    "fa": "قرن|سده",
    "hi": r"(?:कि|से|मि)?\.?मी|(?:कि)?\.?ग्रा|रु|व[ींेाँं]+",
    "kk": r"жыл(?!дар)\p{L}+|ғасыр\p{L}*|мин|сек|сағ|га|руб",
    "ky": r"жыл(?!дар)\p{L}+|кылым\p{L}*|мин|сек|га|руб",
    "nl": "u",
    "th": r"(?:กม|ซม|มม|กก|ตร|น|บ|ม|ก|ล)\..*|.*\w\.\w{1,2}",
    "tr": "sa",
}
_SAME = {"cmn": "zh", "nb": "no", "tl": "fil", "iw": "he", "in": "id"}
WITHOUT_SPACES = frozenset({"ja", "km", "lo", "my", "th", "yue", "zh", "zh_Hant"})  # between words

# What is not only letters and punctuation: it is spelt, or in doubt. Also host.name, sh*t and a lone *.
_NUMERIC = regex.compile(
    r"(?V1)[\p{Nd}\p{No}\p{Sc}\p{Sm}%‰&@+°§№ªº′″#\\--|~]|\p{L}{2}\.\p{Ll}{2}|\p{L}\*+\p{L}|(?<!\S)\*(?!\S)"
)
_EDGES = regex.compile(
    r"(?V1)(?P<before>[\p{Ps}\p{Pi}\p{Pf}\"'¡¿*…]*)(?P<core>.*?)(?P<after>[\p{P}--[%‰&@#/\\′″§]]*)", regex.DOTALL
)
_SPACES = regex.compile(r"(\s+)")
_SPACES_AND_SCRIPTS = regex.compile(
    r"(\s+|(?<=[^\x00-\x7f][,.;:!?(\"']?)(?=\d)|(?<=\d[,.;:!?)\"']?)(?=[^\x00-\x7f]))", regex.V1
)
_SPACED_GROUPS = regex.compile(r"(?<![\w.,'-])\d{1,3}(?:[ _]\d{3})+(?![\d_])(?! \d)")
_OPERATORS = frozenset("-=/:*<>~x")
# Abbreviations without a vowel (km, kWh, hrs, kr, Std) need no list. These have one, are often in capitals, or need
# their dot.
_UNITS = regex.compile(
    r"[kcmd]m|[km]g|oz|mi|ha|m/s|km/h|[kmg]?hz|[kmgt]b|[kmg]?wh?|[mk]?v|[mc]?l|m?ah|db|hp|ps|[km]?ω|k?cal|[hkm]pa|atm"
    r"|[kmgt]?bit/s|[kmg]?ev|mol|mins?|secs?|sek|yrs?|yds?|gals?|deg|mio|hab|uds?|ptas?|approx|aprox|n[ou]m"
    r"|(?-i:A|mA|Pa|[KMGT]o)",
    regex.IGNORECASE,
)
_CURRENCY_CODES = regex.compile(
    "aud|brl|chf|cny|czk|dkk|eur|gbp|hkd|huf|idr|inr|jpy|kgs|krw|kzt|mxn|myr|nok|nzd|pln|rm|rmb|rub|sek|sgd|tl|twd|usd|vnd"
    "|zar|(?-i:CAD|THB|TRY)",
    regex.IGNORECASE,
)
_DOTTED = regex.compile(
    "nos?|vol|figs?|art|tel|ca|abb|kap|abs|cap|chap|núm|págs?|ext|ziff|env|tab|sect|op|ed|anm", regex.IGNORECASE
)
_AS_WRITTEN = frozenset({"Mr", "Mrs", "Dr", "pm"})
_VOWELS = "aeiouyæœøıəаеиоуыэюяәөүұіё"
_CONSONANTS = regex.compile(rf"(?V1)[[\p{{Latin}}\p{{Cyrillic}}μΩ]--[{_VOWELS}{_VOWELS.upper()}]]{{1,5}}")
_QUOTES = regex.compile(r"(?<!\w)(?P<opening>['\"])(?=\w)|(?<=\d)(?P<closing>['\"])(?!\w)")
_PRIMES = {"'": "′", '"': "″"}
_DOLLARS = regex.compile(
    r"(?<![\w.,'-])([$€£])\s?(\d[\d,]*(?:\.\d+)?)(\s(?:hundred|thousand|million|billion|trillion))?"
    # Before a noun it is "a five dollar bill": only before what cannot be one.
    r"(?=[.,;:!?)\"']*(?:$|\s*$)|[,;:!?]\s|\.\s|\s(?:a|an|and|as|at|but|by|each|every|for|from|if|in|is|less|more|of|on"
    r"|or|per|than|that|the|this|to|was|were|when|with)\b)",
    regex.IGNORECASE,
)
_CURRENCIES = {"$": "dollar", "€": "euro", "£": "pound"}


def reading_of(language: str) -> Reading | None:
    """How numbers of a language are spelt; None where they are not.

    Parameters
    ----------
    language
        ISO 639 (`de`), or with script and territory as FLEURS names it (`de_de`, `cmn_hans_cn`, `es_419`).
    """
    return READINGS.get(normal_code(language))


def normal_code(language: str) -> str:
    """`cmn_hans_cn` is `zh`, `nb_no` is `no`: the name that the tables of this module have."""
    first, *rest = language.lower().replace("-", "_").split("_")
    code = _SAME.get(first, first)
    return "zh_Hant" if code == "zh" and {"hant", "tw", "hk"} & set(rest) else code


def spell_numbers(text: str, language: str, strict: bool = True) -> str:
    """`text` with its numbers, and the signs that are spoken, in words.

    Parameters
    ----------
    text
        composed (NFC), digits of every script as ASCII, `_` between groups that a no-break space parts.
    language
        as for `reading_of`.
    strict
        whether doubt raises; else numbers in doubt are spelt as best can be, or left: for scoring what others wrote.

    Raises
    ------
    BadText
        naming the piece that cannot be spelt with certainty, or the language that cannot be spelt at all.
    """
    if not _NUMERIC.search(text):
        return text
    code = normal_code(language)
    reading = READINGS.get(code)
    if reading is not None:
        text = _speak_signs(_mark_primes(text), reading)
        if " " in reading.group:
            text = _SPACED_GROUPS.sub(lambda match: match[0].replace(" ", "_"), text)
    joined = code in WITHOUT_SPACES or code == "ko"
    parts = (_SPACES_AND_SCRIPTS if joined else _SPACES).split(text)
    spelt = list(parts)
    for at in range(0, len(parts), 2):
        if not _NUMERIC.search(parts[at]):
            continue
        words = _spell_piece(parts, at, reading) if reading is not None else None
        if words is None and strict:
            piece = _piece_in_context(parts, at, reading)
            if reading is None and regex.search(r"\d", parts[at]):
                raise BadText(f"digits cannot be spelt out in language {language!r}: {piece}")
            raise BadText(f"cannot be spelt out with certainty: {piece}; write it in words")
        spelt[at] = _guess(parts[at], code) if words is None else words
    return "".join(spelt)


def _speak_signs(text: str, reading: Reading) -> str:
    if reading.rules == "en":
        text = _DOLLARS.sub(_dollars, text)
    for sign, spoken in reading.signs:
        text = text.replace(sign, f" {spoken} ")
    return text


def _mark_primes(text: str) -> str:
    """Quotes that close none are feet and inches: he is 6' tall."""
    opened: set[str] = set()

    def mark(match: regex.Match[str]) -> str:
        sign = match["opening"] or match["closing"]
        if match["opening"]:
            opened.add(sign)
        elif sign not in opened:
            return _PRIMES[sign]
        else:
            opened.remove(sign)
        return sign

    return _QUOTES.sub(mark, text)


def _dollars(match: regex.Match[str]) -> str:
    sign, amount, magnitude = match[1], match[2], match[3] or ""
    if "." in amount and not magnitude:
        return match[0]  # $5.50: "five fifty", "five dollars and fifty cents"
    return f"{amount}{magnitude} {_CURRENCIES[sign]}{'' if amount == '1' and not magnitude else 's'}"


def _split_edges(token: str) -> regex.Match[str]:
    match = _EDGES.fullmatch(token)
    assert match is not None  # every part of the pattern may be empty
    return match


def _piece_in_context(parts: list[str], at: int, reading: Reading | None) -> str:
    """The token, and its neighbours where they are numeric or leave it in doubt."""
    kept = [
        parts[near]
        for near in range(max(at - 2, 0), min(at + 3, len(parts)), 2)
        if near == at or _NUMERIC.search(parts[near]) or (reading and _leaves_in_doubt(parts, near, at, reading))
    ]
    piece = _split_edges(" ".join(kept))["core"] or " ".join(kept)
    return piece if len(piece) <= NAMED_CHARS else piece[:NAMED_CHARS] + "…"


def _leaves_in_doubt(parts: list[str], near: int, at: int, reading: Reading) -> bool:
    """Whether a number is read otherwise, or in more than one way, beside this neighbour."""
    word, number = _split_edges(parts[near]), _split_edges(parts[at])
    if not regex.search(r"\d", number["core"]):
        return False
    core, between = word["core"], (word if near < at else number)["after"]
    if parts[near] in _OPERATORS:
        return True
    if between.strip(".") or word["before"].startswith("'"):
        return False  # In 1995, km; om 5 's avonds
    patterns = [BESIDE.get(reading.rules, "")]
    if number["core"].isdigit() and len(number["core"]) <= 2:
        patterns.append(MONTHS.get(reading.rules, ""))
    if any(regex.fullmatch(p, form, regex.IGNORECASE) for p in patterns if p for form in (core, core + word["after"])):
        return True
    if _CURRENCY_CODES.fullmatch(core):
        return True
    if near > at:
        return bool(_UNITS.fullmatch(core)) or _lacks_vowels(core)
    if between:
        return bool(_DOTTED.fullmatch(core)) or _lacks_vowels(core)
    return core in {"No", "Nos"} or (_lacks_vowels(core) and not core.isupper())  # km 5, but F 16


def _lacks_vowels(word: str) -> bool:
    """Whether a word is an abbreviation for want of a vowel; not one that is read by its letters (TVs)."""
    plain = regex.sub(r"\p{M}", "", unicodedata.normalize("NFD", word))
    by_letters = len(plain) > 1 and plain.rstrip("s").isupper()
    return bool(_CONSONANTS.fullmatch(plain)) and not by_letters and word not in _AS_WRITTEN


def _spell_piece(parts: list[str], at: int, reading: Reading) -> str | None:
    """The words of one token, its edges of punctuation dropped; None where they are in doubt."""
    edges = _split_edges(parts[at])
    core = edges["core"]
    before = parts[at - 2] if at >= 2 else ""
    after = parts[at + 2] if at + 2 < len(parts) else ""
    following = _split_edges(after)["core"]
    if any(_leaves_in_doubt(parts, near, at, reading) for near in (at - 2, at + 2) if 0 <= near < len(parts)):
        return None
    if _is_run(before, core) or (not edges["after"] and _is_run(core, following)):
        return None  # 555 1234
    if reading.dot_ordinals and edges["after"].startswith(".") and any(regex.search(r"\w", x) for x in parts[at + 1 :]):
        return None
    if following.lower() in {"am", "pm", "a.m", "p.m", "uhr"} and not core.isdigit():
        return None
    return _spell_word(core, reading, following)


def _is_run(first: str, second: str) -> bool:
    return first.isdigit() and second.isdigit() and len(first + second) > 2


def _spell_word(word: str, reading: Reading, following: str = "") -> str | None:
    if not regex.search(r"\d", word):
        return word if regex.fullmatch(r"(?V1)[\p{L}\p{M}'--ªº]+", word) else None
    match = _number_pattern(reading).fullmatch(word)
    if match:
        return _spell_number(match["whole"], match["fraction"], reading, following)
    if reading.rules == "en":
        return _spell_english(word, reading)
    if match := regex.fullmatch(r"(\p{L}[\p{L}\p{M}]*-|(?:\p{L}+')(?=\d))(\d+)", word):  # covid-19, dell'11
        number = _spell_number(match[2], None, reading, following)
        return number and match[1] + number
    return None


def _spell_english(word: str, reading: Reading) -> str | None:
    """1st, 1990s, 90s, 2024's, and compounds that hold one of these or a number: mid-1990s, 21-year-old."""
    parts = word.split("-")
    if len(parts) > 1:
        spelt = [_spell_word(part, reading) for part in parts]
        one_number = sum(bool(regex.search(r"\d", part)) for part in parts) == 1
        return "-".join(part for part in spelt if part) if one_number and all(spelt) else None
    if match := regex.fullmatch(r"([1-9]\d{0,2}(?:,\d{3}){0,3}|[1-9]\d{0,5})(?:st|nd|rd|th)", word):
        return _spell(int(match[1].replace(",", "")), "en", "spellout-ordinal-verbose")[0]
    if match := regex.fullmatch(r"((?:1[1-9]|20)?[1-9]0|(?:1[1-9]|20)00)s", word):
        decade = match[1]
        words = _spell(int(decade), "en", CARDINAL if decade in {"2000"} else YEAR if len(decade) == 4 else CARDINAL)[0]
        return words[:-1] + "ies" if words.endswith("y") else words + "s"
    if match := regex.fullmatch(r"(\d*[1-9])'s", word):  # 1990's is a decade, or of a year
        number = _spell_number(match[1], None, reading, "")
        return number and number + "'s"
    return None


@cache
def _number_pattern(reading: Reading) -> regex.Pattern[str]:
    group = "[" + regex.escape(reading.group.replace(" ", "") + "_'٬") + "]"
    whole = rf"\d{{1,3}}(?:(?P<group>{group})\d{{3}}(?:(?P=group)\d{{3}})*)|\d+"
    if reading.rules == "hi":  # 12,34,567
        whole = rf"\d{{1,2}}(?:,\d{{2}})+,\d{{3}}|{whole}"
    return regex.compile(rf"(?P<whole>{whole})(?:{regex.escape(reading.decimal)}(?P<fraction>\d+))?")


def _spell_number(whole: str, fraction: str | None, reading: Reading, following: str) -> str | None:
    digits = regex.sub(r"\D", "", whole)
    grouped = digits != whole
    if len(digits) > (LARGEST_DIGITS if grouped else UNGROUPED_DIGITS) or (digits[0] == "0" and len(digits) > 1):
        return None
    value = int(digits)
    if fraction is not None:
        if not reading.point or (len(fraction) > 1 and not reading.singly):
            return None
        if len(fraction) == 3 and value and not grouped:
            return None  # 1.000 in English, 1,000 in German: thousands, to those who write as the others do
        return _join(
            reading,
            _spell(value, reading.rules, NUMBERING)[0],
            reading.point,
            *(_spell(int(digit), reading.rules, NUMBERING)[0] for digit in fraction),
        )
    rules = CARDINAL
    if not grouped and (1100 <= value < 2000 or 2010 <= value < 2100):
        year = reading.years[value >= 2000]
        if year is None and not following.startswith("년"):
            return None
        rules = year or CARDINAL
    if reading.counters and following.startswith(tuple(reading.counters)):
        if following[0] == "年" and len(digits) == 4:
            return "".join(_spell(int(digit), reading.rules, NUMBERING)[0] for digit in digits)
        rules = "spellout-cardinal-sinokorean" if reading.rules == "ko" else NUMBERING
    words = _spell(value, reading.rules, rules)
    in_doubt = len(words) > 1 or (reading.doubtful and regex.search(reading.doubtful, words[0]))
    return None if in_doubt else words[0]


def _join(reading: Reading, *words: str) -> str:
    return ("" if reading.rules in WITHOUT_SPACES else " ").join(words)


@cache
def _engine(rules: str) -> RbnfEngine:
    return RbnfEngine.for_language(rules)


@lru_cache(maxsize=100_000)
def _spell(value: int, rules: str, kind: str) -> tuple[str, ...]:
    """The different words that CLDR's rules give a number; one where it has the same in every gender and case."""
    engine = _engine(rules)
    if rules == "en" and kind in (CARDINAL, NUMBERING):
        kind = "spellout-cardinal-verbose"  # with "and"
    if kind == CARDINAL:
        found = engine.format_number(value).text_by_ruleset
        names = [name for name in found if "financial" not in name and "days" not in name]
        words = tuple(dict.fromkeys(found[name] for name in [NUMBERING, *names] if name in found))
        # CLDR lacks the space of Dutch spelling: tweeduizend tien
        return tuple(regex.sub("duizend(?=.)", "duizend ", each) for each in words) if rules == "nl" else words
    return (engine.format_number(value, ruleset_names=[kind]).text,)


def _guess(token: str, code: str) -> str:
    """Every run of digits in words, for scoring; as it stands where there are no rules, or it is too long."""
    rules = code if code in _SPELLING_RULES else None

    def words(match: regex.Match[str]) -> str:
        digits = regex.sub(r"\D", "", match[0])
        if rules is None:
            return f" {digits} "
        singly = len(digits) > LARGEST_DIGITS or (digits[0] == "0" and len(digits) > 1)
        sign = -1 if match[0].startswith("-") and code in READINGS else 1
        values = [int(digit) for digit in digits] if singly else [sign * int(digits)]
        return " " + " ".join(_spell(value, rules, CARDINAL)[0] for value in values) + " "

    number = r"(?:(?<![\w.,])-)?(?:\d{1,3}(?:([.,_'])\d{3}(?:\1\d{3})*)(?!\d)|\d+)"
    return regex.sub(number, words, regex.sub(r"(?=\p{No})", " ", token))


# No rules at all, or Thai letters amid Lao ones.
_SPELLING_RULES = frozenset(RbnfEngine.get_supported_languages()) - {"root", "lo"}
