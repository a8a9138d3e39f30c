"""The pictures hold the numbers they were given, and are told apart without seeing every colour."""

import io

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex

from mmray.reporting import plots

EMPTY = (np.zeros(0), np.zeros(0))


def drawn(axes):
    return [(to_hex(line.get_color()), line.get_xdata(), line.get_ydata()) for line in axes.lines]


def test_curves_draw_the_given_values():
    steps = np.array([10, 20, 30, 40])
    moe = {"step": (steps, np.array([4.0, 3.0, 2.5, 2.25])), "val": (np.array([40]), np.array([2.5]))}
    logistic = {"train": (np.array([20, 40]), np.array([3.5, 3.25]))}
    figure = plots.curves({"moe": moe, "logistic": logistic}, "loss")
    lines = drawn(figure.axes[0])
    expected = [(0, *moe["step"]), (0, *moe["val"]), (1, *logistic["train"])]
    assert len(lines) == 3
    for (color, x, y), (place, expected_x, expected_y) in zip(lines, expected, strict=True):
        assert color == plots.run_color(place).lower()
        np.testing.assert_array_equal(x, expected_x)
        np.testing.assert_array_equal(y, expected_y)
    assert figure.axes[0].get_ylabel() == "loss"
    assert figure.axes[0].get_xlabel() == "training step"
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["moe", "logistic", "train, step", "train, epoch", "val"]


def test_a_single_point_is_drawn_as_a_dot():
    figure = plots.curves({"a": {"val": (np.array([5]), np.array([0.5]))}}, "GAP")
    assert figure.axes[0].lines[0].get_marker() == "o"


@pytest.mark.parametrize(
    ("values", "log_y", "scale"),
    [
        ([1000.0, 1.0], True, "log"),
        ([1000.0, 1.0], False, "linear"),
        ([50.0, 1.0], True, "linear"),
        ([1000.0, 0.0], True, "linear"),
        ([np.nan, np.nan], True, "linear"),
    ],
)
def test_loss_over_more_than_two_decades_is_logarithmic(values, log_y, scale):
    figure = plots.curves({"a": {"val": (np.arange(2), np.array(values))}}, "loss", log_y=log_y)
    assert figure.axes[0].get_yscale() == scale


def test_a_run_without_points_keeps_the_colours_of_the_others():
    figure = plots.curves({"a": {"val": EMPTY}, "b": {"val": (np.arange(2), np.ones(2))}}, "GAP")
    assert [color for color, _, _ in drawn(figure.axes[0])] == [plots.run_color(1).lower()]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["b", "val"]
    figure = plots.score_by_rank({"a": EMPTY, "b": (np.arange(9), np.ones(9))}, "AP")
    assert to_hex(figure.axes[0].lines[0].get_color()) == plots.run_color(1).lower()


