"""The melody task on hand-made rows: crops, whole clips, contours and scores, against what they should be."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mir_eval
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats
import soundfile
import torch
from numpy.typing import NDArray
from torch import nn

from mmray import config, losses
from mmray.datasets import mir1k
from mmray.features.cfp import Cfp
from mmray.predictions import PredictionsInfo
from mmray.schema import DatasetInfo, SplitInfo, arrow_schema
from mmray.tasks import build
from mmray.tasks.melody_extraction import Task

CPU = torch.device("cpu")
CFP = {"sample_rate_hz": 8000, "hop": 160, "window": 513, "resolution_hz": 8.0, "min_hz": 80.0, "bins_per_octave": 12}
MODEL = {"name": "dense_aspp", "growth": 2, "skip_copies": 0, "dilations": [1, 2]}
METRICS = {
    "overall_accuracy": "Overall Accuracy", "raw_pitch_accuracy": "Raw Pitch Accuracy",
    "raw_chroma_accuracy": "Raw Chroma Accuracy", "voicing_recall": "Voicing Recall",
    "voicing_false_alarm": "Voicing False Alarm",
}  # fmt: skip


def make_task(predict: dict[str, Any] | None = None, **settings: Any) -> Task:
    """The task with settings of its own, over MIR-1K in coarse bins."""
    run = config.from_dict(
        {
            "name": "melody",
            "task": {"name": "melody_extraction", **settings},
            "dataset": {"name": "mir1k", "path": "corpus", "cfp": CFP},
            "model": MODEL,
            "predict": predict or {},
        }
    )
    info = DatasetInfo(
        id="made-by-hand", columns=mir1k.columns(run.dataset), class_names=[], splits={}, split_rule="",
        group_key="group", rows_in=0, rows_out=0, rejected=0, rejected_reasons={},
    )  # fmt: skip
    task = build(run, info)
    assert isinstance(task, Task)
    return task


TASK = make_task()
F = TASK.settings.num_bins
PITCHES_HZ = 80 * 2 ** (np.arange(1, F + 1) / 12)


def split(labelled_rows: int = 1) -> SplitInfo:
    return SplitInfo(rows=2, num_bytes=0, files=[], labelled_rows=labelled_rows, max_labels=0)


def rows(maps: Sequence[NDArray[Any]], f0_hz: Sequence[Any], names: Sequence[str] = "abcdefgh") -> pa.Table:
    """Prepared rows of maps (T, 3, F) and labels (T,) on their frames; the corpus's label is the same; [] = none."""
    values = []
    for name, frames, pitches in zip(names, maps, f0_hz, strict=False):
        times_s = TASK.settings.frame_times_s(len(frames)) if len(pitches) else []
        values.append(
            {
                "id": name,
                "group": f"singer {name}",
                "num_frames": len(frames),
                "cfp": frames.astype(np.float16).tobytes(),
                "f0_hz": pitches,
                "ref_times_s": times_s,
                "ref_f0_hz": pitches,
            }
        )
    return pa.Table.from_pylist(values, schema=arrow_schema(TASK.info.columns))


def numbered(*lengths: int) -> pa.Table:
    """Clips whose first value of frame t of clip c is 1000 c + t + 1, a number that float16 holds for c = 0, 1.

    The pitch of the frame is that of row 1 + (7 c + t) mod F.
    """
    maps, labels = [], []
    for c, length in enumerate(lengths):
        frames = np.full((length, 3, F), 0.5)
        frames[:, 0, 0] = 1000 * c + np.arange(length) + 1
        maps.append(frames)
        labels.append(PITCHES_HZ[(7 * c + np.arange(length)) % F])
    return rows(maps, labels)


def some_rows(*lengths: int, seed: int = 0) -> pa.Table:
    """Random maps and labels, a third of them unvoiced."""
    rng = np.random.default_rng(seed)
    maps = [rng.random((length, 3, F)) for length in lengths]
    return rows(maps, [PITCHES_HZ[rng.integers(0, F, len(m))] * (rng.random(len(m)) > 1 / 3) for m in maps])


