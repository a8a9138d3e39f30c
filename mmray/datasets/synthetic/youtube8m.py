"""A made-up YouTube-8M: TFRecord shards, vocabulary and text in the real corpus's formats.

`generate` writes into one folder `train0000.tfrecord` ..., `validate0000.tfrecord` ..., `test0000.tfrecord` ... of the
configured level, `vocabulary.csv` with the header of the real one, `text.csv` (id, title, keywords joined by commas),
and `word_vectors.bin` in word2vec's binary format. The same seed and sizes give the same videos (id, labels, text,
shots) at both levels, so that a video-level and a frame-level folder describe one corpus.

Classes. Each of up to 24 verticals is a tree: a root, nouns below it, and "modifier noun" classes below the nouns.
A class's index is its rank by expected frequency, as the index of the real vocabulary is its rank by frequency. The
topics of videos follow Zipf's law, flattened at its head:

    P(topic = c) = const * (r_c + 4) ^ -1.3            r: a random order of the classes, from 0

A video has 1 + Poisson(1.5) topics (at most 6), the further ones in three cases of four from the vertical of the
first. Its labels are the topics and their ancestors, each climbed to with probability 0.85: on average 3.4 labels at
200 classes, 4.8 at 4,716.

Features. In each modality (rgb, audio) a class l has, in a latent space of K dimensions, a shared prototype u_l
and a signed one v_l, whose directions it has in part from its parent (60 % of their squared length). A video gives
each of its labels a sign m_l = +1 or -1. It is cut into 1 to 8 shots; a label is present in one of them, its home,
and in each other one with probability 1/2, in sight and in sound independently: a_ls = 0 or 1. Frame t of shot s is

    z_t = sum_l a_ls (u_l + m_l v_l) + n_video + n_s + n_t          n: Gaussian, white over K; n_t is AR(1) in time
    x_t = z_t E + e_t                                               E: (K, D), white entries; e: white over D
    q_t = floor((clip(x_t, -2, 2) + 2) * 255 / 4)                   uint8; its reader takes q * 4/255 + 4/512 - 2

The mean of m_l v_l is 0: no linear score can use it, but two experts with a gate can. Of sound, most classes make
little, and some much; so audio alone is poor, yet tells things that pictures do not. Noise and absence keep the best
possible score below 1.

With `motion` above 0, what a label adds by its sign turns around and back as time goes, every 1 to 4 seconds by its
class, in a phase of the video's own: in frame t it is m_l (1 - motion + motion w_l(t)) v_l with w_l(t) = +1 or -1. At 1
nothing of it is left in a mean over frames, and whoever looks at frames one by one, or along time, still sees it.

Video level. Given labels, signs and shots, all terms are Gaussian, so the mean over a video's T frames, of which shot
s has T_s, is drawn without the frames:

    mean = (sum_l w_l (u_l + m_l v_l) + n) E + e                    w_l = sum_s a_ls T_s / T
    var n = var n_video + var n_s * sum_s (T_s / T)^2 + var n_t * c(T)
    var e = var e_t / T
    c(T) = ((1 + r) / (1 - r) - 2 r (1 - r^T) / (T (1 - r)^2)) / T  r: the correlation of successive n_t

This is the frames' own distribution but for clipping and for rounding (steps of 0.0157, averaged over T frames).

Text. Two thirds of the videos have a row; a twelfth of the rows is not English, a sixth of the rest has no keywords.
What the others say, and the vectors of their words, is in `_youtube8m_text`.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from mmray.datasets.synthetic import Progress, Summary, summary, write_pieces
from mmray.datasets.synthetic._youtube8m_text import (
    WORD_VECTOR_SIZE,
    Lexicon,
    build_lexicon,
    draw_foreign,
    draw_keywords,
    draw_title,
    word_vectors,
)
from mmray.datasets.synthetic._youtube8m_words import FOREIGN_WORDS, MODIFIERS, VERTICALS
from mmray.features.tfrecord_write import encode_example, encode_sequence_example, write_tfrecord
from mmray.files import write_text, written_whole

VOCABULARY_HEADER = "Index,TrainVideoCount,KnowledgeGraphId,Name,WikiUrl,Vertical1,Vertical2,Vertical3,WikiDescription"

MAX_TOPICS = 6
MAX_SHOTS = 8
CLIMBS = 0.85
SAME_VERTICAL = 0.75
INHERITED = 0.6
SLOWEST = 4  # seconds from turn to turn
DRIFT_CORRELATION = 0.95
LOUD, LOUDNESS, QUIETNESS = 0.45, 1.5, 0.3  # the share of loud classes; their factor of strength, and the others'


class Config(BaseModel):
    """What to make. The defaults of feature sizes and lengths are the real corpus's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["youtube8m"] = "youtube8m"
    num_videos: int = Field(20_000, ge=1, le=62**4, description="all splits together; an id has four characters")
    num_classes: int = Field(200, ge=2)
    level: Literal["video", "frame"] = "video"
    seed: int = Field(0, ge=0)
    videos_per_shard: int = Field(1_000, ge=1, description="about; a split of two videos or more has two shards")
    train_fraction: float = Field(0.70, gt=0, le=1)
    val_fraction: float = Field(0.15, ge=0, le=1, description="what train and validation leave is the test split")
    test_labels: bool = Field(True, description="the real test shards carry no labels: false imitates them")
    id_key: Literal["id", "video_id"] = Field("id", description="the feature that holds the id; video_id is older")
    rgb_size: int = Field(1024, ge=1)
    audio_size: int = Field(128, ge=1)
    min_frames: int = Field(60, ge=1, description="one frame a second")
    max_frames: int = Field(300, ge=1)
    motion: float = Field(0.0, ge=0, le=1, description="how much of what frames show turns around within seconds")

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.min_frames > self.max_frames:
            raise ValueError(f"min_frames={self.min_frames} is more than max_frames={self.max_frames}")
        if self.train_fraction + self.val_fraction > 1 + 1e-9:
            raise ValueError(
                f"train_fraction={self.train_fraction} and val_fraction={self.val_fraction} make more than 1"
            )
        return self


