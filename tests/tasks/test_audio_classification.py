"""Sound classification on hand-made rows: loss, changes of the sound, scores and files, against what they should be."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support
from torch import nn

from mmray import config
from mmray.datasets import audio_folder
from mmray.features.audio_augment import augment, rng_of
from mmray.features.audio_features import Extractor
from mmray.predictions import PredictionsInfo
from mmray.schema import DatasetInfo, SplitInfo, arrow_schema
from mmray.tasks import build
from mmray.tasks.audio_classification import Task

CPU = torch.device("cpu")
RATE = 8000
FEATURES = {"sample_rate_hz": RATE, "n_fft": 512, "hop": 256, "mfcc": 4, "contrast_bands": 0, "log_mel": 0}
NAMES = ["Angry", "Happy", "Sad"]
TRAIN_COUNTS = [10, 20, 50]
SHIFT = {"pitch_shift_semitones": [-2, 2], "time_stretch_rates": [0.8, 1.25], "gain_db": [-6, 0]}


def make_task(
    store: str = "features", by: str = "track", dataset: dict[str, Any] | None = None, **of_task: Any
) -> Task:
    """The task over made-up recordings in three classes, with `of_task` settings of its own."""
    run = config.from_dict(
        {
            "name": "emotion",
            "seed": 3,
            "task": {"name": "audio_classification", **of_task},
            "dataset": {
                "name": "audio_folder", "path": "corpus", "segment_s": 1, "hop_s": 1, "features": FEATURES,
                "store": store, "split": {"by": by}, **(dataset or {}),
            },
            "model": {"name": "audio_cnn_gru", "channels": [8, 8], "hidden_size": 4, "dropout": 0.0},
        }
    )  # fmt: skip
    train = SplitInfo(
        rows=80, num_bytes=0, files=[], labelled_rows=80, label_counts=TRAIN_COUNTS, groups=["a", "b", "c"]
    )
    assert isinstance(run.dataset, audio_folder.Config)
    info = DatasetInfo(
        id="made-by-hand", columns=audio_folder.columns(run.dataset), class_names=NAMES, splits={"train": train},
        split_rule="", group_key="group", rows_in=0, rows_out=0, rejected=0, rejected_reasons={},
    )  # fmt: skip
    task = build(run, info)
    assert isinstance(task, Task)
    return task


def table_of(
    task: Task, stored: Sequence[NDArray[Any]], labels: Sequence[list[int]], groups: str = "abcdefgh"
) -> pa.Table:
    """Prepared rows of features (T, D) or sound (n,): segment i of track i, one second after the other."""
    column = task.info.columns[-1].name
    values = [
        {"id": f"{group}@{i}", "group": group, "start_s": float(i), "labels": of_row, column: x.tobytes()}
        for i, (x, of_row, group) in enumerate(zip(stored, labels, groups, strict=False))
    ]  # fmt: skip
    return pa.Table.from_pylist(values, schema=arrow_schema(task.info.columns))


def features(*lengths: int, seed: int = 0) -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    return [rng.normal(0, 5, (length, 4)).astype(np.float32) for length in lengths]


def sounds(*lengths: int, seed: int = 0) -> list[NDArray[np.int16]]:
    """Tones of their own in noise, 16 bits."""
    rng = np.random.default_rng(seed)
    return [
        (8000 * np.sin(2 * np.pi * (200 + 90 * i) * np.arange(n) / RATE) + rng.normal(0, 500, n)).astype(np.int16)
        for i, n in enumerate(lengths)
    ]


def made_model(task: Task, seed: int = 0) -> nn.Module:
    """The run's model away from its first state, in evaluation mode."""
    torch.manual_seed(seed)
    model = task.build_model()
    for _ in range(3):
        model(5 * torch.randn(4, 20, 4), torch.tensor([20, 20, 11, 5]))
    return model.eval()


class Fixed(nn.Module):
    """In place of a model: these logits, whatever comes; keeps what came."""

    def __init__(self, logits: Any) -> None:
        super().__init__()
        self.logits = torch.tensor(logits, dtype=torch.float32)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        self.x, self.lengths = x, lengths
        return self.logits


