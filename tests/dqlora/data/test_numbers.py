import random
import re
import time
import unicodedata
from pathlib import Path

import pytest

from dqlora.data.numbers import READINGS, BadText, reading_of
from dqlora.data.text import spell_out

PAGE = Path("docs/languages.md")
FLEURS = re.findall(r"\b[a-z]{2,3}(?:_[a-z0-9]{2,4})+\b", PAGE.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("language", "written", "spoken"),
    [
        ("en", "in the mid-1990s and the '90s", "in the mid nineteen nineties and the nineties"),
        ("en", "a 21-year-old, the 2nd and 1,000th", "a twenty one year old the second and one thousandth"),
        ("en", "1,234.5 and 0.25", "one thousand two hundred and thirty four point five and zero point two five"),
        ("en", "$3.5 million, $1 and £20.", "three point five million dollars one dollar and twenty pounds"),
        ("en", "$5 for 50 % of COVID-19", "five dollars for fifty percent of covid nineteen"),
        ("en", "in 1905, 2005 and 2024", "in nineteen oh five two thousand and five and twenty twenty four"),
        ("en", "one (2) \u201c3\u201d 4! 1\u202f000", "one two three four one thousand"),
        ("de", "10.000 Menschen, 2,5 Millionen", "zehntausend menschen zwei komma fünf millionen"),
        ("de", "1.000.000 Euro", "eine million euro"),
        ("de", "21 Äpfel 1995, 50 %", "einundzwanzig äpfel neunzehnhundertfünfundneunzig fünfzig prozent"),
        ("de", "1'000, 1’000 und 1\u00a0000", "eintausend eintausend und eintausend"),
        ("fr", "1 000 000 et 10\u202f000", "un million et dix mille"),
        ("fr", "en 1995, 2,5", "en mille neuf cent quatre vingt quinze deux virgule cinq"),
        ("es", "10.000 y 2,5", "diez mil y dos coma cinco"),
        ("pt", "10.000", "dez mil"),
        ("sv", "10 000", "tiotusen"),
        ("nb_no", "10 000", "ti tusen"),
        ("hi", "1,00,000", "एक लाख"),
        ("hi", "१२", "बारह"),
        ("fa", "۲۵", "بیست و پنج"),
        ("th", "๒๕", "ยี่สิบห้า"),
        ("vi", "năm 1995", "năm một nghìn chín trăm chín mươi lăm"),
        ("id", "1995 2,5", "seribu sembilan ratus sembilan puluh lima dua koma lima"),
        ("zh", "在1995年有3个，１０月", "在一九九五年有三个 十月"),
        ("zh", "2024年5月", "二〇二四年五月"),
        ("yue_hant_hk", "2005年", "二零零五年"),
        ("zh_tw", "10000", "一萬"),
        ("ja", "1,500人", "千五百人"),
        ("ko", "1995년", "천구백구십오년"),
        ("en", "in May 1995, July 2017", "in may nineteen ninety five july twenty seventeen"),
        ("en", "in May, 12 people", "in may twelve people"),
        ("en", "the 4th of July", "the fourth of july"),
        ("en", "5 pm, 4 TVs, 3 CDs of 32 NBA teams", "five pm four tvs three cds of thirty two nba teams"),
        (
            "en",
            "In 1995, Dr. King, in 2005 Mr. Rudd",
            "in nineteen ninety five dr king in two thousand and five mr rudd",
        ),
        ("en", "F 16 in the U.S. 20 times", "f sixteen in the u s twenty times"),
        ("en", "'room for 6' and a \"class of 7\"", "room for six and a class of seven"),
        ("en", "2024's best", "twenty twenty four's best"),
        ("en", "the end.Then 5 a day", "the end then five a day"),
        ("es", "5 y 6, el 4 de julio", "cinco y seis el cuatro de julio"),
        ("fr", "le 4 juillet", "le quatre juillet"),
        ("it", "5 e 6, ha 5 anni", "cinque e sei ha cinque anni"),
        ("es", "mi 5 y no mi 6", "mi cinco y no mi seis"),
        ("sv", "min 5 vänner", "min fem vänner"),
        ("en", "the BBC. 5 men on TV 6 at LA. 7", "the bbc five men on tv six at la seven"),
        ("nl", "om 5 's avonds, 4 juli", "om vijf s avonds vier juli"),
        ("nl", "2010, 10.500 en 2024", "tweeduizend tien tienduizend vijfhonderd en tweeduizend vierentwintig"),
        ("sv", "5 dagar i juli 1995", "fem dagar i juli nittonhundranittiofem"),
        ("de", "im Mai 1995 um 5 Uhr", "im mai neunzehnhundertfünfundneunzig um fünf uhr"),
        ("kk", "5 жыл", "бес жыл"),
        ("vi", "5 tỷ", "năm tỷ"),
        ("th", "มี 5 คน", "มี ห้า คน"),
        ("zh", "10公里", "十公里"),
    ],
)
def test_certain_numbers_are_spelt(language: str, written: str, spoken: str) -> None:
    assert spell_out(written, language) == spoken


