"""The pictures of classification: each value is where it belongs, whatever the number of classes."""

import io

import matplotlib.colors
import numpy as np
import pytest
from matplotlib.colors import to_hex

from mmray.reporting import plots_classification as plots
from mmray.reporting.plots import PALETTE


def drawn(figure):
    figure.savefig(io.BytesIO(), format="png")
    return figure


def texts(axes):
    """What stands in the cells of a matrix, by (row, column)."""
    return {(round(text.get_position()[1]), round(text.get_position()[0])): text.get_text() for text in axes.texts}


def test_cells_of_a_confusion_matrix():
    matrix = np.array([[8, 2, 0], [0, 0, 0], [1, 1, 2]])
    (axes,) = drawn(plots.confusion(matrix, ["Angry", "Happy", "Sad"])).axes
    assert texts(axes) == {
        (0, 0): "80.0%\n8", (0, 1): "20.0%\n2", (0, 2): "0.0%\n0",
        (1, 0): "—", (1, 1): "—", (1, 2): "—",
        (2, 0): "25.0%\n1", (2, 1): "25.0%\n1", (2, 2): "50.0%\n2",
    }  # fmt: skip
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.8, 0.2, 0], [0, 0, 0], [0.25, 0.25, 0.5]])
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true", "predicted")
    names = [[tick.get_text() for tick in ticks] for ticks in (axes.get_xticklabels(), axes.get_yticklabels())]
    assert names == [["Angry", "Happy", "Sad"]] * 2


@pytest.mark.parametrize(
    ("num_classes", "num_texts", "num_names"), [(1, 1, 1), (10, 100, 10), (40, 60, 40), (150, 0, 38)]
)
def test_confusions_of_any_number_of_classes(num_classes, num_texts, num_names):
    matrix = np.diag(np.full(num_classes, 5))
    matrix[0, : num_classes // 2 + 1] += 1
    (axes,) = drawn(plots.confusion(matrix, [f"class {c}" for c in range(num_classes)])).axes
    assert len(axes.texts) == num_texts
    assert len(axes.get_xticklabels()) == num_names
    if num_texts == 60:  # the empty cells stay empty
        assert texts(axes)[0, 0] == "6"
        assert (1, 0) not in texts(axes)


@pytest.mark.parametrize("num_classes", [3, 40])
def test_text_stands_out_from_its_cell(num_classes):
    counts = np.arange(num_classes * num_classes).reshape(num_classes, num_classes) % 23 + 1
    counts[0, 0] = 3000
    (axes,) = drawn(plots.confusion(counts, [str(c) for c in range(num_classes)])).axes
    image = axes.images[0]

    def luminance(color):
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color[:3])
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    for text in axes.texts:
        column, row = map(round, text.get_position())
        cell = luminance(image.cmap(image.norm(image.get_array()[row, column])))
        written = luminance(matplotlib.colors.to_rgb(text.get_color()))
        assert (max(cell, written) + 0.05) / (min(cell, written) + 0.05) > 3.5


def test_a_matrix_that_does_not_fit_its_names_is_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 3\) doesn't fit 3 class names"):
        plots.confusion(np.zeros((2, 3), int), ["a", "b", "c"])


def test_points_and_intervals_of_runs():
    runs = {"cnn": {"accuracy": 0.8, "ece": 0.1}, "gru": {"accuracy": 0.9, "ece": float("nan")}}
    intervals = {"cnn": {"accuracy": (0.7, 0.85)}, "gru": {"accuracy": (0.8, 0.95)}}
    published = {"gru": {"accuracy": 0.99}}
    figure = drawn(plots.interval_chart(runs, intervals, published, {"accuracy": "accuracy", "ece": "ECE"}))
    (axes,) = figure.axes
    lines = [line for line in axes.lines if to_hex(line.get_color()) in (PALETTE[0].lower(), PALETTE[1].lower())]
    shown = [
        (PALETTE.index(to_hex(line.get_color()).upper()), line.get_fillstyle(), *np.round(line.get_xdata(), 6).tolist())
        for line in lines
    ]
    assert sorted(shown) == [
        (0, "full", 0.1), (0, "full", 0.7, 0.85), (0, "full", 0.8),
        (1, "full", 0.8, 0.95), (1, "full", 0.9), (1, "none", 0.99),
    ]  # fmt: skip
    heights = {x: line.get_ydata()[0] for line in lines for x in np.atleast_1d(line.get_xdata())}
    assert heights[0.7] == heights[0.85] < heights[0.9] < heights[0.1]  # the first run above the second, ECE below
    assert axes.get_xlabel() == "value with its 95 % interval; hollow: published"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["cnn", "gru"]


def test_reliability():
    bins = [
        {"low": 0.5, "high": 0.75, "count": 30, "confidence": 0.6, "accuracy": 0.5},
        {"low": 0.75, "high": 1.0, "count": 10, "confidence": 0.9, "accuracy": 1.0},
    ]
    upper, lower = drawn(plots.reliability({"cnn": bins, "gru": []})).axes
    (points,) = upper.collections
    np.testing.assert_allclose(points.get_offsets(), [[0.6, 0.5], [0.9, 1.0]])
    assert points.get_sizes()[0] > points.get_sizes()[1]
    (steps,) = lower.lines
    np.testing.assert_allclose(steps.get_xdata(), [0.5, 0.5, 0.75, 0.75, 0.75, 0.75, 1, 1])
    np.testing.assert_allclose(steps.get_ydata(), [0, 0.75, 0.75, 0, 0, 0.25, 0.25, 0])


