"""The page about runs that classify sound, read back: how the split was made stands by the headline, numbers agree."""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from run_folders import change, load, report

from mmray.metrics.classification import ClassificationMetrics, bootstrap_interval
from mmray.reporting import page
from mmray.reporting.scores import lower_is_better
from mmray.reporting.text import display_name

EMOTIONS = ("Angry", "Happy", "Sad")
BY_TRACK = {"split_by": "track", "segments": 60, "sharing_a_track_with_train": 0}
BY_SEGMENT = {"split_by": "segment", "segments": 777, "sharing_a_track_with_train": 712}


def write_classification_run(
    folder,
    class_names=EMOTIONS,
    num_tracks=12,
    quality=2.0,
    seed=0,
    leak=BY_TRACK,
    published=None,
    dataset_id="music-1",
):
    """A run folder of audio classification with the evaluation of made-up probabilities of segments of tracks."""
    folder.mkdir(parents=True)
    num_classes, rng = len(class_names), np.random.default_rng(seed)
    config = {
        "name": folder.name,
        "task": {"name": "audio_classification"},
        "dataset": {"name": "audio_folder", "split": {"by": leak["split_by"] if leak else "track"}},
        "model": {"name": "audio_cnn"},
        "train": {"epochs": 2},
        "published": published,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / "environment.json").write_text(json.dumps({"num_cpus": 2}))
    train_counts = [100 + 10 * c for c in range(num_classes)]
    dataset = {
        "id": dataset_id,
        "class_names": list(class_names),
        "splits": {
            "train": {"rows": sum(train_counts), "label_counts": train_counts},
            "test": {"rows": 5 * num_tracks},
        },
    }
    (folder / "dataset.json").write_text(json.dumps(dataset))
    events = [
        {"event": "epoch", "epoch": e, "step": 10 * e + 10, "train/loss": 1 / (e + 1), "val/loss": 1.2 / (e + 1)}
        | {"val/weighted_accuracy": 0.5 + 0.1 * e}
        for e in range(2)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))

    track = np.repeat(np.arange(num_tracks), 5)
    labels = track % num_classes
    ease = np.repeat(np.random.default_rng(7).normal(quality, 1, num_tracks), 5)
    logits = rng.normal(0, 1, (len(labels), num_classes))
    logits[np.arange(len(labels)), labels] += ease
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    metrics = ClassificationMetrics(num_classes)
    metrics.update(p, labels)
    tracks = []
    for t in range(num_tracks):
        mean = p[track == t].mean(axis=0)
        tracks.append(
            {"group": f"track {t:02d}", "label": t % num_classes, "predicted": int(mean.argmax()), "segments": 5}
            | {"probabilities": mean.tolist()}
        )
    right = np.mean([one["label"] == one["predicted"] for one in tracks])
    evaluation = {
        "split": "test",
        "checkpoint": "checkpoints/step-00000020",
        "rows": len(labels),
        "metrics": metrics.compute() | {"track_accuracy": float(right)},
        "intervals": {
            metric: bootstrap_interval(p.argmax(1), labels, track, metric, num_classes, num_resamples=200)
            for metric in ("weighted_accuracy", "macro_f1")
        },
        "baselines": {"most frequent class": {"weighted_accuracy": 1 / num_classes, "macro_f1": 0.1}},
        "per_class": [
            {"class": c, "name": class_names[c], "train_count": train_counts[c], **of_class}
            for c, of_class in enumerate(metrics.per_class())
        ],
        "confusion": metrics.confusion.tolist(),
        "reliability": metrics.reliability(),
        "tracks": tracks,
    }
    if leak:
        evaluation["leak"] = leak
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "test.json").write_text(json.dumps(evaluation))
    return folder


