"""A made-up YouTube-8M: TFRecord shards, vocabulary and text in the real corpus's formats.

`generate` writes into one folder `train0000.tfrecord` ..., `validate0000.tfrecord` ..., `test0000.tfrecord` ... of the
configured level, `vocabulary.csv` with the header of the real one, and `text.csv` (id, title, keywords). The same
seed and sizes give the same videos (id, labels, text, shots) at both levels, so that a video-level and a frame-level
folder describe one corpus.

Classes. A forest: each of up to 24 verticals has a root, nouns below it, and "modifier noun" classes below the nouns.
Class indices are ranks of expected frequency, as in the real vocabulary. Topics follow a Zipf law that is flattened
at its head,

    P(topic = c) ∝ (r_c + 4)^-1.15        r: a random order of the classes

and a video has 1 + Poisson(0.6) topics, three quarters of the further ones from the first one's vertical. Its labels are
the topics and, each with probability 0.85, their ancestors.

Features. For each modality (rgb, audio) a class l has in a latent space of K dimensions a *shared* prototype
u_l and a *signed* one v_l; 60 % of either's direction comes from its parent. A video gives each of its labels a sign
m_l = ±1, once. It is cut into 1 to 8 shots; a label is present in one shot, its home, and in each other one
with probability 1/2, in sight and in sound independently: a_ls = 0 or 1. Frame t of shot s is

    z_t = Σ_l a_ls (u_l + m_l v_l) + video + shot_s + drift_t        latent noises: N(0, σ² I); drift is AR(1), ρ = 0.95
    x_t = E z_t + frame_t                                            E: D × K, orthonormal columns; frame: N(0, σ² I_D)
    q_t = floor((clip(x_t, -2, 2) + 2) · 255 / 4)                    uint8, whose inverse is q · 4/255 + 4/512 - 2

The mean of m_l v_l is 0: no linear score can use it, two experts with a gate can. Loud classes are few and
sound is weak, so that audio alone is poor, yet tells things that pictures do not. The noises and the absent shots
put the best possible score below 1.

Video level. Every term is Gaussian given labels, signs and shots, so the mean of the frames is drawn without the frames:

    mean = E (Σ_l w_l (u_l + m_l v_l) + n) + e        w_l = Σ_s a_ls T_s / T
    var n = σ_video² + σ_shot² Σ_s (T_s / T)² + σ_drift² c(T)        var e = σ_frame² / T
    c(T) = [(1 + ρ) / (1 - ρ) - 2ρ (1 - ρ^T) / (T (1 - ρ)²)] / T     the variance of a mean of T steps of AR(1)

which is the frame model's own distribution but for quantisation (a step of 0.0157, averaged over T frames) and clipping.

Text. Two thirds of the videos have a row; a twelfth of the rows is not English, a sixth of the rest has no keywords.
Words come from the label's own name, from words that go with the label, from words of its vertical, or from none.
"""

from __future__ import annotations

import csv
import io
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from mmray.datasets.synthetic import Progress, Summary
from mmray.features.tfrecord_write import encode_example, encode_sequence_example, write_tfrecord
from mmray.files import write_text

VOCABULARY_HEADER = (
    "Index,TrainVideoCount,KnowledgeGraphId,Name,WikiUrl,Vertical1,Vertical2,Vertical3,WikiDescription".split(",")
)

MAX_SHOTS = 8
MAX_TOPICS = 5
ANCESTOR_KEPT = 0.85
SAME_VERTICAL = 0.75
INHERITED = 0.6
LOUD = 0.4
QUIET = 0.25
DRIFT_CORRELATION = 0.95


