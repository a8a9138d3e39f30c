"""What is written about the made-up videos: a vocabulary, titles, keywords, and vectors of the words.

Made like what people write in the respects that decide which model of text is good at it:

- A long tail. A class has its name and WORDS_OF_A_CLASS other words (songs, models, players: made up, most of them), a
  vertical has words too, and each list is used by Zipf's law; so are NUM_PEOPLE names, which tell nothing. Many words
  are met a few times, or never before the test videos.
- Synonyms. The vectors of all words of a class lie around one direction, which is in part that of its vertical: what a
  rare word is about can be known by its neighbours. Words of one kind (of topics, of people, those that hold sentences
  together) have a part of their vectors in common, too.
- Order. Of an English compound the last word says what a thing is and those before it only of what kind: a car film is
  a film. And what comes after "without" or "unlike" is not there.
- Compounds of which no word alone says anything, as "Call of Duty". A class has a pair of common words that stands for
  it; the other way round it stands for another class.
- What is special. People name a song sooner than music: of RAREST_OF labels of a video its rarest is named.
- Filler. About half of the words of a title are common ones, people, or hold sentences together.
- Keywords are a bag of words, for their phrases are taken apart; and many are of topics that the video is not about, of
  popular topics above all: viewers do not see them, they are there to be found by.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from mmray.datasets.synthetic._youtube8m_words import (
    COMMON_WORDS,
    FOREIGN_WORDS,
    JOINING_WORDS,
    TITLE_ENDINGS,
    TURNING_WORDS,
    VERTICALS,
)
from mmray.features.text import title_words

Ints = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.floating[Any]]
Vectors = dict[str, npt.NDArray[np.float32]]

WORD_VECTOR_SIZE = 32
WORDS_OF_A_CLASS = 32
WORDS_OF_A_VERTICAL = 48  # beside those of the table
NUM_PEOPLE = 1500
RAREST_OF = 3
OF_VERTICAL = 0.6  # of the squared length of a class's direction, the share that is its vertical's
OF_KIND, OF_WORD = 0.5, 0.7  # lengths of what the words of a kind have in common, and of what each has for itself

_SYLLABLES = [consonant + vowel for consonant in "bdfghjklmnprstvwyzc" for vowel in "aeiou"]


@dataclass(frozen=True)
class Pool:
    """Words that are used by Zipf's law, the most frequent first."""

    words: tuple[str, ...]

    def draw(self, random: np.random.Generator) -> str:
        """One of them."""
        return self.words[bisect_right(_zipf(len(self.words)), random.random())]


@lru_cache
def _zipf(size: int) -> tuple[float, ...]:
    """Cumulative probabilities of so many words, but for the last one's, which is 1."""
    sums = np.cumsum(1 / (np.arange(size) + 2.0))
    return tuple((sums[:-1] / sums[-1]).tolist())


COMMON, JOINING, TURNING = (Pool(tuple(words.split())) for words in (COMMON_WORDS, JOINING_WORDS, TURNING_WORDS))


@dataclass(frozen=True)
class Lexicon:
    """What C classes are called in text: their names in lower case, other words, pairs of common words; and the rest.

    `vertical` (C,) says which of `of_vertical` each class belongs to.
    """

    names: list[str]
    of_class: list[Pool]
    compounds: list[str]
    vertical: Ints
    of_vertical: list[Pool]
    people: Pool


def build_lexicon(names: Sequence[str], vertical: Ints, random: np.random.Generator) -> Lexicon:
    """The words of classes with these names (C) and verticals (C,)."""
    table = [words.split() for _, words in VERTICALS.values()]
    names = [name.lower() for name in names]
    known = {*COMMON.words, *JOINING.words, *TURNING.words}.union(*table, *(name.split() for name in names))
    number = len(names) * WORDS_OF_A_CLASS + len(table) * WORDS_OF_A_VERTICAL + NUM_PEOPLE
    made_up = iter(_invented(number, known, random))

    def mixed(real: Sequence[str], size: int) -> Pool:
        words = [*real, *islice(made_up, size)]
        return Pool(tuple(str(words[i]) for i in random.permutation(len(words))))

    return Lexicon(
        names=names,
        of_class=[mixed(random.choice(table[v], 3, False).tolist(), WORDS_OF_A_CLASS) for v in vertical],
        compounds=_compounds(len(names), random),
        vertical=vertical,
        of_vertical=[mixed(words, WORDS_OF_A_VERTICAL) for words in table],
        people=mixed((), NUM_PEOPLE),
    )


