"""Stored melody clips: read back as they were written, and drawn with what is missing said."""

import json
from dataclasses import replace

import numpy as np
import pytest
from run_folders import MELODY_FACTS, melody_clip, per_clip, write_examples, write_melody_run

from mmray.reporting import melody
from mmray.reporting.pictures import Pictures
from mmray.reporting.runs import read_run


@pytest.fixture
def run(tmp_path):
    return write_melody_run(tmp_path / "run", {"test": per_clip(3)})


def captions(tmp_path, *runs):
    drawn, remarks = melody.contours([read_run(run) for run in runs], Pictures(tmp_path))
    return [picture["caption"] for picture in drawn], remarks


def test_clips_are_read_as_they_were_written(run):
    f0_hz = np.linspace(100, 200, 40)
    stored = melody_clip("singer0_00", 40, f0_hz, ref_f0_hz=150.0, num_bins=60)
    (clip,) = melody.read_examples(write_examples(run, "test", [stored], MELODY_FACTS | {"bins_per_octave": "12"}))
    np.testing.assert_array_equal(clip.cfp, np.frombuffer(stored["cfp"], np.float16).reshape(40, 3, 60))
    np.testing.assert_array_equal(clip.f0_hz, f0_hz.astype(np.float32))
    np.testing.assert_array_equal(clip.ref_times_s, stored["ref_times_s"])
    np.testing.assert_allclose(clip.times_s, 0.016 * np.arange(1, 41))
    np.testing.assert_allclose(clip.frequencies_hz[[0, 12, 24]], [31, 62, 124])
    np.testing.assert_array_equal(clip.reference(), np.full(40, 150.0))


def test_a_reference_with_gaps_goes_on_the_frames(run):
    # A label every 20 ms from 10 ms on, voiced in entries 2 to 4: at 50, 70 and 90 ms, and so until 110 ms.
    label = np.where(np.isin(np.arange(18), [2, 3, 4]), 200.0, 0.0)
    stored = melody_clip("a", 20, ref_f0_hz=label)
    (clip,) = melody.read_examples(write_examples(run, "test", [stored]))
    times_s = 0.016 * np.arange(1, 21)
    np.testing.assert_array_equal(clip.reference(), np.where((times_s >= 0.05) & (times_s < 0.11), 200.0, 0.0))


@pytest.mark.parametrize(
    ("facts", "left_out", "change", "message"),
    [
        ({"hop_s": "0.016"}, (), {}, "lacks mmray.first_frame_s, mmray.min_hz, mmray.bins_per_octave"),
        (MELODY_FACTS, ("est_f0_hz", "ref_f0_hz"), {}, "lacks est_f0_hz, ref_f0_hz"),
        (MELODY_FACTS, (), {"est_f0_hz": np.zeros(7)}, "clip a has 76800 values of cfp for 7 frames of est_f0_hz"),
        (MELODY_FACTS, (), {"est_f0_hz": []}, "for 0 frames of est_f0_hz"),
        (MELODY_FACTS, (), {"cfp": b""}, "clip a has 0 values of cfp for 100 frames"),
        (MELODY_FACTS, (), {"ref_f0_hz": [1.0]}, "82 times for 1 pitches of the reference"),
    ],
)
def test_files_that_are_not_whole_are_refused(run, facts, left_out, change, message):
    path = write_examples(run, "test", [melody_clip("a") | change], facts, left_out)
    with pytest.raises(ValueError, match=message):
        melody.read_examples(path)


def test_a_file_that_is_no_parquet_is_named(run, tmp_path):
    (run / "evaluation" / "test.examples.parquet").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"test\.examples\.parquet is not a Parquet file"):
        captions(tmp_path, run)


def test_captions_have_the_scores_of_the_clip(run, tmp_path):
    write_examples(run, "test", [melody_clip("singer1_01"), melody_clip("not scored")])
    shown, remarks = captions(tmp_path, run)
    scores = json.loads((run / "evaluation" / "test.json").read_text())["per_clip"][1]
    assert shown == [
        f"test, singer1_01: overall accuracy {scores['overall_accuracy']:.4f}; "
        f"raw pitch accuracy {scores['raw_pitch_accuracy']:.4f}; "
        f"raw chroma accuracy {scores['raw_chroma_accuracy']:.4f}; "
        f"voicing recall {scores['voicing_recall']:.4f}; voicing false alarm {scores['voicing_false_alarm']:.4f}.",
        "test, not scored.",
    ]
    assert remarks == []
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "contour_test_singer1_01.png",
        "contour_test_not_scored.png",
    }