def made_model(seed: int = 0) -> nn.Module:
    """The run's model away from its first state, in evaluation mode."""
    torch.manual_seed(seed)
    model = TASK.build_model()
    for _ in range(3):
        model(torch.rand(2, 3, F, 40))
    return model.eval()


def right_rows(f0_hz: Any) -> list[int]:
    """Of each pitch 1 + the number of the nearest one in cents, 0 for none."""
    return [1 + int(np.abs(np.log2(PITCHES_HZ / hz)).argmin()) if hz > 0 else 0 for hz in f0_hz]


# ---- Batches


def test_a_batch_has_the_frames_of_its_clips_one_after_another() -> None:
    rng = np.random.default_rng(1)
    maps = [rng.random((length, 3, F)).astype(np.float16) for length in (3, 5, 2, 4)]
    labels = [rng.uniform(70, 1400, len(m)) * (rng.random(len(m)) > 0.3) for m in maps]
    batch = TASK.collate(rows(maps, labels).slice(1, 2))
    assert (batch.num_rows, batch.ids) == (2, ("b", "c"))
    assert batch.tensors["offsets"].tolist() == [0, 5, 7]
    assert batch.tensors["cfp"].dtype == torch.float16
    np.testing.assert_array_equal(batch.tensors["cfp"].numpy(), np.concatenate(maps[1:3]))
    assert batch.tensors["rows"].tolist() == right_rows([*labels[1], *labels[2]])
    assert batch.tensors["ref_offsets"].tolist() == [0, 5, 7]
    np.testing.assert_allclose(batch.tensors["ref_times_s"], [0.02, 0.04, 0.06, 0.08, 0.1, 0.02, 0.04])
    np.testing.assert_array_equal(batch.tensors["ref_f0_hz"], [*labels[1], *labels[2]])


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_clip_without_a_label_is_named_and_not_taken_for_silence(missing: int) -> None:
    """Nor are the labels of the clips behind it shifted to its frames."""
    labels: list[Any] = [np.full(4, 200.0), np.full(6, 300.0), np.zeros(5)]
    labels[missing] = []
    table = rows([np.zeros((length, 3, F)) for length in (4, 6, 5)], labels)
    with pytest.raises(ValueError, match=rf"clip '{'abc'[missing]}' has no label.*dataset\.labels: required"):
        TASK.collate(table)
    batch = TASK.collate(table.select(TASK.columns(labelled=False)))
    assert set(batch.tensors) == {"cfp", "offsets"}
    scores, loss = TASK.evaluate(made_model(), batch)
    assert (scores.shape, loss) == ((15, F + 1), 0.0)


# ---- Crops