# ---- Batches


def test_a_batch_has_the_frames_of_its_segments_one_after_another() -> None:
    task, frames = make_task(), features(3, 5, 2, 4)
    batch = task.collate(table_of(task, frames, [[0], [2], [1], [0]]).slice(1, 2))
    assert (batch.num_rows, batch.ids) == (2, ("b@1", "c@2"))
    assert batch.tensors["offsets"].tolist() == [0, 5, 7]
    assert batch.tensors["labels"].tolist() == [2, 1]
    np.testing.assert_array_equal(batch.tensors["features"], np.concatenate(frames[1:3]))


def test_stored_sound_becomes_the_features_that_preparation_would_have_stored() -> None:
    task, samples = make_task("audio"), sounds(8000, 6000, 300)
    batch = task.collate(table_of(task, samples, [[0], [1], [2]]))
    expected = [Extractor(task.features)(x.astype(np.float32) / 32768) for x in samples]
    np.testing.assert_array_equal(batch.tensors["features"], np.concatenate(expected))
    assert batch.tensors["offsets"].diff().tolist() == [8000 // 256 + 1, 6000 // 256 + 1, 300 // 256 + 1]


def test_a_segment_without_a_label_is_named() -> None:
    task = make_task()
    table = table_of(task, features(3, 4, 5), [[0], [], [1]])
    with pytest.raises(ValueError, match="segment b@1 has no label"):
        task.collate(table)
    batch = task.collate(table.select(task.columns(labelled=False)))
    assert set(batch.tensors) == {"features", "offsets"}
    scores, loss = task.evaluate(made_model(task), batch)
    assert (scores.shape, loss) == ((3, 3), 0.0)


def test_padding_has_no_influence() -> None:
    """A segment's probabilities are the same alone and beside one many times its length, and so is the loss."""
    task = make_task()
    model, frames, labels = made_model(task), features(7, 90, 31), [[0], [1], [2]]
    with torch.inference_mode():
        together, loss = task.evaluate(model, task.collate(table_of(task, frames, labels)))
        each = [task.evaluate(model, task.collate(table_of(task, frames, labels).slice(i, 1))) for i in range(3)]
    np.testing.assert_allclose(together, np.concatenate([scores for scores, _ in each]), atol=1e-6)
    assert loss == pytest.approx(sum(of_row for _, of_row in each), rel=1e-5)


# ---- Loss

LOGITS = np.array([[2.0, 0.5, -1.0], [0.0, 1.0, 3.0], [-1.0, -2.0, 0.5], [1.0, 1.0, 1.0]])


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_loss_is_weighted_smoothed_cross_entropy(weighted: bool, smoothing: float) -> None:
    """80 training rows in 3 classes, 10, 20 and 50 of them: N / (K n_c) is 80/30, 80/60, 80/150."""
    task = make_task(class_weights="inverse_frequency" if weighted else "none", label_smoothing=smoothing)
    batch = task.collate(table_of(task, features(3, 4, 5, 3), [[0], [2], [1], [0]]))
    weights = np.array([80 / 30, 80 / 60, 80 / 150]) if weighted else np.ones(3)
    targets = (1 - smoothing) * np.eye(3)[[0, 2, 1, 0]] + smoothing / 3
    rows = -(weights * targets * log_softmax(LOGITS)).sum(axis=1)
    assert float(task.loss(Fixed(LOGITS), batch)) == pytest.approx(rows.mean(), rel=1e-6)
    assert task.evaluate(Fixed(LOGITS), batch)[1] == pytest.approx(rows.sum(), rel=1e-6)


def test_published_class_weights() -> None:
    """711 / 2,301 / 2,166 segments: Angry 2.4276, Happy 0.7501, Sad 0.7969, as the publication prints them."""
    task = make_task()
    task.info.splits["train"].label_counts = [711, 2301, 2166]
    np.testing.assert_allclose(task._weights, [2.4276, 0.7501, 0.7969], atol=5e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"mixup_alpha": 0.4},
        {"spec_augment": {"time_masks": 2, "time_mask_frames": 8, "feature_masks": 1, "feature_mask_rows": 2}},
    ],
    ids=["mixup", "masks"],
)
def test_a_seed_gives_the_same_changes_of_features_and_evaluation_has_none(changes: dict[str, Any]) -> None:
    task = make_task(**changes)
    frames = features(30, 20, 25, 30)
    batch = task.collate(table_of(task, frames, [[0], [1], [2], [1]]))
    model = Fixed(LOGITS)
    seen, losses = [], []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(float(task.loss(model, batch)))
        seen.append(model.x)
    assert torch.equal(seen[0], seen[1])
    assert losses[0] == losses[1]
    assert not torch.equal(seen[0], seen[2])
    task.evaluate(model, batch)
    for row, original in zip(model.x, frames, strict=True):
        np.testing.assert_array_equal(row[: len(original)], original)
        assert not row[len(original) :].any()