def naive_smooth(score):
    smoothed = []
    for rank in range(1, len(score) + 1):
        window = [s for r, s in enumerate(score, start=1) if rank - rank // 4 <= r <= rank + rank // 4]
        known = [s for s in window if not np.isnan(s)]
        smoothed.append(np.mean(known) if known and len(known) >= len(window) / 2 else np.nan)
    return smoothed


@pytest.mark.parametrize("num_classes", [0, 1, 4, 37, 500])
def test_smoothing_equals_the_definition(num_classes):
    rng = np.random.default_rng(num_classes)
    score = rng.random(num_classes)
    score[rng.random(num_classes) < 0.3] = np.nan
    score[num_classes // 2 : num_classes // 2 + 30 * (num_classes > 100)] = np.nan
    np.testing.assert_allclose(plots.smooth_over_ranks(score), naive_smooth(score), rtol=1e-12)


def test_smoothing_by_hand():
    # Rank 4 averages ranks 3 to 5; rank 5 averages 4 to 6, of which 6 does not exist.
    np.testing.assert_allclose(plots.smooth_over_ranks(np.array([1.0, 0.5, 0.3, 0.6, 0.0])), [1, 0.5, 0.3, 0.3, 0.3])


def test_score_by_rank_sorts_by_training_frequency():
    train_count = np.array([5, 90, 20, 20])
    score = np.array([0.1, 0.9, 0.5, np.nan])
    figure = plots.score_by_rank({"moe": (train_count, score), "logistic": (train_count, score / 2)}, "AP")
    upper, lower = figure.axes
    ranked = np.array([0.9, 0.5, np.nan, 0.1])
    assert len(upper.lines) == 2
    np.testing.assert_array_equal(upper.lines[0].get_xdata(), [1, 2, 3, 4])
    np.testing.assert_allclose(upper.lines[0].get_ydata(), naive_smooth(ranked))
    np.testing.assert_allclose(upper.lines[1].get_ydata(), naive_smooth(ranked / 2))
    # Both runs count alike, so the frequency is drawn once.
    assert len(lower.lines) == 1
    np.testing.assert_array_equal(lower.lines[0].get_ydata(), [90, 20, 20, 5])
    assert upper.get_xscale() == lower.get_xscale() == "log"


def test_score_by_rank_draws_each_frequency_of_different_data():
    runs = {"a": (np.array([3, 2]), np.ones(2)), "b": (np.array([9, 7, 8]), np.ones(3))}
    lines = plots.score_by_rank(runs, "AP").axes[1].lines
    assert [line.get_ydata().tolist() for line in lines] == [[3, 2], [9, 8, 7]]


def test_histogram_of_many_labels_counts_each_once():
    counts = np.concatenate([[0, 0, 1, 2, 3, 4, 7, 8, 1023, 1024], np.full(40, 100)])
    axes = plots.label_histogram(counts, [f"c{i}" for i in range(50)]).axes[0]
    heights = [int(bar.get_height()) for bar in axes.patches]
    expected = [0] * 12
    for count in counts.tolist():
        expected[count.bit_length()] += 1
    assert heights == expected
    assert sum(heights) == 50
    assert [tick.get_text() for tick in axes.get_xticklabels()][:6] == ["0", "1", "2", "4", "8", "16"]


def test_histogram_of_few_labels_names_them():
    axes = plots.label_histogram(np.array([5, 30, 0]), ["cat", "dog", "$fox_1$"]).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [30, 5, 0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["dog", "cat", r"\$fox_1\$"]


@pytest.mark.parametrize("name", [r"$\frac{", "_hidden", "a\nb", "<b>&amp;", "x" * 500])
def test_hostile_names_are_drawn(name):
    runs = {name: (np.arange(9), np.ones(9)), "b": (np.arange(9), np.ones(9))}
    figure = plots.score_by_rank(runs, name)
    figure.savefig(io.BytesIO(), format="png")
    assert len(figure.legends[0].get_texts()) == 2


def test_legend_covers_no_data():
    runs = {f"run number {i}": {"val": (np.arange(5), np.full(5, float(i)))} for i in range(9)}
    figure = plots.curves(runs, "loss")
    lone = plots.curves({"a": runs["run number 0"]}, "loss")
    figure.canvas.draw()
    lone.canvas.draw()
    # The axes keep their height; it's the picture that grows.
    assert figure.axes[0].bbox.height == pytest.approx(lone.axes[0].bbox.height, rel=0.03)
    legend = figure.legends[0].get_window_extent()
    assert not legend.overlaps(figure.axes[0].get_window_extent())
    assert legend.x0 >= 0
    assert legend.x1 <= figure.bbox.x1


def test_drawing_leaves_matplotlib_as_it_was():
    before = dict(matplotlib.rcParams)
    plots.curves({"a": {"val": (np.arange(3), np.arange(3.0))}}, "loss")
    assert dict(matplotlib.rcParams) == before


def bars(axes):
    """The drawn bars: (middle, height, edge colour, whether it is hatched)."""
    return [
        (p.get_x() + p.get_width() / 2, p.get_height(), to_hex(p.get_edgecolor()), bool(p.get_hatch()))
        for p in axes.patches
        if np.isfinite(p.get_height())
    ]


def test_metric_bars_stand_by_metric_run_and_who_measured():
    measured = {"a": {"overall": 0.7, "alarm": 0.2}, "b": {"overall": 0.8}}
    published = {"a": {"overall": 0.75, "alarm": 0.1}}
    figure = plots.metric_bars(measured, published, {"overall": "overall accuracy", "alarm": "false alarm (low)"})
    a, b = plots.run_color(0).lower(), plots.run_color(1).lower()
    drawn = sorted(bars(figure.axes[0]))
    assert [(round(x), height, color, hatched) for x, height, color, hatched in drawn] == [
        (0, 0.7, a, False),
        (0, 0.75, a, True),
        (0, 0.8, b, False),
        (1, 0.2, a, False),
        (1, 0.1, a, True),
    ]
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert sorted(texts) == ["0.100", "0.200", "0.700", "0.750", "0.800"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "measured", "published"]
    ticks = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert ticks == ["overall accuracy", "false alarm\n(low)"]
    middles = np.array([x for x, *_ in drawn])
    assert np.diff(middles).min() > 0
    assert middles[:3].mean() == pytest.approx(0)


def test_metric_bars_without_published_scores_or_with_values_that_are_not_finite():
    figure = plots.metric_bars({"a": {"gap": 0.5, "perr": np.nan}, "b": {}}, {}, {"gap": "GAP", "perr": "PERR"})
    assert [height for _, height, _, _ in bars(figure.axes[0])] == [0.5]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a"]
    plots.metric_bars({"a": {}}, {}, {}).savefig(io.BytesIO())
    plots.metric_bars({"a": {"gap": np.nan}}, {}, {"gap": "GAP"}).savefig(io.BytesIO())


def test_metric_bars_beyond_one_and_below_zero_fit():
    axes = plots.metric_bars({"a": {"loss": 3.0, "gain": -0.5}, "b": {}}, {}, {"loss": "loss", "gain": "gain"}).axes[0]
    low, high = axes.get_ylim()
    assert low < -0.5
    assert high > 3


def test_the_eighth_run_has_a_marker_on_its_bars():
    runs = {f"run {i}": {"gap": 0.1 * i} for i in range(8)}
    figure = plots.metric_bars(runs, runs, {"gap": "GAP"})
    assert len(bars(figure.axes[0])) == 16
    marked = {(round(float(line.get_ydata()[0]), 3), line.get_marker()) for line in figure.axes[0].lines}
    assert marked == {(0.7, "s")}


def test_sorted_scores_put_each_clip_in_the_middle_of_its_share():
    scores = {"a": np.array([0.5, np.nan, 0.9, 0.1, 0.7]), "b": np.array([]), "c": np.array([0.3])}
    figure = plots.sorted_scores(scores, "accuracy")
    (a, c) = drawn(figure.axes[0])
    np.testing.assert_allclose(a[1], [12.5, 37.5, 62.5, 87.5])
    np.testing.assert_allclose(a[2], [0.1, 0.5, 0.7, 0.9])
    assert (a[0], c[0]) == (plots.run_color(0).lower(), plots.run_color(2).lower())
    np.testing.assert_allclose((c[1], c[2]), ([50], [0.3]))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "c"]
    (falling,) = drawn(plots.sorted_scores({"a": scores["a"]}, "false alarm", best_first=True).axes[0])
    np.testing.assert_allclose(falling[2], [0.9, 0.7, 0.5, 0.1])
