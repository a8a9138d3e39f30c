"""What people wrote about videos, joined to them by id: titles and keywords as word numbers, a histogram, a sentence.

    dataset:
      name: youtube8m
      text: {path: data/youtube8m/text.csv, vectors: data/GoogleNews-vectors-negative300.bin}

The text stands in tables of an id, a title and keywords, in any order, with rows for some of the videos and for others
that the corpus does not have. `mmray.features.text` says how text becomes words. A word that the word vectors don't
know is dropped. A sentence is one vector of the whole text, in any language: see `mmray.features.sentences`.

Made once, below the folder `cache`, each under a name that is a hash of what it depends on:

    word-vectors-.../    the vectors, as `mmray.features.word_vectors` keeps them
    text-.../            ids.arrow and rows.arrow: the tables, by id
    centroids-....npy    the clusters of the keywords of training videos
    counts-.../          what each source found, for the report
"""

from __future__ import annotations

import glob
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, PositiveInt, model_validator

from mmray.config import Fraction, Section
from mmray.datasets import Source
from mmray.datasets._text_counts import Counts, Labels, TextCounts
from mmray.datasets._text_table import Duplicates, TextColumns, TextTable, digest, stamps
from mmray.features import keyword_clusters, sentences, text, word_vectors
from mmray.features.keyword_clusters import Histograms
from mmray.features.sentences import SentenceEncoder
from mmray.features.word_vectors import WordVectors
from mmray.files import locked, written_whole
from mmray.schema import Column
from mmray.storage import at, matching

Int64s = npt.NDArray[np.int64]
Ragged = tuple[Int64s, Int64s]  # values of all rows, and where those of each begin (B + 1,)


class Sentence(Section):
    """One vector of what is written about a video, by a model of sentence-transformers, in whatever language it is."""

    model: str = Field(description="a folder, or a name on the hub: sentence-transformers/LaBSE")
    revision: str | None = Field(
        None, pattern=r"^[0-9a-f]{40}$", description="of a model of the hub: the commit that is meant"
    )
    size: PositiveInt = Field(description="numbers in a vector")
    of: Literal["title", "keywords", "both"] = Field("title", description="what it reads; both: the title first")
    dtype: Literal["float32", "float16"] = Field("float32", description="as they are prepared")
    batch_size: PositiveInt = Field(64, description="texts that the model looks at together")

    def companions(self) -> tuple[str, ...]:
        """The model's files, where it is in a folder; ValueError where it is neither there nor a commit of the hub."""
        folder = Path(self.model)
        if folder.is_dir() and self.revision is not None:
            raise ValueError(f"dataset.text.sentence.revision: {folder} is a folder, which has none; leave it out")
        if not folder.is_dir() and self.revision is None:
            raise ValueError(
                f"dataset.text.sentence.model={self.model!r} is no folder; correct it, or for a model of the hub set "
                "revision to the commit that is meant"
            )
        return tuple(sorted(str(path) for path in folder.rglob("*") if path.is_file()))

    def opened(self) -> SentenceEncoder:
        """The model; ValueError where its vectors are of another size than `size`."""
        encoder = sentences.opened(self.model, self.revision, self.batch_size)
        if encoder.size != self.size:
            raise ValueError(
                f"dataset.text.sentence.size={self.size}, but {self.model} gives vectors of {encoder.size}"
            )
        return encoder