@pytest.mark.parametrize(
    ("language", "written", "named"),
    [
        *(("en", piece, piece) for piece in ("10:30", "3/4", "007", "$5k", "$5.50", "-5", "5-10", "12.05.2020", "9am")),
        *(("en", piece, piece) for piece in ("½", "5²", "5 km", "555 1234", "+49", "5551234567", "1.000", "1,00,000")),
        *(("en", piece, piece) for piece in ("#1", "5'30", "20°C", "2 + 2", "A380", "①", "9" * 40, "¥5")),
        *(("en", piece, piece) for piece in ("5 dB", "5 hrs", "5 mins", "5 yrs", "5 USD", "USD 5", "5 eur", "5 V")),
        *(("en", piece, piece) for piece in ("5 s", "5 kWh", "5 Ω", "p. 5", "Fig. 5", "No 5", "Nos. 5", "nº 5", "# 5")),
        *(("en", piece, piece) for piece in ("July 4", "5 May", "Jan. 5", "12 OCT", "1990's", "911", "Boeing 747")),
        *(("en", piece, piece) for piece in ("5 A", "5 ≥ 3", "= 5", "<b>5</b>")),
        ("en", "5 µm", "5 μm"),
        ("en", "3 vs. 4", "3 vs"),
        ("en", "July 4, 1776, we", "July 4, 1776"),
        ("en", "he is 6' tall", "6′"),
        ("en", "he is 6'2\" tall", "6'2″"),
        ("en", 'a 5" screen', "5″"),
        ("en", "see www.example.com", "www.example.com"),
        ("en", "joe@example.com", "example.com"),
        ("en", "hello\\nworld", "hello\\nworld"),
        ("en", "oh sh*t", "sh*t"),
        ("en", "a <unk> b", "<unk>"),
        ("en", "press #", "#"),
        ("en", "press * to end", "*"),
        ("ru", "см. example.com", "example.com"),
        *((code, piece, piece) for code in ("es", "fr", "it", "pt") for piece in ("nº 5", "n.º 5", "5ª", "5 kg")),
        *(("de", piece, piece) for piece in ("5 Std", "5 EUR", "5 Sek", "5 Mio", "Nr. 5", "S. 5", "Abb. 5", "4 Mai")),
        *(("fr", piece, piece) for piece in ("5 Go", "5 mn", "chap. 5", "art. 5")),
        *(("es", piece, piece) for piece in ("5 ptas", "5 uds", "núm. 5", "pág. 5")),
        *((code, piece, piece) for code in ("sv", "da", "nb") for piece in ("5 kr", "kl. 10", "4 juli", "5 st")),
        *(("tr", piece, piece) for piece in ("5 TL", "5 dk", "5 sa")),
        *(("id", piece, piece) for piece in ("Rp 5", "5 jt", "RM 5")),
        ("nl", "5 u", "5 u"),
        ("vi", "5 đ", "5 đ"),
        *(("kk", piece, piece) for piece in ("5 км", "5 млн", "2005 жылы", "4 шілде")),
        *(("hi", piece, piece) for piece in ("5 किमी", "5 कि.मी", "5 वीं")),
        *(("th", f"{piece}.", piece) for piece in ("5 กม", "10.30 น")),
        ("th", "พ.ศ. 2543", "พ.ศ. 2543"),
        ("fa", "۵ ژوئیه", "5 ژوئیه"),
        ("en", "2.30 pm", "2.30"),
        ("en", "a $5 bill", "$5"),
        ("de", "1 Stunde", "1"),
        ("de", "am 3. Mai", "3. Mai"),
        ("de", "1,000", "1,000"),
        ("de", "10:30 Uhr", "10:30"),
        ("de", "5 €", "5 €"),
        ("fr", "10.000", "10.000"),
        ("fr", "1re", "1re"),
        ("fr", "21", "21"),
        ("es", "200 personas", "200"),
        ("es", "2.5", "2.5"),
        ("pt", "2 horas", "2"),
        ("it", "1º", "1º"),
        ("zh", "2个", "2"),
        ("ko", "3명", "3"),
        ("hi", "1995", "1995"),
        ("sv", "2024", "2024"),
        ("vi", "24", "24"),
        ("nb_no", "7", "7"),
        ("th", "101", "101"),
        ("en", "No. 5", "No. 5"),
        ("es", "en 1995", "1995"),
        ("ru", "5 городов", "5"),
        ("ar", "٥ كتب", "5"),
        ("am", "123456", "123456"),
        ("xx", "21", "21"),
    ],
)
def test_numbers_in_doubt_are_named(language: str, written: str, named: str) -> None:
    with pytest.raises(BadText) as refused:
        spell_out(f"{written}", language)
    assert str(refused.value).removesuffix("; write it in words").endswith(f": {named}")


