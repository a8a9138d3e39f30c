"""The tables of scores, for any task: order, the best, what was published, single clips."""

import json
import math

import pytest
import yaml
from run_folders import MELODY_METRICS, per_clip, write_melody_run

from mmray.reporting import scores
from mmray.reporting.runs import evaluation_names, read_run

PUBLISHED = {
    "source": "Table III of the paper",
    "scores": {
        "test": dict(zip(MELODY_METRICS, (0.8541, 0.8325, 0.8487, 0.8743, 0.0880), strict=True)),
        "ikala": {"overall_accuracy": 0.8632},
    },
}


def melody_run(folder, metrics, name="test", published=None, **arguments):
    """A run whose evaluation has these metrics, and no clips."""
    run = write_melody_run(folder, {name: per_clip(2)}, published=published, **arguments)
    path = run / "evaluation" / f"{name}.json"
    evaluation = json.loads(path.read_text()) | {"metrics": metrics, "per_clip": []}
    path.write_text(json.dumps(evaluation))
    return read_run(run)


def test_evaluations_come_as_test_val_and_then_by_name(tmp_path):
    names = ("mirex05", "val", "adc2004", "test", "A", "ünder_score")
    run = read_run(write_melody_run(tmp_path / "run", {name: per_clip(1) for name in names}, published=PUBLISHED))
    assert list(run.evaluations) == ["test", "val", "A", "adc2004", "mirex05", "ünder_score"]
    assert evaluation_names([run]) == ["test", "val", "A", "adc2004", "ikala", "mirex05", "ünder_score"]


def test_a_file_that_is_being_written_is_no_evaluation(tmp_path):
    run = write_melody_run(tmp_path / "run", {"test": per_clip(1)})
    (run / "evaluation" / ".val.json.k2j3.json").write_text("{")
    assert list(read_run(run).evaluations) == ["test"]


def test_published_scores_stand_at_the_end_and_never_win(tmp_path):
    ours = {"overall_accuracy": 0.70, "voicing_false_alarm": 0.10}
    theirs = {"overall_accuracy": 0.75, "voicing_false_alarm": 0.30}
    runs = [
        melody_run(tmp_path / "a", ours, published=PUBLISHED),
        melody_run(tmp_path / "b", theirs, published=PUBLISHED),
        melody_run(tmp_path / "c", {"overall_accuracy": 0.7}, published=PUBLISHED | {"source": "elsewhere"}),
    ]
    # Without clips to tell, the runs are of one data set.
    table = scores.comparison(runs, "test")
    assert [(row["kind"], row["label"]) for row in table["rows"]] == [
        ("run", "a"),
        ("run", "b"),
        ("run", "c"),
        ("published", "a, b"),
        ("published", "c"),
    ]
    assert [row.get("source") for row in table["rows"][3:]] == ["Table III of the paper", "elsewhere"]
    assert table["rows"][3]["values"] == PUBLISHED["scores"]["test"]
    assert table["best"] == {"overall_accuracy": 0.75, "voicing_false_alarm": 0.10}
    # Measured metrics come first; those that only the paper has follow.
    assert table["metrics"] == [*ours, "raw_pitch_accuracy", "raw_chroma_accuracy", "voicing_recall"]
    nobody = scores.comparison(runs, "ikala")
    assert [row["values"] for row in nobody["rows"]] == [None] * 3 + [{"overall_accuracy": 0.8632}] * 2
    assert nobody["best"] == {}


def test_a_single_value_is_not_the_best(tmp_path):
    table = scores.comparison([melody_run(tmp_path / "a", {"overall_accuracy": 0.7})], "test")
    assert table["best"] == {}


def test_the_headline_sets_the_best_run_against_its_published_score(tmp_path):
    runs = [
        melody_run(tmp_path / "a", {"overall_accuracy": 0.86}, published=PUBLISHED),
        melody_run(tmp_path / "b", {"overall_accuracy": 0.80}),
    ]
    found = scores.headline(runs, "test")
    assert (found["run"], found["published"]) == ("a", 0.8541)
    assert found["published_gain"] == pytest.approx(0.0059)
    assert found["published_source"] == "Table III of the paper"
    assert scores.headline(runs[1:], "test")["published"] is None
    false_alarms = melody_run(tmp_path / "c", {"voicing_false_alarm": 0.10}, published=PUBLISHED)
    assert scores.headline([false_alarms], "test")["published_gain"] == pytest.approx(-0.012)


@pytest.mark.parametrize(
    ("published", "message"),
    [
        ({"source": "a"}, "published must be like"),
        (["test"], "published must be like"),
        ({"scores": {"test": 0.5}}, "published must be like"),
        ({"scores": {"test": {"overall_accuracy": "85 %"}}}, r"published\.scores\.test\.overall_accuracy='85 %' must"),
        ({"scores": {"test": {"overall_accuracy": True}}}, "=True must be a number"),
    ],
)
def test_published_scores_of_another_form_are_refused(tmp_path, published, message):
    run = write_melody_run(tmp_path / "run", {}, published=published)
    with pytest.raises(ValueError, match=message):
        read_run(run)