class Text(Section):
    """Titles and keywords of videos."""

    path: str = Field(description="a table (.csv, .tsv, .jsonl, .parquet), or a pattern that names several")
    columns: TextColumns = TextColumns()
    duplicates: Duplicates = Field("refuse", description="ids with several rows: refuse them, or take the last")
    vectors: str = Field(description="word vectors in word2vec's format, binary or text, also compressed by gzip")
    vector_size: PositiveInt = Field(300, description="numbers in a word vector")
    vector_dtype: word_vectors.DType = Field("float32", description="as they are kept; float16 takes half the space")
    english: Literal["ascii_vocabulary", "detector", "off"] = Field(
        "ascii_vocabulary",
        description="what is taken for English: titles of which english_share is ASCII and known to the vectors, and "
        "each keyword that is; or what a language detector says of the whole text; off takes everything",
    )
    english_share: Fraction = 0.5
    remove_label_words: bool = Field(
        False, description="leave out every word that stands in the names of the video's own labels"
    )
    videos: Literal["all", "with_title", "with_keywords", "with_either", "with_both", "with_sentence"] = Field(
        "all", description="which videos are prepared at all, by the words that they are left with"
    )
    clusters: PositiveInt | None = Field(
        1024, description="size of the keyword histogram; null makes none, and then any split will do"
    )
    cluster_seed: int = Field(0, ge=0)
    centroids: str | None = Field(
        None, description="a .npy file of clusters made before; default: fitted to keywords of training videos"
    )
    sentence: Sentence | None = Field(None, description="a vector of the whole text, beside the words")
    cache: str = Field("prepared/text", description="folder for what is made once, on storage that every node sees")

    @model_validator(mode="after")
    def _has_an_effect(self) -> Self:
        if self.columns.title is None and self.columns.keywords is None:
            raise ValueError("columns names neither title nor keywords; give one, or leave text out")
        if self.centroids and self.clusters is None:
            raise ValueError("centroids has no effect with clusters: null; give their number")
        if self.videos == "with_sentence" and self.sentence is None:
            raise ValueError("videos: with_sentence needs sentence; say which model makes them")
        if self.sentence and getattr(self.columns, self.sentence.of, "") is None:
            raise ValueError(
                f"sentence.of={self.sentence.of!r}, but columns.{self.sentence.of} is null; name the other"
            )
        return self

    @property
    def why_corpus_split(self) -> str | None:
        """Why the corpus must say which videos are for training, where that is so."""
        if self.clusters is None or self.centroids is not None:
            return None
        return (
            "dataset.text.clusters are fitted to the shards that are named for training; give text.centroids or "
            "text.clusters: null"
        )

    def files(self) -> list[Path]:
        """The tables, sorted; ValueError where one, or the file of vectors, is not there."""
        paths = (matching(self.path) if glob.has_magic(self.path) else []) or [at(self.path)]
        for path in (*paths, at(self.vectors), *([at(self.centroids)] if self.centroids else [])):
            if not path.is_file():
                raise ValueError(f"dataset.text: there is no file {path}; correct path, vectors or centroids")
        return paths

    def companions(self) -> tuple[str, ...]:
        """The files that rows depend on."""
        others = [self.vectors, *([self.centroids] if self.centroids else [])]
        return (*map(str, self.files()), *others, *(self.sentence.companions() if self.sentence else ()))

    def open_table(self) -> TextTable:
        """Titles and keywords by id."""
        return TextTable.made(self.files(), self.columns, self.duplicates, self.cache)

    def open_vectors(self) -> WordVectors:
        """The word vectors; ValueError where they are of another size than `vector_size`."""
        vectors = word_vectors.opened(self.vectors, self.cache, self.vector_dtype)
        if vectors.size != self.vector_size:
            raise ValueError(
                f"dataset.text.vector_size={self.vector_size}, but {self.vectors} has vectors of {vectors.size}"
            )
        return vectors


def columns(settings: Text) -> list[Column]:
    """What a row gets: the numbers of its words, whether there are any, the histogram, the vector of its sentence."""
    added = [
        Column(name="title_words", dtype="int32", shape=(None,), unit="word"),
        Column(name="keyword_words", dtype="int32", shape=(None,), unit="word"),
        Column(name="has_title", dtype="uint8"),
        Column(name="has_keywords", dtype="uint8"),
    ]
    if settings.clusters is not None:
        added.append(Column(name="keywords", dtype="uint8", shape=(settings.clusters,), unit="words"))
    if settings.sentence is not None:
        added.append(Column(name="sentence", dtype=settings.sentence.dtype, shape=(settings.sentence.size,)))
        added.append(Column(name="has_sentence", dtype="uint8"))
    return added