def test_the_timeline_stacks_to_one_and_names_the_class_ahead():
    p = np.array([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.2, 0.7, 0.1]])
    figure = drawn(plots.timeline(np.array([0.0, 30.0, 60.0]), p, ["Angry", "Happy", "Sad"]))
    upper, lower = figure.axes
    for klass, area in enumerate(upper.collections):
        (path,) = area.get_paths()
        for piece, middle_s in enumerate((15, 45, 75)):
            base, top = p[piece, :klass].sum(), p[piece, : klass + 1].sum()
            assert path.contains_point((middle_s, base + 0.01))
            assert path.contains_point((middle_s, top - 0.01))
            assert not path.contains_point((middle_s, base - 0.01))
            assert not path.contains_point((middle_s, top + 0.01))
    bars = [
        (to_hex(bar.get_facecolor()[0]).upper(), *path.vertices[:4, 0][[0, 2]].tolist())
        for bar in lower.collections
        for path in bar.get_paths()
    ]
    spans = [(color, min(a, b), max(a, b)) for color, a, b in bars]
    assert spans == [(PALETTE[0], 0.0, 30.0), (PALETTE[1], 30.0, 90.0)]
    assert upper.get_xlim() == (0, 90)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["Angry", "Happy", "Sad"]


def test_a_timeline_of_many_classes_and_of_one_piece():
    p = np.full((4, 12), 0.01)
    p[:, [1, 3, 5, 7, 9, 11]] = 0.94 / 6
    figure = drawn(plots.timeline(np.arange(4) * 10.0, p, [f"e{c}" for c in range(12)]))
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["e1", "e3", "e5", "e7", "e9", "e11", "6 others"]
    (path,) = figure.axes[0].collections[-1].get_paths()
    assert path.vertices[:, 1].min() == pytest.approx(0.94)
    assert drawn(plots.timeline(np.array([0.0]), np.ones((1, 1)), ["Sad"])).axes[0].get_xlim() == (0, 30)
    with pytest.raises(ValueError, match="0 times"):
        plots.timeline(np.empty(0), np.empty((0, 2)), ["a", "b"])


def test_a_tone_stands_at_its_frequency_in_the_panel_and_all_axes_are_shared():
    rate = 16000
    tone = 0.5 * np.sin(2 * np.pi * 2000 * np.arange(rate) / rate)
    figure = drawn(plots.augmentation_panel([("before", tone, rate), ("after", 0.1 * tone[: rate // 2], rate)]))
    top_left, top_right, low_left, low_right = figure.axes
    assert [axes.get_title() for axes in (top_left, top_right)] == ["before", "after"]
    levels = []
    for axes in (low_left, low_right):
        mesh = axes.collections[0]
        power_db = np.asarray(mesh.get_array()).reshape(np.array(mesh.get_coordinates().shape[:2]) - 1)
        khz = np.asarray(mesh.get_coordinates())[:, 0, 1]
        row = int(np.median(power_db.argmax(axis=0)))
        assert khz[row] <= 2.0 <= khz[row + 1]
        levels.append(np.median(power_db[row]))
    assert levels == [pytest.approx(0, abs=0.5), pytest.approx(-20, abs=0.5)]
    np.testing.assert_allclose(np.asarray(low_right.collections[0].get_coordinates())[0, -1, 0], 0.5)
    assert top_left.get_xlim() == low_right.get_xlim() == (0, 1)
    assert top_left.get_ylim() == top_right.get_ylim()
    assert low_left.get_ylim() == (0, 8)


@pytest.mark.parametrize("samples", [np.zeros(10), np.ones(1), np.zeros(100_000)])
def test_silent_and_tiny_sounds_are_drawn(samples):
    drawn(plots.augmentation_panel([("sound", samples, 8000)]))


def test_no_sound_is_refused():
    with pytest.raises(ValueError, match="no sounds"):
        plots.augmentation_panel([])
    with pytest.raises(ValueError, match="'b' has no samples"):
        plots.augmentation_panel([("a", np.ones(5), 8000), ("b", np.ones(0), 8000)])


def test_each_row_of_a_feature_map_in_its_own_deviations():
    values = np.array([[1000.0, 5.0, 0.1], [2000.0, 5.0, 0.3], [3000.0, 5.0, 0.2]], np.float32)
    mfcc, contrast = drawn(plots.feature_map(values, 0.032, ["mfcc 0", "mfcc 1", "contrast 0"])).axes
    unit = np.sqrt(1.5)
    np.testing.assert_allclose(mfcc.images[0].get_array(), [[-unit, 0, unit], [0, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(contrast.images[0].get_array(), [[-unit, unit, 0]], atol=1e-6)
    assert mfcc.images[0].get_extent() == pytest.approx((0, 0.096, -0.5, 1.5))
    assert [axes.get_ylabel() for axes in (mfcc, contrast)] == ["mfcc", "contrast"]


def test_a_map_that_does_not_fit_its_names_is_refused():
    with pytest.raises(ValueError, match=r"shape \(4, 3\) doesn't fit 2 row names"):
        plots.feature_map(np.zeros((4, 3)), 0.1, ["a", "b"])
    with pytest.raises(ValueError, match="doesn't fit 1 row names"):
        plots.feature_map(np.zeros((0, 1)), 0.1, ["a"])
