"""The command line: parse, load, call. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

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


class _Place(click.ParamType):  # type: ignore[type-arg]
    """A path of this machine, or an address in a store."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """ValueError, as a message, for an address that holds a password."""
        from mmray.storage import at

        try:
            return at(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


_PLACE = _Place()


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="mmray")
def cli() -> None:
    """Train and tune multimodal models at scale with Ray: one YAML file from corpus to report."""


def _with_run(command: Callable[..., Any]) -> Callable[..., Any]:
    """The arguments that every verb over a run file takes."""
    overrides = click.option(
        "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key: train.epochs=3."
    )
    path = click.argument("run_file", metavar="RUN.yaml", type=_PLACE)
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


@cli.command()
@_with_run
@click.option("--out", type=_PLACE, help="A PNG file; default: <name>-preview.png beside the runs.")
@click.option("--rows", default=8, show_default=True, type=click.IntRange(min=1), help="Images.")
@click.option("--epochs", default=6, show_default=True, type=click.IntRange(min=1), help="Epochs to show of each.")
def preview(
    run_file: Path, overrides: tuple[str, ...], out: Path | None, rows: int, epochs: int, verbose: bool
) -> None:
    """Draw training images as they are stored and as epochs change them. Prepares the dataset first if need be."""
    from mmray import config
    from mmray.console import say
    from mmray.on_ray.prepare import prepare as prepare_run
    from mmray.preview import sheet

    run = config.load(run_file, overrides)
    data = prepare_run(run, verbose)
    say(f"drew {sheet(run, data, out or run.run_dir.with_name(f'{run.name}-preview.png'), rows, epochs)}")


@cli.command()
@_with_run
@click.option("--resume", is_flag=True, help="Go on with a search that is there; without it one is begun if need be.")
def tune(run_file: Path, overrides: tuple[str, ...], resume: bool, verbose: bool) -> None:
    """Search for the best settings of a run, as its section tune says, or go on with the search."""
    from mmray import config, study
    from mmray.on_ray.tune import tune as tune_run

    run = config.load(run_file, overrides)
    if resume:
        study.read_run(run.run_dir)
    tune_run(run, verbose)


@cli.command()
@_with_run
@click.option("--cluster", metavar="NODES.yaml", type=_PLACE, help="Machines that are not here.")
def plan(run_file: Path, overrides: tuple[str, ...], cluster: Path | None, verbose: bool) -> None:
    """Say what a run, or its search, needs, and whether the cluster has it; the status is 1 if not."""
    from mmray import config
    from mmray.console import say
    from mmray.on_ray.plan import plan_for

    say(plan_for(config.load(run_file, overrides), cluster, verbose).said())


@cli.command()
@click.argument("folder", metavar="STUDY", type=_PLACE)
@click.option("--optuna", is_flag=True, help="optuna-dashboard, on port 8080.")
@click.option("--tensorboard", is_flag=True, help="TensorBoard over the trials, on port 6006.")
@click.option("--ray", is_flag=True, help="Where the dashboard of the Ray cluster is.")
@click.option("--host", help="Listen here too, where others may reach it; default: this machine alone.")
@click.option("--port", type=click.IntRange(1, 65534), help="Of the first dashboard; the next has the next.")
def dashboard(folder: Path, optuna: bool, tensorboard: bool, ray: bool, host: str | None, port: int | None) -> None:
    """Serve dashboards of a search, running or finished: optuna-dashboard and TensorBoard if none is chosen."""
    from mmray.on_ray.dashboard import serve

    serve(folder, optuna, tensorboard, ray, host, port)


_address = click.option(
    "--address", metavar="URL", help="The cluster's dashboard: http://127.0.0.1:8265; default: RAY_API_SERVER_ADDRESS."
)


@cli.command(context_settings={"ignore_unknown_options": True})
@click.argument("verb", metavar="VERB")
@click.argument("arguments", metavar="ARGUMENTS...", nargs=-1, type=click.UNPROCESSED)
@_address
@click.option("--detach", is_flag=True, help="Don't wait for its end.")
@click.option(
    "--on-interrupt",
    type=click.Choice(["detach", "stop"]),
    default="detach",
    show_default=True,
    help="What Ctrl-C does: leave the job running, or stop it.",
)
@click.option(
    "--packages",
    type=click.Choice(["check", "install", "any"]),
    default="check",
    show_default=True,
    help="Versions of requirements.txt: refuse where the cluster's differ, install them for the job, or don't look.",
)
@click.option("--env", "variables", multiple=True, metavar="NAME=VALUE", help="Of the job's environment; no secrets.")
@click.option("--limit-mb", default=50.0, show_default=True, help="Refuse a larger upload.")
def submit(
    verb: str,
    arguments: tuple[str, ...],
    address: str | None,
    detach: bool,
    on_interrupt: Literal["detach", "stop"],
    packages: Literal["check", "install", "any"],
    variables: tuple[str, ...],
    limit_mb: float,
) -> None:
    """Run a verb in a cluster, as a Ray job: mmray submit train RUN.yaml --address URL.

    The verb takes its own arguments and options. Its output is shown, and its exit status is the job's.
    """
    from mmray.lookup import suggest
    from mmray.on_ray.submit import VERBS, job_of
    from mmray.on_ray.submit import submit as submit_job

    if verb not in VERBS:
        raise click.UsageError(f"{verb!r} can't be submitted; {suggest(verb, list(VERBS))}")
    values = cli.commands[verb].make_context(verb, list(arguments)).params
    job = job_of(verb, arguments, values)
    sys.exit(
        submit_job(
            job,
            address,
            limit_mb=limit_mb,
            packages=packages,
            variables=variables,
            detach=detach,
            on_interrupt=on_interrupt,
        )
    )


@cli.command()
@_address
@click.option("--follow", "followed", metavar="ID", help="Show a job's output to its end.")
@click.option("--stop", "stopped", metavar="ID", help="End a job.")
@click.option("--json", "as_json", is_flag=True, help="The list as JSON.")
def jobs(address: str | None, followed: str | None, stopped: str | None, as_json: bool) -> None:
    """List the jobs of a cluster, follow one, or stop one."""
    import json

    from mmray.on_ray import submit
    from mmray.on_ray.access import client

    if stopped is not None:
        submit.stop(client(address), stopped)
    elif followed is not None:
        sys.exit(submit.follow(client(address), followed))
    else:
        rows = submit.table(client(address))
        click.echo(json.dumps(rows, indent=2) if as_json else submit.said(rows))


@cli.command()
@click.option("--local", is_flag=True, required=True, help="On this machine, for this machine alone.")
@click.option("--port", default=8265, show_default=True, type=click.IntRange(1, 65535), help="Of its dashboard.")
@click.option("--cpus", type=click.IntRange(min=1), help="CPUs that Ray may use; default: all.")
@click.option("--gpus", type=click.IntRange(min=0), help="GPUs that Ray may use; default: all.")
def up(local: bool, port: int, cpus: int | None, gpus: int | None) -> None:
    """Run a cluster of this machine, protected by a token, until interrupted.

    One of machines in a cloud is made by `ray up cluster.yaml`: see docs/cluster.md.
    """
    from mmray.on_ray.up import up_local

    sys.exit(up_local(port, cpus, gpus))


@cli.command()
@_address
@click.option("--storage", metavar="URL", help="Also write, read and delete a few MB there: s3://bucket/folder.")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
def doctor(address: str | None, storage: str | None, as_json: bool) -> None:
    """Say what is wrong with this machine, a cluster or a storage, and what to do.

    The exit status is 1 if anything fails.
    """
    from mmray.on_ray.doctor import examine, said

    findings = examine(address, storage)
    click.echo(said(findings, as_json))
    if any(finding.level == "fail" for finding in findings):
        sys.exit(1)


@cli.command("import-weights")
@click.argument("run_file", metavar="RUN.yaml", type=_PLACE)
@click.argument("weights", type=_PLACE)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key: name=authors.")
def import_weights(run_file: Path, weights: Path, overrides: tuple[str, ...]) -> None:
    """Make a run folder of weights that a paper's authors have released, to predict and evaluate with."""
    from mmray import config
    from mmray.console import say
    from mmray.training.import_weights import import_weights as import_run

    say(f"imported {weights} as {import_run(config.load(run_file, overrides), weights)}")