class Spy:
    """Takes the place of the model and the loss: keeps what they are given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(losses, "pitch_loss", self._loss)

    def __call__(self, task: Task, table: pa.Table) -> tuple[Any, Any, Any]:
        """Maps (B, 3, F, T), rows (B, T) and counted (B, T) of a training step."""
        task.loss(self._model, task.collate(table))  # type: ignore[arg-type]
        return self.x.numpy(), self.rows.numpy(), self.counted.numpy()

    def _model(self, x: torch.Tensor) -> torch.Tensor:
        self.x = x
        return torch.zeros(len(x), F + 1, x.shape[3])

    def _loss(self, logits: torch.Tensor, rows: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
        assert logits.shape == (len(self.x), F + 1, self.x.shape[3])
        self.rows, self.counted = rows, counted
        return logits.sum()


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Spy:
    return Spy(monkeypatch)


def test_crops_are_runs_of_frames_with_their_rows(steps: Spy) -> None:
    task, table = make_task(crop_frames=16), numbered(50, 7)
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        x, targets, counted = steps(task, table)
        assert x.shape == (2, 3, F, 16)
        assert x.dtype == np.float32
        assert counted[0].all()
        start = int(x[0, 0, 0, 0]) - 1
        assert 0 <= start <= 50 - 16
        assert x[0, 0, 0].tolist() == list(range(start + 1, start + 17))
        assert targets[0].tolist() == [1 + t % F for t in range(start, start + 16)]
        assert (x[0, 1:] == 0.5).all()
        seen.add(start)
        # The clip of 7 frames is there as a whole; what stands behind it is 0 and doesn't count.
        assert counted[1].tolist() == [True] * 7 + [False] * 9
        assert x[1, 0, 0].tolist() == [*range(1001, 1008)] + [0] * 9
        assert targets[1, :7].tolist() == [1 + (7 + t) % F for t in range(7)]
        assert not x[1, :, :, 7:].any()
    assert len(seen) > 10


def test_crops_are_no_longer_than_the_longest_clip(steps: Spy) -> None:
    x, targets, counted = steps(make_task(crop_frames=1000), numbered(5, 9))
    assert x.shape[3] == targets.shape[1] == 9
    assert counted.sum(axis=1).tolist() == [5, 9]
    assert x[1, 0, 0].tolist() == list(range(1001, 1010))


def test_every_start_is_as_likely(steps: Spy) -> None:
    """7 starts for 4 of 10 frames, drawn 2,000 times; a seed gives the same ones again."""
    task = make_task(crop_frames=4)
    clip = numbered(10)
    table = pa.concat_tables([clip] * 500)
    starts = []
    for seed in (0, 1, 2, 3, 0):
        torch.manual_seed(seed)
        starts.append(steps(task, table)[0][:, 0, 0, 0].astype(int) - 1)
    np.testing.assert_array_equal(starts[0], starts[4])
    assert (starts[0] != starts[1]).any()
    counts = np.bincount(np.concatenate(starts[:4]), minlength=7)
    assert len(counts) == 7
    assert scipy.stats.chisquare(counts).pvalue > 0.01


def test_frames_whose_pitch_is_shifted_off_the_map_do_not_count(steps: Spy) -> None:
    """All sing the highest pitch: moved up it is lost, moved down it is another row."""
    task = make_task(augment={"pitch_shift_bins": 2})
    table = rows([np.full((6, 3, F), 0.5)] * 8, [np.full(6, PITCHES_HZ[-1])] * 8)
    torch.manual_seed(0)
    x, targets, counted = steps(task, table)
    moved_up = np.flatnonzero(~counted.any(axis=1))
    assert 0 < len(moved_up) < 8
    for clip in range(8):
        empty_rows = int((x[clip, 0, :, 0] == 0).sum())
        if clip in moved_up:
            assert empty_rows in (1, 2)
            assert not x[clip, :, :empty_rows].any()
        else:
            assert counted[clip].all()
            assert (targets[clip] == F - empty_rows).all()


# ---- Whole clips


def test_clips_are_scored_whole_each_for_itself() -> None:
    """Of other lengths, against the model on each alone; the loss against its definition in float64."""
    model, table = made_model(), some_rows(23, 1, 60)
    with torch.inference_mode():
        scores, loss = TASK.evaluate(model, TASK.collate(table))
        expected, expected_loss = [], 0.0
        for row in table.to_pylist():
            clip = np.frombuffer(row["cfp"], np.float16).reshape(-1, 3, F).astype(np.float32)
            posteriors = model(torch.from_numpy(clip).permute(1, 2, 0)[None])[0].double().softmax(0).T.numpy()
            hot = np.eye(F + 1)[right_rows(row["f0_hz"])]
            frames = -(hot * np.log(posteriors) + (1 - hot) * np.log(1 - posteriors)).sum(axis=1)
            expected.append(posteriors)
            expected_loss += frames.mean()
    np.testing.assert_allclose(scores, np.concatenate(expected), rtol=0, atol=1e-6)
    assert loss == pytest.approx(expected_loss, rel=1e-5)


def test_a_long_clip_is_scored_in_windows_as_in_one_piece() -> None:
    model, table = made_model(), some_rows(2048 + 300)
    widths = []
    model.register_forward_pre_hook(lambda module, inputs: widths.append(inputs[0].shape[3]))
    with torch.inference_mode():
        batch = TASK.collate(table)
        scores, _ = TASK.evaluate(model, batch)
        assert len(widths) == 2
        whole = model(batch.tensors["cfp"].float().permute(1, 2, 0)[None])[0].softmax(0).T
    assert max(widths[:2]) < 2348
    np.testing.assert_allclose(scores, whole, rtol=0, atol=1e-6)


def test_metrics_are_those_of_the_decoded_contours() -> None:
    """Posteriors that are sure of the right row, but for the last clip, which is sure of none."""
    table = some_rows(30, 40, 25)
    batch = TASK.collate(table)
    scores = torch.eye(F + 1)[batch.tensors["rows"]]
    scores[70:] = torch.eye(F + 1)[0]
    metrics = TASK.new_metrics()
    metrics.update(scores, batch)
    unvoiced = [float(np.mean(np.array([f0[0], *f0]) == 0)) for f0 in table.column("f0_hz").to_pylist()]
    computed = metrics.compute()
    assert list(computed) == list(METRICS)
    assert computed["overall_accuracy"] == pytest.approx((1 + 1 + unvoiced[2]) / 3)
    assert computed["raw_pitch_accuracy"] == pytest.approx(2 / 3)
    assert computed["voicing_recall"] == pytest.approx(2 / 3)
    assert computed["voicing_false_alarm"] == 0


def test_operations_are_of_a_second_of_sound() -> None:
    """Two a multiply-add: 9 taps from 3 channels to 4, then 1 from 4 to 2, at each of F bins of 50 frames a second."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.SELU(), nn.Conv2d(4, 2, 1))
    facts = TASK.describe(model)
    assert facts == {"conv_flops_per_second": pytest.approx(2 * (9 * 3 * 4 + 4 * 2) * F * 50)}
    assert next(model.parameters()).device == CPU