# ---- Changes of the sound


def test_sound_is_changed_by_seed_segment_and_epoch_alone() -> None:
    """However the rows are shared out, and again in another process: by `rng_of` of the documented arguments."""
    task = make_task("audio", augment=SHIFT)
    table = table_of(task, sounds(4000, 3000, 4000, 2500), [[0], [1], [2], [0]])
    whole = task.augmented(table, epoch=5).column("audio").to_pylist()
    again = make_task("audio", augment=SHIFT)
    shared = [again.augmented(table.take([i]), epoch=5).column("audio")[0].as_py() for i in (3, 1, 0, 2)]
    assert shared == [whole[i] for i in (3, 1, 0, 2)]
    for name, samples, changed in zip(
        table.column("id").to_pylist(), sounds(4000, 3000, 4000, 2500), whole, strict=True
    ):
        assert task._config.augment is not None
        sound = augment(samples.astype(np.float32) / 32768, RATE, task._config.augment, rng_of(3, name, 5))
        np.testing.assert_allclose(np.frombuffer(changed, np.int16), np.clip(32768 * sound, -32768, 32767), atol=0.51)
    assert all(a != b for a, b in zip(whole, task.augmented(table, epoch=6).column("audio").to_pylist(), strict=True))
    for name in ("id", "group", "labels"):
        assert task.augmented(table, epoch=5).column(name).equals(table.column(name))


def test_without_settings_nothing_is_changed_and_features_cannot_be() -> None:
    task = make_task("audio")
    table = table_of(task, sounds(400), [[0]])
    assert task.augmented(table, epoch=0) is table
    with pytest.raises(ValueError, match=r"task\.augment .* needs dataset\.store: audio"):
        make_task("features", augment=SHIFT)


def test_evaluation_sees_the_sound_as_it_is() -> None:
    """`augmented` is for training alone: a batch of validation or test is what is stored, whatever the settings."""
    plain, changing = make_task("audio"), make_task("audio", augment=SHIFT, mixup_alpha=1.0)
    table = table_of(plain, sounds(4000, 3000), [[0], [1]])
    model = made_model(plain)
    with torch.inference_mode():
        expected = plain.evaluate(model, plain.collate(table))
        found = changing.evaluate(model, changing.collate(table))
    assert torch.equal(found[0], expected[0])
    assert found[1] == expected[1]