class Config(BaseModel):
    """What to make. The defaults of sizes and lengths are the real corpus's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["youtube8m"] = "youtube8m"
    num_videos: int = Field(20_000, ge=1, le=62**4, description="all splits together; ids are four characters")
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


@dataclass(frozen=True)
class Shard:
    """One file to write: its place in the plan, its split, and the videos [first_video, first_video + num_videos)."""

    index: int
    split: Literal["train", "validate", "test"]
    file_name: str
    first_video: int
    num_videos: int


@dataclass(frozen=True)
class Modality:
    """How a sense sees classes: latent dimensions, lengths of the prototypes, standard deviations of the noises."""

    latents: int
    shared: float
    signed: float
    video_noise: float
    shot_noise: float
    drift_noise: float
    frame_noise: float


MODALITIES = {
    "rgb": Modality(64, 4.0, 4.0, 0.6, 0.8, 0.6, 0.4),
    "audio": Modality(24, 2.0, 2.0, 0.6, 0.8, 0.6, 0.4),
}


@dataclass(frozen=True)
class World:
    """What all shards of a configuration share. C classes, ordered by expected frequency.

    `topic_cdf` runs over `by_vertical`, the classes sorted by vertical, so that the topics of one vertical are one
    interval of it. `shared` and `signed` hold (C, K) prototypes per modality, `embedding` (K, D) matrices.
    """

    names: list[str]
    vertical: np.ndarray
    parent: np.ndarray
    by_vertical: np.ndarray
    topic_cdf: np.ndarray
    vertical_edges: np.ndarray
    shared: dict[str, np.ndarray]
    signed: dict[str, np.ndarray]
    embedding: dict[str, np.ndarray]
    words: list[list[str]]


@dataclass(frozen=True)
class Videos:
    """The videos of a shard, n of them, before any feature is drawn.

    Their m labels stand in one row after another: label `label[j]` belongs to video `video[j]` (both ascending),
    with the sign `sign[j]` and the presence `present[modality][j]` in each of MAX_SHOTS shots. `shot_frames`
    (n, MAX_SHOTS) are the shots' lengths in frames; a video's sum to its number of frames, and those it lacks have 0.
    """

    ids: list[str]
    video: np.ndarray
    label: np.ndarray
    sign: np.ndarray
    present: dict[str, np.ndarray]
    shot_frames: np.ndarray

    @property
    def num_frames(self) -> np.ndarray:
        """Frames per video, (n,)."""
        return self.shot_frames.sum(1)

    def labels(self) -> list[np.ndarray]:
        """The label indices of each video, ascending."""
        return np.split(self.label, np.searchsorted(self.video, np.arange(1, len(self.ids))))


def _rng(config: Config, *key: int) -> np.random.Generator:
    """The stream of one purpose: (0,) the world; (1, shard) its videos, (2, shard) features, (3, shard) text."""
    return np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=key))


def shard_plan(config: Config) -> list[Shard]:
    """Every file of the corpus, in order. ValueError when the settings contradict each other."""
    if config.min_frames > config.max_frames:
        raise ValueError(f"min_frames={config.min_frames} is more than max_frames={config.max_frames}")
    if config.train_fraction + config.val_fraction > 1 + 1e-9:
        raise ValueError(
            f"train_fraction={config.train_fraction} and val_fraction={config.val_fraction} sum to more than 1"
        )
    edges = np.cumsum([0.0, config.train_fraction, config.val_fraction]) * config.num_videos
    first, *later = [*np.rint(edges).astype(int).tolist(), config.num_videos]
    plan: list[Shard] = []
    for split, last in zip(("train", "validate", "test"), later, strict=True):
        num_shards = min(last - first, max(2, round((last - first) / config.videos_per_shard)))
        bounds = np.linspace(first, last, num_shards + 1).astype(int).tolist()
        for number, (start, stop) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
            plan.append(Shard(len(plan), split, f"{split}{number:04d}.tfrecord", start, stop - start))
        first = last
    return plan


@lru_cache(maxsize=2)
def build_world(config: Config) -> World:
    """The classes, their prototypes and words: the same for every shard."""
    rng = _rng(config, 0)
    names, vertical, parent = _class_forest(config.num_classes, rng)
    topic = (rng.permutation(config.num_classes) + 4.0) ** -1.3
    topic /= topic.sum()
    frequency = topic.copy()
    for child in range(config.num_classes - 1, -1, -1):  # children stand after parents
        if parent[child] >= 0:
            frequency[parent[child]] += ANCESTOR_KEPT * frequency[child]
    order = np.argsort(-frequency, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))

    shared, signed, embedding = {}, {}, {}
    for key, modality in MODALITIES.items():
        size = config.rgb_size if key == "rgb" else config.audio_size
        latents = min(modality.latents, size)
        strength = rng.uniform(0.6, 1.4, config.num_classes)
        if key == "audio":
            strength *= np.where(rng.random(config.num_classes) < LOUD, 1.5, QUIET)
        for prototypes, length in ((shared, modality.shared), (signed, modality.signed)):
            own = _unit(rng.standard_normal((config.num_classes, latents)))
            direction = own.copy()
            for child in range(config.num_classes):
                if parent[child] >= 0:
                    mixed = INHERITED**0.5 * direction[parent[child]] + (1 - INHERITED) ** 0.5 * own[child]
                    direction[child] = mixed / np.linalg.norm(mixed)
            prototypes[key] = (length * strength[:, None] * direction)[order].astype(np.float32)
        embedding[key] = np.linalg.qr(rng.standard_normal((size, latents)))[0].T.astype(np.float32)

    vertical, topic = vertical[order], topic[order]
    by_vertical = np.argsort(vertical, kind="stable")
    cdf = np.cumsum(topic[by_vertical])
    counts = np.bincount(vertical)
    edges = np.concatenate([[0.0], cdf[np.cumsum(counts) - 1]])
    parent = parent[order]
    parent = np.where(parent >= 0, rank[parent], -1)
    names = [names[i] for i in order]
    words = [
        rng.choice(VERTICALS[v][2].split(), 3, replace=False).tolist()
        + rng.choice(COMMON_WORDS, 3, replace=False).tolist()
        for v in vertical
    ]
    return World(names, vertical, parent, by_vertical, cdf, edges, shared, signed, embedding, words)


def _unit(rows: np.ndarray) -> np.ndarray:
    unit: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def _class_forest(num_classes: int, rng: np.random.Generator) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, verticals and parents (-1: a root) of the classes; parents stand before their children."""
    num_verticals = max(1, min(len(VERTICALS), num_classes // 4))
    popularity = 1 / (np.arange(num_verticals) + 4.0)
    vertical = np.concatenate(
        [
            np.arange(num_verticals),
            rng.choice(num_verticals, num_classes - num_verticals, p=popularity / popularity.sum()),
        ]
    )
    names, parent = [], np.full(num_classes, -1)
    members: list[list[int]] = [[] for _ in range(num_verticals)]
    totals = np.bincount(vertical, minlength=num_verticals)
    for index, v in enumerate(vertical):
        nouns = VERTICALS[v][1].split(",")[: max(2, int(totals[v] ** 0.5))]
        noun, rounds = len(members[v]) % len(nouns), len(members[v]) // len(nouns)
        modifiers = []
        while rounds:
            rounds, digit = divmod(rounds - 1, len(MODIFIERS))
            modifiers.append(MODIFIERS[(digit + 7 * noun + 11 * v) % len(MODIFIERS)])
        names.append(" ".join([*modifiers[::-1], nouns[noun]]).capitalize())
        if members[v]:
            parent[index] = members[v][noun if modifiers else 0]
        members[v].append(index)
    return names, vertical, parent


def draw_videos(config: Config, shard: Shard) -> Videos:
    """The ids, labels, signs and shots of a shard's videos: a function of the seed, the sizes and the shard alone."""
    world, rng, n = build_world(config), _rng(config, 1, shard.index), shard.num_videos
    has = np.zeros((n, config.num_classes), dtype=bool)
    num_topics = np.minimum(1 + rng.poisson(1.5, n), MAX_TOPICS)
    low, high = np.zeros(n), np.full(n, world.vertical_edges[-1])
    for turn in range(MAX_TOPICS):
        at = low + rng.random(n) * (high - low)
        topic = world.by_vertical[np.minimum(np.searchsorted(world.topic_cdf, at, "right"), config.num_classes - 1)]
        if turn == 0:
            home = world.vertical[topic]
        same = rng.random(n) < SAME_VERTICAL
        low = np.where(same, world.vertical_edges[home], 0.0)
        high = np.where(same, world.vertical_edges[home + 1], world.vertical_edges[-1])
        wanted = turn < num_topics
        while wanted.any():
            has[wanted, topic[wanted]] = True
            topic = world.parent[topic]
            wanted = wanted & (topic >= 0) & (rng.random(n) < ANCESTOR_KEPT)
    video, label = np.nonzero(has)

    num_frames = rng.integers(config.min_frames, config.max_frames, n, endpoint=True)
    num_shots = np.minimum(1 + rng.poisson(3.5, n), MAX_SHOTS)
    share = rng.gamma(2.0, size=(n, MAX_SHOTS)) * (np.arange(MAX_SHOTS) < num_shots[:, None])
    cuts = np.rint(np.cumsum(share, 1) / share.sum(1, keepdims=True) * num_frames[:, None]).astype(np.int64)
    present = {}
    for key in MODALITIES:
        anywhere = rng.random((len(label), MAX_SHOTS)) < 0.5
        home_shot = (rng.random(len(label)) * num_shots[video]).astype(np.int64)
        present[key] = anywhere | (np.arange(MAX_SHOTS) == home_shot[:, None])
    return Videos(
        ids=[_video_id(number) for number in range(shard.first_video, shard.first_video + n)],
        video=video,
        label=label,
        sign=rng.choice(np.array([-1.0, 1.0], np.float32), len(label)),
        present=present,
        shot_frames=np.diff(cuts, axis=1, prepend=0),
    )


def _video_id(number: int) -> str:
    """Four characters, as in the released corpus: distinct for each number below 62^4, and not in order."""
    number = (number * 7_368_787 + 1_234_567) % 62**4  # the factor is prime to 62
    digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    return "".join(digits[number // 62**place % 62] for place in (3, 2, 1, 0))


def draw_means(config: Config, shard: Shard, videos: Videos) -> dict[str, np.ndarray]:
    """Video-level features by modality, (n, D) float32: the distribution of the mean over a video's frames."""
    world, rng = build_world(config), _rng(config, 2, shard.index)
    n, num_frames = len(videos.ids), videos.num_frames
    shot_share = videos.shot_frames / num_frames[:, None]
    means = {}
    for key, modality in MODALITIES.items():
        present_share = (videos.present[key] * shot_share[videos.video]).sum(1)
        weight = np.zeros((n, config.num_classes), np.float32)
        weight[videos.video, videos.label] = present_share
        latent = weight @ world.shared[key]
        weight[videos.video, videos.label] *= videos.sign
        latent += weight @ world.signed[key]
        variance = modality.video_noise**2 + modality.shot_noise**2 * (shot_share**2).sum(1)
        variance += modality.drift_noise**2 * _ar1_mean_variance(num_frames)
        latent += _scaled_noise(rng, variance**0.5, latent.shape[1])
        means[key] = latent @ world.embedding[key]
        means[key] += _scaled_noise(rng, modality.frame_noise / num_frames**0.5, means[key].shape[1])
    return means


def _scaled_noise(rng: np.random.Generator, scale: np.ndarray, size: int) -> np.ndarray:
    """(n, size) float32 Gaussian noise whose row i has standard deviation scale[i]."""
    return rng.standard_normal((len(scale), size), dtype=np.float32) * scale[:, None].astype(np.float32)


def _ar1_mean_variance(num_steps: np.ndarray) -> np.ndarray:
    """The variance of the mean of `num_steps` steps of a stationary AR(1) process of variance 1."""
    rho = DRIFT_CORRELATION
    tail = 2 * rho * (1 - rho**num_steps) / (num_steps * (1 - rho) ** 2)
    variance: np.ndarray = ((1 + rho) / (1 - rho) - tail) / num_steps
    return variance


def draw_frames(config: Config, shard: Shard, videos: Videos) -> Iterator[dict[str, np.ndarray]]:
    """For one video after another, its quantised frames by modality: (T, D) uint8."""
    world, rng = build_world(config), _rng(config, 2, shard.index)
    edges = np.searchsorted(videos.video, np.arange(len(videos.ids) + 1))
    for i, shot_frames in enumerate(videos.shot_frames):
        mine = slice(edges[i], edges[i + 1])
        label, sign = videos.label[mine], videos.sign[mine, None]
        shot_of_frame = np.repeat(np.arange(MAX_SHOTS), shot_frames)
        frames = {}
        for key, modality in MODALITIES.items():
            prototypes = world.shared[key][label] + sign * world.signed[key][label]
            num_latents, size = world.embedding[key].shape
            shots = videos.present[key][mine].T.astype(np.float32) @ prototypes
            shots += modality.shot_noise * rng.standard_normal(shots.shape, dtype=np.float32)
            shots += modality.video_noise * rng.standard_normal(num_latents, dtype=np.float32)
            drift = rng.standard_normal((len(shot_of_frame), num_latents), dtype=np.float32)
            for t in range(1, len(drift)):
                drift[t] = DRIFT_CORRELATION * drift[t - 1] + (1 - DRIFT_CORRELATION**2) ** 0.5 * drift[t]
            latent = shots[shot_of_frame] + modality.drift_noise * drift
            noise = rng.standard_normal((len(latent), size), dtype=np.float32)
            frames[key] = quantize(latent @ world.embedding[key] + modality.frame_noise * noise)
        yield frames


def quantize(features: np.ndarray) -> np.ndarray:
    """Features in [-2, 2] (what lies outside is clipped) as uint8: 255 steps of 4/255, rounded down.

    The corpus's reader takes the middle of a step: q * 4/255 + 4/512 - 2.
    """
    return ((np.clip(features, -2, 2) + 2) * (255 / 4)).astype(np.uint8)


def write_shard(config: Config, shard: Shard, out: Path) -> Path:
    """Write one shard into the folder `out` and return its path: a pure function of `config` and `shard`."""
    videos = draw_videos(config, shard)
    labels = videos.labels()

    def context(i: int) -> dict[str, bytes | np.ndarray]:
        if shard.split == "test" and not config.test_labels:
            return {config.id_key: videos.ids[i].encode()}
        return {config.id_key: videos.ids[i].encode(), "labels": labels[i]}

    def video_records() -> Iterator[bytes]:
        means = draw_means(config, shard, videos)
        for i in range(shard.num_videos):
            yield encode_example({**context(i), "mean_rgb": means["rgb"][i], "mean_audio": means["audio"][i]})

    def frame_records() -> Iterator[bytes]:
        for i, frames in enumerate(draw_frames(config, shard, videos)):
            lists = {key: [frame.tobytes() for frame in rows] for key, rows in frames.items()}
            yield encode_sequence_example(context(i), lists)

    path = out / shard.file_name
    write_tfrecord(path, video_records() if config.level == "video" else frame_records())
    return path


def draw_text(config: Config, shard: Shard, videos: Videos) -> list[tuple[str, str, str]]:
    """(id, title, keywords joined by commas) of those videos of a shard that have text."""
    world, rng = build_world(config), _rng(config, 3, shard.index)
    rows = []
    for video_id, labels in zip(videos.ids, videos.labels(), strict=True):
        if rng.random() < 1 / 3:
            continue
        if rng.random() < 1 / 12:
            words = FOREIGN_WORDS[rng.integers(len(FOREIGN_WORDS))].split()
            title = " ".join(_pick(rng, words, rng.integers(3, 7)))
            rows.append((video_id, title, ",".join(_pick(rng, words, rng.integers(2, 7)))))
            continue
        title_words = [_word(world, rng, labels) for _ in range(rng.integers(3, 9))]
        if rng.random() < 0.3:
            title_words.append(_pick(rng, TITLE_ENDINGS, 1)[0])
        keywords = []
        if rng.random() > 1 / 6:
            keywords = [_word(world, rng, labels) for _ in range(1 + rng.poisson(7.5))]
        rows.append((video_id, " ".join(title_words).title(), ",".join(dict.fromkeys(keywords))))
    return rows


def _pick(rng: np.random.Generator, words: list[str], count: int) -> list[str]:
    return [words[i] for i in rng.integers(len(words), size=count)]


def _word(world: World, rng: np.random.Generator, labels: np.ndarray) -> str:
    """A word about one of the labels: of its name, one that goes with it, one of its vertical, or any."""
    label = labels[rng.integers(len(labels))]
    kind = rng.random()
    if kind < 0.12:
        words = world.names[label].lower().split()
    elif kind < 0.47:
        words = world.words[label]
    elif kind < 0.72:
        words = VERTICALS[world.vertical[label]][2].split()
    else:
        words = COMMON_WORDS
    return words[rng.integers(len(words))]


def generate(out: Path, config: Config, progress: Progress, num_processes: int = 1) -> Summary:
    """Write the corpus into `out`; shards that are there already are kept, so that a stopped run goes on.

    Raises ValueError when `out` holds anything but an unfinished or finished run of the same configuration.
    """
    plan = shard_plan(config)
    out.mkdir(parents=True, exist_ok=True)
    stamp = out / "synthetic.json"
    written = config.model_dump_json(indent=2) + "\n"
    if stamp.exists():
        if stamp.read_text() != written:
            raise ValueError(f"{out} holds a corpus of other settings ({stamp}); give another folder, or remove it")
    elif any(out.iterdir()):
        raise ValueError(f"{out} is not empty and holds no {stamp.name}; give a new or an empty folder")
    write_text(stamp, written)

    missing = [shard for shard in plan if not (out / shard.file_name).exists()]
    done = len(plan) - len(missing)
    if num_processes == 1:
        for shard in missing:
            write_shard(config, shard, out)
            done += 1
            progress(done, len(plan))
    else:
        with ProcessPoolExecutor(num_processes, multiprocessing.get_context("spawn")) as pool:
            for _ in pool.map(write_shard, [config] * len(missing), missing, [out] * len(missing)):
                done += 1
                progress(done, len(plan))

    counts = np.zeros(config.num_classes, np.int64)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["id", "title", "keywords"])
    for shard in plan:
        videos = draw_videos(config, shard)
        rows.writerows(draw_text(config, shard, videos))
        if shard.split == "train":
            counts += np.bincount(videos.label, minlength=config.num_classes)
    write_text(out / "text.csv", text.getvalue())
    write_text(out / "vocabulary.csv", _vocabulary(build_world(config), counts))
    files = [out / name for name in (*(shard.file_name for shard in plan), "text.csv", "vocabulary.csv", stamp.name)]
    return Summary(out, config.num_videos, len(files), sum(file.stat().st_size for file in files))


def _vocabulary(world: World, train_video_count: np.ndarray) -> str:
    """The text of `vocabulary.csv`: one row a class. There is no page to link to: WikiUrl is empty."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(VOCABULARY_HEADER)
    for index, name in enumerate(world.names):
        vertical = VERTICALS[world.vertical[index]][0]
        description = f"A made-up class: {name.lower()}, of {vertical}."
        rows.writerow([index, train_video_count[index], f"/m/{index:05x}", name, "", vertical, "", "", description])
    return text.getvalue()


# Vertical; nouns that name classes, the root first; words that go with them. The verticals are the real corpus's.
VERTICALS: list[tuple[str, str, str]] = [
    (
        "Arts & Entertainment",
        "music,concert,guitar,drum,piano,singer,dance,film,cartoon,animation,trailer,violin,choir,orchestra,musician,"
        "theatre,ballet,painting,comedy,festival",
        "band song live stage album cover lyrics acoustic melody chorus audience studio solo tour scene actor premiere",
    ),
    (
        "Games",
        "game,shooter,racer,chess,puzzle,console,strategy,minecraft,arcade,poker,simulator,platformer,quest,dungeon,card,"
        "quiz,pinball,tetris,league,arena",
        "player level boss gameplay walkthrough multiplayer online mission score server weapon mod kill speedrun map",
    ),
    (
        "Autos & Vehicles",
        "vehicle,car,motorcycle,truck,engine,bus,train,airplane,helicopter,tractor,van,boat,tire,exhaust,locomotive,"
        "scooter,wagon,limousine,tram,trailer",
        "drive speed wheel race garage road turbo fuel brake driver highway diesel horsepower gear mechanic test",
    ),
    (
        "Sports",
        "sport,football,basketball,skateboarding,wrestling,baseball,hockey,boxing,cycling,swimming,surfing,skiing,tennis,"
        "golf,cricket,volleyball,running,climbing,rowing,fencing",
        "goal match coach team season ball trick league win champion training stadium final medal fans tournament",
    ),
    (
        "Food & Drink",
        "food,recipe,cake,pizza,coffee,bread,chocolate,soup,salad,beer,wine,cheese,noodle,sushi,pasta,cookie,steak,tea,"
        "juice,dessert",
        "cook oven taste kitchen bake sugar butter sauce chef dinner flour fresh fry delicious restaurant spice",
    ),
    (
        "Computers & Electronics",
        "computer,smartphone,laptop,tablet,software,keyboard,camera,printer,robot,router,processor,headphones,monitor,"
        "website,database,drone,speaker,microphone,television,projector",
        "screen install review battery windows code program unboxing usb download device update memory apps setup",
    ),
    (
        "Beauty & Fitness",
        "cosmetics,hairstyle,makeup,exercise,yoga,nail,tattoo,perfume,fitness,skincare,lipstick,massage,braid,gym,wig,"
        "eyeliner,manicure,shampoo,aerobics,pilates",
        "beauty skin routine workout muscle curl tutorial polish glow salon body haul strength brush tone",
    ),
    (
        "Pets & Animals",
        "animal,dog,cat,horse,bird,fish,aquarium,rabbit,parrot,puppy,kitten,snake,lizard,hamster,turtle,cow,sheep,pony,"
        "goat,spider",
        "cute breed feed tail wild pet zoo bark paw farm rescue fur cage veterinarian vet",
    ),
    (
        "Travel",
        "travel,hotel,beach,cruise,city,airport,island,mountain,resort,museum,temple,castle,harbour,waterfall,canyon,"
        "village,market,bridge,tower,lagoon",
        "trip tour vacation guide flight visit holiday scenery tourist sunset view passport journey luggage explore",
    ),
    (
        "Home & Garden",
        "home,garden,kitchen,furniture,sofa,flower,lawn,roof,bathroom,lamp,fence,door,window,chair,shed,bonsai,greenhouse,"
        "carpet,curtain,fireplace",
        "decorate wood plant repair build paint soil tool wall clean design seed grow renovation floor",
    ),
    (
        "Hobbies & Leisure",
        "hobby,fishing,camping,origami,knitting,model,kite,toy,magic,juggling,pottery,sewing,crochet,hunting,wedding,"
        "birthday,fireworks,balloon,lego,carving",
        "craft paper yarn handmade needle collect bait tent weekend fold pattern glue scale hook bead",
    ),
    (
        "Science",
        "science,chemistry,physics,astronomy,biology,rocket,telescope,volcano,dinosaur,laser,microscope,magnet,fossil,"
        "planet,comet,robotics,genetics,geology,nebula,satellite",
        "experiment laboratory space theory energy molecule atom research orbit gravity cell moon launch data light",
    ),
    (
        "People & Society",
        "family,baby,church,party,prayer,parade,ceremony,charity,community,marriage,pregnancy,twins,grandmother,choir boy,"
        "pilgrimage,protest,reunion,volunteer,tradition,costume",
        "love friends life story children mother faith culture mum kids together celebrate interview memories god",
    ),
    (
        "News",
        "news,election,weather,storm,interview,debate,flood,earthquake,politician,journalist,tornado,hurricane,summit,riot,"
        "speech,wildfire,reporter,campaign,scandal,broadcast",
        "report breaking president today channel press minister crisis anchor headline video world vote police damage",
    ),
    (
        "Business & Industrial",
        "factory,construction,crane,welding,farm,excavator,warehouse,machine,mining,harvester,bulldozer,forklift,sawmill,"
        "printing,packaging,textile,drill,conveyor,pump,lathe",
        "steel worker production company industry metal safety operator tools cut load concrete plant hydraulic heavy",
    ),
    (
        "Jobs & Education",
        "school,university,classroom,lecture,exam,teacher,library,graduation,homework,mathematics,algebra,grammar,alphabet,"
        "kindergarten,scholarship,career,apprentice,seminar,spelling,geometry",
        "learn student lesson study class course campus tutorial degree english question explain skills teach notes",
    ),
    (
        "Shopping",
        "fashion,dress,shoe,handbag,jewellery,watch,mall,sneaker,jacket,sunglasses,ring,necklace,hat,jeans,boutique,"
        "wardrobe,scarf,boot,shirt,coat",
        "style outfit sale brand price buy model trend discount collection wear gold leather shop lookbook",
    ),
    (
        "Health",
        "health,hospital,surgery,diet,dentist,medicine,nurse,vaccine,allergy,asthma,cancer,diabetes,therapy,pharmacy,"
        "bandage,ambulance,wheelchair,vitamin,sleep,pain",
        "doctor patient treatment weight disease natural symptoms care heart blood healthy cure remedy clinic brain",
    ),
    (
        "Books & Literature",
        "book,novel,poetry,comic,manga,fairy tale,author,library card,biography,dictionary,magazine,essay,fable,legend,"
        "superhero,villain,short story,bible,saga,memoir",
        "read chapter character story writer page fiction publisher hero poem plot fantasy review series ending",
    ),
    (
        "Internet & Telecom",
        "internet,blog,podcast,antenna,telephone,streaming,webcam,email,browser,radio,modem,vlog,channel,forum,cable,"
        "hotspot,voicemail,firewall,server,domain",
        "network signal wireless website google youtube subscribe link connection mobile account traffic phone post seo",
    ),
    (
        "Finance",
        "money,bank,stock,insurance,gold,bitcoin,tax,loan,budget,mortgage,coin,pension,auction,investment,currency,credit,"
        "dividend,audit,inflation,bond",
        "invest trading profit market income cash dollar rich forex broker fund wealth debt price earn",
    ),
    (
        "Law & Government",
        "police,army,court,prison,navy,soldier,lawyer,tank,parliament,parachute,judge,firefighter,submarine,veteran,border,"
        "embassy,missile,treaty,detective,patrol",
        "military officer law crime arrest uniform war officer federal justice trial force marine combat weapon",
    ),
    (
        "Real Estate",
        "house,apartment,skyscraper,villa,cottage,condominium,office,loft,bungalow,penthouse,mansion,barn,studio flat,"
        "warehouse loft,duplex,cabin,townhouse,hut,tower block,estate",
        "property bedroom sale rent pool luxury agent square buyer listing tour balcony acre condo mortgage",
    ),
    (
        "Reference",
        "language,map,history,encyclopedia,calendar,flag,museum piece,genealogy,geography,grammar book,archive,atlas,"
        "translation,alphabet chart,census,timeline,glossary,almanac,chronicle,catalogue",
        "ancient century word country learn pronunciation vocabulary origin empire facts documentary king year names",
    ),
]

MODIFIERS = (
    "electric acoustic vintage modern classic professional miniature japanese american italian french german indian "
    "mexican african british russian chinese korean spanish wooden plastic metal giant tiny outdoor indoor underwater "
    "winter summer spring autumn night royal military medieval antique digital solar portable homemade custom racing "
    "flying rural urban northern southern red blue green white black golden silver wild street mountain desert tropical"
).split()

COMMON_WORDS = (
    "video best new first part official full top amazing funny great big day time world free easy fast old high special "
    "original little original home review show episode clip epic crazy cool super ultimate real beautiful perfect simple "
    "complete final extreme awesome favorite classic promo teaser intro challenge reaction compilation highlights moment "
    "morning night secret rare fun hot long short slow happy sad lost found king queen boys girls north south west east"
).split()

TITLE_ENDINGS = ["HD", "(Official Video)", "2013", "2014", "- Part 1", "- Part 2", "!!!", "[1080p]", "#1"]

FOREIGN_WORDS = [
    "canción música vídeo oficial mejor cómo hacer niños fútbol cocina receta coche casa juego película fiesta",
    "видео музыка песня игра новый лучший машина дети урок футбол кухня рецепт дом праздник фильм",
    "動画 音楽 ゲーム 実況 料理 車 電車 歌 踊り 祭り 映画 日本 東京 犬 猫",
    "फिल्म गाना संगीत वीडियो खेल भोजन नृत्य समाचार शिक्षा परिवार त्योहार घर गाड़ी",
    "فيديو موسيقى أغنية لعبة طبخ سيارة فيلم رقص أخبار مدرسة بيت كرة",
    "음악 노래 게임 요리 자동차 영화 춤 뉴스 학교 가족 축구 여행",
]