@cli.command()
@click.argument("run_dir", metavar="RUN", type=_PLACE)
@_what_to_predict
@click.option("--csv", "csv_path", type=_PLACE, help="Also write the challenge's CSV here.")
@click.option("--input", "source", metavar="PATH", help="Predict sound files: a file, a folder, a pattern.")
@click.option("--out", type=_PLACE, help="With --input: where to; a folder if there are several.")
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
@click.argument("run_dir", metavar="RUN", type=_PLACE)
@click.option("--split", default="all", show_default=True, help="Split of the prepared dataset.")
@click.option("--dtype", type=click.Choice(["float32", "float16"]), default="float32", show_default=True)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of task or predict.")
@_verbose
def embed(
    run_dir: Path, split: str, dtype: Literal["float32", "float16"], overrides: tuple[str, ...], verbose: bool
) -> None:
    """Store what the classifier of a trained model reads of every row: inputs of other runs, and of neighbours."""
    from mmray.console import say
    from mmray.on_ray.embed import embed as embed_run

    say(f"embeddings are in {embed_run(run_dir, split, dtype, overrides, verbose)}")


@cli.command()
@click.argument("path", metavar="RUN", type=_PLACE)
@click.option("--id", "row_id", required=True, help="The row whose neighbours are wanted.")
@click.option("-k", "num", default=10, show_default=True, type=click.IntRange(min=1), help="Neighbours.")
@click.option("--split", "splits", multiple=True, help="Look for them here alone; may be given several times.")
def neighbours(path: Path, row_id: str, num: int, splits: tuple[str, ...]) -> None:
    """Show the rows whose embeddings point most nearly where that of one row does, with their labels."""
    from mmray.embeddings import neighbours as nearest

    itself, found = nearest(path, row_id, num, splits)
    for row in (itself, *found):
        click.echo(f"{row.cosine:8.4f}  {row.split:<5}  {row.id}  {', '.join(row.labels)}")


