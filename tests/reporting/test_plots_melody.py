"""The picture of a clip's melody: its data is where it belongs, and every kind of error is counted and seen."""

import io

import mir_eval
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.colors import to_hex

from mmray.reporting import plots_melody

HOP_S = 0.016
FREQUENCIES_HZ = 31 * 2 ** (np.arange(256) / 48)


def draw(f0_hz, ref_f0_hz, values=None):
    f0_hz = np.asarray(f0_hz, np.float64)
    times_s = HOP_S * (1 + np.arange(len(f0_hz)))
    values = np.random.default_rng(0).random((len(f0_hz), 256)) if values is None else values
    reference = None if ref_f0_hz is None else np.asarray(ref_f0_hz, np.float64)
    figure = plots_melody.contour_over_cfp(values, FREQUENCIES_HZ, times_s, HOP_S, f0_hz, reference)
    figure.savefig(io.BytesIO(), format="png")
    return figure


def dashes(axes):
    """The drawn frames of the estimate: (middle in s, Hz, colour)."""
    return sorted(
        (float((line[0, 0] + line[1, 0]) / 2), float(line[0, 1]), to_hex(lines.get_color()[0]))
        for lines in axes.collections
        if type(lines).__name__ == "LineCollection"
        for line in lines.get_segments()
    )


def strip(figure):
    """What the strip shows: the label of each row, and the middles of its bars in seconds."""
    axes = figure.axes[1]
    labels = [tick.get_text() for tick in axes.get_yticklabels()]
    middles = [[float(path.vertices[:4, 0].mean()) for path in bars.get_paths()] for bars in axes.collections]
    return labels, middles


#    right  octave too high  49 cents off        51 cents off         missed  false alarm  silence
F0 = [220.0, 440.0, 220 * 2 ** (49 / 1200), 220 * 2 ** (51 / 1200), 0.0, 110.0, 0.0]
REFERENCE = [220.0, 220.0, 220.0, 220.0, 220.0, 0.0, 0.0]


def test_frame_errors_by_hand():
    errors = plots_melody.frame_errors(np.array(F0), np.array(REFERENCE))
    assert {name: np.flatnonzero(wrong).tolist() for name, wrong in errors.items()} == {
        "wrong pitch": [1, 3],
        "missed": [4],
        "false alarm": [5],
    }


pitches = arrays(np.float64, st.integers(2, 40), elements=st.sampled_from([0.0, 100.0, 102.0, 103.5, 200.0]))


@pytest.mark.filterwarnings("ignore:.*melody has no voiced frames")
@given(pitches, st.integers(0, 2**32 - 1))
def test_the_share_of_frames_that_are_not_wrong_is_the_overall_accuracy(reference, seed):
    estimate = np.random.default_rng(seed).permutation(reference)
    errors = plots_melody.frame_errors(estimate, reference)
    wrong = sum(of_kind.mean() for of_kind in errors.values())
    voicing, cents = zip(*(mir_eval.melody.freq_to_voicing(x) for x in (reference, estimate)), strict=True)
    measured = mir_eval.melody.overall_accuracy(
        cents[0], mir_eval.melody.hz2cents(voicing[0]), cents[1], mir_eval.melody.hz2cents(voicing[1])
    )
    assert 1 - wrong == pytest.approx(measured)


def test_every_voiced_frame_is_drawn_at_its_time_and_pitch_in_the_colour_of_what_it_is():
    figure = draw(F0, REFERENCE)
    right, colors = plots_melody.RIGHT_COLOR.lower(), plots_melody.ERROR_COLORS
    expected = [right, colors["wrong pitch"], right, colors["wrong pitch"], None, colors["false alarm"], None]
    frames = [(HOP_S * (1 + i), F0[i], color.lower()) for i, color in enumerate(expected) if color]
    drawn = dashes(figure.axes[0])
    assert [color for _, _, color in drawn] == [color for _, _, color in frames]
    np.testing.assert_allclose([f[:2] for f in drawn], [f[:2] for f in frames])
    (band,) = [c for c in figure.axes[0].collections if type(c).__name__ == "PolyCollection"]
    boxes = np.array([path.vertices[:4] for path in band.get_paths()])
    np.testing.assert_allclose(boxes[:, :, 0].mean(axis=1), HOP_S * np.arange(1, 6))
    np.testing.assert_allclose(boxes[0, :, 1].min(), 220 * 2 ** (-50 / 1200))
    np.testing.assert_allclose(boxes[0, :, 1].max(), 220 * 2 ** (50 / 1200))


def test_the_strip_has_a_bar_for_every_wrong_frame_and_the_share_of_all_frames():
    labels, middles = strip(draw(F0, REFERENCE))
    assert labels == ["wrong pitch 28.6%", "missed 14.3%", "false alarm 14.3%"]
    assert [len(bars) for bars in middles] == [2, 1, 1]
    np.testing.assert_allclose(np.concatenate(middles), HOP_S * np.array([2, 4, 5, 6]))


def test_the_map_lies_on_the_axes_in_hz_and_seconds():
    values = np.zeros((50, 256))
    values[20, 100] = 1
    figure = draw(np.zeros(50), np.zeros(50), values)
    axes = figure.axes[0]
    mesh = axes.collections[0]
    corners = np.asarray(mesh.get_coordinates())[100:102, 20:22]
    low, high = FREQUENCIES_HZ[100] * 2 ** (-1 / 96), FREQUENCIES_HZ[100] * 2 ** (1 / 96)
    np.testing.assert_allclose(corners[:, 0, 1], [low, high])
    np.testing.assert_allclose(corners[0, :, 0], [20.5 * HOP_S, 21.5 * HOP_S])
    assert np.argwhere(np.asarray(mesh.get_array()).reshape(256, 50) == 1).tolist() == [[100, 20]]
    assert axes.get_yscale() == "log"
    figure.canvas.draw()
    low, high = axes.get_ylim()
    ticks = [hz for hz in axes.get_yticks() if low <= hz <= high]
    np.testing.assert_allclose(ticks, [50, 100, 200, 400, 800])


def test_without_reference_there_is_no_strip_and_no_error():
    figure = draw(F0, None)
    assert len(figure.axes) == 1
    assert {color for _, _, color in dashes(figure.axes[0])} == {plots_melody.RIGHT_COLOR.lower()}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["estimate"]


@pytest.mark.parametrize(
    ("f0_hz", "reference", "shares"),
    [
        ([0.0] * 9, [0.0] * 9, ["0.0%", "0.0%", "0.0%"]),
        ([0.0] * 9, [100.0] * 9, ["0.0%", "100.0%", "0.0%"]),
        ([100.0] * 9, [0.0] * 9, ["0.0%", "0.0%", "100.0%"]),
        ([100.0], [100.0], ["0.0%", "0.0%", "0.0%"]),
        ([-100.0, np.nan], [100.0, 100.0], ["0.0%", "100.0%", "0.0%"]),  # a guess of an unvoiced pitch is none
    ],
)
def test_clips_of_one_kind_of_frame(f0_hz, reference, shares):
    labels, _ = strip(draw(f0_hz, reference))
    assert [label.split()[-1] for label in labels] == shares


@pytest.mark.parametrize("value", [0.0, np.nan, 1.0])
def test_a_map_of_one_value_is_drawn(value):
    draw([100.0, 0.0], [100.0, 0.0], np.full((2, 256), value))


def test_no_frame_is_refused():
    with pytest.raises(ValueError, match="a map of 0 frames by 256 rows can't be drawn"):
        draw([], [])