def _invented(number: int, known: set[str], random: np.random.Generator) -> list[str]:
    """So many different words of three syllables, or of four where these are too few, none of them known."""
    n = len(_SYLLABLES)
    length = 3 if 2 * number < n**3 else 4
    places = random.choice(n**length, number + len(known), replace=False).tolist()
    words = ("".join(_SYLLABLES[i // n**k % n] for k in range(length)) for i in places)
    return [word for word in words if word not in known][:number]


def _compounds(number: int, random: np.random.Generator) -> list[str]:
    """So many pairs of common words; where one is there, so is its reverse. (They repeat beyond 5,112.)"""
    firsts, seconds = np.triu_indices(len(COMMON.words), 1)
    pairs = [
        f"{COMMON.words[a]} {COMMON.words[b]}"
        for i in random.permutation(len(firsts))[: (number + 1) // 2]
        for a, b in ((firsts[i], seconds[i]), (seconds[i], firsts[i]))
    ]
    return [pairs[i % len(pairs)] for i in random.permutation(number)]


def draw_title(lexicon: Lexicon, labels: Ints, stray: Callable[[], int], random: np.random.Generator) -> list[str]:
    """The words of a title of a video with these labels; `stray` draws some class, whatever the video is about."""
    words: list[str] = []
    for turn in range(1 + min(3, random.poisson(1.0))):
        if turn:
            words.append(JOINING.draw(random))
        while random.random() < 0.3:
            words.append(COMMON.draw(random).capitalize())
        label = _special(labels, random)
        words += [word.capitalize() for word in _called(lexicon, label, stray, random)]
    if random.random() < 0.25:
        words += [TURNING.draw(random), lexicon.of_class[stray()].draw(random).capitalize()]
    if random.random() < 0.35:
        words += ["by", lexicon.people.draw(random).capitalize()]
    if random.random() < 0.3:
        words.append(TITLE_ENDINGS[random.integers(len(TITLE_ENDINGS))])
    return words


def _special(labels: Ints, random: np.random.Generator) -> int:
    """The rarest of RAREST_OF labels of a video, drawn with replacement: a class's index is its rank by frequency."""
    return int(labels[random.integers(len(labels), size=RAREST_OF)].max())


def _called(lexicon: Lexicon, label: int, stray: Callable[[], int], random: np.random.Generator) -> list[str]:
    """What a title calls a label: a compound that has nothing to do with its words, or a thing, perhaps of a kind."""
    manner = random.random()
    if manner < 0.15:
        return lexicon.compounds[label].split()
    kind = [lexicon.of_class[stray()].draw(random)] if random.random() < 0.35 else []
    if manner < 0.35:
        return kind + lexicon.names[label].split()
    pool = lexicon.of_vertical[lexicon.vertical[label]] if manner < 0.5 else lexicon.of_class[label]
    return [*kind, pool.draw(random)]


def draw_keywords(lexicon: Lexicon, labels: Ints, stray: Callable[[], int], random: np.random.Generator) -> list[str]:
    """The keywords of a video with these labels, some of them twice; `stray` as above."""
    words: list[str] = []
    for _ in range(1 + random.poisson(7)):
        manner = random.random()
        if manner < 0.3:
            words += _called(lexicon, _special(labels, random), stray, random)
        elif manner < 0.45:
            words.append(lexicon.of_class[stray()].draw(random))
        else:
            words.append((COMMON if manner < 0.9 else lexicon.people).draw(random))
    return words


def draw_foreign(language: int, num_words: int, random: np.random.Generator) -> list[str]:
    """Words of one of the languages of FOREIGN_WORDS."""
    words = FOREIGN_WORDS[language].split()
    return [words[i] for i in random.integers(len(words), size=num_words)]


def word_vectors(lexicon: Lexicon, random: np.random.Generator) -> Vectors:
    """The vector (WORD_VECTOR_SIZE,) of every English word, in lower case and with a capital, sorted by word.

    It is the sum of what the word is about, OF_KIND times what the words of its kind have in common, and OF_WORD times
    something of its own. A word of several classes or verticals is about the mean of them, all people are about one
    thing, and each of the other words is about something of its own. (All of these have length 1.)
    """
    verticals = _directions(len(lexicon.of_vertical), random)
    own = _directions(len(lexicon.names), random)
    classes = OF_VERTICAL**0.5 * verticals[lexicon.vertical] + (1 - OF_VERTICAL) ** 0.5 * own
    topics, people, joining, turning, common = OF_KIND * _directions(5, random)

    found: dict[str, list[Floats]] = {}
    for name, pool, direction in zip(lexicon.names, lexicon.of_class, classes, strict=True):
        for word in (*name.split(), *pool.words):
            found.setdefault(word, []).append(direction)
    for pool, direction in zip(lexicon.of_vertical, verticals, strict=True):
        for word in pool.words:
            found.setdefault(word, []).append(direction)
    meant = {word: np.mean(directions, axis=0) + topics for word, directions in found.items()}
    meant |= dict.fromkeys(lexicon.people.words, _directions(1, random)[0] + people)
    endings = [word for ending in TITLE_ENDINGS for word in title_words(ending)]
    lower = [word.lower() for word in endings]
    for words, kind in ((COMMON.words, common), (lower, common), (TURNING.words, turning), (JOINING.words, joining)):
        for word, direction in zip(words, _directions(len(words), random), strict=True):
            meant.setdefault(word, direction + kind)

    forms = sorted({form for word in meant for form in (word, word.capitalize())}.union(endings))
    vectors = np.stack([meant[form.lower()] for form in forms]) + OF_WORD * _directions(len(forms), random)
    return dict(zip(forms, vectors.astype(np.float32), strict=True))


def _directions(number: int, random: np.random.Generator) -> Floats:
    """(number, WORD_VECTOR_SIZE) vectors of length 1."""
    vectors: Floats = random.standard_normal((number, WORD_VECTOR_SIZE))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors
