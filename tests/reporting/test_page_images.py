"""The page about runs that classify images, read back: whose images stand where, each class by run, each phase."""

import csv
import io
import json

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image
from run_folders import change, report, write_image_examples, write_image_run

from mmray.reporting import page, plots, plots_images
from mmray.reporting.images import phase_starts, read_examples
from mmray.reporting.runs import read_run

PETS = ["beagle", "boxer", "sphynx"]
RED, BLUE = (220, 20, 10), (10, 30, 200)
CONFUSED = {
    "confused_pairs": [{"true": 0, "predicted": 1, "count": 3, "ids": ["a.jpg"]}],
    "right": ["b.jpg"],
}


def pixels(color, size=(30, 40)):
    return np.full((*size, 3), color, np.uint8)


def jpeg(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def confused_run(folder, store="uint8", **kwargs):
    """A run that takes the red a.jpg for a boxer, and the blue b.jpg, rightly, for a sphynx."""
    run = write_image_run(folder, [0.25, 1.0, 1.0], PETS, evaluation=CONFUSED)
    stored = jpeg if store == "jpeg" else np.ndarray.tobytes
    rows = [("b.jpg", [0.01, 0.0, 0.99], stored(pixels(BLUE))), ("a.jpg", [0.04, 0.75, 0.21], stored(pixels(RED)))]
    write_image_examples(run, rows, **({"size": [30, 40], "store": store} | kwargs))
    return run


@pytest.mark.parametrize("store", ["uint8", "jpeg"])
def test_the_images_of_each_pair_then_what_is_surely_right(tmp_path, store):
    heat = np.zeros((2, 30, 40), np.uint8)
    heat[1, :, 20:] = 255
    reader, html = report(tmp_path, confused_run(tmp_path / "run", store, heat=heat))
    first, second = (np.asarray(Image.open(io.BytesIO(photo)).convert("RGB"), int) for photo in reader.photos)
    assert first.shape == second.shape == (30, 80, 3)
    np.testing.assert_allclose(first[:, :38], np.broadcast_to(RED, (30, 38, 3)), atol=6)
    np.testing.assert_allclose(second[:, :38], np.broadcast_to(BLUE, (30, 38, 3)), atol=6)
    grey = 0.299 * RED[0] + 0.587 * RED[1] + 0.114 * RED[2]
    np.testing.assert_allclose(first[:, 42:58], grey, atol=6)  # cold
    yellow = np.array([252, 255, 164])  # where matplotlib's inferno ends
    np.testing.assert_allclose(first[:, 62:], np.broadcast_to(0.75 * yellow + 0.25 * grey, (30, 18, 3)), atol=6)
    text = " ".join(reader.text.split())
    assert "beagle → boxer: 3 of 4 a.jpg: 0.75, beagle 0.04 Right, and surest of it sphynx 0.99: b.jpg" in text
    assert "what spoke for the prediction: Grad-CAM of layer4." in text
    assert 'width="320"' in html
    assert 'height="120"' in html


def test_a_model_that_cannot_tell_where_it_looked_has_the_images_alone(tmp_path):
    reader, _ = report(tmp_path, confused_run(tmp_path / "run"))
    assert [Image.open(io.BytesIO(photo)).size for photo in reader.photos] == [(40, 30)] * 2
    assert "what spoke for" not in reader.text


def test_large_images_are_made_smaller(tmp_path):
    run = write_image_run(tmp_path / "run", [1.0], ["cat"], evaluation={"confused_pairs": [], "right": ["a"]})
    write_image_examples(run, [("a", [1.0], pixels(RED, (960, 480)).tobytes())], size=[960, 480])
    reader, html = report(tmp_path, run)
    assert Image.open(io.BytesIO(reader.photos[0])).size == (120, 240)
    assert 'width="60"' in html
    assert 'height="120"' in html


def test_pairs_without_stored_images_are_told_without(tmp_path):
    reader, _ = report(tmp_path, write_image_run(tmp_path / "run", [0.25, 1, 1], PETS, evaluation=CONFUSED))
    assert reader.photos == []
    assert "beagle → boxer: 3 of 4" in reader.text
    assert "No images are stored with the evaluation on test." in reader.text


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"facts": {}}, r"lacks mmray\.image; run mmray evaluate again"),
        ({"heat": np.zeros((2, 30, 40), np.uint8), "facts": {"image": "{}"}}, r"lacks mmray\.heat;"),
        ({"heat": np.zeros((2, 30, 41), np.uint8)}, r"heat of \(30, 41\) for images of \(30, 40\)"),
        ({"size": [30, 41]}, r"image b\.jpg: .*3600"),
        ({"store": "jpeg"}, r"image b\.jpg: cannot identify image file"),
    ],
)
def test_examples_that_do_not_fit_are_refused(tmp_path, kwargs, message):
    run = confused_run(tmp_path / "run")
    rows = [(name, [1.0], pixels(BLUE).tobytes()) for name in ("b.jpg", "a.jpg")]
    write_image_examples(run, rows, **({"size": [30, 40]} | kwargs))
    with pytest.raises(ValueError, match=message):
        read_examples(run / "evaluation" / "test.examples.parquet")


def test_a_jpeg_file_of_another_size_is_refused(tmp_path):
    run = confused_run(tmp_path / "run", "jpeg", size=[40, 30])
    with pytest.raises(ValueError, match=r"a JPEG file of \(30, 40\) where all have \(40, 30\)"):
        report(tmp_path, run)


def test_an_image_that_the_evaluation_names_must_be_stored(tmp_path):
    run = confused_run(tmp_path / "run")
    change(run, "evaluation/test.json", lambda content: content["right"].append("c.jpg"))
    with pytest.raises(ValueError, match=r"lacks the image c\.jpg of test\.json"):
        report(tmp_path, run)


def accuracy_table(tmp_path):
    path = tmp_path / "report" / "per_class_accuracy.csv"
    return list(csv.reader(path.read_text(encoding="utf-8").splitlines())) if path.exists() else None


def test_each_class_by_several_runs_as_a_table(tmp_path):
    runs = [
        write_image_run(tmp_path / "b0", [0.1 + 0.2, 0.0, 1.0], PETS, [10, 0, 4]),
        write_image_run(tmp_path / "vit", [0.6, 0.0, 0.5], PETS, [10, 0, 6]),
        write_image_run(tmp_path / "other", [0.5, 0.5], ["cat", "dog"]),  # of other classes, too few of them
    ]
    _, html = report(tmp_path, *runs)
    assert accuracy_table(tmp_path) == [
        ["evaluation", "class", "rows", "b0", "vit"],
        ["test", "beagle", "10", repr(0.1 + 0.2), "0.6"],
        ["test", "boxer", "0", "", ""],
        ["test", "sphynx", "", "1.0", "0.5"],
    ]
    assert '<a href="per_class_accuracy.csv">' in html
    assert (tmp_path / "report" / "class_accuracy_test.png").exists()


@pytest.mark.parametrize(("num_classes", "shown"), [(5, False), (6, True)])
def test_a_single_run_needs_many_classes_for_that_table(tmp_path, num_classes, shown):
    run = write_image_run(tmp_path / "run", [0.5] * num_classes, [f"class {c}" for c in range(num_classes)])
    _, html = report(tmp_path, run)
    assert (accuracy_table(tmp_path) is not None) == shown == ("per_class_accuracy.csv" in html)


def test_cells_of_the_accuracies_go_by_the_mean_of_a_class():
    accuracy = np.array([[0.2, 0.3], [np.nan, np.nan], [0.9, np.nan], [0.5, 0.75]])
    (axes,) = plots_images.class_accuracy(accuracy, ["a", "b", "c", "d"], ["b0", "vit"]).axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["c", "d", "a", "b"]
    cells = {(round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in axes.texts}
    assert [[cells[row, column] for column in (0, 1)] for row in range(4)] == [
        ["90.0", "—"], ["50.0", "75.0"], ["20.0", "30.0"], ["—", "—"],
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"shape \(4, 2\) don't fit 4 classes and 1 runs"):
        plots_images.class_accuracy(accuracy, ["a", "b", "c", "d"], ["b0"])


def test_many_classes_have_colours_only():
    figure = plots_images.class_accuracy(np.full((200, 3), 0.5), [f"class {c}" for c in range(200)], ["a", "b", "c"])
    assert len(figure.axes[0].texts) == 0
    assert len(figure.axes[0].get_yticklabels()) == 50


def test_each_phase_at_its_last_and_best_epoch(tmp_path):
    phases = [("head", [0.5, 0.7, 0.6]), ("fine-tune", [0.8, 0.8])]
    reader, _ = report(tmp_path, write_image_run(tmp_path / "run", [1, 1, 1], PETS, phases=phases))
    assert reader.tables["phases"] == [
        ["phase", "epoch", "trained parameters", "train loss", "val loss", "val less train", "val accuracy"],
        ["head", "last, 3 of 3", "400", "0.3333", "0.5000", "0.1667", "0.6000"],
        ["head", "best, 2 of 3", "400", "0.5000", "0.7500", "0.2500", "0.7000"],
        ["fine-tune", "last, 2 of 2", "900", "0.2000", "0.3000", "0.1000", "0.8000"],
        ["fine-tune", "best, 2 of 2", "900", "0.2000", "0.3000", "0.1000", "0.8000"],
    ]


def test_the_monitored_metric_tells_the_best_epoch(tmp_path):
    run = write_image_run(tmp_path / "run", [1, 1, 1], PETS, phases=[("head", [0.7, 0.6])])
    (run / "config.yaml").write_text("name: run\ntrain: {monitor: val/loss}\n")
    other = write_image_run(tmp_path / "other", [1, 1, 1], PETS, phases=[])
    reader, _ = report(tmp_path, run, other)
    assert reader.tables["phases"][2] == ["run", "head", "best, 2 of 2", "400", "0.5000", "0.7500", "0.2500"]


def test_runs_without_phases_have_no_table_of_them(tmp_path):
    reader, _ = report(tmp_path, write_image_run(tmp_path / "run", [1, 1, 1], PETS))
    assert "phases" not in reader.tables


def test_a_phase_starts_where_the_one_before_ends(tmp_path):
    run = write_image_run(tmp_path / "run", [1, 1, 1], PETS, phases=[("head", [0.5, 0.7]), ("fine-tune", [0.8])])
    with (run / "metrics.jsonl").open("a") as file:  # a third has only begun
        file.write(json.dumps({"event": "step", "epoch": 3, "step": 35, "phase": "all", "train/loss": 0.1}) + "\n")
    assert phase_starts(read_run(run)) == [("head", 0), ("fine-tune", 20), ("all", 30)]
    assert phase_starts(read_run(write_image_run(tmp_path / "plain", [1, 1, 1], PETS))) == []


def test_every_curve_has_the_phases_of_its_runs(tmp_path, monkeypatch):
    run = write_image_run(tmp_path / "run", [1, 1, 1], PETS, phases=[("head", [0.5, 0.7]), ("all", [0.8])])
    saved = {}
    monkeypatch.setattr(page.Pictures, "save", lambda _, name, figure, caption: saved.setdefault(name, figure) and {})
    page.training_curves([read_run(run)], {"run": phase_starts(read_run(run))}, page.Pictures(tmp_path))
    assert saved.keys() == {"curve loss", "curve accuracy"}
    for figure in saved.values():
        assert [(text.xy[0], text.get_text()) for text in figure.axes[0].texts] == [(0, "head"), (20, "all")]


def test_marks_of_phases_are_grey_where_runs_share_them():
    x, y = np.arange(50), np.ones(50)
    figure = plots.curves({name: {"val": (x, y)} for name in ("a", "b", "c")}, "loss")
    runs = {"a": [], "b": [("head", 0), ("all", 20)], "c": [("head", 0), ("all", 30)]}
    plots_images.mark_phases(figure, runs)
    (axes,) = figure.axes
    marks = [(line.get_xdata()[0], to_hex(line.get_color())) for line in axes.lines[3:]]
    assert marks == [(0, plots.GREY), (20, plots.run_color(1).lower()), (30, plots.run_color(2).lower())]
    assert [(text.xy[0], text.get_text()) for text in axes.texts] == [(0, "head"), (20, "all"), (30, "all")]
