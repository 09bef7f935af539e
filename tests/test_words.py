"""Texts use plain words: the list holds words and phrases that the project does not use."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KINDS = (".py", ".md", ".toml", ".sh", ".ipynb", ".yml", ".css", ".js")
# What to write instead; a pattern matches whole words, in any case.
WORDS = {
    r"mend(s|ed|ing)?": "correct, repair, fix",
    r"reckon(s|ed|ing)?": "compute, count, estimate",
    r"in vain": "wasted, without a result",
    r"whoever": "everyone who, a reader who",
    r"all but": "almost, all except",
    r"cannot be meant": "invalid",
    r"aloud": "(leave out)",
    r"dear(er|est)?": "expensive",
    r"lest": "so that .. not",
    r"hindsight": "extrapolation inflation",
    r"anew": "again",
    r"given up for lost": "declared failed",
    r"heed(s|ed|ing)?": "follow, respect",
    r"nought": "zero",
    r"thereof": "of it",
    r"therein": "in it",
    r"aught": "anything",
    r"ere": "before",
    r"betide": "happen",
    r"twice over": "twice",
    r"for ever": "forever, without end",
    r"(goes|gone|go|went) on with": "continue, resume",
    r"by turns": "alternately, in turns",
    r"what came of": "the result of",
    r"means nothing to": "is not an option of",
    r"none other": "only",
    r"looks? after": "monitor",
    r"lets? go of": "release",
    r"hand(s|ed|ing)? on": "pass",
    r"under way": "running",
    r"the floors of the house": "the layers",
    r"whatever": "any, every",
    r"besides": "also, in addition to",
    r"menu": "run pool, list",
    r"told from": "detected from",
    r"judg(e|es|ed|ing)": "assess, evaluate, compare",
    r"as meant": "as intended",
    r"a moment of": "a short",
    r"so many": "the given number of",
    r"belie(f|fs|ve|ves|ved)": "posterior, fit_posterior",
}
# Where a listed word is a name or a quotation: file and the text around it.
ALLOWED = {("tests/test_words.py", None)}


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """Return the text of each tracked file, by its path."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: the files to read are not known")
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    names = [name for name in names if name.endswith(KINDS) and (ROOT / name).exists()]
    return {name: (ROOT / name).read_text(encoding="utf-8") for name in names}


def offenders(text: str, pattern: str) -> list[tuple[int, str]]:
    """Return the lines that hold the words, also where they are broken over two lines."""
    # A search for the letters that the pattern begins with is 50 times faster.
    begin = re.match(r"[a-z]*(?![a-z?])|[a-z]*(?=[a-z]\?)", pattern)
    if begin is not None and begin.group() not in text.lower():
        return []
    spaced = pattern.replace(" ", r"\s+(?:[#*>|]\s+)?")
    found = re.finditer(rf"(?<![\w-]){spaced}(?![\w-])", text, re.IGNORECASE)
    return [
        (
            text.count("\n", 0, m.start()) + 1,
            " ".join(w for w in m.group().split() if w.strip("#*>|")),
        )
        for m in found
    ]


@pytest.mark.parametrize("pattern", WORDS)
def test_the_project_does_not_use(texts, pattern):
    found = [
        f"{name}:{line}: {words!r}"
        for name, text in texts.items()
        if (name, None) not in ALLOWED
        for line, words in offenders(text, pattern)
    ]
    assert not found, f"write instead: {WORDS[pattern]}\n" + "\n".join(found)


def test_the_search_finds_words_across_lines_and_leaves_parts_of_words():
    assert offenders("We are all\n    # but done", "all but") == [(1, "all but")]
    assert offenders("Reckoned.", r"reckon(s|ed|ing)?") == [(1, "Reckoned")]
    assert offenders("Look after it", r"looks? after") == [(1, "Look after")]
    assert offenders("It went on with", r"(goes|went) on with") == [(1, "went on with")]
    assert not offenders("amend, recommend, here, clothed", r"mend(s|ed|ing)?")
    assert not offenders("where there", "ere")
    assert not offenders("dear_name = 1", r"dear(er|est)?")