# ---- Which copies are where


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 9), min_size=3, max_size=5), min_size=2, max_size=3),
    st.integers(0, 2),
    st.integers(0, 10),
)
def test_no_copy_of_a_validated_or_tested_segment_is_trained_on(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[list[int]], copies: int, seed: int
) -> None:
    """Recordings of some half seconds, cut every half second, in up to three classes."""
    root = tmp_path_factory.mktemp("corpus")
    for c, of_class in enumerate(lengths):
        (root / NAMES[c]).mkdir()
        for number, halves in enumerate(of_class):
            noise = np.random.default_rng([c, number]).integers(-99, 99, 500 * halves).astype(np.int16)
            soundfile.write(root / NAMES[c] / f"{number}.wav", noise, 1000)
    made = audio_folder.Config(
        path=str(root), segment_s=1, hop_s=0.5, features={"sample_rate_hz": 1000, "contrast_bands": 0},
        augment={"copies": copies, "pitch_shift_semitones": [1]}, split={"by": "track", "seed": seed},
    )  # fmt: skip
    tracks: dict[str, set[str]] = {"train": set(), "val": set(), "test": set()}
    changed = dict.fromkeys(tracks, 0)
    originals = dict.fromkeys(tracks, 0)
    for source in audio_folder.sources(made):
        assert source.split is not None
        note = json.loads(source.note)
        tracks[source.split].add(note["group"])
        changed[source.split] += sum(copy > 0 for _, copy in note["rows"])
        originals[source.split] += sum(copy == 0 for _, copy in note["rows"])
    assert not tracks["train"] & (tracks["val"] | tracks["test"])
    assert not tracks["val"] & tracks["test"]
    assert all(tracks.values())
    assert changed["val"] == changed["test"] == 0
    assert changed["train"] == copies * originals["train"]
    assert sum(originals.values()) == sum(max(1, halves - 1) for of_class in lengths for halves in of_class)


# ---- Scores


def write_predictions(
    folder: Path, task: Task, groups: Sequence[str], labels: Sequence[list[int]], scores: NDArray[Any]
) -> None:
    split = SplitInfo(rows=len(groups), num_bytes=0, files=[], labelled_rows=1)
    columns = task.prediction_columns(split)
    rows = table_of(task, features(*[1] * len(groups)), labels, groups=groups)  # type: ignore[arg-type]
    stored = task.predictions(columns, rows, torch.from_numpy(scores.astype(np.float32)))
    assert stored.schema.equals(arrow_schema(columns))
    pq.write_table(stored, folder / "part-00000.parquet")
    info = PredictionsInfo(run="r", dataset="d", split="test", step=0, rows=len(groups), labelled=True, columns=columns)
    (folder / "predictions.json").write_text(info.model_dump_json())


@pytest.fixture
def scored(tmp_path: Path) -> tuple[dict[str, Any], list[str], NDArray[Any], NDArray[Any]]:
    """Scores of 60 segments of ten tracks, a class a track; tracks a and b are also in train. And what they are of."""
    rng = np.random.default_rng(4)
    groups = [str(g) for g in rng.choice(list("abdefghijk"), 60)]
    labels = np.array(["abdefghijk".index(g) % 3 for g in groups])
    scores = rng.dirichlet(np.ones(3), 60)
    scores[np.arange(60), labels] += 0.2
    scores /= scores.sum(axis=1, keepdims=True)
    write_predictions(tmp_path, make_task(), groups, [[c] for c in labels], scores)
    return make_task().score(tmp_path), groups, labels, scores.astype(np.float32)


