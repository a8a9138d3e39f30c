"""From what people write about a video to words, and whether that is English.

The rules are those of the paper. Keywords: lower case, no punctuation, no digits, without the words "and" and "the".
Titles: no symbols and no punctuation; case, digits and stop words stay. Punctuation and symbols are those of Unicode.
An apostrophe goes without a trace ("don't": dont); every other mark parts words ("hip-hop": hip hop), or two words that
nothing but a mark holds apart would become one that nobody knows. For the same reason keywords need no separator
named: commas, bars and line ends part words alike.

Wang et al., "Truly Multi-modal YouTube-8M Video Classification with Video, Audio, and Text" (2017), section 3.1.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Container, Iterable, Sequence
from functools import lru_cache

STOP_WORDS = frozenset({"and", "the"})
_APOSTROPHES = "'\u2019\u02bc`\u00b4"


class _Marks(dict[int, str | None]):
    """For `str.translate`: what becomes of a character, worked out when it is first met."""

    def __init__(self, digits: bool) -> None:
        self._digits = digits

    def __missing__(self, code: int) -> str | None:
        character = chr(code)
        kind = unicodedata.category(character)
        becomes: str | None = character
        if character in _APOSTROPHES or (not self._digits and kind[0] == "N"):
            becomes = None
        elif kind[0] in "PSZC":
            becomes = " "
        self[code] = becomes
        return becomes


_KEYWORDS, _TITLES = _Marks(digits=False), _Marks(digits=True)


def title_words(text: str) -> list[str]:
    """The words of a title, in order."""
    return unicodedata.normalize("NFC", text).translate(_TITLES).split()


def keyword_words(text: str) -> list[str]:
    """The words of a list of keywords, in order, however it is parted."""
    words = unicodedata.normalize("NFC", text).lower().translate(_KEYWORDS).split()
    return [word for word in words if word not in STOP_WORDS]


def label_words(name: str) -> frozenset[str]:
    """The words of a label's name, in lower case; to be compared with words in lower case."""
    return frozenset(title_words(name.lower()))


def without(words: Iterable[str], unwanted: Container[str]) -> list[str]:
    """The words that are not, in lower case, among the unwanted ones."""
    return [word for word in words if word.lower() not in unwanted]


def is_known_ascii(words: Sequence[str], known: Container[str], share: float) -> bool:
    """Whether at least this share of the words is ASCII and known. No word at all is not.

    With the vocabulary of English word vectors it tells English from other languages, roughly: Spanish loses by its
    accents and by most of its words, not by those that English texts contain as well.
    """
    return bool(words) and sum(word.isascii() and word in known for word in words) >= share * len(words)


def is_english(text: str) -> bool:
    """Whether a language detector, py3langid, takes the text for English; ValueError where it is not installed.

    M. Lui and T. Baldwin, "langid.py: An Off-the-shelf Language Identification Tool" (ACL 2012). Of a title of a few
    words it often errs: names and loan words look foreign.
    """
    return bool(_detector()(text)[0] == "en")


@lru_cache(maxsize=1)
def _detector() -> Callable[[str], tuple[str, float]]:
    try:
        import py3langid
    except ImportError:
        raise ValueError(
            "dataset.text.english: detector needs the package py3langid: pip install 'mmray[language]'; "
            "english: ascii_vocabulary needs nothing"
        ) from None
    return py3langid.classify  # type: ignore[no-any-return]