@dataclass(frozen=True)
class Shard:
    """One file to write: its number in the plan, its split, its videos (consecutive numbers in the corpus)."""

    index: int
    split: str
    file_name: str
    first_video: int
    num_videos: int


@dataclass(frozen=True)
class Modality:
    """How a sense sees classes: K, deviation of E's entries, mean lengths of the prototypes, noises' deviations."""

    num_latents: int
    embedding: float
    shared: float
    signed: float
    video_noise: float
    shot_noise: float
    drift_noise: float
    frame_noise: float


# Chosen for the order and rough spacing of the published GAP (visual 74, audio 45, both 78) at the default sizes.
MODALITIES = {
    "rgb": Modality(64, 1 / 32, 4.2, 4.2, video_noise=0.6, shot_noise=0.8, drift_noise=0.6, frame_noise=0.4),
    "audio": Modality(32, 1 / 11, 1.6, 1.5, video_noise=0.4, shot_noise=0.5, drift_noise=0.4, frame_noise=0.4),
}


@dataclass(frozen=True)
class World:
    """What all shards share: C classes in the order of their index.

    `vertical` and `parent` (-1: a root) are (C,). `topic_cdf` runs over `by_vertical`, the classes sorted by vertical;
    the topics of vertical v fill its interval from `edges[v]` to `edges[v + 1]`. By modality, `shared` and `signed`
    are (C, K) prototypes and `embedding` is the (K, D) matrix E.
    """

    names: list[str]
    vertical: np.ndarray
    parent: np.ndarray
    by_vertical: np.ndarray
    topic_cdf: np.ndarray
    edges: np.ndarray
    shared: dict[str, np.ndarray]
    signed: dict[str, np.ndarray]
    embedding: dict[str, np.ndarray]


@dataclass(frozen=True)
class Videos:
    """The n videos of a shard before any feature is drawn.

    Their labels stand one after another, m in all: class `label[j]` belongs to video `video[j]` (both ascending) with
    the sign `sign[j]`; `present[modality][j]` tells the shots it is in. `starts` (n,) is each video's first j.
    `shot_frames` (n, MAX_SHOTS) are the shots' lengths in frames, 0 for a shot that a video lacks. `phase[j]` is the
    second at which the motion of label j begins.
    """

    ids: list[str]
    video: np.ndarray
    label: np.ndarray
    starts: np.ndarray
    sign: np.ndarray
    present: dict[str, np.ndarray]
    shot_frames: np.ndarray
    phase: np.ndarray

    def labels(self) -> list[np.ndarray]:
        """The class indices of each video, ascending; never empty."""
        return np.split(self.label, self.starts[1:])

    def label_slices(self) -> list[slice]:
        """Where the labels of each video stand."""
        return list(map(slice, self.starts.tolist(), [*self.starts[1:].tolist(), len(self.label)]))


