"""What is written about the made-up videos: that it is like text in the respects that its module names."""

from __future__ import annotations

import functools
import itertools
from collections import Counter

import numpy as np
import pytest

from mmray.datasets.synthetic import _youtube8m_text as made_text
from mmray.datasets.synthetic._youtube8m_words import FOREIGN_WORDS
from mmray.datasets.synthetic.youtube8m import (
    Config,
    build_world,
    draw_text,
    draw_videos,
    draw_word_vectors,
    lexicon_of,
    shard_plan,
)
from mmray.features.text import keyword_words, title_words

CONFIG = Config(num_videos=6_000, num_classes=100, rgb_size=1, audio_size=1)
Row = tuple[list[str], list[str], set[int]]  # title and keywords as words in lower case, labels


def is_english(title: str) -> bool:
    """Whether a title is of no other language."""
    return not any(set(title.split()) <= set(words.split()) for words in FOREIGN_WORDS)


@functools.cache
def corpus(split: str) -> list[Row]:
    """The English texts of a split."""
    rows: list[Row] = []
    for shard in shard_plan(CONFIG):
        if shard.split == split:
            videos = draw_videos(CONFIG, shard)
            labels = dict(zip(videos.ids, (set(own.tolist()) for own in videos.labels()), strict=True))
            for video, title, keywords in draw_text(CONFIG, shard, videos):
                if is_english(title):
                    rows.append((title_words(title.lower()), keyword_words(keywords), labels[video]))
    return rows


def test_every_english_word_has_a_vector_in_both_its_forms() -> None:
    vectors = draw_word_vectors(CONFIG)
    for shard in shard_plan(CONFIG)[:2]:
        for _, title, keywords in draw_text(CONFIG, shard, draw_videos(CONFIG, shard)):
            if is_english(title):
                assert vectors.keys() >= {*title_words(title), *keyword_words(keywords)}
    assert list(vectors) == sorted(vectors)
    assert {vector.shape for vector in vectors.values()} == {(made_text.WORD_VECTOR_SIZE,)}
    assert {vector.dtype for vector in vectors.values()} == {np.dtype(np.float32)}


def test_words_have_a_long_tail() -> None:
    """As in real titles, a third or more of the words stands there once, and some are met in no title before."""
    counts = Counter(word for title, _, _ in corpus("train") for word in title)
    once = sum(count == 1 for count in counts.values()) / len(counts)
    assert 0.2 < once < 0.6
    top = sorted(counts.values(), reverse=True)
    assert 0.3 < sum(top[: len(top) // 20]) / sum(top) < 0.8
    of_test = [word for title, _, _ in corpus("test") for word in title]
    assert 0.03 < np.mean([word not in counts for word in of_test]) < 0.2


def test_titles_and_keywords_are_about_as_long_as_real_ones() -> None:
    """The paper counts 8.23 English keywords a video that has any."""
    titles, keywords, _ = zip(*corpus("train"), strict=True)
    assert 4 < np.mean([len(title) for title in titles]) < 9
    assert np.mean([len(words) for words in keywords if words]) == pytest.approx(8.23, abs=1.0)


def test_words_of_one_class_are_nearer_than_those_of_its_vertical_and_these_than_others() -> None:
    lexicon, vectors = lexicon_of(CONFIG), draw_word_vectors(CONFIG)
    unit = {word: vector / np.linalg.norm(vector) for word, vector in vectors.items()}
    # Words that stand in one list alone.
    uses = Counter(word for pool in (*lexicon.of_class, *lexicon.of_vertical) for word in pool.words)
    own = [np.stack([unit[word] for word in pool.words if uses[word] == 1][:8]) for pool in lexicon.of_class]
    same_class = np.mean([(words[0] @ words[1:].T).mean() for words in own])
    near = np.array([[float((a @ b.T).mean()) for b in own] for a in own])
    same = lexicon.vertical[:, None] == lexicon.vertical
    np.fill_diagonal(near, np.nan)
    of_vertical, others = np.nanmean(near[same]), np.nanmean(near[~same])
    assert same_class > of_vertical + 0.1
    assert of_vertical > others + 0.15
    assert 0.5 < same_class < 0.8, "synonyms are alike, not the same"


def test_compounds_mean_another_class_the_other_way_round() -> None:
    for num_classes in (7, 100):
        lexicon = lexicon_of(CONFIG.model_copy(update={"num_classes": num_classes}))
        assert len(set(lexicon.compounds)) == num_classes
        turned = sum(" ".join(reversed(pair.split())) in lexicon.compounds for pair in lexicon.compounds)
        assert turned >= num_classes - 1


def test_order_tells_what_words_alone_do_not() -> None:
    """Of each class's pair of common words: next to each other in this order the class is there, turned round not."""
    compounds = {tuple(pair.split()): label for label, pair in enumerate(lexicon_of(CONFIG).compounds)}
    told, of_turned = [], []
    for title, _, labels in corpus("train"):
        for pair in itertools.pairwise(title):
            if pair in compounds:
                told.append(compounds[pair] in labels)
            if pair[::-1] in compounds and pair not in compounds:
                of_turned.append(compounds[pair[::-1]] in labels)
    assert len(told) > 300
    assert np.mean(told) > 0.7
    # The head of a compound is of a label, what stands before it need not be, nor what follows "without".
    class_of = word_classes()
    heads, before, after_turning = [], [], []
    for title, _, labels in corpus("train"):
        for first, second in itertools.pairwise(title):
            if first in class_of and second in class_of:
                before.append(class_of[first] in labels)
                heads.append(class_of[second] in labels)
            if first in made_text.TURNING.words and second in class_of:
                after_turning.append(class_of[second] in labels)
    assert np.mean(heads) > 0.95
    assert np.mean(before) < 0.3
    assert np.mean(after_turning) < 0.3


def word_classes() -> dict[str, int]:
    """The class of each word that is of one class alone and stands nowhere else."""
    lexicon = lexicon_of(CONFIG)
    elsewhere = {word for pool in lexicon.of_vertical for word in pool.words}.union(*map(str.split, lexicon.names))
    uses = Counter(word for pool in lexicon.of_class for word in pool.words)
    return {
        word: label
        for label, pool in enumerate(lexicon.of_class)
        for word in pool.words
        if uses[word] == 1 and word not in elsewhere
    }


def test_what_is_special_is_named_sooner() -> None:
    """Of the labels of a video, with their index as the rank by frequency, the rarer half gets most of the words."""
    class_of, rarer = word_classes(), []
    for title, _, labels in corpus("train"):
        middle = np.median(list(labels))
        named = [class_of[word] for word in title if class_of.get(word) in labels]
        rarer += [label > middle for label in named if label != middle]
    assert len(rarer) > 500
    assert np.mean(rarer) > 0.75


def test_keywords_are_partly_of_other_topics() -> None:
    class_of = word_classes()
    about = [class_of[word] in labels for _, words, labels in corpus("train") for word in words if word in class_of]
    assert 0.3 < np.mean(about) < 0.8


@pytest.mark.parametrize("num_classes", [2, 4_716])
def test_any_number_of_classes_has_words(num_classes: int) -> None:
    config = CONFIG.model_copy(update={"num_classes": num_classes})
    lexicon = lexicon_of(config)
    assert [name.capitalize() for name in lexicon.names] == build_world(config).names
    words = [word for pool in lexicon.of_class for word in pool.words]
    made_up = set(words) - {word for pool in lexicon.of_vertical for word in pool.words}
    assert len(made_up) == num_classes * made_text.WORDS_OF_A_CLASS, "no two classes share one"