# ---- Contours


def posteriors_of(*frames: dict[int, float]) -> NDArray[np.float32]:
    """Frames by the probabilities of some rows; the others share what is left."""
    p = np.empty((len(frames), F + 1), np.float32)
    for t, given in enumerate(frames):
        p[t] = (1 - sum(given.values())) / (F + 1 - len(given))
        p[t, list(given)] = list(given.values())
    return p


def test_decoding_is_as_the_run_says() -> None:
    """A gap of one frame is filled by Viterbi, and the threshold decides how sure a pitch must be.

    To sing on through the silence would cost Viterbi 2 log(0.99 * 47 / 0.01) = 16.9, and to stop costs 16.
    """
    p = posteriors_of({5: 0.9}, {5: 0.8}, {0: 0.5, 5: 0.4}, {5: 0.8}, {5: 0.6, 0: 0.2}, {0: 0.99}, {0: 0.99})
    voiced = {
        "argmax": [1, 1, 0, 1, 1, 0, 0],
        "viterbi": [1, 1, 1, 1, 1, 0, 0],
        (0.4): [1, 1, 1, 1, 1, 0, 0],
        (0.5): [1, 1, 0, 1, 1, 0, 0],
        (0.8): [1, 1, 0, 1, 0, 0, 0],
    }
    for decode, expected in voiced.items():
        settings = (
            {"decode": decode} if isinstance(decode, str) else {"decode": "threshold", "voicing_threshold": decode}
        )
        contour = make_task(**settings).decode(p)
        np.testing.assert_allclose(contour.f0_hz, PITCHES_HZ[4] * np.array(expected), err_msg=str(decode))
        np.testing.assert_allclose(contour.confidence, 1 - p[:, 0], rtol=1e-6)
    dear = make_task(decode="viterbi", viterbi={"switch_cost": 18})
    assert (dear.decode(p).f0_hz > 0).all()