def generate(out: Path, config: Config, progress: Progress, num_processes: int = 1) -> Summary:
    """Write the corpus into the folder `out`; a shard that is there is kept, so that a stopped run goes on.

    Raises ValueError when `out` holds anything but a run, whole or not, of the same configuration.
    """
    plan = shard_plan(config)
    files = write_pieces(
        out, config, plan, lambda shard: (out / shard.file_name,), write_shard, progress, num_processes
    )

    train_video_count = np.zeros(config.num_classes, np.int64)
    with written_whole(out / "text.csv") as aside, aside.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["id", "title", "keywords"])
        for shard in plan:
            videos = draw_videos(config, shard)
            rows.writerows(draw_text(config, shard, videos))
            if shard.split == "train":
                train_video_count += np.bincount(videos.label, minlength=config.num_classes)
    write_text(out / "vocabulary.csv", _vocabulary(build_world(config), train_video_count))
    with written_whole(out / "word_vectors.bin") as aside:
        aside.write_bytes(_word2vec(draw_word_vectors(config)))
    others = [out / name for name in ("vocabulary.csv", "text.csv", "word_vectors.bin")]
    return summary(out, config.num_videos, [*files, *others])


def shard_plan(config: Config) -> list[Shard]:
    """Every shard of the corpus, in order; a split of no videos has none."""
    ends = np.rint(np.cumsum([config.train_fraction, config.val_fraction]) * config.num_videos).astype(int).tolist()
    plan: list[Shard] = []
    first = 0
    for split, end in zip(("train", "validate", "test"), (*ends, config.num_videos), strict=True):
        num_shards = min(end - first, max(2, round((end - first) / config.videos_per_shard)))
        bounds = np.linspace(first, end, num_shards + 1).astype(int).tolist()
        for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
            plan.append(Shard(len(plan), split, f"{split}{number:04d}.tfrecord", start, stop - start))
        first = end
    return plan


def write_shard(config: Config, shard: Shard, out: Path) -> None:
    """Write one shard into the folder `out`: its bytes depend on `config` and `shard` alone."""
    videos = draw_videos(config, shard)
    contexts: list[dict[str, bytes | np.ndarray]] = [{config.id_key: video_id.encode()} for video_id in videos.ids]
    if shard.split != "test" or config.test_labels:
        for context, labels in zip(contexts, videos.labels(), strict=True):
            context["labels"] = labels
    write_tfrecord(
        out / shard.file_name,
        _video_records(config, shard, videos, contexts)
        if config.level == "video"
        else _frame_records(config, shard, videos, contexts),
    )


def _video_records(
    config: Config, shard: Shard, videos: Videos, contexts: list[dict[str, bytes | np.ndarray]]
) -> Iterator[bytes]:
    means = draw_means(config, shard, videos)
    for context, rgb, audio in zip(contexts, means["rgb"], means["audio"], strict=True):
        yield encode_example({**context, "mean_rgb": rgb, "mean_audio": audio})


def _frame_records(
    config: Config, shard: Shard, videos: Videos, contexts: list[dict[str, bytes | np.ndarray]]
) -> Iterator[bytes]:
    for context, frames in zip(contexts, draw_frames(config, shard, videos), strict=True):
        yield encode_sequence_example(context, {key: [row.tobytes() for row in rows] for key, rows in frames.items()})


def _random(config: Config, *purpose: int) -> np.random.Generator:
    """The stream of one purpose: (0,) the world, (4,) its words, (5,) their vectors; of shard i: (1, i) videos, (2, i)
    features, (3, i) text.
    """
    return np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=purpose))