@cli.command()
@click.argument("run_dirs", metavar="RUN...", nargs=-1, required=True, type=_PLACE)
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
@click.argument("run_dirs", metavar="RUN...", nargs=-1, required=True, type=_PLACE)
@click.option("--method", default="mean", show_default=True, help="How: see docs/ensembles.md.")
@click.option("--split", default="test", show_default=True, help="Split that is predicted and scored.")
@click.option("--out", required=True, type=_PLACE, help="Folder of the ensemble: runs/ensemble.")
@click.option("--missing", default="error", show_default=True, help="Ids that a run lacks: error, or intersect.")
@click.option("--seed", default=0, show_default=True, help="Of the random forest.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Any other setting: forest.trees=200.")
@_verbose
def ensemble(
    run_dirs: tuple[Path, ...],
    method: str,
    split: str,
    out: Path,
    missing: str,
    seed: int,
    overrides: tuple[str, ...],
    verbose: bool,
) -> None:
    """Combine runs into one that is predicted, evaluated and reported like a run.

    Methods mean, max, geometric, rank and median (of melodies) learn nothing; weighted, greedy, stack and forest learn
    from the split val; soup averages weights.
    """
    from mmray.config import Ensemble, section_from_dict
    from mmray.console import say
    from mmray.evaluation import evaluate as evaluate_run
    from mmray.on_ray.ensemble import make
    from mmray.on_ray.predict import predict as predict_run
    from mmray.predictions import read_info

    values = {"method": method, "missing": missing, "members": [str(path) for path in run_dirs]}
    settings = section_from_dict(Ensemble, values, overrides, where="mmray ensemble").model_dump(mode="json")
    folder, data = predict_run(make(run_dirs, out, settings, seed), split, verbose=verbose)
    if read_info(folder).labelled:
        metrics = evaluate_run(out, folder.name, data)["metrics"]
        scores = "  ".join(f"{key} {value:.4f}" for key, value in metrics.items())
        say(f"{out.name:<32} {folder.name}  {scores}")


