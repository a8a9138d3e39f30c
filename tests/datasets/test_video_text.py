"""Text joined to videos by id, at preparation: tables of every kind, what is left of them, and what is counted."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from mmray import config, preparation
from mmray.datasets import youtube8m
from mmray.datasets.synthetic import youtube8m as synthetic
from mmray.datasets.youtube8m import Config
from mmray.features import keyword_clusters, sentences
from mmray.features.tfrecord_write import encode_example, encode_sequence_example, write_tfrecord
from mmray.features.word_vectors import opened
from mmray.schema import arrow_schema

CLASSES = ["Guitar", "Black ops", "Dog"]
VIDEOS = {
    "train0": [("a", [0]), ("b", [1]), ("c", [2]), ("d", [])],
    "validate0": [("e", [0, 1])],
    "test0": [("f", None)],
}
TEXT = [  # id, title, keywords, in no order of the videos; "x" and "y" are of none
    ("x", "Guitar", "dog"),
    ("e", "guitar Solo: Call of Black, Ops", "Guitar,ops,the solo,2013"),
    ("a", "Guitar Solo!", "guitar and solo,unknown"),
    ("c", "perro muy bonito", "perro,dog"),
    ("b", "", "ops"),
    ("f", "Dog", ""),
    ("y", "Dog", "dog"),
]  # fmt: skip
VECTORS = {
    "guitar": (9, 0), "Guitar": (9, 1), "solo": (8, 0), "Solo": (8, 1), "dog": (0, 9), "Dog": (1, 9), "ops": (5, 5),
    "Call": (1, 1), "Ops": (5, 6), "perro": (0, 8),
}  # fmt: skip
NUMBERS = {word: number for number, word in enumerate(VECTORS)}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for name, videos in VIDEOS.items():
        records = []
        for video, labels in videos:
            features: dict[str, Any] = {"id": video, "rgb": np.zeros(2, np.float32)}
            records.append(
                encode_example(features | ({} if labels is None else {"labels": np.array(labels, np.int64)}))
            )
        write_tfrecord(tmp_path / f"{name}.tfrecord", records)
    (tmp_path / "vectors.txt").write_text(
        f"{len(VECTORS)} 2\n" + "".join(f"{word} {x} {y}\n" for word, (x, y) in VECTORS.items())
    )
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    write_csv(tmp_path / "text.csv", TEXT)
    return tmp_path


def write_csv(
    path: Path, rows: list[tuple[str, str, str]], header: tuple[str, ...] = ("id", "title", "keywords")
) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def settings(corpus: Path, named: bool = True, **text: Any) -> Config:
    defaults = {
        "path": str(corpus / "text.csv"),
        "vectors": str(corpus / "vectors.txt"),
        "vector_size": 2,
        "clusters": 2,
        "cache": str(corpus / "cache"),
    }
    return Config(
        path=str(corpus),
        level="video",
        num_classes=3,
        features={"rgb": 2},
        class_names_file=str(corpus / "classes.txt") if named else None,
        text=defaults | text,
    )


def rows(config: Config) -> dict[str, dict[str, Any]]:
    """Every row by its id."""
    found = {}
    for source in youtube8m.sources(config):
        for batch in youtube8m.read(config, source, pytest.fail):
            batch.validate(full=True)
            assert batch.schema.equals(arrow_schema(youtube8m.columns(config)))
            found |= {row["id"]: row for row in batch.to_pylist()}
    return found


def words(row: dict[str, Any], kind: str = "title") -> list[str]:
    known = list(VECTORS)
    return [known[number] for number in row[f"{kind}_words"]]


def test_titles_and_keywords_of_every_video(corpus: Path) -> None:
    found = rows(settings(corpus))
    assert list(found) == ["f", "a", "b", "c", "d", "e"]
    expected = {
        "a": (["Guitar", "Solo"], ["guitar", "solo"]),
        "b": ([], ["ops"]),
        "c": ([], ["perro", "dog"]),  # of the title one word in three is known
        "d": ([], []),  # no row
        "e": (["guitar", "Solo", "Call", "Ops"], ["guitar", "ops", "solo"]),
        "f": (["Dog"], []),
    }
    assert {name: (words(row), words(row, "keyword")) for name, row in found.items()} == expected
    for row in found.values():
        assert (row["has_title"], row["has_keywords"]) == (bool(row["title_words"]), bool(row["keyword_words"]))


def test_histograms_count_by_clusters_of_training_keywords_alone(corpus: Path) -> None:
    """Of the training keywords guitar, solo, ops, perro, dog two clusters are made; "Dog" and "x" are not looked at."""
    config = settings(corpus)
    train = sorted(NUMBERS[word] for word in ("guitar", "solo", "ops", "perro", "dog"))
    vectors = np.array(list(VECTORS.values()), np.float32)
    centroids = keyword_clusters.fit(vectors[train], 2, seed=0)
    for row in rows(config).values():
        expected = [0, 0]
        for word in words(row, "keyword"):
            expected[int(np.square(centroids - VECTORS[word]).sum(1).argmin())] += 1
        assert row["keywords"] == expected
    (path,) = (corpus / "cache").glob("centroids-*.npy")
    np.testing.assert_array_equal(np.load(path), centroids)
    given = settings(corpus, centroids=str(path))
    assert given.why_corpus_split is None
    assert rows(given) == rows(config)


TABLES: dict[str, Callable[[Path], dict[str, Any]]] = {}


def table(make: Callable[[Path], dict[str, Any]]) -> Callable[[Path], dict[str, Any]]:
    """A way to write TEXT; it returns the settings that read it."""
    TABLES[make.__name__] = make
    return make


@table
def tsv(folder: Path) -> dict[str, Any]:
    lines = ["title\tvideo\ttags", *(f"{title}\t{video}\t{keywords}" for video, title, keywords in TEXT)]
    (folder / "text.tsv").write_text("\n".join(lines) + "\n")
    return {"path": str(folder / "text.tsv"), "columns": {"id": "video", "keywords": "tags"}}


@table
def parquet_of_lists(folder: Path) -> dict[str, Any]:
    columns = {name: [row[i] for row in TEXT] for i, name in enumerate(("id", "title", "keywords"))}
    lists = [keywords.split(",") for keywords in columns["keywords"]]
    pq.write_table(pa.table({**columns, "keywords": lists, "other": list(range(len(TEXT)))}), folder / "text.parquet")
    return {"path": str(folder / "text.parquet")}


@table
def json_lines(folder: Path) -> dict[str, Any]:
    rows = [{"id": v, "title": t or None, "keywords": k.split(",") if i % 2 else k} for i, (v, t, k) in enumerate(TEXT)]
    (folder / "text.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    return {"path": str(folder / "text.jsonl")}


@table
def several_files(folder: Path) -> dict[str, Any]:
    write_csv(folder / "part-1.csv", TEXT[:3])
    write_csv(folder / "part-2.csv", TEXT[3:])
    return {"path": str(folder / "part-*.csv")}


@pytest.mark.parametrize("make", TABLES.values(), ids=TABLES.keys())
def test_every_kind_of_table_gives_the_same(corpus: Path, make: Callable[[Path], dict[str, Any]]) -> None:
    assert rows(settings(corpus, **make(corpus))) == rows(settings(corpus))


def test_ids_that_look_like_numbers_stay_text(corpus: Path) -> None:
    write_csv(corpus / "text.csv", [("007", "Dog", "dog"), ("a", 'Dog, "big"\nand old', "NA")])
    found = settings(corpus, clusters=None).text
    assert found is not None
    table = found.open_table()
    assert table.ids.rows_of(["007", "7", "a"]).tolist() == [0, -1, 1]
    assert table.take(np.array([1, -1, 0])) == (['Dog, "big"\nand old', "", "Dog"], ["NA", "", "dog"])


def test_a_table_of_titles_alone(corpus: Path) -> None:
    write_csv(corpus / "text.csv", [("a", "Guitar", "")], ("id", "title", "more"))
    found = rows(settings(corpus, columns={"keywords": None}, clusters=None))
    assert words(found["a"]) == ["Guitar"]
    assert not any(row["keyword_words"] for row in found.values())
    assert "keywords" not in found["a"]


def test_words_of_the_own_labels_can_be_left_out(corpus: Path) -> None:
    found = rows(settings(corpus, remove_label_words=True))
    assert words(found["a"]) == ["Solo"]
    assert words(found["a"], "keyword") == ["solo"]
    assert words(found["e"]) == ["Solo", "Call"]
    assert words(found["b"], "keyword") == []
    assert found["b"]["has_keywords"] == 0
    assert words(found["c"], "keyword") == ["perro"]
    assert words(found["f"]) == ["Dog"], "it has no labels"
    with pytest.raises(ValueError, match=r"remove_label_words needs the labels' names: set dataset.class_names_file"):
        youtube8m.sources(settings(corpus, named=False, remove_label_words=True))


def test_report_counts_rows_and_overlap(corpus: Path) -> None:
    """By hand. Titles in English with labels: a (1 of 2 words of a label; 1 of 1 label words), e ("Call of Black Ops":
    guitar, Black, Ops of 6 words; 3 of 3 label words). Keywords: a 1 of 2, 1 of 1; b 0 of 1 ("Black ops" is not there
    whole), 1 of 2; c 1 of 2, 1 of 1; e 1 of 3 (ops, but not black), 2 of 3.
    """
    config = settings(corpus)
    assert "counts are gone" in youtube8m.split_report(config)
    rows(config)
    rows(config)  # again, as a preparation that was interrupted
    share = (1 / 2 + 3 / 6) / 2
    of_words, of_labels = (1 / 2 + 0 + 1 / 2 + 1 / 3) / 4, (1 + 1 / 2 + 1 + 2 / 3) / 4
    assert youtube8m.split_report(config).splitlines() == [
        "shards: test 1, train 1, val 1",
        "text: 7 rows, 5 of them matched, 2 of no video here; 5 of 6 videos have text",
        "  titles: 4 videos, 3 in English, 3 with a word that has a vector; overlap with labels: "
        f"{share:.1%} of their words, 100.0% of the labels' words",
        "  keywords: 4 videos, 4 in English, 4 with a word that has a vector; overlap with labels: "
        f"{of_words:.1%} of their words, {of_labels:.1%} of the labels' words",
    ]
    assert "overlap" not in youtube8m.split_report(settings(corpus, named=False)), "no names to compare with"


KEPT = {"all": "fabcde", "with_title": "fae", "with_keywords": "abce", "with_either": "fabce", "with_both": "ae"}


@pytest.mark.parametrize(("videos", "kept"), KEPT.items())
def test_videos_without_words_can_be_left_out(corpus: Path, videos: str, kept: str) -> None:
    config, every = settings(corpus, videos=videos), rows(settings(corpus))
    assert rows(config) == {name: every[name] for name in kept}
    report = youtube8m.split_report(config)
    assert (f"have text, and {len(kept)} are prepared (text.videos)" in report) == (len(kept) < len(every))


def test_english_off_and_shares(corpus: Path) -> None:
    assert words(rows(settings(corpus, english="off"))["c"]) == ["perro"]
    assert words(rows(settings(corpus, english_share=0.3))["c"]) == ["perro"]
    assert words(rows(settings(corpus, english_share=0.9))["e"]) == []


def test_frame_level(corpus: Path) -> None:
    for name, videos in VIDEOS.items():
        frames = {"rgb": [b"\x01\x02"] * 4, "audio": [b"\x03"] * 4}
        records = [
            encode_sequence_example({"id": video, "labels": np.array(labels or [], np.int64)}, frames)
            for video, labels in videos
        ]
        write_tfrecord(corpus / f"{name}.tfrecord", records)
    video, values = settings(corpus), settings(corpus).model_dump()
    frame = Config(**values | {"level": "frame", "features": {"rgb": 2, "audio": 1}})
    found = rows(frame)
    assert found["e"]["num_frames"] == 4
    assert words(found["e"], "keyword") == ["guitar", "ops", "solo"]
    assert sum(found["e"]["keywords"]) == 3
    assert [c.name for c in youtube8m.columns(frame)][-5:] == [c.name for c in youtube8m.columns(video)][-5:]


def test_duplicates(corpus: Path) -> None:
    write_csv(corpus / "text.csv", [*TEXT, ("a", "Dog", "dog")])
    with pytest.raises(ValueError, match=r"text\.csv: id 'a' stands in row 2 and in row 7; .*text\.duplicates: last"):
        rows(settings(corpus))
    assert words(rows(settings(corpus, duplicates="last"))["a"]) == ["Dog"]


def broken(path: str, content: str) -> Callable[[Path], dict[str, Any]]:
    def make(folder: Path) -> dict[str, Any]:
        (folder / path).write_text(content)
        return {"path": str(folder / path)}

    return make


WRONG: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "no table": (lambda folder: {"path": "missing.csv"}, "there is no file missing.csv"),
    "no vectors": (lambda folder: {"vectors": "missing.bin"}, "there is no file missing.bin"),
    "another kind": (broken("text.xml", "<id>"), r"no table that is known; it must end in csv, tsv, jsonl, parquet"),
    "no such column": (broken("t.csv", "id,name\na,b\n"), r"t\.csv has no column 'title'; it has id, name: set"),
    "a torn line": (broken("t.csv", "id,title,keywords\na,b\n"), r"t\.csv: can't be read: .*Expected 3 columns"),
    "no parquet": (broken("t.parquet", "PAR1"), r"t\.parquet: can't be read"),
    "no json": (broken("t.jsonl", '{"id": "a", "title": "b", "keywords": "c"}\n{"id"'), r"t\.jsonl, line 2: not JSON"),
    "no object": (broken("t.jsonl", "[1, 2]"), r"t\.jsonl, line 1: no object, but '\[1, 2\]'"),
    "no id": (broken("t.jsonl", '{"id": null, "title": "", "keywords": ""}'), r"t\.jsonl: 1 rows have no 'id'"),
    "size of vectors": (lambda folder: {"vector_size": 3}, r"vector_size=3, but .*vectors\.txt has vectors of 2"),
    "too many clusters": (lambda folder: {"clusters": 6}, r"text\.clusters=6: .* 5 different vectors .*; lower it"),
    "no centroids": (lambda folder: {"centroids": str(folder / "text.csv")}, r"centroids=.* can't be read"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_named(corpus: Path, change: Callable[[Path], dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rows(settings(corpus, **change(corpus)))


def test_settings_without_effect_are_refused(corpus: Path) -> None:
    for text, message in (
        ({"columns": {"title": None, "keywords": None}}, "names neither title nor keywords"),
        ({"clusters": None, "centroids": "x.npy"}, "centroids has no effect with clusters: null"),
        (
            {"columns": {"title": None}, "sentence": {"model": "x", "size": 2}},
            r"sentence.of='title', but columns.title is null",
        ),
    ):
        with pytest.raises(ValidationError, match=message):
            settings(corpus, **text)


class Lengths:
    """Stands for a model of sentences: a vector tells how long a text is, and how many words it has."""

    def encode(self, texts: list[str], **options: Any) -> np.ndarray:
        return np.array([[len(text), len(text.split())] for text in texts], np.float32)


@pytest.fixture
def model(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The folder of a model of sentences."""
    (corpus / "model").mkdir()
    (corpus / "model/weights").write_text("0")
    monkeypatch.setattr(
        sentences, "opened", lambda model, revision, batch_size: sentences.SentenceEncoder(Lengths(), 1)
    )
    return str(corpus / "model")