@lru_cache(maxsize=2)
def build_world(config: Config) -> World:
    """The classes, their frequencies and prototypes; the same for configurations of one seed and size."""
    random, num_classes = _random(config, 0), config.num_classes
    names, vertical, parent = _class_trees(num_classes, random)
    topic = (random.permutation(num_classes) + 4.0) ** -1.3
    topic /= topic.sum()
    frequency = topic.copy()
    for child in range(num_classes - 1, -1, -1):  # every class stands after its parent
        if parent[child] >= 0:
            frequency[parent[child]] += CLIMBS * frequency[child]
    order = np.argsort(-frequency, kind="stable")
    rank = np.argsort(order)

    shared: dict[str, np.ndarray] = {}
    signed: dict[str, np.ndarray] = {}
    embedding: dict[str, np.ndarray] = {}
    for key, size in (("rgb", config.rgb_size), ("audio", config.audio_size)):
        modality = MODALITIES[key]
        num_latents = min(modality.num_latents, size)
        strength = random.uniform(0.6, 1.4, (num_classes, 1))
        if key == "audio":
            strength *= np.where(random.random((num_classes, 1)) < LOUD, LOUDNESS, QUIETNESS)
        for prototypes, length in ((shared, modality.shared), (signed, modality.signed)):
            direction = _directions(parent, num_latents, random)
            prototypes[key] = (length * strength * direction)[order].astype(np.float32)
        embedding[key] = modality.embedding * random.standard_normal((num_latents, size), dtype=np.float32)

    vertical = vertical[order]
    by_vertical = np.argsort(vertical, kind="stable")
    topic_cdf = np.cumsum(topic[order][by_vertical])
    return World(
        names=[names[i] for i in order],
        vertical=vertical,
        parent=np.where(parent >= 0, rank[parent], -1)[order],
        by_vertical=by_vertical,
        topic_cdf=topic_cdf,
        edges=np.concatenate([[0.0], topic_cdf[np.cumsum(np.bincount(vertical)) - 1]]),
        shared=shared,
        signed=signed,
        embedding=embedding,
    )


def _class_trees(num_classes: int, random: np.random.Generator) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, verticals and parents (-1: a root) of the classes, every parent before its children.

    A vertical of k classes uses about sqrt(k) of its nouns; when they are used up, they come again with a modifier,
    and when those are used up, with two.
    """
    num_verticals = max(1, min(len(VERTICALS), num_classes // 4))
    popularity = 1 / (np.arange(num_verticals) + 4.0)
    others = random.choice(num_verticals, num_classes - num_verticals, p=popularity / popularity.sum())
    vertical = np.concatenate([np.arange(num_verticals), others])
    sizes = np.bincount(vertical)
    nouns = [
        text.split(",")[: max(2, int(size**0.5))] for (text, _), size in zip(VERTICALS.values(), sizes, strict=False)
    ]
    modifiers = MODIFIERS.split()

    names, parent = [], np.full(num_classes, -1)
    members: list[list[int]] = [[] for _ in range(num_verticals)]
    for index, v in enumerate(vertical):
        turn, noun = divmod(len(members[v]), len(nouns[v]))
        words = [nouns[v][noun]]
        if members[v]:
            parent[index] = members[v][noun if turn else 0]
        while turn:
            turn, digit = divmod(turn - 1, len(modifiers))
            words.insert(0, modifiers[(digit + 7 * noun + 11 * v) % len(modifiers)])
        names.append(" ".join(words).capitalize())
        members[v].append(index)
    return names, vertical, parent


def _directions(parent: np.ndarray, num_latents: int, random: np.random.Generator) -> np.ndarray:
    """(C, K) unit vectors, each a mixture of its parent's and one of its own."""
    direction = random.standard_normal((len(parent), num_latents))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    for child in np.flatnonzero(parent >= 0):
        mixed = INHERITED**0.5 * direction[parent[child]] + (1 - INHERITED) ** 0.5 * direction[child]
        direction[child] = mixed / np.linalg.norm(mixed)
    return direction


