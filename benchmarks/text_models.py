"""Models of text on made-up videos: TextCNN of titles, two dense layers on keyword histograms, the unigram model.

    python benchmarks/text_models.py [--seeds 0 1 2] [--epochs] [--set KEY=VALUE ...]

One process without Ray. For each seed a corpus of 20,000 videos and 200 classes is made (its text does not depend on
the sizes of features, so these are 1 here), and what `configs/smoke/text.yaml` says is trained on it, with the models
of its head. Scores on all test videos, a third of which have no text. `--epochs` also prints GAP on the validation
videos after each epoch, which shows whether the training has come to its end; `--set` changes the run file.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import torch

from mmray import config, preparation, prepared, tasks
from mmray.datasets.synthetic import youtube8m
from mmray.prepared import SplitReader
from mmray.training import checkpoint, feed, run_folder
from mmray.training.context import Context
from mmray.training.loop import fit

ROOT = Path(__file__).resolve().parent.parent
MODELS = {  # with what the head of the run file says
    "titles-text_cnn": (),
    "keywords-mlp": ("dataset.text.videos=with_keywords", "model={name: mlp, inputs: [keywords], hidden_size: 256}"),
    "titles-unigram": ("model={name: unigram}", "train.epochs=1"),
    "keywords-unigram": (
        "dataset.text.videos=with_keywords", "model={name: unigram, inputs: [keyword_words]}", "train.epochs=1",
    ),
}  # fmt: skip
METRICS = ("gap", "hit_at_1", "perr", "map")


def run_of(folder: Path, name: str, seed: int, changes: tuple[str, ...]) -> config.Run:
    """The run file with another corpus and small features."""
    corpus = folder / "corpus"
    return config.load(
        ROOT / "configs/smoke/text.yaml",
        (
            f"name={name}", f"seed={seed}", f"out={folder / 'runs'}",
            f"prepare.out={folder / 'prepared'}", f"dataset.path={corpus}",
            "dataset.features={mean_rgb: 1, mean_audio: 1}",
            f"dataset.class_names_file={corpus / 'vocabulary.csv'}", f"dataset.text.path={corpus / 'text.csv'}",
            f"dataset.text.vectors={corpus / 'word_vectors.bin'}", f"dataset.text.cache={folder / 'cache'}", *changes,
        ),
    )  # fmt: skip


def trained_scores(run: config.Run, show_epochs: bool) -> dict[str, float]:
    """Train a run and score the checkpoint that was best on validation."""
    plan = preparation.plan(run)
    if not (plan.folder / "dataset.json").exists():
        preparation.publish(plan, [preparation.write_part(run, part, plan.aside) for part in plan.parts])
    info = prepared.read_info(plan.folder)
    context, task = Context(run_folder.open_run(run, info)), tasks.build(run, info)
    fit(run, task, *feed.tables(run, task, plan.folder, context), context)
    if show_epochs:
        gaps = [line["val/gap"] for line in run_folder.read_log(run.run_dir) if line["event"] == "epoch"]
        print("    val GAP after each epoch:", *(f"{gap:.3f}" for gap in gaps))
    best = checkpoint.best(run.run_dir, *tasks.monitored(run, task))
    model = task.build_model()
    checkpoint.load_model(checkpoint.folder_of(run.run_dir, best.step), model.eval())
    metrics, rows = task.new_metrics(), info.split("test").rows
    with torch.no_grad():
        for table in SplitReader(plan.folder, info.split("test"), task.columns(labelled=True)).batches(0, rows, 512):
            batch = task.collate(table)
            metrics.update(task.evaluate(model, batch)[0], batch)
    return metrics.compute()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--epochs", action="store_true", help="print GAP on validation videos after each")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in arguments.models}
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as folder:
            made = youtube8m.Config(seed=seed, rgb_size=1, audio_size=1)
            youtube8m.generate(Path(folder) / "corpus", made, lambda done, total: None)
            for name in arguments.models:
                run = run_of(Path(folder), name, seed, (*arguments.set, *MODELS[name]))
                found[name].append(trained_scores(run, arguments.epochs))
                scores = "  ".join(f"{metric} {found[name][-1][metric]:.3f}" for metric in METRICS)
                print(f"seed {seed}  {name:<18} {scores}", flush=True)
    for name, scored in found.items():
        gaps = [scores["gap"] for scores in scored]
        print(f"{name:<18} GAP {statistics.mean(gaps):.3f} ({min(gaps):.3f} to {max(gaps):.3f}) over {len(gaps)} seeds")


if __name__ == "__main__":
    main()