def test_what_a_clip_lacks_is_said(run, tmp_path):
    clips = [
        melody_clip("no label", with_reference=False),
        melody_clip("silence", ref_f0_hz=0.0, f0_hz=0.0),
        melody_clip("one frame", num_frames=1),
        melody_clip("long", 2_000, ref_f0_hz=np.where(np.arange(1602) >= 800, 220.0, 0.0)),
    ]
    write_examples(run, "test", clips)
    assert captions(tmp_path, run)[0] == [
        "test, no label: the clip has no reference.",
        "test, silence: nobody sings in the reference; the estimate finds no melody.",
        "test, one frame.",
        # Voiced from 16.01 s on to the end at 32 s; of the parts of 15 s with nothing else the first is drawn.
        "test, long: seconds 16.0 to 31.0, those with most melody.",
    ]


def test_evaluations_without_clips_are_named(run, tmp_path):
    write_examples(run, "test", [melody_clip("a")])
    other = write_melody_run(tmp_path / "other", {"test": per_clip(3), "adc2004": per_clip(2)})
    assert captions(tmp_path, other) == ([], ["No clips to draw are stored with the evaluation on test, adc2004."])
    shown, remarks = captions(tmp_path, run, other)
    assert shown == ["test, a, run."]
    assert remarks == ["No clips to draw are stored with the evaluation on test (other), adc2004 (other)."]


def test_rows_of_another_task_are_left_alone(run, tmp_path):
    evaluation = json.loads((run / "evaluation" / "test.json").read_text())
    (run / "evaluation" / "test.json").write_text(json.dumps(evaluation | {"metrics": {"accuracy": 0.9}}))
    write_examples(run, "test", [melody_clip("a")], left_out=("cfp", "est_f0_hz"))
    assert captions(tmp_path, run) == ([], [])


def test_each_evaluation_has_its_share_of_the_pictures_and_shared_clips_come_first(tmp_path, monkeypatch):
    monkeypatch.setattr(melody, "MAX_PICTURES", 4)
    runs = [write_melody_run(tmp_path / n, {"test": per_clip(3), "adc2004": per_clip(2)}) for n in ("a", "b")]
    for run, own in zip(runs, ("only a", "only b"), strict=True):
        write_examples(run, "adc2004", [melody_clip("opera", 20)])
        write_examples(run, "test", [melody_clip(clip, 20) for clip in (own, "both", "third")])
    shown, remarks = captions(tmp_path, *runs)
    assert shown == ["test, both, a.", "test, both, b.", "adc2004, opera, a.", "adc2004, opera, b."]
    assert remarks == ["2 of 5 stored clips are drawn."]


def test_the_fullest_part_by_hand():
    voiced = np.array([0, 9, 0, 9, 9, 0, 9, 9, 0], float)
    assert melody.fullest_part(voiced, 0.5, max_s=1.5) == slice(1, 4)  # 2 of 3; the first of several such
    assert melody.fullest_part(voiced, 0.5, max_s=2.0) == slice(1, 5)  # 3 of 4
    assert melody.fullest_part(voiced, 0.5, max_s=4.5) == slice(0, 9)
    assert melody.fullest_part(voiced, 0.5, max_s=0.1) == slice(1, 2)
    assert melody.fullest_part(np.zeros(9), 1.0, max_s=3) == slice(0, 3)


def test_real_clips_are_read_and_drawn(real_data, tmp_path, run):
    """A clip of MIR-1K against its own label: nothing is wrong, and it is the melody that stands out of the map."""
    from mmray.features import audio, cfp, pitch_labels

    folder = real_data / "mir1k"
    settings = cfp.Settings()
    sound = sorted((folder / "Wavfile").glob("yifen_*"))[0]
    values = cfp.Cfp(settings)(audio.read(sound, 16_000, "right"))
    label = pitch_labels.read_mir1k(folder / "PitchLabel" / f"{sound.stem}.pv")
    stored = melody_clip(sound.stem, len(values)) | {
        "cfp": values.astype(np.float16).tobytes(),
        "ref_times_s": label.times_s,
        "ref_f0_hz": label.f0_hz,
    }
    (clip,) = melody.read_examples(write_examples(run, "test", [stored]))
    reference = clip.reference()
    voiced = reference > 0
    assert 0.2 < voiced.mean() < 0.95
    at = np.abs(np.log2(clip.frequencies_hz[:, None] / reference[voiced])).argmin(axis=0)
    salience = clip.cfp[voiced, melody.CHANNEL].astype(np.float32)
    assert np.median(salience[np.arange(len(at)), at]) > 5 * np.median(salience)
    assert melody._contour(replace(clip, f0_hz=reference), read_run(run), "test", Pictures(tmp_path), several=False)
