"""The command line: parse, load, call. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mmray import __version__


def main() -> None:
    """Entry point: wrong input ends with its message and status 1, not with a stack trace."""
    try:
        cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except (ValueError, FloatingPointError, OSError) as error:
        if "-v" in sys.argv or "--verbose" in sys.argv:
            raise
        click.echo(f"error: {error}", err=True)
        sys.exit(1)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="mmray")
def cli() -> None:
    """Train and tune multimodal models at scale with Ray: one YAML file from corpus to report."""


def _with_run(command: Callable[..., Any]) -> Callable[..., Any]:
    """The arguments that every verb over a run file takes."""
    overrides = click.option(
        "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key: train.epochs=3."
    )
    path = click.argument("run_file", metavar="RUN.yaml", type=click.Path(path_type=Path))
    return path(overrides(_verbose(command)))


def _verbose(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("-v", "--verbose", is_flag=True, help="Let Ray speak, and show stack traces.")(command)


def _what_to_predict(command: Callable[..., Any]) -> Callable[..., Any]:
    split = click.option("--split", default="test", show_default=True, help="Split of the prepared dataset.")
    corpus = click.option("--corpus", metavar="[DATASET=]PATH", help="Another corpus than the run's own.")
    overrides = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Change a key of task or predict: task.decode=viterbi.",
    )
    return split(corpus(overrides(command)))


@cli.command()
@_with_run
def prepare(run_file: Path, overrides: tuple[str, ...], verbose: bool) -> None:
    """Turn the corpus of a run into a prepared dataset (Parquet), on Ray Data."""
    from mmray import config
    from mmray.on_ray.prepare import prepare as prepare_run

    prepare_run(config.load(run_file, overrides), verbose)


@cli.command()
@_with_run
def train(run_file: Path, overrides: tuple[str, ...], verbose: bool) -> None:
    """Train a run on Ray Train, or go on with it. Prepares the dataset first if need be."""
    from mmray import config
    from mmray.on_ray.train import train as train_run

    train_run(config.load(run_file, overrides), verbose)


@cli.command("import-weights")
@click.argument("run_file", metavar="RUN.yaml", type=click.Path(path_type=Path))
@click.argument("weights", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key: name=authors.")
def import_weights(run_file: Path, weights: Path, overrides: tuple[str, ...]) -> None:
    """Make a run folder of weights that a paper's authors have released, to predict and evaluate with."""
    from mmray import config
    from mmray.console import say
    from mmray.training.import_weights import import_weights as import_run

    say(f"imported {weights} as {import_run(config.load(run_file, overrides), weights)}")


@cli.command()
@click.argument("run_dir", metavar="RUN", type=click.Path(path_type=Path))
@_what_to_predict
@click.option("--csv", "csv_path", type=click.Path(path_type=Path), help="Also write the challenge's CSV here.")
@click.option("--input", "source", metavar="PATH", help="Predict sound files: a file, a folder, a pattern.")
@click.option("--out", type=click.Path(path_type=Path), help="With --input: where to; a folder if there are several.")
@click.option("--midi", "extras", flag_value="midi", multiple=True, help="With --input: also write notes as MIDI.")
@click.option("--timeline", "extras", flag_value="timeline", multiple=True, help="With --input: classes along it too.")
@click.option("--pcm", metavar="FORMAT:RATE:CHANNELS", help="With --input -: raw samples from standard input.")
@click.option(
    "--sonify", "extras", flag_value="sonification", multiple=True, help="With --input: also let it be heard."
)
@_verbose
def predict(
    run_dir: Path,
    split: str,
    corpus: str | None,
    overrides: tuple[str, ...],
    csv_path: Path | None,
    source: str | None,
    out: Path | None,
    extras: tuple[str, ...],
    pcm: str | None,
    verbose: bool,
) -> None:
    """Predict a split, another corpus, or single files, with the best checkpoint of a run folder."""
    from mmray import class_scores
    from mmray.console import say
    from mmray.on_ray.predict import predict as predict_run
    from mmray.on_ray.predict import predict_files, predict_stream

    if (source == "-") != (pcm is not None):
        raise click.UsageError("--input - reads raw samples and needs --pcm, such as --pcm s16le:44100:2")
    if pcm is not None:
        predict_stream(run_dir, pcm, overrides)
        return
    if source is not None:
        if corpus is not None or csv_path is not None:
            raise click.UsageError("--input predicts single files: it goes with --out, --midi, --sonify and --timeline")
        written = predict_files(run_dir, source, out, extras, overrides, verbose)
        say(f"wrote {len(written):,} files, the first {written[0]}")
        return
    if out is not None or extras:
        raise click.UsageError("--out, --midi, --sonify and --timeline go with --input")
    folder, _ = predict_run(run_dir, split, corpus, overrides, verbose)
    if csv_path:
        say(f"wrote {class_scores.write_challenge_csv(folder, csv_path):,} rows to {csv_path}")