@pytest.mark.parametrize("kept", [False, True])
def test_stored_predictions_are_contours_and_posteriors_where_asked_for(kept: bool) -> None:
    task, table = make_task(predict={"posteriors": kept}), some_rows(6, 9)
    rng = np.random.default_rng(2)
    scores = rng.dirichlet(np.full(F + 1, 0.1), 15).astype(np.float32)
    columns = task.prediction_columns(split())
    stored = task.predictions(columns, table, torch.from_numpy(scores))
    wanted = ["id", "group", "ref_times_s", "ref_f0_hz", "est_f0_hz", "confidence"] + ["posteriors"] * kept
    assert stored.column_names == wanted
    assert stored.schema.equals(arrow_schema(columns))
    for row, original, p in zip(stored.to_pylist(), table.to_pylist(), (scores[:6], scores[6:]), strict=True):
        assert {key: row[key] for key in wanted[:4]} == {key: original[key] for key in wanted[:4]}
        assert row["est_f0_hz"] == pytest.approx([[0, *PITCHES_HZ][r] for r in p.argmax(axis=1)])
        assert row["confidence"] == pytest.approx(1 - p[:, 0])
        if kept:
            read = np.frombuffer(row["posteriors"], np.float16).reshape(len(p), F + 1)
            np.testing.assert_array_equal(read, p.astype(np.float16))
    bare = [column.name for column in task.prediction_columns(split(labelled_rows=0))]
    assert bare == [name for name in wanted if not name.startswith("ref_")]


# ---- Scores


def write_predictions(folder: Path, task: Task, table: pa.Table, scores: NDArray[Any]) -> None:
    columns = task.prediction_columns(split())
    pq.write_table(task.predictions(columns, table, torch.from_numpy(scores)), folder / "part-00000.parquet")
    info = PredictionsInfo(
        run="r", dataset="d", split="test", step=0, rows=table.num_rows, labelled=True, columns=columns
    )
    (folder / "predictions.json").write_text(info.model_dump_json())


def test_scores_are_those_of_mir_eval_and_leave_out_clips_without_a_label(tmp_path: Path) -> None:
    """Estimates near the truth, an octave off, voiced in silence; references on a grid of their own, every 23 ms."""
    rng = np.random.default_rng(3)
    lengths = (40, 55, 30, 47)
    table = some_rows(*lengths)
    references = []
    for length in lengths:
        times_s = 0.005 + 0.023 * np.arange(int(length * 0.02 / 0.023))
        references.append((times_s, rng.uniform(100, 900, len(times_s)) * (rng.random(len(times_s)) > 0.3)))
    references[2] = (np.array([]), np.array([]))
    for at, name in enumerate(("ref_times_s", "ref_f0_hz")):
        column = table.column_names.index(name)
        table = table.set_column(column, name, pa.array([ref[at] for ref in references], pa.list_(pa.float64())))
    estimates = []  # rows
    for length, (times_s, f0_hz) in zip(lengths, references, strict=True):
        frame_s = 0.02 * np.arange(1, length + 1)
        near = f0_hz[np.abs(frame_s[:, None] - times_s).argmin(axis=1)] if len(times_s) else np.full(length, 200.0)
        near = near * rng.choice([1, 1, 2, 0], length)
        estimates.append(np.where((near == 0) & (rng.random(length) < 0.5), 150, near))
    chosen = np.concatenate([right_rows(estimate) for estimate in estimates])
    write_predictions(tmp_path, TASK, table, np.eye(F + 1, dtype=np.float32)[chosen])

    scored = TASK.score(tmp_path)
    expected = {}
    for name, (times_s, f0_hz), estimate in zip("abcd", references, estimates, strict=True):
        if name != "c":
            frame_s = 0.02 * np.arange(1, len(estimate) + 1)
            est_hz = np.concatenate([[0], PITCHES_HZ])[right_rows(estimate)]
            expected[name] = mir_eval.melody.evaluate(times_s, f0_hz, frame_s, est_hz)
    assert scored["rows_with_labels"] == 3
    assert [(clip["id"], clip["group"]) for clip in scored["per_clip"]] == [(n, f"singer {n}") for n in "abd"]
    for clip in scored["per_clip"]:
        for ours, theirs in METRICS.items():
            assert clip[ours] == pytest.approx(expected[clip["id"]][theirs], abs=1e-12), (clip["id"], ours)
    for ours, theirs in METRICS.items():
        mean = np.mean([clip[theirs] for clip in expected.values()])
        assert 0 < mean < 1
        assert scored["metrics"][ours] == pytest.approx(mean, abs=1e-12)
    silent = scored["baselines"]["no melody anywhere"]
    unvoiced = [np.mean(np.array([f0[0], *f0]) == 0) for f0 in (references[i][1] for i in (0, 1, 3))]
    assert silent["overall_accuracy"] == pytest.approx(np.mean(unvoiced))
    assert silent["voicing_recall"] == silent["voicing_false_alarm"] == silent["raw_pitch_accuracy"] == 0