@pytest.mark.parametrize("language", sorted(READINGS))
def test_numbers_are_spelt_in_letters_of_their_language(language: str) -> None:
    numbers = (5, 8, 16, 25, 43, 76, 98, 100, 300, 480, 5000, 60_000, 750_300, 6_000_000)
    spelt = []
    for number in numbers:
        try:
            spelt.append(spell_out(f"{number}", language))
        except BadText:
            continue
    assert spelt and len(set(spelt)) == len(spelt)
    latin = [unicodedata.name(char).startswith("LATIN") for char in "".join(spelt) if char.isalpha()]
    assert all(latin) or not any(latin)


def test_all_languages_of_fleurs_spell_or_reject_in_time() -> None:
    assert len(set(FLEURS)) == 102
    started = time.perf_counter()
    for language in FLEURS:
        for written in (
            "5",
            "21",
            "1995",
            "12.05.2020",
            "05/12/2020",
            "2,5",
            "2.5",
            "1,000",
            "1.000",
            "10 000",
            "10.000,5",
        ):
            try:
                spelt = spell_out(written, language)
            except BadText as reason:
                assert written.split()[0] in str(reason)
            else:
                assert spelt and not any(char.isdigit() for char in spelt)
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize("language", ["en", "de", "fr", "zh", "hi", "am", "zu", "lo"])
def test_no_number_stops_a_run(language: str) -> None:
    draw = random.Random(language)
    for _ in range(300):
        written = "".join(draw.choices("0123456789.,:/-%$€°½² '’abst\u202f्年", k=draw.randrange(1, 40)))
        assert isinstance(spell_out(written, language, strict=False), str)
        try:
            assert not re.search(r"\d", spell_out(written, language))
        except BadText:
            continue


@pytest.mark.parametrize("piece", ["1", "1,", "1 ", "1-", "'1", "1.1", "$1,", "½", "1 000 ", "(1"])
def test_long_texts_take_no_longer_than_they_are(piece: str) -> None:
    started = time.perf_counter()
    with pytest.raises(BadText):
        spell_out(piece * 5000 + "0:0", "en")
    assert time.perf_counter() - started < 5


def test_the_page_says_which_languages_spell_digits() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (\w+) \| (\w+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    said = {code: (decimals, before, after) for code, decimals, before, after in rows}
    assert said == {
        code: (
            "no" if not reading.point else "all" if reading.singly else "one",
            *("yes" if rules else "no" for rules in reading.years),
        )
        for code in FLEURS
        if (reading := reading_of(code))
    }