SENTENCES = {  # in any language, whole as they are written; d has no text, b no title, f no keywords
    "title": {"a": "Guitar Solo!", "c": "perro muy bonito", "e": "guitar Solo: Call of Black, Ops", "f": "Dog"},
    "keywords": {"a": "guitar and solo,unknown", "b": "ops", "c": "perro,dog", "e": "Guitar,ops,the solo,2013"},
    "both": {
        "a": "Guitar Solo!. guitar and solo,unknown", "b": "ops", "c": "perro muy bonito. perro,dog",
        "e": "guitar Solo: Call of Black, Ops. Guitar,ops,the solo,2013", "f": "Dog",
    },
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("of", SENTENCES)
def test_sentences_beside_words(corpus: Path, model: str, of: str, dtype: str) -> None:
    """Of what is no sentence there are zeros, and a 0 that says so; the other columns are as without."""
    plain = rows(settings(corpus))
    found = rows(settings(corpus, sentence={"model": model, "size": 2, "of": of, "dtype": dtype}))
    for name, row in found.items():
        written = SENTENCES[of].get(name, "")
        assert (row.pop("sentence"), row.pop("has_sentence")) == ([len(written), len(written.split())], bool(written))
    assert found == plain


def test_sentences_lose_the_words_of_labels_too(corpus: Path, model: str) -> None:
    found = rows(settings(corpus, sentence={"model": model, "size": 2}, remove_label_words=True))
    expected = {"a": "Solo", "c": "perro muy bonito", "e": "Solo Call of", "f": "Dog"}
    for name, row in found.items():
        written = expected.get(name, "")
        assert (row["sentence"], row["has_sentence"]) == ([len(written), len(written.split())], bool(written))


def test_videos_of_any_language_with_a_sentence(corpus: Path, model: str) -> None:
    found = rows(settings(corpus, sentence={"model": model, "size": 2}, videos="with_sentence"))
    assert list(found) == ["f", "a", "c", "e"]
    with pytest.raises(ValidationError, match="with_sentence needs sentence"):
        settings(corpus, videos="with_sentence")


def test_another_model_makes_another_prepared_dataset(corpus: Path, model: str) -> None:
    def folder(**sentence: Any) -> Path:
        return preparation.plan(make_run(corpus, settings(corpus, sentence={"size": 2, **sentence}))).folder

    before = folder(model=model)
    (corpus / "model/weights").write_text("01")
    hub = [folder(model="somebody/model", revision=digit * 40) for digit in "01"]
    assert len({before, folder(model=model), *hub, preparation.plan(make_run(corpus, settings(corpus))).folder}) == 5


def test_a_model_of_sentences_must_be_one_and_the_same(corpus: Path, model: str) -> None:
    for wrong, message in (
        ({"model": "somebody/model", "size": 2}, r"model='somebody/model' is no folder; .* set revision to the commit"),
        ({"model": model, "size": 2, "revision": "0" * 40}, r"revision: .* is a folder, which has none; leave it out"),
        ({"model": model, "size": 3}, r"sentence\.size=3, but .* gives vectors of 2"),
    ):
        with pytest.raises(ValueError, match=message):
            rows(settings(corpus, sentence=wrong))
    with pytest.raises(ValidationError, match="revision"):
        settings(corpus, sentence={"model": "somebody/model", "size": 2, "revision": "main"})


def make_run(corpus: Path, dataset: Config, **prepare: Any) -> config.Run:
    return config.from_dict(
        {
            "name": "text", "task": "video_classification", "model": "logistic",
            "dataset": dataset.model_dump(mode="json"), "prepare": {"out": str(corpus / "prepared"), **prepare},
        }
    )  # fmt: skip


def test_clusters_of_training_videos_need_to_know_which_these_are(corpus: Path) -> None:
    split = {"by": "hash"}
    with pytest.raises(ValueError, match=r"split\.by='hash': dataset\.text\.clusters are fitted to the shards"):
        preparation.plan(make_run(corpus, settings(corpus), split=split))
    assert preparation.plan(make_run(corpus, settings(corpus, clusters=None), split=split)).parts


def test_another_text_makes_another_prepared_dataset(corpus: Path) -> None:
    run = make_run(corpus, settings(corpus))
    before = preparation.plan(run).folder
    assert preparation.plan(run).folder == before
    write_csv(corpus / "text.csv", TEXT[:-1])
    assert preparation.plan(run).folder != before


def test_synthetic_corpus_has_text_and_vectors_that_tell_labels(tmp_path: Path) -> None:
    made = synthetic.Config(num_videos=300, num_classes=40, rgb_size=4, audio_size=2, videos_per_shard=100)
    synthetic.generate(tmp_path, made, lambda done, total: None)
    vectors = opened(str(tmp_path / "word_vectors.bin"), str(tmp_path / "cache"))
    assert vectors.size == synthetic.WORD_VECTOR_SIZE
    config = Config(
        path=str(tmp_path), level="video", num_classes=40, features={"mean_rgb": 4, "mean_audio": 2},
        class_names_file=str(tmp_path / "vocabulary.csv"),
        text={
            "path": str(tmp_path / "text.csv"), "vectors": str(tmp_path / "word_vectors.bin"),
            "vector_size": vectors.size, "clusters": 16, "cache": str(tmp_path / "cache"),
        },
    )  # fmt: skip
    found = rows(config)
    assert len(found) == 300
    assert 0.5 < np.mean([row["has_title"] for row in found.values()]) < 0.7
    assert 0.4 < np.mean([row["has_keywords"] for row in found.values()]) < 0.6
    drawn = synthetic.draw_word_vectors(made)
    assert list(drawn) == vectors.words.to_pylist()
    assert np.array_equal(vectors.matrix, np.stack(list(drawn.values())))
