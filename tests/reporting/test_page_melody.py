"""The page about melody runs, read back: whole, and where things are missing or awkward."""

import json
import re

import numpy as np
import pytest
from run_folders import (
    MELODY_METRICS,
    change,
    melody_clip,
    per_clip,
    report,
    write_examples,
    write_melody_run,
    write_run,
)

from mmray.reporting import page

PUBLISHED = {
    "source": "Table III of the paper",
    "scores": {
        "test": dict(zip(MELODY_METRICS, (0.8541, 0.8325, 0.8487, 0.8743, 0.0880), strict=True)),
        "adc2004": {"overall_accuracy": 0.7806},
        "ikala": {"overall_accuracy": 0.8632},
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A melody run with everything, that no test changes, and its page."""
    folder = tmp_path_factory.mktemp("melody")
    environment = {"num_parameters": 74_850, "conv_flops_per_second": 5.48e9}
    evaluations = {"test": per_clip(12), "adc2004": per_clip(3, seed=1), "mirex05": per_clip(1, seed=2)}
    run = write_melody_run(folder / "aspp", evaluations, published=PUBLISHED, environment=environment)
    write_examples(run, "test", [melody_clip("singer0_00", f0_hz=230.0), melody_clip("singer1_01")])
    return folder


@pytest.fixture(scope="module")
def single(folder):
    return report(folder, folder / "aspp")


def test_every_evaluation_has_its_table_beside_the_published_scores(folder, single):
    reader, _ = single
    for name in ("test", "adc2004", "mirex05"):
        metrics = json.loads((folder / "aspp" / "evaluation" / f"{name}.json").read_text())["metrics"]
        table = reader.tables[f"comparison-{name}"]
        assert table[0][1:6] == [metric.replace("_", " ") for metric in MELODY_METRICS]
        assert table[1][:6] == ["aspp", *(f"{metrics[metric]:.4f}" for metric in MELODY_METRICS)]
    assert reader.tables["comparison-test"][2] == [
        "published: aspp", "0.8541", "0.8325", "0.8487", "0.8743", "0.0880", "Table III of the paper"
    ]  # fmt: skip
    assert reader.tables["comparison-adc2004"][2] == [
        "published: aspp", "0.7806", "—", "—", "—", "—", "Table III of the paper"
    ]  # fmt: skip
    assert reader.tables["comparison-ikala"][1:] == [
        ["aspp", "not evaluated"],
        ["published: aspp", "0.8632", "Table III of the paper"],
    ]
    assert len(reader.tables["comparison-mirex05"]) == 2
    assert reader.bold == []
    order = [name for name, _ in re.findall(r'<table id="(comparison-(\w+))"', single[1])]
    assert order == [f"comparison-{name}" for name in ("test", "adc2004", "ikala", "mirex05")]


def test_headline_and_settings(folder, single):
    reader, _ = single
    metrics = json.loads((folder / "aspp" / "evaluation" / "test.json").read_text())["metrics"]
    behind = 0.8541 - metrics["overall_accuracy"]
    text = " ".join(reader.text.split())
    assert f"{behind:.4f} worse than the published 0.8541 (Table III of the paper). Measured on 12 rows." in text
    settings = dict(reader.tables["settings"])
    assert settings["parameters"] == "74,850"
    assert settings["convolutions"] == "5.48 GFLOP a second of audio"
    assert reader.tables["hardware"] == [["CPUs", "2"]]
    assert reader.tables["splits"] == [["split", "rows"], ["train", "680"], ["val", "60"]]


def test_pictures_and_clip_tables(folder, single):
    reader, _ = single
    files = {path.stem for path in (folder / "report").glob("*.png")}
    assert files == {
        "curve_loss",
        "curve_overall_accuracy",
        "metrics_test",
        "metrics_adc2004",
        "clips_test",
        "clips_adc2004",
        "contour_test_singer0_00",
        "contour_test_singer1_01",
    }
    assert len(reader.images) == len(files)
    # The worst of test, then every clip of the three.
    assert [len(table) - 1 for table in reader.tables["clips"]] == [10, 12, 3, 1]
    clips = per_clip(12)
    worst = min(clips, key=lambda clip: clip["overall_accuracy"])
    assert reader.tables["clips"][0][1] == [
        worst["id"], worst["group"], *(f"{worst[metric]:.4f}" for metric in MELODY_METRICS)
    ]  # fmt: skip
    assert "No clips to draw are stored with the evaluation on adc2004, mirex05." in reader.text


def test_eight_runs(tmp_path):
    runs = []
    for number in range(8):
        run = write_melody_run(tmp_path / f"run{number}", {"test": per_clip(30, number)}, published=PUBLISHED)
        write_examples(run, "test", [melody_clip("singer0_00", 20, seed=number)])
        runs.append(run)
    reader, _ = report(tmp_path, *runs)
    table = reader.tables["comparison-test"]
    assert [row[0] for row in table[1:]] == [
        *(f"run{number}" for number in range(8)),
        "published: " + ", ".join(f"run{number}" for number in range(8)),
    ]
    means = [np.mean([clip["overall_accuracy"] for clip in per_clip(30, number)]) for number in range(8)]
    assert f"{max(means):.4f}" in reader.bold
    assert f"{min(means):.4f}" not in reader.bold
    assert len(list((tmp_path / "report").glob("contour_*.png"))) == 8
    assert len(reader.tables["clips"][0][0]) == 2 + 8


def test_clips_without_scores_and_without_a_label(tmp_path):
    silent = dict.fromkeys(MELODY_METRICS)
    clips = [clip | silent for clip in per_clip(2)]
    run = write_melody_run(tmp_path / "run", {"test": clips, "val": [per_clip(1)[0], clips[1]]})
    change(run, "evaluation/val.json", lambda e: e["per_clip"][0].update(overall_accuracy=float("nan")))
    write_examples(run, "test", [melody_clip("singer0_00", f0_hz=0.0, ref_f0_hz=0.0)])
    reader, _ = report(tmp_path, run)
    assert "The evaluation on test holds no finite metric." in reader.text
    assert reader.tables["clips"][0][1] == ["singer0_00", "singer0", *"—————"]
    assert "nobody sings in the reference; the estimate finds no melody" in reader.text
    assert not list((tmp_path / "report").glob("clips_*.png"))


def test_a_run_that_is_not_evaluated_shows_no_published_scores(tmp_path):
    reader, _ = report(tmp_path, write_melody_run(tmp_path / "run", {}, published=PUBLISHED))
    assert not [key for key in reader.tables if key.startswith("comparison")]
    assert "Not evaluated" in reader.text


def test_published_percentages_are_noticed(tmp_path):
    published = {"source": "a paper", "scores": {"test": {"overall_accuracy": 85.41, "voicing_recall": 0.9}}}
    run = write_melody_run(tmp_path / "run", {"test": per_clip(2)}, published=published)
    reader, _ = report(tmp_path, run)
    assert re.search(r"the published overall_accuracy on test is 85\.4100, the measured one 0\.\d{4}: is", reader.text)
    assert "the published voicing_recall" not in reader.text


def test_other_features_of_the_same_clips_compare(tmp_path):
    runs = [
        write_melody_run(tmp_path / name, {"test": per_clip(2, seed)}, dataset_id=f"mir1k-{name}")
        for seed, name in enumerate(("a", "b"))
    ]
    notes = page._comparability([page.read_run(run) for run in runs])
    assert notes == [
        (
            "comparison",
            "the runs use different data (mir1k-a, mir1k-b), but were scored on the same clips: their scores compare, "
            "their losses do not",
        )
    ]
    videos = write_run(tmp_path / "videos", num_classes=5, num_epochs=0)
    ((_, note),) = page._comparability([page.read_run(run) for run in (*runs, videos)])
    assert (
        note
        == "the runs use different data (mir1k-a, mir1k-b, youtube8m-ab12cd34): their numbers do not compare directly"
    )


def test_differences_leave_published_scores_out(tmp_path):
    runs = [
        write_melody_run(tmp_path / "a", {"test": per_clip(2)}, published=PUBLISHED),
        write_melody_run(tmp_path / "b", {"test": per_clip(2)}),
    ]
    reader, _ = report(tmp_path, *runs)
    assert reader.tables["differences"][1:] == [["name", "a", "b"]]


def test_hostile_names_stay_text(tmp_path):
    evil = "<script>alert('$x_1$')</script>\"><img src=x onerror=alert(1)>/"
    published = {"source": evil, "scores": {"test": {"overall_accuracy": 0.5, evil: 0.5}, evil: {evil: 0.1}}}
    clips = [clip | {"group": evil} for clip in per_clip(12)]
    clips[0]["id"] = evil
    run = write_melody_run(tmp_path / "run", {"test": clips}, name=evil, published=published)
    write_examples(run, "test", [melody_clip(evil, 10)])
    reader, _ = report(tmp_path, run)
    assert "script" not in reader.tags
    assert not [name for name, _ in reader.attributes if name.startswith("on")]
    assert all(value.startswith("data:") for name, value in reader.attributes if name == "src")
    assert reader.text.count(evil) > 10