def draw_videos(config: Config, shard: Shard) -> Videos:
    """The ids, labels, signs and shots of a shard's videos: the same at both levels."""
    world, random, n = build_world(config), _random(config, 1, shard.index), shard.num_videos
    has = np.zeros((n, config.num_classes), dtype=bool)
    num_topics = 1 + random.poisson(1.5, n)
    low, high = np.zeros(n), np.full(n, world.edges[-1])
    for turn in range(MAX_TOPICS):
        place = np.searchsorted(world.topic_cdf, low + random.random(n) * (high - low), "right")
        topic = world.by_vertical[np.minimum(place, config.num_classes - 1)]
        if turn == 0:
            home = world.vertical[topic]
        stays = random.random(n) < SAME_VERTICAL
        low = np.where(stays, world.edges[home], 0.0)
        high = np.where(stays, world.edges[home + 1], world.edges[-1])
        labelled = turn < num_topics
        while labelled.any():
            has[labelled, topic[labelled]] = True
            topic = world.parent[topic]
            labelled = labelled & (topic >= 0) & (random.random(n) < CLIMBS)
    video, label = np.nonzero(has)

    num_frames = random.integers(config.min_frames, config.max_frames, n, endpoint=True)
    num_shots = np.minimum(1 + random.poisson(3.5, n), MAX_SHOTS)
    share = random.gamma(2.0, size=(n, MAX_SHOTS)) * (np.arange(MAX_SHOTS) < num_shots[:, None])
    cuts = np.rint(share.cumsum(1) / share.sum(1, keepdims=True) * num_frames[:, None]).astype(np.int64)
    present = {}
    for key in MODALITIES:
        home_shot = (random.random(len(label)) * num_shots[video]).astype(np.int64)
        elsewhere = random.random((len(label), MAX_SHOTS)) < 0.5
        present[key] = (np.arange(MAX_SHOTS) == home_shot[:, None]) | elsewhere
    return Videos(
        ids=[_video_id(number) for number in range(shard.first_video, shard.first_video + n)],
        video=video,
        label=label,
        starts=np.searchsorted(video, np.arange(n)),
        sign=random.choice(np.array([-1, 1], np.float32), (len(label), 1)),
        present=present,
        shot_frames=np.diff(cuts, axis=1, prepend=0),
        phase=random.integers(2 * SLOWEST, size=len(label)),
    )


def _turned(config: Config, videos: Videos, video: int, labels: slice, key: str) -> np.ndarray:
    """What motion takes from the signed prototypes of a video's labels: (L, T), 0 where a label is absent."""
    shot_frames = videos.shot_frames[video]
    present = np.repeat(videos.present[key][labels], shot_frames, axis=1)
    half_period = 1 + videos.label[labels, None] % SLOWEST
    turn = (np.arange(shot_frames.sum()) + videos.phase[labels, None]) // half_period % 2
    turned: np.ndarray = (-2 * config.motion * present * turn).astype(np.float32)
    return turned