def test_scores_of_segments_are_scikit_learn_s(scored: Any) -> None:
    result, _, labels, scores = scored
    predicted = scores.argmax(axis=1)
    assert result["metrics"]["weighted_accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert result["metrics"]["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert result["confusion"] == confusion_matrix(labels, predicted).tolist()
    columns = precision_recall_fscore_support(labels, predicted)
    for c, (entry, *expected) in enumerate(zip(result["per_class"], *columns, strict=True)):
        assert (entry["class"], entry["name"], entry["train_count"]) == (c, NAMES[c], TRAIN_COUNTS[c])
        assert [entry[k] for k in ("precision", "recall", "f1", "count")] == pytest.approx(expected)
    commonest = result["baselines"]["most frequent class"]
    assert commonest["weighted_accuracy"] == pytest.approx(np.mean(labels == 2))
    assert commonest["log_loss"] == pytest.approx(-np.mean(np.log(np.array(TRAIN_COUNTS)[labels] / 80)))


def test_a_track_has_the_mean_of_its_segments(scored: Any) -> None:
    result, groups, labels, scores = scored
    of_group = np.array(groups)
    assert [track["group"] for track in result["tracks"]] == sorted(set(groups))
    right = []
    for track in result["tracks"]:
        rows = np.flatnonzero(of_group == track["group"])
        mean = scores[rows].mean(axis=0)
        assert track["probabilities"] == pytest.approx(mean.tolist(), abs=1e-6)
        assert (track["label"], track["segments"]) == (labels[rows[0]], len(rows))
        assert track["predicted"] == mean.argmax()
        right.append(mean.argmax() == labels[rows[0]])
    assert result["metrics"]["track_accuracy"] == pytest.approx(np.mean(right))


def test_intervals_hold_the_scores_and_are_of_tracks(scored: Any) -> None:
    result = scored[0]
    assert set(result["intervals"]) == {"weighted_accuracy", "macro_f1", "track_accuracy", "track_macro_f1"}
    for name, (low, high) in result["intervals"].items():
        assert 0 <= low <= result["metrics"][name] <= high <= 1
        assert low < high
    _, groups, labels, scores = scored
    names, of_row = np.unique(groups, return_inverse=True)
    right = scores.argmax(axis=1) == labels
    rng = np.random.default_rng(8)
    draws = [
        np.concatenate([right[of_row == g] for g in rng.integers(len(names), size=len(names))]).mean()
        for _ in range(2000)
    ]
    assert result["intervals"]["weighted_accuracy"] == pytest.approx(np.percentile(draws, (2.5, 97.5)), abs=0.03)


def test_a_leak_is_counted(scored: Any, tmp_path: Path) -> None:
    result, groups, _, _ = scored
    shared = groups.count("a") + groups.count("b")
    assert shared > 0
    assert result["leak"] == {"split_by": "track", "segments": 60, "sharing_a_track_with_train": shared}
    by_segment = make_task(by="segment").score(tmp_path)
    assert by_segment["leak"]["split_by"] == "segment"
    assert by_segment["timelines"] == []


def test_timelines_are_of_the_longest_recording_of_each_class(scored: Any) -> None:
    result, groups, labels, scores = scored
    assert [line["label"] for line in result["timelines"]] == [0, 1, 2]
    for line in result["timelines"]:
        rows = [i for i, g in enumerate(groups) if g == line["group"]]
        assert len(rows) == max(groups.count(g) for g, c in zip(groups, labels, strict=True) if c == line["label"])
        assert line["start_s"] == [float(i) for i in rows]
        np.testing.assert_allclose(line["probabilities"], scores[rows], atol=1e-4)


def test_segments_without_a_label_have_no_score(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.dirichlet(np.ones(3), 12), rng.integers(0, 3, 12)
    some = [[int(c)] if i % 4 else [] for i, c in enumerate(labels)]
    write_predictions(tmp_path, make_task(), [f"track {c}" for c in labels], some, scores)
    known = np.flatnonzero([len(of_row) for of_row in some])
    result = make_task().score(tmp_path)
    assert result["leak"]["segments"] == len(known) == 9
    assert result["confusion"] == confusion_matrix(labels[known], scores[known].argmax(1), labels=range(3)).tolist()


def test_examples_are_a_segment_of_each_class_or_of_sound_one() -> None:
    tracks = [{"label": c, "first_segment": f"{c}@{i}"} for i, c in enumerate((2, 0, 2))]
    ids, columns, facts = make_task().examples({"tracks": tracks})
    assert (ids, columns) == (["0@1", "2@0"], ("features",))
    assert json.loads(facts["row_names"]) == [f"mfcc {row}" for row in range(4)]
    assert float(facts["hop_s"]) == 256 / RATE
    assert make_task("audio").examples({"tracks": tracks}) == ([], (), {})
    ids, columns, facts = make_task("audio", augment=SHIFT).examples({"tracks": tracks})
    assert (ids, columns, facts["sample_rate_hz"]) == (["0@1"], ("audio",), "8000")
    assert json.loads(facts["changes"])["pitch_shift_semitones"] == [-2, 2]


# ---- Files and streams


def song(num_samples: int) -> NDArray[np.float32]:
    (samples,) = sounds(num_samples, seed=9)
    return samples.astype(np.float32) / np.float32(32768)


def of_piece(task: Task, model: nn.Module, samples: NDArray[np.float32]) -> NDArray[Any]:
    x = torch.from_numpy(Extractor(task.features)(samples))[None]
    with torch.inference_mode():
        found: NDArray[Any] = model(x, torch.tensor([x.shape[1]]))[0].softmax(0).numpy()
    return found


def read_csv(path: Path) -> list[list[str]]:
    return list(csv.reader(path.open()))


def test_a_file_becomes_its_classes_and_a_timeline(tmp_path: Path) -> None:
    """3.5 s in windows of 1 s around 0, 1, 2, 3 s: the first half a window, the last one whole."""
    task, samples = make_task(), song(28_000)
    model = made_model(task)
    soundfile.write(tmp_path / "song.wav", samples, RATE, subtype="PCM_16")
    (outputs,) = task.outputs([tmp_path / "song.wav"], tmp_path / "out.csv", frozenset(["timeline"]))
    said = task.predict_file(model, CPU, tmp_path / "song.wav", outputs)
    pieces = [samples[max(0, at - 4000) : at + 4000] for at in (0, 8000, 16000, 24000)]
    expected = np.array([of_piece(task, model, piece) for piece in pieces])
    header, *lines = read_csv(tmp_path / "out.timeline.csv")
    assert header == ["time_s", "predicted", *NAMES]
    assert [float(line[0]) for line in lines] == [0, 1, 2, 3]
    np.testing.assert_allclose([list(map(float, line[2:])) for line in lines], expected, atol=2e-6)
    assert [line[1] for line in lines] == [NAMES[c] for c in expected.argmax(axis=1)]
    header, classes = read_csv(tmp_path / "out.csv")
    mean = expected.mean(axis=0)
    assert (header, classes[:2]) == (["file", "predicted", *NAMES], ["song.wav", NAMES[mean.argmax()]])
    np.testing.assert_allclose(list(map(float, classes[2:])), mean, atol=2e-6)
    assert said == f"{tmp_path / 'out.csv'}: {NAMES[mean.argmax()]} ({mean.max():.0%})"


def test_outputs_that_collide_or_are_unknown_are_refused(tmp_path: Path) -> None:
    task, files = make_task(), [tmp_path / "a" / "x.wav", tmp_path / "b" / "x.wav"]
    (first,) = task.outputs(files[:1], tmp_path / "out", frozenset())
    assert first == {"classes": tmp_path / "out" / "x.classes.csv"}
    with pytest.raises(ValueError, match=r"two sound files would be written to .*x\.classes\.csv"):
        task.outputs(files, tmp_path / "out", frozenset())
    with pytest.raises(ValueError, match="there are 2 sound files; give a folder"):
        task.outputs(files, tmp_path / "out.csv", frozenset())
    with pytest.raises(
        ValueError, match="'midi' is nothing that task audio_classification writes; choose from timeline"
    ):
        task.outputs(files[:1], tmp_path / "out.csv", frozenset(["midi"]))


def test_a_stream_is_classified_every_second_by_what_was_heard() -> None:
    """Stereo at the features' rate: at 1 and 2 s the second before; at 2.5 s, the end, the second before that."""
    task, samples = make_task(), song(20_000)
    model = made_model(task)
    integers = np.round(samples * 32768).astype("<i2")
    stereo = np.column_stack([integers, integers]).tobytes()
    out = io.StringIO()
    task.predict_stream(model, CPU, io.BytesIO(stereo), f"s16le:{RATE}:2", out)
    header, *lines = list(csv.reader(io.StringIO(out.getvalue())))
    assert header == ["time_s", "predicted", *NAMES]
    assert [float(line[0]) for line in lines] == [1, 2, 2.5]
    expected = [of_piece(task, model, samples[end - 8000 : end]) for end in (8000, 16000, 20000)]
    np.testing.assert_allclose([list(map(float, line[2:])) for line in lines], expected, atol=2e-6)
    with pytest.raises(ValueError, match="--pcm s16le:44100: expected <format>:<rate in Hz>:<channels>"):
        task.predict_stream(model, CPU, io.BytesIO(stereo), "s16le:44100", out)
