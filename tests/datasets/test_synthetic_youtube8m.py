"""The made-up YouTube-8M: its format, its determinism, and what its model promises, with seeds and sizes fixed."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest

from mmray.datasets.synthetic import youtube8m
from mmray.datasets.synthetic.youtube8m import Config, draw_frames, draw_means, draw_videos, shard_plan
from mmray.features.tfrecord_write import encode_example

SMALL = Config(
    num_videos=240, num_classes=40, videos_per_shard=30, rgb_size=48, audio_size=16, min_frames=5, max_frames=9
)


def generate(out: Path, config: Config, **options: int) -> Path:
    youtube8m.generate(out, config, lambda done, total: None, **options)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def records(path: Path) -> list[bytes]:
    """The messages of a TFRecord file; its checksums are the writer's own test."""
    data, found = path.read_bytes(), []
    while data:
        length = int.from_bytes(data[:8], "little")
        found.append(data[12 : 12 + length])
        data = data[16 + length :]
    return found


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def corpus(config: Config, split: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Video-level features by modality and the (n, C) label matrix of a split."""
    features: dict[str, list[np.ndarray]] = {"rgb": [], "audio": []}
    targets = []
    for shard in shard_plan(config):
        if shard.split == split:
            videos = draw_videos(config, shard)
            for key, mean in draw_means(config, shard, videos).items():
                features[key].append(mean)
            target = np.zeros((shard.num_videos, config.num_classes))
            target[videos.video, videos.label] = 1
            targets.append(target)
    return {key: np.concatenate(parts) for key, parts in features.items()}, np.concatenate(targets)


def test_plan_covers_every_video_once_in_several_shards_a_split() -> None:
    plan = shard_plan(Config(num_videos=20_003))
    assert [shard.index for shard in plan] == list(range(len(plan)))
    at = 0
    for shard in plan:
        assert shard.first_video == at
        at += shard.num_videos
    assert at == 20_003
    assert all(900 < shard.num_videos < 1_100 for shard in plan)
    assert sum(shard.num_videos for shard in plan if shard.split == "train") == 14_002
    for split, names in itertools.groupby(plan, key=lambda shard: shard.split):
        assert [shard.file_name for shard in names][:2] == [f"{split}0000.tfrecord", f"{split}0001.tfrecord"]


def test_settings_that_contradict_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"train_fraction=0\.8 and val_fraction=0\.3"):
        Config(train_fraction=0.8, val_fraction=0.3)
    with pytest.raises(ValueError, match="min_frames=400 is more than max_frames=300"):
        Config(min_frames=400)


@pytest.mark.parametrize("level", ["video", "frame"])
def test_same_bytes_in_any_order_and_other_bytes_for_another_seed(tmp_path: Path, level: str) -> None:
    config = SMALL.model_copy(update={"level": level})
    whole = contents(generate(tmp_path / "whole", config))
    alone = tmp_path / "alone"
    for shard in reversed(shard_plan(config)):
        youtube8m.build_world.cache_clear()
        youtube8m.write_shard(config, shard, alone)
    assert contents(alone).items() <= whole.items()
    other = contents(generate(tmp_path / "other", config.model_copy(update={"seed": 1})))
    assert not [name for name in whole if whole[name] == other[name]]
    shards = [whole[shard.file_name] for shard in shard_plan(config)]
    assert len(set(shards)) == len(shards)


def test_processes_write_the_same_bytes(tmp_path: Path) -> None:
    one = contents(generate(tmp_path / "one", SMALL))
    assert contents(generate(tmp_path / "two", SMALL, num_processes=2)) == one


def test_a_stopped_run_goes_on_and_another_corpus_is_not_mixed_in(tmp_path: Path) -> None:
    out = generate(tmp_path / "out", SMALL)
    before = contents(out)
    (out / "train0001.tfrecord").unlink()
    (out / "text.csv").unlink()
    kept = (out / "train0000.tfrecord").stat().st_mtime_ns
    calls: list[tuple[int, int]] = []
    summary = youtube8m.generate(out, SMALL, lambda done, total: calls.append((done, total)))
    num_shards = len(shard_plan(SMALL))
    assert calls == [(num_shards, num_shards)]
    assert contents(out) == before
    assert (out / "train0000.tfrecord").stat().st_mtime_ns == kept
    assert summary.num_items == 240
    assert summary.num_files == len(before)
    assert summary.num_bytes == sum(map(len, before.values()))
    with pytest.raises(ValueError, match="other settings"):
        generate(out, SMALL.model_copy(update={"seed": 1}))
    (out / "synthetic.json").unlink()
    with pytest.raises(ValueError, match="not empty"):
        generate(out, SMALL)


def test_video_level_records_hold_what_was_drawn(tmp_path: Path) -> None:
    config = SMALL.model_copy(update={"id_key": "video_id", "test_labels": False})
    generate(tmp_path / "out", config)
    for shard in shard_plan(config):
        videos = draw_videos(config, shard)
        means = draw_means(config, shard, videos)
        found = records(tmp_path / "out" / shard.file_name)
        assert len(found) == shard.num_videos
        for i, labels in enumerate(videos.labels()):
            features = {"video_id": videos.ids[i]}
            if shard.split != "test":
                features["labels"] = labels
            features |= {"mean_rgb": means["rgb"][i], "mean_audio": means["audio"][i]}
            assert found[i] == encode_example(features)


def test_both_levels_describe_the_same_videos(tmp_path: Path) -> None:
    video = generate(tmp_path / "video", SMALL)
    frame = generate(tmp_path / "frame", SMALL.model_copy(update={"level": "frame"}))
    for name in ("text.csv", "vocabulary.csv"):
        assert (video / name).read_bytes() == (frame / name).read_bytes()
    for shard in shard_plan(SMALL):
        videos = draw_videos(SMALL, shard)
        for record, video_id, num_frames in zip(
            records(frame / shard.file_name), videos.ids, videos.shot_frames.sum(1), strict=True
        ):
            assert video_id.encode() in record
            assert 5 <= num_frames <= 9
            frame_bytes = num_frames * (SMALL.rgb_size + SMALL.audio_size)
            assert frame_bytes < len(record) < frame_bytes + 400


def test_ids_are_unique_and_of_four_characters() -> None:
    ids = [video_id for shard in shard_plan(Config()) for video_id in draw_videos(Config(), shard).ids]
    assert len(set(ids)) == 20_000
    assert all(len(video_id) == 4 and video_id.isalnum() for video_id in ids)


@pytest.mark.parametrize("num_classes", [2, 200, 4_716])
def test_classes_have_unique_names_and_parents_of_their_own_vertical(num_classes: int) -> None:
    world = youtube8m.build_world(Config(num_classes=num_classes))
    assert len(set(world.names)) == num_classes
    child = np.flatnonzero(world.parent >= 0)
    np.testing.assert_array_equal(world.vertical[child], world.vertical[world.parent[child]])
    depth_two = world.parent[world.parent[child]]
    assert (world.parent[depth_two[depth_two >= 0]] == -1).all()


def test_labels_have_a_long_tail_and_come_with_their_parents() -> None:
    config = Config(num_videos=6_000, num_classes=1_000, rgb_size=1, audio_size=1, train_fraction=1, val_fraction=0)
    _, target = corpus(config, "train")
    per_video, count = target.sum(1), target.sum(0)
    assert per_video.min() == 1
    assert 10 <= per_video.max() <= 24
    assert 3 < per_video.mean() < 5
    assert np.sort(count)[-10:].sum() / count.sum() > 0.25
    rank = np.arange(10, 500)
    slope = np.polyfit(np.log(rank), np.log(np.sort(count)[::-1][rank] + 0.5), 1)[0]
    assert -1.7 < slope < -0.9
    # The index is the rank by frequency, up to chance and to topics that share labels.
    assert np.corrcoef(np.argsort(np.argsort(-count)), np.arange(1_000))[0, 1] > 0.85
    parent = youtube8m.build_world(config).parent
    child = np.flatnonzero(parent >= 0)
    assert 0.8 < (target[:, child] * target[:, parent[child]]).sum() / target[:, child].sum() < 0.95


def test_default_corpus_has_the_real_number_of_labels_a_video() -> None:
    _, target = corpus(Config(rgb_size=1, audio_size=1), "train")
    assert target.sum() / len(target) == pytest.approx(3.4, abs=0.15)


@pytest.mark.parametrize("motion", [0, 1])
def test_frames_have_the_mean_that_the_video_level_draws(motion: float) -> None:
    """Per video, frame means and drawn means share an expectation and a variance around it.

    Averaged over dimensions both estimates are within a few per cent, as 300 videos x 64 dimensions are seen.
    """
    config = Config(
        num_videos=300, num_classes=20, train_fraction=1, val_fraction=0, rgb_size=64, audio_size=32, motion=motion
    )
    world = youtube8m.build_world(config)
    for shard in shard_plan(config):
        videos = draw_videos(config, shard)
        drawn = draw_means(config, shard, videos)
        frames = list(draw_frames(config, shard, videos))
        share = videos.shot_frames / videos.shot_frames.sum(1, keepdims=True)
        for key in ("rgb", "audio"):
            mean = np.stack([(video[key] * (4 / 255) + 4 / 512 - 2).mean(0) for video in frames])
            expected = np.zeros_like(mean)
            for video, label, sign, phase, present in zip(
                videos.video, videos.label, videos.sign[:, 0], videos.phase, videos.present[key], strict=True
            ):
                there = (present * share[video]).sum()
                wave = there
                if motion:
                    shot_of = np.repeat(np.arange(8), videos.shot_frames[video])
                    signs = [(-1) ** ((t + phase) // (1 + label % 4)) * present[s] for t, s in enumerate(shot_of)]
                    wave = np.mean(signs)
                latent = there * world.shared[key][label] + sign * wave * world.signed[key][label]
                expected[video] += latent @ world.embedding[key]
            of_frames, of_means = mean - expected, drawn[key] - expected
            signal = expected.std()
            assert abs(of_frames.mean()) < 0.05 * signal
            assert abs(of_means.mean()) < 0.05 * signal
            assert of_frames.std() == pytest.approx(of_means.std(), rel=0.05)
            assert of_means.std() < signal * (1 + motion)  # motion leaves little in the mean
            tells = [np.corrcoef(values.ravel(), expected.ravel())[0, 1] for values in (mean, drawn[key])]
            assert tells[0] == pytest.approx(tells[1], abs=0.03)
            assert min(tells) > 0.7 - 0.2 * motion


def test_ar1_mean_variance_is_that_of_the_sum_of_all_covariances() -> None:
    num_steps = np.array([1, 2, 7, 300])
    lag = [np.abs(np.subtract.outer(np.arange(n), np.arange(n))) for n in num_steps]
    expected = [(0.95**lags).mean() for lags in lag]
    np.testing.assert_allclose(youtube8m.ar1_mean_variance(num_steps), expected, rtol=1e-12)


def test_frames_are_smooth_within_a_shot_and_jump_between_shots() -> None:
    config = Config(num_videos=20, num_classes=20, train_fraction=1, val_fraction=0)
    shard = shard_plan(config)[0]
    videos = draw_videos(config, shard)
    within, between = [], []
    for shot_frames, frames in zip(videos.shot_frames, draw_frames(config, shard, videos), strict=True):
        step = np.square(np.diff(frames["rgb"].astype(float), axis=0)).mean(1)
        cut = np.zeros(len(step), dtype=bool)
        cut[[end - 1 for end in np.cumsum(shot_frames)[:-1] if 0 < end <= len(step)]] = True
        within.extend(step[~cut])
        between.extend(step[cut])
    assert np.median(between) > 1.1 * np.median(within)


@pytest.mark.parametrize(
    ("value", "level"), [(-9, 0), (-2, 0), (-2 + 4 / 255, 1), (0, 127), (2 - 1e-3, 254), (2, 255), (9, 255)]
)
def test_quantize_by_hand(value: float, level: int) -> None:
    assert youtube8m.quantize(np.array([value + 1e-6])) == level


def test_dequantised_values_are_within_half_a_step() -> None:
    values = np.linspace(-2, 2 - 4 / 255, 10_001)
    back = youtube8m.quantize(values) * (4 / 255) + 4 / 512 - 2
    assert np.abs(back - values).max() <= 4 / 255 / 2 + 1e-4


def average_precision_at_labels(score: np.ndarray, target: np.ndarray) -> float:
    """Micro average precision over all (video, class) pairs."""
    hit = target.ravel()[np.argsort(-score.ravel(), kind="stable")]
    return float((np.cumsum(hit) / np.arange(1, len(hit) + 1) * hit).sum() / hit.sum())


def ridge(train: np.ndarray, target: np.ndarray, test: np.ndarray, penalty: float = 20.0) -> np.ndarray:
    mean = train.mean(0)
    train, test = train - mean, test - mean
    weights = np.linalg.solve(train.T @ train + penalty * np.eye(train.shape[1]), train.T @ (target - target.mean(0)))
    return test @ weights + target.mean(0)


def test_modalities_complement_and_signed_prototypes_need_more_than_a_line() -> None:
    """Probes on 6,000 videos x 100 classes: ridge on each modality, and the same with squares of the latents.

    A signed prototype shows in v^T z squared alone, so quadratic features see what linear ones can't.
    """
    config = Config(num_videos=6_000, num_classes=100, train_fraction=0.75, val_fraction=0, rgb_size=128, audio_size=64)
    world = youtube8m.build_world(config)
    (train, target), (test, truth) = corpus(config, "train"), corpus(config, "test")

    def probe(*keys: str, signed: bool = False) -> float:
        def inputs(features: dict[str, np.ndarray]) -> np.ndarray:
            parts = [features[key] for key in keys]
            if signed:
                for key in keys:
                    along = features[key] @ np.linalg.pinv(world.embedding[key]) @ world.signed[key].T
                    parts.append(along**2 / np.square(world.signed[key]).sum(1) ** 1.5)
            return np.concatenate(parts, axis=1)

        return average_precision_at_labels(ridge(inputs(train), target, inputs(test)), truth)

    prior = average_precision_at_labels(np.broadcast_to(target.mean(0), truth.shape), truth)
    rgb, audio, both = probe("rgb"), probe("audio"), probe("rgb", "audio")
    assert both > rgb + 0.02
    assert rgb > audio + 0.1
    assert audio > prior + 0.1
    assert probe("rgb", "audio", signed=True) > both + 0.02
    assert both < 0.95


def test_text_covers_two_thirds_and_tells_of_the_labels(tmp_path: Path) -> None:
    config = Config(num_videos=3_000, rgb_size=1, audio_size=1)
    out = generate(tmp_path / "out", config)
    rows = table(out / "text.csv")
    assert list(rows[0]) == ["id", "title", "keywords"]
    assert len(rows) / 3_000 == pytest.approx(2 / 3, abs=0.03)
    videos = [draw_videos(config, shard) for shard in shard_plan(config)]
    labels = {i: own for part in videos for i, own in zip(part.ids, part.labels(), strict=True)}
    assert {row["id"] for row in rows} < labels.keys()
    assert len({row["id"] for row in rows}) == len(rows)
    assert all(row["title"] for row in rows)
    foreign = sum(not row["title"].isascii() for row in rows) / len(rows)
    assert 0.04 < foreign < 0.12
    assert 0.1 < sum(not row["keywords"] for row in rows) / len(rows) < 0.22
    world = youtube8m.build_world(config)

    def named(own: np.ndarray) -> set[str]:
        return {word for label in own for word in world.names[label].lower().split()}

    words = [(set(row["title"].lower().split()), labels[row["id"]]) for row in rows]
    shuffled = np.random.default_rng(0).permutation(len(words))
    of_own = np.mean([len(title & named(own)) / len(title) for title, own in words])
    of_other = np.mean(
        [len(words[i][0] & named(own)) / len(words[i][0]) for i, (_, own) in zip(shuffled, words, strict=True)]
    )
    assert 0.05 < of_own < 0.25  # the paper finds about a tenth
    assert of_own > 3 * of_other


def test_vocabulary_counts_the_train_split_under_the_real_header(tmp_path: Path) -> None:
    out = generate(tmp_path / "out", SMALL)
    header = (out / "vocabulary.csv").read_text().splitlines()[0]
    assert header == "Index,TrainVideoCount,KnowledgeGraphId,Name,WikiUrl,Vertical1,Vertical2,Vertical3,WikiDescription"
    rows = table(out / "vocabulary.csv")
    _, target = corpus(SMALL, "train")
    assert [int(row["Index"]) for row in rows] == list(range(40))
    assert [int(row["TrainVideoCount"]) for row in rows] == target.sum(0).astype(int).tolist()
    assert len({row["Name"] for row in rows}) == 40
