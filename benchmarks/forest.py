"""A random forest of 1,000 trees grown as Ray tasks, against scikit-learn's with n_jobs=2; and what each tree is.

    python benchmarks/forest.py

Both grow on 2 CPUs in alternating rounds; ours writes its trees to disk, too. Then every threshold and leaf of every
tree is compared, and predictions: compiled arrays against predict_proba on one core.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import ray
from safetensors.numpy import load_file
from sklearn.ensemble import RandomForestClassifier

from mmray import config
from mmray.ensembling import forest
from mmray.ensembling.fitting import Candidates
from mmray.on_ray import ensemble, runtime

NUM_TREES, NUM_CANDIDATES, NUM_MEMBERS = 1000, 6000, 6
NUM_ROUNDS = 3


def candidates(seed):
    rng = np.random.default_rng(seed)
    hits = rng.random(NUM_CANDIDATES) < 0.15
    logits = rng.normal(0, 1.2, (NUM_CANDIDATES, NUM_MEMBERS)) + 2 * hits[:, np.newaxis] - 1
    scores = (1 / (1 + np.exp(-logits))).astype(np.float32)
    return Candidates(scores, np.zeros(len(hits), np.int32), hits, np.arange(len(hits) + 1))


def run_of():
    section = {"method": "forest", "members": ["one", "two"], "forest": {"trees": NUM_TREES}}
    dataset = {"name": "youtube8m", "path": "nowhere", "num_classes": 10, "level": "video"}
    return config.from_dict(
        {"name": "forest", "task": "video_classification", "model": "logistic", "dataset": dataset, "ensemble": section}
    )


def main():
    runtime.start()
    run, found = run_of(), candidates(0)
    ray.get([ray.remote(forest.grow).remote(found.scores, found.hits, 0, 1, 0) for _ in range(4)])  # workers are warm
    seconds = {"scikit-learn, n_jobs=2": [], "mmray, chunks of 25 trees": []}
    with tempfile.TemporaryDirectory() as root:
        for number in range(NUM_ROUNDS):
            began = time.perf_counter()
            peer = RandomForestClassifier(NUM_TREES, random_state=0, n_jobs=2).fit(found.scores, found.hits)
            between = time.perf_counter()
            files = ensemble._grow(Path(root), run, found, f"{number}")
            seconds["scikit-learn, n_jobs=2"].append(between - began)
            seconds["mmray, chunks of 25 trees"].append(time.perf_counter() - between)
        paths = tuple(str(Path(root) / "fit" / name) for name in files)
        splits = np.concatenate([load_file(path)["split"] for path in paths])
        theirs = [np.where(t.tree_.feature < 0, t.tree_.value[:, 0, 1], t.tree_.threshold) for t in peer.estimators_]
        assert np.array_equal(splits, np.concatenate(theirs)), "the trees differ, so their speeds mean nothing"
        num_bytes = sum(Path(path).stat().st_size for path in paths)
        print(f"{NUM_TREES:,} trees of {NUM_CANDIDATES:,} candidates, {len(splits):,} equal nodes")
        print(f"{num_bytes / 1e6:.0f} MB on disk")
        for name, took in seconds.items():
            pairs = zip(seconds["scikit-learn, n_jobs=2"], took, strict=True)
            ratio = statistics.median(theirs / ours for theirs, ours in pairs)
            print(f"{name:28}{statistics.median(took):8.1f} s  {ratio:5.2f} x scikit-learn")
        print_prediction(peer, forest.Forest(paths, NUM_TREES, 20, exclusive=False))


def print_prediction(peer, grown):
    new = candidates(1).scores
    peer.set_params(n_jobs=1)
    forest.predict(grown, new[:10])
    began = time.perf_counter()
    theirs = peer.predict_proba(new)[:, 1]
    between = time.perf_counter()
    ours = forest.predict(grown, new)
    ended = time.perf_counter()
    assert np.array_equal(ours, theirs)
    print(
        f"predicting {len(new):,} candidates, equal to the bit: scikit-learn {between - began:.2f} s, "
        f"mmray {ended - between:.2f} s with reading the trees"
    )


if __name__ == "__main__":
    main()
