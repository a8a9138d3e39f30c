"""The report page, read back: every number on it must be one of the run folder's."""

import base64
import contextlib
import json
import re
import struct
import subprocess
import sys
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import yaml
from run_folders import Reader, change, load, report, write_run

from mmray.reporting import page


@pytest.fixture
def moe(tmp_path):
    return write_run(tmp_path / "moe", splits=("val", "test"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two finished runs, `moe` and `logistic`, that no test changes."""
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "moe", splits=("val", "test"))
    write_run(folder / "logistic", name="logistic", model="logistic", seed=1, quality=0.85)
    return folder


@pytest.fixture(scope="module")
def pair(folder):
    """The comparison of both runs, read back, and its HTML."""
    return report(folder, folder / "moe", folder / "logistic")


@pytest.fixture(scope="module")
def single(folder):
    """The page about one run, written from the folder above it."""
    with contextlib.chdir(folder):
        index = page.write_report([Path("moe")], Path("single"))
    html = (folder / index).read_text(encoding="utf-8")
    return Reader(html), html


def test_page_refers_to_nothing_outside(folder, pair):
    reader, html = pair
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", html)
    assert not re.search(r"url\(|@import|https?://", html)
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(reader.tags)
    sources = [value for name, value in reader.attributes if name in ("src", "href", "srcset")]
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert str(folder) not in html
    assert "/data/youtube8m" not in html
    assert len(html) < 2_000_000


def test_comparison_shows_the_metrics_of_every_run_and_baseline(folder, pair):
    reader, _ = pair
    table = reader.tables["comparison-test"]
    assert table[0] == ["run or baseline", "GAP", "mAP", "Hit@1", "PERR", "rows", "checkpoint"]
    expected = []
    for run in (folder / "moe", folder / "logistic"):
        evaluation = load(run, "evaluation/test.json")
        cells = [f"{value:.4f}" for value in evaluation["metrics"].values()]
        expected.append([run.name, *cells, "3,000", "checkpoints/step-00001100"])
    baseline = load(folder / "moe", "evaluation/test.json")["baselines"]["prior"]
    # Both runs report the same baseline on the same data: it stands once.
    expected.append(["baseline: prior", *(f"{value:.4f}" for value in baseline.values()), "3,000", ""])
    assert table[1:] == expected
    assert "not evaluated: mmray evaluate logistic --split val" in reader.tables["comparison-val"][2]
    # Test: GAP, mAP, Hit@1 (a tie of both runs) and PERR; val: one run and the baseline.
    assert reader.bold == ["0.7112", "0.4021", "0.8000", "0.6634", "0.8000", "0.7112", "0.4021", "0.8000", "0.6634"]


def test_headline_names_metric_baseline_gain_and_rows(pair):
    reader, _ = pair
    text = " ".join(reader.text.split())
    assert "GAP on test, moe, the best of 2 runs 0.7112" in text
    assert "0.5989 better than the strongest baseline, prior (0.1123). Measured on 3,000 rows." in text


@pytest.mark.parametrize(
    ("metric", "value", "baselines", "run", "strongest", "gain"),
    [
        ("gap", [0.5, 0.7], {"prior": 0.1, "unigram": 0.8}, "b", "unigram", -0.1),
        ("gap", [0.7, 0.5], {"prior": 0.7}, "a", "prior", 0.0),
        ("voicing_false_alarm", [0.5, 0.3], {"prior": 0.9, "crepe": 0.4}, "b", "crepe", 0.1),
        ("gap", [float("nan"), 0.5], {"prior": None}, "b", None, None),
        ("gap", [None, None], {}, None, None, None),
    ],
)
def test_headline_takes_the_better_direction(tmp_path, metric, value, baselines, run, strongest, gain):
    runs = []
    for name, of_run in zip("ab", value, strict=True):
        folder = write_run(tmp_path / name, name=name, num_classes=5, num_epochs=1)
        evaluation = {
            "rows": 4,
            "metrics": {metric: of_run},
            "baselines": {k: {metric: v} for k, v in baselines.items()},
        }
        (folder / "evaluation" / "test.json").write_text(json.dumps(evaluation))
        runs.append(folder)
    found = page.headline([page.read_run(folder) for folder in runs], "test")
    if run is None:
        assert found is None
        reader, _ = report(tmp_path, *runs)
        assert "The evaluation on test holds no finite metric." in reader.text
    else:
        assert (found["run"], found["baseline"]) == (run, strongest)
        assert found["gain"] == (None if gain is None else pytest.approx(gain))


def test_data_section_shows_every_count(folder, single):
    reader, _ = single
    assert reader.tables["counts"] == [
        ["rows in", "20,000"],
        ["rows out", "19,998"],
        ["rejected", "2"],
        ["rejected: data CRC mismatch", "2"],
        ["classes", "200"],
        ["split", "by corpus file names"],
    ]
    expected = []
    for name, split in load(folder / "moe", "dataset.json")["splits"].items():
        labels, rows = sum(split["label_counts"]), split["rows"]
        empty = split["label_counts"].count(0)
        expected.append([name, f"{rows:,}", f"{labels:,}", f"{labels / rows:.2f}", f"{empty:,}"])
    assert reader.tables["splits"][1:] == expected


def test_settings_throughput_hardware_and_config(folder, single):
    reader, html = single
    settings = dict(reader.tables["settings"])
    assert settings == {
        "task": "video_classification",
        "dataset": "youtube8m-ab12cd34",
        "model": "moe",
        "parameters": "4,147,200",
        "seed": "0",
        "epochs finished": "10 of 10",
        "last logged step": "1,100",
        "repeat it": "mmray train moe/config.yaml --set name=moe-again",
    }
    throughput = dict(reader.tables["throughput"])
    assert throughput["rows/s, median"] == f"{np.median(5000.0 + np.arange(10)):,.0f}"
    assert throughput["waiting for input, median"] == "1.2 %"
    assert throughput["device memory, peak"] == "512 MB"
    assert throughput["epoch, shortest to longest"] == "10.2 to 11.1 s"
    assert throughput["all epochs"] == "1 min 46 s"  # 10 * (10.2 + 11.1) / 2 = 106.5, rounded half to even
    hardware = dict(reader.tables["hardware"])
    assert hardware["GPUs"] == "2 x NVIDIA H200"
    assert hardware["memory, GB"] == "23.4"
    shown = yaml.safe_load(re.search(r"<pre>(.*?)</pre>", html, re.S)[1])
    expected = yaml.safe_load((folder / "moe" / "config.yaml").read_text())
    expected["dataset"]["root"] = "youtube8m"  # an absolute path is nobody's business
    assert shown == expected


def test_settings_that_differ(pair):
    reader, _ = pair
    assert reader.tables["differences"][1:] == [
        ["name", "moe", "logistic"],
        ["seed", "0", "1"],
        ["model.name", "moe", "logistic"],
        ["model.num_experts", "8", "1"],
    ]


def test_class_tables_hold_the_input(folder, pair):
    reader, _ = pair
    frequent, best, worst, everything = (table[1:] for table in reader.tables["classes"])
    per_class = [load(run, "evaluation/test.json")["per_class"] for run in (folder / "moe", folder / "logistic")]
    order = sorted(range(200), key=lambda c: (-per_class[0][c]["train_count"], c))

    def row(c):
        scores = ["—" if of_run[c]["ap"] is None else f"{of_run[c]['ap']:.4f}" for of_run in per_class]
        counts = [f"{per_class[0][c][key]:,}" for key in ("train_count", "count")]
        return [f"{order.index(c) + 1}", per_class[0][c]["name"], *scores, *counts]

    assert everything == [row(c) for c in order]
    assert frequent == everything[:20]
    enough = sorted((c for c in range(200) if per_class[0][c]["count"] >= 10), key=lambda c: per_class[0][c]["ap"])
    assert 20 < len(enough) < 200
    assert best == [row(c) for c in enough[::-1][:10]]
    assert worst == [row(c) for c in enough[:10]]
    assert any("—" in cells for cells in everything)


def test_few_classes_are_shown_once(tmp_path):
    reader, _ = report(tmp_path, write_run(tmp_path / "pets", num_classes=37, num_epochs=0))
    assert [len(table) for table in reader.tables["classes"]] == [38]


def test_pictures_are_png_files_of_twice_the_shown_size(folder, pair):
    reader, html = pair
    files = {path.stem: path.read_bytes() for path in (folder / "report").glob("*.png")}
    curves = {f"curve_{name}" for name in ("loss", "gap", "map", "hit_at_1", "perr", "lr")}
    others = {"score_by_rank", "label_histogram", "rows_per_s", "input_wait_percent"}
    # Of val there is nothing to set side by side: only one of the runs was evaluated on it.
    assert set(files) == curves | others | {"metrics_test"}
    assert sorted(reader.images) == sorted(files.values())
    shown = re.findall(r'<img class="plot" src="data:image/png;base64,([^"]+)" width="(\d+)" height="(\d+)"', html)
    assert len(shown) == len(files)
    for data, width, height in shown:
        png = base64.b64decode(data)
        assert png.startswith(b"\x89PNG\r\n\x1a\n")
        assert png.endswith(b"IEND\xaeB`\x82")
        assert struct.unpack(">II", png[16:24]) == (2 * int(width), 2 * int(height))


def test_curves_carry_the_logged_values(tmp_path, folder, monkeypatch):
    moe, logistic = folder / "moe", folder / "logistic"
    drawn = {}

    def record(runs, y_label, log_y=False):
        drawn[y_label] = runs
        return real(runs, y_label, log_y)

    real = page.plots.curves
    monkeypatch.setattr(page.plots, "curves", record)
    report(tmp_path, moe, logistic)
    for run in (moe, logistic):
        events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for event, kind, key, label in [
            ("step", "step", "train/loss", "loss"),
            ("epoch", "train", "train/loss", "loss"),
            ("epoch", "val", "val/gap", "GAP"),
            ("step", "step", "rows_per_s", "rows/s"),
        ]:
            steps, values = drawn[label][run.name][kind]
            assert steps.tolist() == [e["step"] for e in events if e["event"] == event]
            assert values.tolist() == [e[key] for e in events if e["event"] == event]


def test_a_run_that_is_not_evaluated(tmp_path, moe, monkeypatch):
    for split in ("val", "test"):
        (moe / "evaluation" / f"{split}.json").unlink()
    monkeypatch.chdir(tmp_path)
    reader, _ = report(tmp_path, moe)
    assert "Not evaluated: run mmray evaluate moe." in reader.text
    last = json.loads((moe / "metrics.jsonl").read_text().splitlines()[-1])
    assert "After 10 epochs:" in reader.text
    assert f"val/gap {last['val/gap']:.4f}" in reader.text
    assert not [key for key in reader.tables if key.startswith("comparison")]


def test_one_epoch(tmp_path):
    reader, _ = report(tmp_path, write_run(tmp_path / "short", num_epochs=1))
    assert dict(reader.tables["settings"])["epochs finished"] == "1 of 1"
    assert (tmp_path / "report" / "curve_gap.png").is_file()


def test_no_epoch_finished(tmp_path):
    run = write_run(tmp_path / "young", splits=())
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:3]))
    reader, _ = report(tmp_path, run)
    assert "No epoch is finished yet; the last logged step is 30." in reader.text
    assert dict(reader.tables["settings"])["epochs finished"] == "0 of 10"
    steps = [json.loads(line)["rows_per_s"] for line in lines[:3]]
    assert dict(reader.tables["throughput"])["rows/s, median"] == f"{np.median(steps):,.0f}"


@pytest.mark.parametrize("content", [None, ""])
def test_nothing_logged(tmp_path, content):
    run = write_run(tmp_path / "unborn", splits=())
    (run / "metrics.jsonl").unlink()
    if content is not None:
        (run / "metrics.jsonl").write_text(content)
    reader, _ = report(tmp_path, run)
    assert "Nothing is logged yet." in reader.text


def test_a_torn_line_is_left_out_and_named(tmp_path, moe):
    whole = (moe / "metrics.jsonl").read_bytes()
    (moe / "metrics.jsonl").write_bytes(whole + b'{"event":"epoch","epoch":10,"val/na\xc3')
    reader, _ = report(tmp_path, moe)
    assert f"metrics.jsonl, line {len(whole.splitlines()) + 1}: not a whole event" in reader.text
    assert dict(reader.tables["settings"])["epochs finished"] == "10 of 10"


def test_a_resumed_run_keeps_the_last_event_of_a_step(moe):
    before = page.read_run(moe)
    with (moe / "metrics.jsonl").open("a") as file:
        file.write('{"event":"step","epoch":9,"step":1000,"train/loss":0.125}\n')
    after = page.read_run(moe)
    assert len(after.steps) == len(before.steps) == 110
    assert [event["step"] for event in after.steps] == list(range(10, 1110, 10))
    assert after.steps[99] == {"event": "step", "epoch": 9, "step": 1000, "train/loss": 0.125}
    assert after.epochs == before.epochs


def test_4716_classes(tmp_path):
    reader, html = report(tmp_path, write_run(tmp_path / "large", num_classes=4716, num_epochs=0))
    assert [len(table) - 1 for table in reader.tables["classes"]] == [20, 10, 10, 4716]
    assert len(html) < 2_000_000


def test_hostile_names_stay_text(tmp_path):
    evil = "<script>alert('$x_1$')</script>\"><img src=x onerror=alert(1)>"
    run = write_run(tmp_path / "evil", name=evil, num_classes=50)
    change(run, "evaluation/test.json", lambda e: e["per_class"][0].update(name=evil))
    change(run, "evaluation/test.json", lambda e: e.update(checkpoint=evil, baselines={evil: {"gap": 0.1, evil: 1.0}}))
    change(run, "dataset.json", lambda d: d.update(split_rule=evil, rejected_reasons={evil: 2}, id=evil))
    change(run, "dataset.json", lambda d: d["columns"][0].update(name=evil, unit=evil))
    change(run, "environment.json", lambda e: e.update(cpu=evil, gpus=[evil]))
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"event": "epoch", "step": 2000, "epoch": 10, f"val/{evil}": 0.5, "val/a/b": 1.0}) + "\n")
    reader, _ = report(tmp_path, run, write_run(tmp_path / "good", num_classes=50, num_epochs=0))
    assert "script" not in reader.tags
    assert not [name for name, _ in reader.attributes if name.startswith("on")]
    assert all(value.startswith("data:") for name, value in reader.attributes if name == "src")
    assert evil in reader.text


def test_runs_of_one_name_are_told_apart(tmp_path, monkeypatch):
    runs = [write_run(tmp_path / place / "moe", num_classes=5, num_epochs=0, splits=()) for place in "ab"]
    reader, _ = report(tmp_path, *runs)
    assert reader.tables["settings"][0] == ["", "moe (moe) #1", "moe (moe) #2"]
    monkeypatch.chdir(tmp_path)
    reader, _ = report(tmp_path, *runs)
    assert reader.tables["settings"][0] == ["", "moe (a/moe)", "moe (b/moe)"]


def test_other_data_and_other_metrics_are_said(tmp_path):
    moe = write_run(tmp_path / "moe", num_epochs=0)
    other = write_run(tmp_path / "other", name="other", num_classes=37, num_epochs=0)
    change(other, "dataset.json", lambda d: d.update(id="oxford_pets-99", rows_in=20_001))
    change(
        other,
        "evaluation/test.json",
        lambda e: e.update(
            rows=2_990, rows_with_labels=2_000, metrics={"accuracy": 0.9}, baselines={"prior": {"accuracy": 0.1}}
        ),
    )
    reader, _ = report(tmp_path, moe, other)
    assert "the runs use different data (youtube8m-ab12cd34, oxford_pets-99)" in reader.text
    assert "rows in 20,001 ≠ rows out 19,998 + rejected 2" in reader.text
    assert "the evaluation covers 2,990 of the 3,000 rows of test" in reader.text
    table = reader.tables["comparison-test"]
    assert table[0] == ["run or baseline", "GAP", "mAP", "Hit@1", "PERR", "accuracy", "rows", "checkpoint"]
    assert table[2][:7] == ["other", "—", "—", "—", "—", "0.9000", "2,000 of 2,990"]
    assert [row[0] for row in table[3:]] == ["baseline: prior (data of moe)", "baseline: prior (data of other)"]
    assert len(reader.tables["classes"]) == 4 + 1
    assert reader.bold == []
    assert "the best of" not in reader.text


def test_a_loss_that_is_not_finite_is_said(tmp_path, moe):
    with (moe / "metrics.jsonl").open("a") as file:
        file.write('{"event":"step","epoch":10,"step":1110,"train/loss":NaN}\n')
        file.write('{"event":"step","epoch":10,"step":1120,"train/loss":Infinity}\n')
    reader, _ = report(tmp_path, moe)
    assert "train/loss is not a finite number at 2 step(s), first at step 1,110" in reader.text


@pytest.mark.parametrize("removed", [("config.yaml",), ("environment.json", "dataset.json")])
def test_a_folder_that_is_no_run_is_refused(tmp_path, moe, removed):
    for name in removed:
        (moe / name).unlink()
    with pytest.raises(ValueError, match=f"moe is not a run folder: it lacks {', '.join(removed)};"):
        page.write_report([moe], tmp_path / "report")
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.yaml", "a: [", "config.yaml is not YAML"),
        ("config.yaml", "seed: 1", "config.yaml has no key 'name'"),
        ("dataset.json", "{", "dataset.json is not JSON"),
        ("dataset.json", '{"id": "a"}', "dataset.json lacks the key.s. splits"),
        ("evaluation/test.json", '{"rows": 3}', "test.json lacks the key.s. metrics; it has rows"),
        ("environment.json", "[]", "environment.json must hold a JSON object, not list"),
    ],
)
def test_unreadable_files_are_named(tmp_path, moe, name, content, message):
    (moe / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        page.write_report([moe], tmp_path / "report")


def test_no_run_or_one_twice_is_refused(tmp_path, moe):
    with pytest.raises(ValueError, match="no run folder given"):
        page.write_report([], tmp_path / "report")
    with pytest.raises(ValueError, match="is given twice"):
        page.write_report([moe, moe / ".." / "moe"], tmp_path / "report")


def test_the_same_runs_give_the_same_bytes(tmp_path, folder, single):
    with contextlib.chdir(folder):
        again = page.write_report([Path("moe")], tmp_path / "again")
    assert again.read_bytes() == (folder / "single" / "index.html").read_bytes()


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/data/private/corpus", "corpus"),
        ("~/corpus", "corpus"),
        ("file:///data/corpus", "corpus"),
        ("s3://bucket/corpus", "s3://bucket/corpus"),
        ("corpus/train", "corpus/train"),
        ("~3 epochs", "~3 epochs"),
    ],
)
def test_absolute_paths_in_a_config_are_cut(tmp_path, path, shown):
    run = write_run(tmp_path / "moe", num_classes=5, num_epochs=0, splits=())
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["dataset"]["roots"] = [path]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    _, html = report(tmp_path, run)
    assert yaml.safe_load(unescape(re.search(r"<pre>(.*?)</pre>", html, re.S)[1]))["dataset"]["roots"] == [shown]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "—"),
        (3_000, "3,000"),
        (0.71124, "0.7112"),
        (1234.5, "1,234.5000"),
        (3.14159e-5, "3.142e-05"),
        (0.0, "0.0000"),
        (float("nan"), "nan"),
        ("text", "text"),
        (True, "True"),
    ],
)
def test_numbers_for_people(value, text):
    assert page.number(value) == text


def test_neither_torch_nor_ray_nor_pyplot_is_imported():
    program = (
        "import sys, mmray.reporting.page; print({'torch', 'ray', 'matplotlib.pyplot', 'pandas'} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"
