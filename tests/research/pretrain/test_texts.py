import gzip
from argparse import Namespace
from collections import Counter
from pathlib import Path

import pytest

from research.pretrain import texts

WEBSTER = r"""
00-database-info
   Notes on this file are no text.

A \A\, n.
   The first letter.

Glimmerfish \Glim"mer*fish`\ (gl[i^]m"m[~e]r*f[i^]sh`), n. [OE.
   glimeren (see {Glimmer}), fr. L. ?.] (Zool.)
   1. A small silvery fish ({Lumen parvum}) of cold
      lakes; the lantern carp. See {Carp}. [Obs.] --Smith.
      [1913 Webster]

            The glimmerfish rose to our lamp.     --J. R.
                                                  Jones.
      [1913 Webster]

   2. Fig.: Anything dim; as, a glimmerfish of hope, etc. It has
      12 fins. "Slow glimmering fins." -- {Glim"mer*y}, a.
      [1913 Webster]

   {To catch a glimmerfish}, to waste the night; -- so
      used of idle anglers in caf['e]s.
      [1913 Webster] Glimpsed
"""


def write_sources(folder: Path) -> Namespace:
    """Small sources of every kind; what the command line would say of them."""
    (folder / "news.txt").write_text('"The harbour is frozen."\nBoats wait for spring.\nA lamp was lit.)\n')
    for name, text in {
        "speeches/1850_a.txt": "We dug a canal. Ye hath dug.\n",
        "speeches/1950_b.txt": "We built a dam.\n",
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / "novel").mkdir()
    (folder / "novel" / "chapter_1.txt").write_text("The whale sank quietly. The qwxzt sank quietly.\n")
    for name in ("noun", "verb", "adj", "adv"):
        line = f'00 03 n 02 heron 0 grey_heron 0 000 | a {name} wading bird; "herons stood in the reeds"  \n'
        (folder / f"data.{name}").write_text(f"  1 a licence\n{line}")
    with gzip.open(folder / "gcide.dict.dz", "wt") as file:
        file.write(WEBSTER)
    (folder / "known").write_text("a canal carp chapter dug fish grey heron lantern quietly sank whale")
    (folder / "metadata.csv").write_text(
        "file_name,transcription\na.wav,the lantern carp\nb.wav,boats wait for spring\n"
    )
    (folder / "held.txt").write_text("We built a dam!\nwhale\nThe whale sank quietly.\n")
    paths = {"sentences": "news.txt", "speeches": "speeches", "webster": "gcide.dict.dz"}
    (folder / "common").write_text("harbours\nwhale\nwhale's\nBoston\n")
    paths |= {"novel": "novel", "known": "known", "common": "common"}
    held_out = [folder / "metadata.csv", folder / "held.txt"]
    return Namespace(wordnet=folder, held_out=held_out, **{key: folder / paths[key] for key in paths})


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Namespace:
    monkeypatch.setattr(texts, "LINES", {"news": 6, "prompts": 5, "orders": 5})
    return write_sources(tmp_path)


def test_webster_gives_definitions_and_quotations(sources: Namespace) -> None:
    assert texts.webster(sources.webster) == {
        "The first letter",
        "A, the first letter",
        "A small silvery fish of cold lakes",
        "Glimmerfish, a small silvery fish of cold lakes",
        "the lantern carp",
        "The glimmerfish rose to our lamp",
        "a glimmerfish of hope",
        "Slow glimmering fins",
        "To catch a glimmerfish, to waste the night",
    }


def test_wordnet_gives_its_words_before_their_definitions(sources: Namespace) -> None:
    entries, headed = texts.wordnet(sources.wordnet)
    kinds = ("noun", "verb", "adj", "adv")
    assert entries == {"herons stood in the reeds", *(f"a {kind} wading bird" for kind in kinds)}
    assert headed == {f"{word}, a {kind} wading bird" for word in ("heron", "grey heron") for kind in kinds}


def test_a_line_is_taken_for_its_rare_words() -> None:
    counts = Counter({"the": 9, "boat": 9, "sank": 2})
    pool = ["the boat", "the boat sank", "The boat sank, the", "a sank boat"]
    assert texts.selected(pool, 1, 3, counts) == ["the boat sank", "a sank boat"]
    assert counts == {"the": 10, "boat": 11, "sank": 4, "a": 1}
    assert texts.selected(["a new boat", "a boat"], 2, 3, counts) == ["a new boat"]


def test_common_words_come_up_often_enough(sources: Namespace) -> None:
    counts = Counter(word for line in texts.compose(sources) for word in texts.bare(line).split())
    assert counts["harbours"] == texts.LISTED_OFTEN <= counts["whale"]
    assert counts["boston"] == counts["whale's"] == 0


def test_no_held_out_sentence_is_written(sources: Namespace) -> None:
    written = set(map(texts.bare, texts.compose(sources)))
    assert written.isdisjoint({"the lantern carp", "boats wait for spring", "we built a dam", "the whale sank quietly"})
    assert {"we dug a canal", "a lamp was lit", "a noun wading bird", "heron a noun wading bird"} <= written
    assert not any("qwxzt" in line or "hath" in line for line in written)
    sources.held_out = [sources.known]
    assert {"the lantern carp", "boats wait for spring", "we built a dam", "the whale sank quietly"} <= set(
        map(texts.bare, texts.compose(sources))
    )


def test_held_out_numbers_are_refused_as_they_are_read(tmp_path: Path) -> None:
    (tmp_path / "held.txt").write_text("It sank in 1987.\nHello\nPress * to pause.\n")
    assert texts.held_out_texts([tmp_path / "held.txt"]) >= {
        "it sank in",
        "it sank in nineteen eighty seven",
        "press to pause",
    }


def test_the_same_sources_give_the_same_text(sources: Namespace) -> None:
    assert texts.compose(sources) == texts.compose(sources)