@cli.command()
@click.argument("run_dirs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@_what_to_predict
@_verbose
def evaluate(
    run_dirs: tuple[Path, ...], split: str, corpus: str | None, overrides: tuple[str, ...], verbose: bool
) -> None:
    """Score runs on a split, or on another corpus, by their task's metrics and against its baselines."""
    from mmray.console import say
    from mmray.evaluation import evaluate as evaluate_run
    from mmray.on_ray.predict import predict as predict_run

    for run_dir in run_dirs:
        folder, data = predict_run(run_dir, split, corpus, overrides, verbose)
        result = evaluate_run(run_dir, folder.name, data, overrides)
        rows = {run_dir.name: result["metrics"]} | {f"  baseline: {k}": v for k, v in result["baselines"].items()}
        for name, metrics in rows.items():
            say(f"{name:<32} {folder.name}  " + "  ".join(f"{key} {value:.4f}" for key, value in metrics.items()))


@cli.command()
@click.argument("run_dirs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the page; default: report/ in the first run.")
def report(run_dirs: tuple[Path, ...], out: Path | None) -> None:
    """Write one self-contained HTML page over runs, and its pictures beside it."""
    from mmray.console import say
    from mmray.reporting.page import write_report

    say(f"open {write_report(list(run_dirs), out or run_dirs[0] / 'report')}")


@cli.group("synth")
def synth_group() -> None:
    """Make a synthetic corpus in a real one's own format."""


@synth_group.command("youtube8m")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--videos", default=20_000, show_default=True, help="Videos, all splits together.")
@click.option("--classes", default=200, show_default=True, help="Classes; the real corpus has 4,716.")
@click.option("--level", type=click.Choice(["video", "frame"]), default="video", show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Any other setting: test_labels=false.")
def synth_youtube8m(out: Path, videos: int, classes: int, level: str, seed: int, overrides: tuple[str, ...]) -> None:
    """TFRecord shards as YouTube-8M's, with label names, titles and keywords, in the folder OUT."""
    from mmray.config import section_from_dict
    from mmray.console import progress, say
    from mmray.datasets.synthetic import youtube8m

    values = {"num_videos": videos, "num_classes": classes, "level": level, "seed": seed}
    config = section_from_dict(youtube8m.Config, values, overrides, where="mmray synth youtube8m")
    with progress("synth", len(youtube8m.shard_plan(config)), "shards") as advance:
        summary = youtube8m.generate(out, config, lambda done, total: advance(done, f"seed {config.seed}"))
    say(f"made {summary}")


@synth_group.command("music_emotion")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--tracks", default=24, show_default=True, help="Recordings, all classes together.")
@click.option("--minutes", default=4.0, show_default=True, help="Their mean length.")
@click.option("--seed", default=0, show_default=True)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Any other setting: file_format=wav.")
def synth_music_emotion(out: Path, tracks: int, minutes: float, seed: int, overrides: tuple[str, ...]) -> None:
    """Long recordings of happy, sad and angry music, a folder a class, in the folder OUT."""
    from mmray.config import section_from_dict
    from mmray.console import progress, say
    from mmray.datasets.synthetic import music_emotion

    values = {"num_tracks": tracks, "minutes": minutes, "seed": seed}
    config = section_from_dict(music_emotion.Config, values, overrides, where="mmray synth music_emotion")
    with progress("synth", config.num_tracks, "tracks") as advance:
        summary = music_emotion.generate(out, config, lambda done, total: advance(done, f"seed {config.seed}"))
    say(f"made {summary}")


@synth_group.command("melody")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--clips", default=200, show_default=True, help="Clips, all splits together.")
@click.option("--seed", default=0, show_default=True)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Any other setting.")
def synth_melody(out: Path, clips: int, seed: int, overrides: tuple[str, ...]) -> None:
    """Sung-like voices over chords, bass and drums, laid out as MIR-1K is, in the folder OUT."""
    from mmray.config import section_from_dict
    from mmray.console import progress, say
    from mmray.datasets.synthetic import mir1k

    config = section_from_dict(mir1k.Config, {"num_clips": clips, "seed": seed}, overrides, where="mmray synth melody")
    with progress("synth", clips, "clips") as advance:
        summary = mir1k.generate(out, config, lambda done, total: advance(done, f"seed {config.seed}"))
    say(f"made {summary}")


@cli.group("data")
def data_group() -> None:
    """Look at corpora."""


@data_group.command("verify")
@click.argument("path")
@click.option("--classes", type=click.IntRange(min=1), help="Number of classes that labels are checked against.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the whole report here.")
@_verbose
def data_verify(path: str, classes: int | None, json_path: Path | None, verbose: bool) -> None:
    """Check every record of TFRecord shards: checksums, features, labels, lengths, duplicate ids.

    PATH is a folder, a pattern or a shard. The exit status is 1 if anything is bad.
    """
    from mmray.files import write_json
    from mmray.on_ray import verify

    report = verify.verify(path, classes, verbose)
    verify.describe(report)
    if json_path:
        write_json(json_path, verify.as_dict(report))
    if report.rejected or report.duplicated_ids:
        sys.exit(1)


@cli.group("config")
def config_group() -> None:
    """Look at run files."""


@config_group.command("show")
@_with_run
def config_show(run_file: Path, overrides: tuple[str, ...], verbose: bool) -> None:
    """Print a run with every key resolved."""
    from mmray import config

    click.echo(config.load(run_file, overrides).to_yaml(), nl=False)


@config_group.command("schema")
def config_schema() -> None:
    """Print the JSON schema of run files, for editors."""
    import json

    from mmray import config

    click.echo(json.dumps(config.json_schema(), indent=2))