class VideoText:
    """What the text of videos needs, opened; it is made first where it is not there.

    `train_ids` gives the ids of all videos for training, in pieces; it is asked for where clusters must be fitted, and
    `train` are the files that these come from. `label_words` are the words of each class's name; none: not compared.
    """

    def __init__(
        self,
        settings: Text,
        label_words: Labels,
        train: Sequence[Source],
        train_ids: Callable[[], Iterable[pa.Array]],
    ) -> None:
        self._settings, self._label_words = settings, label_words
        self._table, self._vectors = settings.open_table(), settings.open_vectors()
        self._histograms: Histograms | None = None
        if settings.clusters is not None:
            centroids = _centroids(settings, self._table, self._vectors, train, train_ids)
            self._histograms = Histograms(self._vectors, centroids)
        self._encoder = settings.sentence.opened() if settings.sentence else None

    def columns_of(self, ids: pa.Array, labels: Sequence[Sequence[int]], counts: Counts) -> list[pa.Array]:
        """The columns of videos with these ids and labels, in the order of `columns`; adds to `counts`."""
        rows = self._table.ids.rows_of(ids)
        counts.videos += len(rows)
        counts.rows.append(rows[rows >= 0])
        titles, keywords = self._table.take(rows)
        words = [text.title_words(title) for title in titles], [text.keyword_words(listed) for listed in keywords]
        known = self._known(itertools.chain(*words))
        names = [[self._label_words[label] for label in row] if self._label_words else [] for row in labels]
        english = (
            [self._english_title(*both, known) for both in zip(titles, words[0], strict=True)],
            [self._english_keywords(*both, known) for both in zip(keywords, words[1], strict=True)],
        )
        raggeds = []
        for raw, kept, counted in zip((titles, keywords), english, (counts.titles, counts.keywords), strict=True):
            counted.videos += sum(map(bool, raw))
            raggeds.append(self._numbers(kept, names, known, counted))
        arrays: list[pa.Array] = [_lists(*ragged) for ragged in raggeds]
        arrays += [pa.array((np.diff(offsets) > 0).astype(np.uint8)) for _, offsets in raggeds]
        if self._histograms is not None:
            arrays.append(pa.FixedShapeTensorArray.from_numpy_ndarray(self._histograms.of(*raggeds[1])))
        if self._encoder is not None:
            if self._settings.remove_label_words:
                titles, keywords = (_remaining(texts, names) for texts in words)
            arrays += self._sentences(titles, keywords)
        return arrays

    def _sentences(self, titles: Sequence[str], keywords: Sequence[str]) -> list[pa.Array]:
        """Vectors, zeros where nothing is written, and where something is."""
        assert self._encoder is not None
        assert self._settings.sentence is not None
        of, dtype = self._settings.sentence.of, np.dtype(self._settings.sentence.dtype)
        parts = {"title": (titles,), "keywords": (keywords,), "both": (titles, keywords)}[of]
        texts = [". ".join(filter(None, map(str.strip, of_video))) for of_video in zip(*parts, strict=True)]
        there = np.array([bool(written) for written in texts], bool)
        vectors = np.zeros((len(texts), self._encoder.size), dtype)
        vectors[there] = self._encoder.encode(list(filter(None, texts)))
        if not np.isfinite(vectors).all():
            raise ValueError(f"dataset.text.sentence: vectors with numbers beyond {dtype}; set dtype: float32")
        return [pa.FixedShapeTensorArray.from_numpy_ndarray(vectors), pa.array(there.astype(np.uint8))]

    def wanted(self, columns: Sequence[pa.Array], counts: Counts) -> pa.BooleanArray:
        """Which of the videos that these columns are of are to be prepared; adds to `counts`."""
        title, keywords = (column.to_numpy() > 0 for column in columns[2:4])
        match self._settings.videos:
            case "all":
                kept = np.ones(len(title), bool)
            case "with_title":
                kept = title
            case "with_keywords":
                kept = keywords
            case "with_either":
                kept = title | keywords
            case "with_both":
                kept = title & keywords
            case "with_sentence":
                kept = columns[-1].to_numpy() > 0
        counts.kept += int(kept.sum())
        return pa.array(kept)

    def _known(self, texts: Iterable[list[str]]) -> dict[str, int]:
        """The numbers of those words that have a vector, each looked up once."""
        words = list(dict.fromkeys(itertools.chain.from_iterable(texts)))
        numbers = self._vectors.numbers_of(words).tolist()
        return {word: number for word, number in zip(words, numbers, strict=True) if number >= 0}

    def _english_title(self, title: str, words: list[str], known: dict[str, int]) -> list[str]:
        match self._settings.english:
            case "ascii_vocabulary":
                return words if text.is_known_ascii(words, known, self._settings.english_share) else []
            case "detector":
                return words if words and text.is_english(title) else []
            case "off":
                return words

    def _english_keywords(self, keywords: str, words: list[str], known: dict[str, int]) -> list[str]:
        match self._settings.english:
            case "ascii_vocabulary":
                return [word for word in words if word.isascii() and word in known]
            case "detector":
                return words if words and text.is_english(keywords) else []
            case "off":
                return words

    def _numbers(
        self, texts: Sequence[list[str]], labels: Sequence[Labels], known: dict[str, int], counted: TextCounts
    ) -> Ragged:
        """Numbers of the known words of English texts, without those of the labels where that is wished."""
        numbers = []
        for words, names in zip(texts, labels, strict=True):
            if words and names:
                counted.add_overlap(words, names)
                if self._settings.remove_label_words:
                    words = text.without(words, frozenset[str]().union(*names))
            numbers.append([known[word] for word in words if word in known])
        offsets = np.cumsum([0, *map(len, numbers)], dtype=np.int64)
        counted.english += sum(map(bool, texts))
        counted.known += sum(map(bool, numbers))
        return np.fromiter(itertools.chain.from_iterable(numbers), np.int64, offsets[-1]), offsets