@cli.command()
@click.argument("run_dirs", metavar="RUN...", nargs=-1, required=True, type=_PLACE)
@click.option("--out", type=_PLACE, help="Folder of the page; default: report/ in the first run.")
def report(run_dirs: tuple[Path, ...], out: Path | None) -> None:
    """Write one self-contained HTML page over runs, or over a search, and its pictures beside it."""
    from mmray.console import say
    from mmray.files import staged
    from mmray.reporting import page, study
    from mmray.study import is_study

    out = out or run_dirs[0] / "report"
    searches = [folder for folder in run_dirs if is_study(folder)]
    if searches and len(run_dirs) > 1:
        raise click.UsageError(f"{searches[0]} is a search; a page is over one search, or over runs")
    with staged(out) as here:
        page_path = study.write_report(run_dirs[0], here) if searches else page.write_report(list(run_dirs), here)
    say(f"open {out / page_path.name}")


@cli.command()
@click.argument("run_dir", metavar="RUN", type=_PLACE)
@click.option("--format", "file_format", type=click.Choice(["onnx", "torch"]), default="onnx", show_default=True)
@click.option("--out", type=_PLACE, help="The file; default: export/ in the run folder.")
@_verbose
def export(run_dir: Path, file_format: Literal["onnx", "torch"], out: Path | None, verbose: bool) -> None:
    """Write the best checkpoint of a run as one file that predicts by itself, and check what it predicts."""
    from mmray.console import say
    from mmray.on_ray.prepare import prepare_for
    from mmray.training import run_folder
    from mmray.training.export import export as export_run

    data = prepare_for(run_folder.read_run(run_dir), run_dir, verbose)
    say(str(export_run(run_dir, data, file_format, out)))


@cli.group("synth")
def synth_group() -> None:
    """Make a synthetic corpus in a real one's own format."""


@synth_group.command("youtube8m")
@click.argument("out", type=_PLACE)
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
@click.argument("out", type=_PLACE)
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
@click.argument("out", type=_PLACE)
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


@synth_group.command("album_covers")
@click.argument("out", type=_PLACE)
@click.option("--images", default=2_000, show_default=True, help="Covers, all genres together.")
@click.option("--classes", default=20, show_default=True, help="Genres, as the real corpus has.")
@click.option("--layout", type=click.Choice(["folder", "parquet"]), default="folder", show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Any other setting: size=128.")
def synth_album_covers(
    out: Path, images: int, classes: int, layout: str, seed: int, overrides: tuple[str, ...]
) -> None:
    """Album covers, a folder per genre or Parquet files as on Hugging Face, in the folder OUT."""
    from mmray.config import section_from_dict
    from mmray.console import progress, say
    from mmray.datasets.synthetic import album_covers

    values = {"num_images": images, "num_classes": classes, "layout": layout, "seed": seed}
    config = section_from_dict(album_covers.Config, values, overrides, where="mmray synth album_covers")
    with progress("synth", len(album_covers.piece_plan(config)), "pieces") as advance:
        summary = album_covers.generate(out, config, lambda done, total: advance(done, f"seed {config.seed}"))
    say(f"made {summary}")


@synth_group.command("pets")
@click.argument("out", type=_PLACE)
@click.option("--images", default=1_480, show_default=True, help="Images, all breeds together.")
@click.option("--classes", default=37, show_default=True, help="Breeds, as the real corpus has.")
@click.option("--seed", default=0, show_default=True)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Any other setting: size=200.")
def synth_pets(out: Path, images: int, classes: int, seed: int, overrides: tuple[str, ...]) -> None:
    """Cats and dogs laid out as Oxford-IIIT Pet is, in the folder OUT."""
    from mmray.config import section_from_dict
    from mmray.console import progress, say
    from mmray.datasets.synthetic import pets

    values = {"num_images": images, "num_classes": classes, "seed": seed}
    config = section_from_dict(pets.Config, values, overrides, where="mmray synth pets")
    with progress("synth", -(-config.num_images // pets.IMAGES_A_PIECE), "pieces") as advance:
        summary = pets.generate(out, config, lambda done, total: advance(done, f"seed {config.seed}"))
    say(f"made {summary}")


@cli.group("data")
def data_group() -> None:
    """Look at corpora."""


@data_group.command("verify")
@click.argument("path")
@click.option("--classes", type=click.IntRange(min=1), help="Number of classes that labels are checked against.")
@click.option("--json", "json_path", type=_PLACE, help="Write the whole report here.")
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