def write_feature_examples(run, row_names=("mfcc 0", "mfcc 1", "contrast 0"), facts=None, num_values=300):
    """One segment a class in `evaluation/test.examples.parquet`."""
    rows = [(f"track {c:02d}@0.0", [c], np.arange(num_values, dtype=np.float32).tobytes()) for c in range(3)]
    columns = [list(column) for column in zip(*rows, strict=True)]
    types = (pa.string(), pa.list_(pa.int32()), pa.large_binary())
    arrays = [pa.array(values, of) for values, of in zip(columns, types, strict=True)]
    facts = {"hop_s": "0.032", "row_names": json.dumps(row_names)} if facts is None else facts
    table = pa.table(arrays, names=["id", "labels", "features"])
    table = table.replace_schema_metadata({f"mmray.{key}": value for key, value in facts.items()})
    pq.write_table(table, run / "evaluation" / "test.examples.parquet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two runs, `cnn` by track and the same task better by `cnn_gru`, that no test changes."""
    folder = tmp_path_factory.mktemp("emotion")
    published = {"source": "Table 2 of the paper", "scores": {"test": {"weighted_accuracy": 0.9833}}}
    write_feature_examples(write_classification_run(folder / "cnn", published=published))
    write_classification_run(folder / "cnn_gru", quality=3.0, seed=1)
    return folder


@pytest.fixture(scope="module")
def single(folder):
    return report(folder, folder / "cnn")


@pytest.fixture(scope="module")
def pair(folder):
    return report(folder, folder / "cnn", folder / "cnn_gru")


def text_of(reader):
    return " ".join(reader.text.split())


def test_headline_has_the_interval_and_how_the_split_was_made(folder, single):
    reader, _ = single
    evaluation = load(folder / "cnn", "evaluation/test.json")
    low, high = evaluation["intervals"]["weighted_accuracy"]
    assert (
        f"{evaluation['metrics']['weighted_accuracy']:.4f} 95 % interval over tracks: {low:.4f} to {high:.4f}."
        in text_of(reader)
    )
    assert "Split by track: no test track was trained on. Measured on 60 rows." in text_of(reader)


def test_intervals_stand_below_the_values_of_runs(folder, single):
    reader, html = single
    evaluation = load(folder / "cnn", "evaluation/test.json")
    head, run, baseline = reader.tables["comparison-test"][:3]
    cells = dict(zip(head, run, strict=True))
    for metric in ("weighted_accuracy", "macro_f1"):
        low, high = evaluation["intervals"][metric]
        assert cells[display_name(metric)] == f"{evaluation['metrics'][metric]:.4f}{low:.3f} to {high:.3f}"
    assert not [name for name in head if "recall" in name or "precision" in name]  # these stand in the table of classes
    assert cells["track accuracy"] == f"{evaluation['metrics']['track_accuracy']:.4f}"
    assert baseline[0] == "baseline: most frequent class"
    assert baseline[1] == "0.3333"
    low, high = evaluation["intervals"]["weighted_accuracy"]
    bars = re.findall(r'<i style="left:([\d.]+)%;width:([\d.]+)%"></i><b style="left:([\d.]+)%">', html)
    assert len(bars) == 2
    assert [float(x) for x in bars[0]] == pytest.approx(
        [100 * low, 100 * (high - low), 100 * evaluation["metrics"]["weighted_accuracy"]], abs=0.06
    )


def test_the_table_of_classes_has_the_shape_of_the_paper(folder, pair):
    reader, _ = pair
    table = reader.tables["report-test"]
    evaluations = [load(folder / name, "evaluation/test.json") for name in ("cnn", "cnn_gru")]
    assert table[0] == ["", "cnn", "cnn_gru", ""]
    assert table[1] == ["class", *("precision", "recall", "F1") * 2, "train rows", "test rows"]
    for place, name in enumerate(EMOTIONS):
        scores = [f"{e['per_class'][place][key]:.4f}" for e in evaluations for key in ("precision", "recall", "f1")]
        assert table[2 + place] == [name, *scores, str(100 + 10 * place), "20"]
    macro = [f"{e['metrics'][f'macro_{key}']:.4f}" for e in evaluations for key in ("precision", "recall", "f1")]
    assert table[5] == ["macro mean", *macro, "330", "60"]
    assert table[6][0] == "weighted mean"
    accuracy = [f"{e['metrics']['weighted_accuracy']:.4f}" for e in evaluations]
    assert table[7] == ["weighted accuracy", "", accuracy[0], "", "", accuracy[1], "", "330", "60"]
    assert "classes" not in reader.tables  # the same again, ranked by frequency


def test_pictures(folder, single, pair):
    report(folder, folder / "cnn")
    files = {path.stem for path in (folder / "report").glob("*.png")}
    assert {"confusion_test", "reliability_test", "metrics_test", "label_histogram"} <= files
    assert {f"features_test_track_0{c}_0_0" for c in range(3)} <= files
    assert "score_by_rank" not in files
    report(folder, folder / "cnn", folder / "cnn_gru")
    files = {path.stem for path in (folder / "report").glob("*.png")}
    assert {"confusion_test_cnn", "confusion_test_cnn_gru", "reliability_test"} <= files
    assert "Sad: track 02@0.0 of test." in pair[0].text


def test_tracks_from_the_worst(folder, single, pair):
    tracks = load(folder / "cnn", "evaluation/test.json")["tracks"]
    ranked = sorted(tracks, key=lambda t: (t["predicted"] == t["label"], t["probabilities"][t["label"]]))
    excerpt, full = single[0].tables["clips"]
    assert excerpt[0] == ["track", "label", "predicted", "probability of the label", "segments"]
    assert [row[0] for row in full[1:]] == [track["group"] for track in ranked]
    assert full[: len(excerpt)] == excerpt
    assert len(excerpt) == 11
    for row, track in zip(full[1:], ranked, strict=True):
        right = track["predicted"] == track["label"]
        p = track["probabilities"][track["label"]]
        expected = "right" if right else f"✗ {EMOTIONS[track['predicted']]}"
        assert row == [track["group"], EMOTIONS[track["label"]], expected, f"{p:.4f}", "5"]
    num_right = sum(track["predicted"] == track["label"] for track in tracks)
    assert f"test: 12 tracks, {num_right} predicted right" in single[0].text
    other = {t["group"]: t for t in load(folder / "cnn_gru", "evaluation/test.json")["tracks"]}
    row = pair[0].tables["clips"][0][1]
    assert len(row) == 7
    assert row[5] == f"{other[row[0]]['probabilities'][other[row[0]]['label']]:.4f}"


@pytest.mark.parametrize(
    ("leak", "sentence", "flatters"),
    [
        (BY_TRACK, "Split by track: no test track was trained on.", False),
        (
            BY_SEGMENT,
            "Split by segment: 712 of 777 test segments share a track with the training split; scores flatter.",
            True,
        ),
        (
            BY_SEGMENT | {"sharing_a_track_with_train": 1},
            "Split by segment: 1 of 777 test segments shares a track with the training split; scores flatter.",
            True,
        ),
        (
            BY_TRACK | {"sharing_a_track_with_train": 3},
            "Split by track, yet 3 of 60 test segments share a track with the training split: these scores cannot be "
            "trusted.",
            True,
        ),
    ],
)
def test_the_split_statement(tmp_path, leak, sentence, flatters):
    reader, html = report(tmp_path, write_classification_run(tmp_path / "run", leak=leak))
    assert sentence in text_of(reader)
    headline = html[html.index('id="headline"') : html.index("</section>")]
    assert f'<span class="leak{" worse" if flatters else ""}">' in headline


def test_runs_that_were_split_differently(tmp_path):
    runs = [
        write_classification_run(tmp_path / "fair"),
        write_classification_run(tmp_path / "leaking", leak=BY_SEGMENT, dataset_id="music-2", quality=4.0),
    ]
    reader, _ = report(tmp_path, *runs)
    assert "fair: Split by track: no test track was trained on. leaking: Split by segment: 712 of" in text_of(reader)
    assert "their numbers do not compare directly" in reader.text
    assert reader.bold == []


def test_other_features_of_the_same_tracks_compare_where_tracks_were_kept_whole(tmp_path):
    runs = [write_classification_run(tmp_path / f"on_{n}", dataset_id=f"music-{n}") for n in range(2)]
    notes = page._comparability([page.read_run(run) for run in runs])
    assert "were scored on the same clips" in notes[0][1]
    for run in runs:
        change(run, "evaluation/test.json", lambda e: e.update(leak=BY_SEGMENT))
    notes = page._comparability([page.read_run(run) for run in runs])
    assert "do not compare directly" in notes[0][1]


def test_of_calibration_errors_less_is_better():
    assert [m for m in ("ece", "val_ece", "log_loss", "macro_precision", "received") if lower_is_better(m)] == [
        "ece",
        "val_ece",
        "log_loss",
    ]


def test_an_evaluation_of_metrics_alone(tmp_path):
    run = write_classification_run(tmp_path / "run", leak=None)
    keys = ("intervals", "confusion", "reliability", "tracks", "per_class", "baselines")
    change(run, "evaluation/test.json", lambda e: [e.pop(key) for key in keys])
    reader, html = report(tmp_path, run)
    assert not {"report-test", "clips", "classes"} & reader.tables.keys()
    assert {"macro precision", "weighted recall"} <= set(reader.tables["comparison-test"][0])
    assert "95 %" not in html
    assert "Split by" not in html


def test_broken_intervals_are_left_out(tmp_path):
    run = write_classification_run(tmp_path / "run")
    broken = {"weighted_accuracy": [None, 0.5], "macro_f1": None, "weighted_f1": [0.1], "ece": [float("nan"), 1.0]}
    change(run, "evaluation/test.json", lambda e: e.update(intervals=broken))
    assert "95 %" not in report(tmp_path, run)[1]


@pytest.mark.parametrize("num_classes", [1, 40, 41])
def test_any_number_of_classes(tmp_path, num_classes):
    names = [f"emotion {c}" for c in range(num_classes)]
    run = write_classification_run(tmp_path / "run", names, num_tracks=num_classes)
    reader, _ = report(tmp_path, run)
    if num_classes <= 40:
        assert len(reader.tables["report-test"]) == 1 + num_classes + 3
    else:  # ranked by frequency, in excerpts
        assert "report-test" not in reader.tables
        assert len(reader.tables["classes"]) == 4


def test_a_class_that_the_split_lacks_has_dashes(tmp_path):
    run = write_classification_run(tmp_path / "run", num_tracks=2)
    reader, _ = report(tmp_path, run)
    assert reader.tables["report-test"][3] == ["Sad", "—", "—", "—", "120", "0"]
    assert len(reader.tables["clips"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"facts": {"hop_s": "0.032"}}, r"lacks mmray\.row_names; run mmray evaluate again"),
        ({"num_values": 301}, "track 00@0.0 has 301 values for 3 rows of features"),
    ],
)
def test_examples_that_do_not_fit(tmp_path, arguments, message):
    run = write_classification_run(tmp_path / "run")
    write_feature_examples(run, **arguments)
    with pytest.raises(ValueError, match=message):
        report(tmp_path, run)


def test_hostile_names_stay_text(tmp_path):
    evil = "<script>alert('$x_1$')</script>"
    run = write_classification_run(tmp_path / "run", (evil, "b"))
    change(run, "evaluation/test.json", lambda e: e["tracks"][0].update(group=evil))
    reader, _ = report(tmp_path, run)
    assert "script" not in reader.tags
    assert reader.text.count(evil) > 5
