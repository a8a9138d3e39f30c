"""From text to words by the two rules, and what is taken for English."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmray.features import text

TITLES = {
    "Guitar Solo - Live in Paris (2013) [HD]!": ["Guitar", "Solo", "Live", "in", "Paris", "2013", "HD"],
    "The Cat and the Dog": ["The", "Cat", "and", "the", "Dog"],
    "Don\u2019t Stop, Rock'n'Roll": ["Dont", "Stop", "RocknRoll"],
    "hip-hop|rap/R&B": ["hip", "hop", "rap", "R", "B"],
    "★ NEW ★ 50% off → $5 ™ 😀": ["NEW", "50", "off", "5"],
    "under_score": ["under", "score"],
    "Café cafe\u0301 naïve": ["Café", "café", "naïve"],
    "東京タワー、夜景": ["東京タワー", "夜景"],
    "\u00a0tab\tand\u2003spaces\u200b ": ["tab", "and", "spaces"],
    "": [],
    "!!! ... ???": [],
}
KEYWORDS = {
    "Guitar,Live Music;THE Band|and|rock'n'roll": ["guitar", "live", "music", "band", "rocknroll"],
    "mp3,2013,iPhone 5s,½": ["mp", "iphone", "s"],
    "sand,theory,hand": ["sand", "theory", "hand"],
    "Black-Ops\nCall of Duty": ["black", "ops", "call", "of", "duty"],
    "STRASSE,Éclair": ["strasse", "éclair"],
    "game,game": ["game", "game"],
    "": [],
}


@pytest.mark.parametrize(("title", "words"), TITLES.items())
def test_titles_lose_symbols_and_punctuation_alone(title: str, words: list[str]) -> None:
    assert text.title_words(title) == words


@pytest.mark.parametrize(("keywords", "words"), KEYWORDS.items())
def test_keywords_lose_case_digits_and_two_stop_words_as_well(keywords: str, words: list[str]) -> None:
    assert text.keyword_words(keywords) == words


@given(st.text())
def test_words_are_their_own_words(content: str) -> None:
    for rule in (text.title_words, text.keyword_words):
        words = rule(content)
        assert rule(" ".join(words)) == words
        assert all(word and not word.isspace() for word in words)
    assert not {"and", "the"} & set(text.keyword_words(content))


def test_labels_words_are_left_out_whatever_their_case() -> None:
    assert text.label_words("Call of Duty: Black Ops") == {"call", "of", "duty", "black", "ops"}
    words = ["Call", "me", "BLACK", "duty", "Dutyfree"]
    assert text.without(words, text.label_words("Call of Duty: Black Ops")) == ["me", "Dutyfree"]


def test_english_is_ascii_and_known() -> None:
    known = {"the", "cat", "sat", "café", "película"}
    assert text.is_known_ascii(["the", "cat", "xyzzy"], known, 0.5)
    assert not text.is_known_ascii(["the", "xyzzy", "plugh"], known, 0.5)
    assert not text.is_known_ascii(["película", "café"], known, 0.5)
    assert text.is_known_ascii(["the", "xyzzy"], known, 0.5)
    assert not text.is_known_ascii([], known, 0.0)


def test_a_detector_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "py3langid", None)
    text._detector.cache_clear()
    with pytest.raises(ValueError, match=r"english: detector needs .* pip install 'mmray\[language\]'"):
        text.is_english("a title")


def test_the_detector_knows_whole_sentences() -> None:
    pytest.importorskip("py3langid")
    text._detector.cache_clear()
    assert text.is_english("How to repair the engine of an old car in your own garage")
    assert not text.is_english("Wie man den Motor eines alten Autos in der eigenen Garage repariert")