def test_no_published_section_and_an_empty_one(tmp_path):
    run = write_melody_run(tmp_path / "run", {}, published=None)
    assert read_run(run).published == {}
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"published": {"source": None, "scores": {}}}))
    assert (read_run(run).published, read_run(run).published_source) == ({}, "")


def test_runs_on_other_data_compare_where_they_were_scored_on_the_same_clips(tmp_path):
    clips, fewer = per_clip(4), per_clip(3)
    coarse = write_melody_run(tmp_path / "a", {"test": clips, "val": clips}, dataset_id="mir1k-48")
    fine = write_melody_run(tmp_path / "b", {"test": per_clip(4, seed=1)[::-1], "val": fewer}, dataset_id="mir1k-60")
    runs = [read_run(coarse), read_run(fine)]
    assert set(scores.comparison(runs, "test")["best"]) == set(MELODY_METRICS)
    assert scores.headline(runs, "test")["num_compared"] == 2
    assert scores.comparison(runs, "val")["best"] == {}
    assert scores.headline(runs, "val")["num_compared"] == 1


def test_the_worst_clips_come_first(tmp_path):
    clips = per_clip(12)
    clips[3]["overall_accuracy"], clips[5]["overall_accuracy"] = 0.01, None
    run = read_run(write_melody_run(tmp_path / "a", {"test": clips}))
    worst, everything = scores.clip_tables([run], "test")
    titles = ["clip", "group", "overall accuracy", "raw pitch accuracy", "raw chroma accuracy", "voicing recall"]
    assert [column["title"] for column in worst["columns"]] == [*titles, "voicing false alarm"]
    ranked = sorted((c for c in clips if c["overall_accuracy"] is not None), key=lambda c: c["overall_accuracy"])
    expected = [(c["id"], c["group"], *(c[m] for m in MELODY_METRICS)) for c in [*ranked, clips[5]]]
    assert everything["rows"] == expected
    assert worst["rows"] == expected[:10]
    assert worst["rows"][0][:3] == ("singer0_03", "singer0", 0.01)
    assert worst["title"] == "test: 10 worst of 12 clips by overall accuracy; 1 have none"


def test_few_clips_are_shown_once_and_clips_without_scores_are_not_called_worst(tmp_path):
    clips = [clip | {"overall_accuracy": math.nan} for clip in per_clip(30)]
    clips[7]["overall_accuracy"] = 0.5
    run = read_run(write_melody_run(tmp_path / "a", {"test": clips, "val": per_clip(1), "none": []}))
    (full,) = scores.clip_tables([run], "val")
    assert (full["title"], len(full["rows"])) == ("val: 1 clip, by overall accuracy", 1)
    worst, everything = scores.clip_tables([run], "test")
    assert (
        worst["rows"] == everything["rows"][:1] == [("singer1_07", "singer1", *(clips[7][m] for m in MELODY_METRICS))]
    )
    assert scores.clip_tables([run], "none") == scores.clip_tables([run], "never evaluated") == []


def test_several_runs_show_their_first_metric_side_by_side(tmp_path):
    first, second, other = per_clip(11), per_clip(11, seed=1), per_clip(2, seed=2)
    folders = {"a": first, "b": second[::-1], "c": other}
    runs = [read_run(write_melody_run(tmp_path / name, {"test": clips})) for name, clips in folders.items()]
    worst, everything, apart = scores.clip_tables(runs, "test")
    assert [(c["title"], c["run"]) for c in worst["columns"][2:]] == [("overall accuracy", n) for n in ("a", "b")]
    order = sorted(range(11), key=lambda i: first[i]["overall_accuracy"])
    assert everything["rows"] == [
        (first[i]["id"], first[i]["group"], first[i]["overall_accuracy"], second[i]["overall_accuracy"]) for i in order
    ]
    assert worst["title"] == "test: 10 worst of 11 clips by overall accuracy of a"
    assert [row[0] for row in apart["rows"]] == sorted((c["id"] for c in other), key=lambda i: apart["rows"][0][0] != i)


def test_a_metric_that_is_better_when_lower_has_its_largest_as_the_worst(tmp_path):
    run = write_melody_run(tmp_path / "a", {"test": per_clip(12)})
    path = run / "evaluation" / "test.json"
    evaluation = json.loads(path.read_text())
    evaluation["metrics"] = {"voicing_false_alarm": 0.5}
    path.write_text(json.dumps(evaluation))
    worst, _ = scores.clip_tables([read_run(run)], "test")
    values = [row[2] for row in worst["rows"]]
    assert values == sorted((clip["voicing_false_alarm"] for clip in evaluation["per_clip"]), reverse=True)[:10]