def test_predictions_of_clips_without_labels_have_no_score(tmp_path: Path) -> None:
    table = rows([np.zeros((4, 3, F))] * 2, [[], []])
    write_predictions(tmp_path, TASK, table, np.full((8, F + 1), 1 / (F + 1), np.float32))
    with pytest.raises(ValueError, match="no clips were scored"):
        TASK.score(tmp_path)


def test_examples_are_the_best_the_median_and_the_worst_clip() -> None:
    scored = {
        "per_clip": [{"id": name, "overall_accuracy": x} for name, x in zip("abcde", (3, 1, 5, 4, 2), strict=True)]
    }
    ids, columns, facts = TASK.examples(scored)
    assert (ids, columns) == (["c", "a", "b"], ("cfp",))
    assert {key: float(value) for key, value in facts.items()} == {
        "hop_s": 0.02, "first_frame_s": 0.02, "min_hz": 80, "bins_per_octave": 12
    }  # fmt: skip
    assert TASK.examples({"per_clip": scored["per_clip"][:1]})[0] == ["a"]
    assert TASK.examples({"per_clip": scored["per_clip"][:2]})[0] == ["a", "b"]


# ---- Files


def test_a_file_becomes_a_table_notes_and_sound(tmp_path: Path) -> None:
    t = np.arange(12000) / 8000
    samples = (0.4 * np.sin(2 * np.pi * 220 * t)).astype(np.float32)
    soundfile.write(tmp_path / "song.wav", samples, 8000, subtype="FLOAT")
    model = made_model()
    task = make_task()
    assert task.files(str(tmp_path)) == [tmp_path / "song.wav"]
    with torch.inference_mode():
        p = model(torch.from_numpy(Cfp(task.settings)(samples)).permute(1, 2, 0)[None])[0].softmax(0).T.numpy()
        (outputs,) = task.outputs([tmp_path / "song.wav"], tmp_path / "out.csv", frozenset(["midi", "sonification"]))
        said = task.predict_file(model, CPU, tmp_path / "song.wav", outputs)
        (plain,) = task.outputs([tmp_path / "song.wav"], tmp_path / "out.txt", frozenset())
        task.predict_file(model, CPU, tmp_path / "song.wav", plain)
    table = [list(map(float, line)) for line in csv.reader((tmp_path / "out.csv").open()) if line[0][0] != "#"]
    times_s, f0_hz, confidence = np.array(table).T
    np.testing.assert_allclose(times_s, 0.02 * np.arange(1, 75))
    np.testing.assert_allclose(f0_hz, np.concatenate([[0], PITCHES_HZ])[p.argmax(axis=1)], atol=1e-4)
    np.testing.assert_allclose(confidence, 1 - p[:, 0], atol=1e-3)
    mirex_times_s, mirex_f0_hz = mir_eval.io.load_time_series(str(tmp_path / "out.txt"))
    np.testing.assert_array_equal(mirex_times_s, times_s)
    np.testing.assert_array_equal(mirex_f0_hz, f0_hz)
    assert said.startswith(f"{tmp_path / 'out.csv'}: 1.5 s, {np.mean(f0_hz > 0):.0%} with melody, ")
    assert (tmp_path / "out.mid").read_bytes()[:4] == b"MThd"
    assert soundfile.info(tmp_path / "out.melody.wav").duration == pytest.approx(1.5)