def _video_id(number: int) -> str:
    """Four characters, as in the released corpus: another for every number below 62^4, and in no visible order."""
    number = (number * 7_368_787 + 1_234_567) % 62**4  # one to one, as the factor is prime to 62
    digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    return "".join(digits[number // 62**place % 62] for place in (3, 2, 1, 0))


def draw_means(config: Config, shard: Shard, videos: Videos) -> dict[str, np.ndarray]:
    """Video-level features: by modality, (n, D) float32, mostly within [-2, 2]."""
    world, random = build_world(config), _random(config, 2, shard.index)
    num_frames = videos.shot_frames.sum(1)
    shot_share = videos.shot_frames / num_frames[:, None]
    means = {}
    for key, modality in MODALITIES.items():
        weight = (videos.present[key] * shot_share[videos.video]).sum(1, keepdims=True).astype(np.float32)
        prototypes = world.shared[key][videos.label] + videos.sign * world.signed[key][videos.label]
        latent = np.add.reduceat(weight * prototypes, videos.starts)
        if config.motion:
            signed = videos.sign * world.signed[key][videos.label]
            for video, labels in enumerate(videos.label_slices()):
                latent[video] += _turned(config, videos, video, labels, key).mean(axis=1) @ signed[labels]
        variance = modality.video_noise**2 + modality.shot_noise**2 * (shot_share**2).sum(1)
        variance += modality.drift_noise**2 * ar1_mean_variance(num_frames)
        latent += _noise(random, variance**0.5, latent.shape[1])
        means[key] = latent @ world.embedding[key]
        means[key] += _noise(random, modality.frame_noise / num_frames**0.5, means[key].shape[1])
    return means


def _noise(random: np.random.Generator, deviation: np.ndarray, size: int) -> np.ndarray:
    """(n, size) float32 Gaussian noise; row i has the standard deviation `deviation[i]`."""
    noise = random.standard_normal((len(deviation), size), dtype=np.float32)
    noise *= deviation[:, None].astype(np.float32)
    return noise


def ar1_mean_variance(num_steps: np.ndarray) -> np.ndarray:
    """The variance of the mean over `num_steps` steps of the drift, a stationary AR(1) process of variance 1."""
    r = DRIFT_CORRELATION
    tail = 2 * r * (1 - r**num_steps) / (num_steps * (1 - r) ** 2)
    variance: np.ndarray = ((1 + r) / (1 - r) - tail) / num_steps
    return variance


def draw_frames(config: Config, shard: Shard, videos: Videos) -> Iterator[dict[str, np.ndarray]]:
    """Frame-level features of one video after another: by modality, (T, D) uint8."""
    world, random = build_world(config), _random(config, 2, shard.index)
    for video, labels in enumerate(videos.label_slices()):
        label, sign, shot_frames = videos.label[labels], videos.sign[labels], videos.shot_frames[video]
        frames = {}
        for key, modality in MODALITIES.items():
            num_latents, size = world.embedding[key].shape
            signed = sign * world.signed[key][label]
            shots = videos.present[key][labels].T.astype(np.float32) @ (world.shared[key][label] + signed)
            shots += modality.video_noise * random.standard_normal(num_latents, dtype=np.float32)
            shots += modality.shot_noise * random.standard_normal(shots.shape, dtype=np.float32)
            drift = random.standard_normal((shot_frames.sum(), num_latents), dtype=np.float32)
            for t in range(1, len(drift)):
                drift[t] = DRIFT_CORRELATION * drift[t - 1] + (1 - DRIFT_CORRELATION**2) ** 0.5 * drift[t]
            latent = np.repeat(shots, shot_frames, axis=0) + modality.drift_noise * drift
            if config.motion:
                latent += _turned(config, videos, video, labels, key).T @ signed
            noise = random.standard_normal((len(latent), size), dtype=np.float32)
            frames[key] = quantize(latent @ world.embedding[key] + modality.frame_noise * noise)
        yield frames


def quantize(features: np.ndarray) -> np.ndarray:
    """Features as uint8, in 255 steps of 4/255 from -2 to 2, rounded down; what lies outside is clipped."""
    quantized: np.ndarray = ((np.clip(features, -2, 2) + 2) * (255 / 4)).astype(np.uint8)
    return quantized


@lru_cache(maxsize=2)
def lexicon_of(config: Config) -> Lexicon:
    """The words of all classes; the same for configurations of one seed and number of classes."""
    world = build_world(config)
    return build_lexicon(world.names, world.vertical, _random(config, 4))


def draw_text(config: Config, shard: Shard, videos: Videos) -> list[tuple[str, str, str]]:
    """(id, title, keywords joined by commas) of those of a shard's videos that have text."""
    world, lexicon, random = build_world(config), lexicon_of(config), _random(config, 3, shard.index)

    def stray() -> int:
        place = np.searchsorted(world.topic_cdf, random.random() * world.topic_cdf[-1], "right")
        return int(world.by_vertical[min(place, config.num_classes - 1)])

    rows = []
    for video_id, labels in zip(videos.ids, videos.labels(), strict=True):
        if random.random() < 1 / 3:
            continue
        if random.random() < 1 / 12:
            language = int(random.integers(len(FOREIGN_WORDS)))
            title, keywords = (draw_foreign(language, 1 + random.poisson(mean), random) for mean in (5, 8))
        else:
            title = draw_title(lexicon, labels, stray, random)
            keywords = draw_keywords(lexicon, labels, stray, random) if random.random() > 1 / 6 else []
        rows.append((video_id, " ".join(title), ",".join(dict.fromkeys(keywords))))
    return rows


def draw_word_vectors(config: Config) -> dict[str, np.ndarray]:
    """The vector (WORD_VECTOR_SIZE,) float32 of every English word of a text, sorted by word."""
    return word_vectors(lexicon_of(config), _random(config, 5))


def _word2vec(vectors: dict[str, np.ndarray]) -> bytes:
    """Vectors in word2vec's binary format."""
    head = f"{len(vectors)} {WORD_VECTOR_SIZE}\n".encode()
    return head + b"".join(f"{word} ".encode() + vector.astype("<f4").tobytes() for word, vector in vectors.items())


def _vocabulary(world: World, train_video_count: np.ndarray) -> str:
    """The text of `vocabulary.csv`, a row a class. WikiUrl is empty: there is no such page."""
    text = io.StringIO(VOCABULARY_HEADER + "\n")
    text.seek(0, io.SEEK_END)
    rows = csv.writer(text, lineterminator="\n")
    verticals = list(VERTICALS)
    for index, name in enumerate(world.names):
        vertical = verticals[world.vertical[index]]
        description = f"A made-up class: {name.lower()}, of {vertical}."
        rows.writerow([index, train_video_count[index], f"/m/{index:05x}", name, "", vertical, "", "", description])
    return text.getvalue()