def _remaining(texts: Sequence[list[str]], labels: Sequence[Labels]) -> list[str]:
    """Words of texts without those of the labels, parted by blanks."""
    every = (frozenset[str]().union(*names) for names in labels)
    return [" ".join(text.without(words, of_labels)) for words, of_labels in zip(texts, every, strict=True)]


def _lists(values: Int64s, offsets: Int64s) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values.astype(np.int32)))


def _centroids(
    settings: Text,
    table: TextTable,
    vectors: WordVectors,
    train: Sequence[Source],
    train_ids: Callable[[], Iterable[pa.Array]],
) -> npt.NDArray[np.float32]:
    """The clusters of keywords, (clusters, V): given, found in the cache, or fitted and put there."""
    if settings.centroids is not None:
        return _given_centroids(settings)
    if not train:
        raise ValueError("dataset.text.clusters: no shard is named for training; give centroids, or clusters: null")
    relevant = settings.model_dump(include={"columns", "duplicates", "vector_dtype", "english", "clusters"})
    files = [*map(str, settings.files()), settings.vectors, *(source.path for source in train)]
    path = at(settings.cache) / f"centroids-{digest([relevant, settings.cluster_seed, *stamps(files)])}.npy"
    if not path.exists():
        with locked(path.with_name(f".{path.name}.lock"), "clustering keywords", wait=True):
            if not path.exists():  # the other process may have made it
                numbers = _vocabulary(settings, table, vectors, train_ids())
                try:
                    fitted = keyword_clusters.fit(vectors.take(numbers), settings.clusters or 0, settings.cluster_seed)
                except ValueError as error:
                    raise ValueError(f"dataset.text.clusters={settings.clusters}: {error}; lower it") from None
                with written_whole(path) as aside, aside.open("wb") as file:
                    np.save(file, fitted)
    with path.open("rb") as stored:
        centroids: npt.NDArray[np.float32] = np.load(stored)
    return centroids


def _given_centroids(settings: Text) -> npt.NDArray[np.float32]:
    try:
        with at(str(settings.centroids)).open("rb") as file:
            centroids = np.load(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"dataset.text.centroids={settings.centroids!r} can't be read: {error}") from None
    if centroids.shape != (settings.clusters, settings.vector_size):
        raise ValueError(
            f"dataset.text.centroids={settings.centroids!r} has shape {centroids.shape}; text.clusters and "
            f"text.vector_size ask for {(settings.clusters, settings.vector_size)}"
        )
    return np.ascontiguousarray(centroids, np.float32)


def _vocabulary(settings: Text, table: TextTable, vectors: WordVectors, ids: Iterable[pa.Array]) -> Int64s:
    """The numbers of all words with a vector in keywords of training videos, ascending.

    Labels are not looked at: a word that is removed from one video stands in another.
    """
    words: set[str] = set()
    for keywords in _keywords_of(table, ids):
        if settings.english != "detector" or text.is_english(keywords):
            words.update(text.keyword_words(keywords))
    if settings.english == "ascii_vocabulary":
        words = {word for word in words if word.isascii()}
    numbers = vectors.numbers_of(sorted(words))
    return np.unique(numbers[numbers >= 0])


def _keywords_of(table: TextTable, ids: Iterable[pa.Array]) -> Iterator[str]:
    for piece in ids:
        yield from filter(None, table.take(table.ids.rows_of(piece))[1])
