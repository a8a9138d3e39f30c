"""The command line, as a person meets it: what is printed, where, and with which status."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

from mmray import __version__, cli, config, prepared
from mmray.datasets.synthetic import mir1k, youtube8m
from mmray.features.tfrecord_write import encode_example, write_tfrecord
from mmray.training import run_folder

RUN = """
name: a-run
task: video_classification
dataset: {name: youtube8m, path: data, num_classes: 10, level: video}
model: logistic
"""
MELODY_RUN = """
name: melody
task: melody_extraction
dataset: {name: mir1k, path: data, cfp: {sample_rate_hz: 8000, window: 513, resolution_hz: 8, min_hz: 80}}
model: {name: dense_aspp, growth: 1, skip_copies: 0, dilations: [1]}
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended: its status, and what it wrote."""

    status: int
    out: str
    err: str


Mmray = Callable[..., Ended]


@pytest.fixture
def mmray(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Mmray:
    """Run `mmray …` in this process by its entry point."""

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["mmray", *map(str, arguments)])
        capfd.readouterr()
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = int(end.code or 0)
        return Ended(status, *capfd.readouterr())

    return run


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    return path


def fails(ended: Ended, *words: str) -> None:
    """Nothing but one message on standard error, and status 1."""
    assert ended.status == 1
    assert ended.out == ""
    assert ended.err.startswith("error: ")
    assert "Traceback" not in ended.err
    for word in words:
        assert word in ended.err


# What every command line has


def test_help_names_every_verb(mmray: Mmray) -> None:
    for flag in ("--help", "-h"):
        ended = mmray(flag)
        assert ended.status == 0
        for verb in (
            "prepare", "train", "import-weights", "predict", "evaluate", "report", "synth", "data", "config"
        ):  # fmt: skip
            assert f"\n  {verb} " in ended.out
        assert ended.err == ""


@pytest.mark.parametrize("verb", list(cli.cli.commands), ids=str)
def test_help_of_every_verb_says_what_it_does(mmray: Mmray, verb: str) -> None:
    ended = mmray(verb, "--help")
    assert ended.status == 0
    assert re.match(rf"Usage: .*\b{verb} \[OPTIONS\]", ended.out)
    first = (cli.cli.commands[verb].help or "").splitlines()[0]
    assert "".join(first.split()) in "".join(ended.out.split())  # however the lines are wrapped


def test_version(mmray: Mmray) -> None:
    ended = mmray("--version")
    assert ended == Ended(0, f"mmray, version {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], ["No such command 'trian'"]),
        (["train"], ["Missing argument 'RUN.yaml'"]),
        (["train", "run.yaml", "--sett", "a=1"], ["No such option", "--set"]),
        (["synth", "youtube8m", "x", "--level", "shot"], ["'shot' is not one of 'video', 'frame'"]),
        (["synth", "melody"], ["Missing argument 'OUT'"]),
        (["import-weights", "run.yaml"], ["Missing argument 'WEIGHTS'"]),
        (["predict", "run", "--input", "a.wav", "--corpus", "ikala=b"], ["--input predicts single files"]),
        (["predict", "run", "--input", "a.wav", "--csv", "b.csv"], ["--input predicts single files"]),
        (["predict", "run", "--out", "a.csv"], ["--out, --midi, --sonify and --timeline go with --input"]),
        (["predict", "run", "--midi"], ["--out, --midi, --sonify and --timeline go with --input"]),
        (["predict", "run", "--sonify"], ["--out, --midi, --sonify and --timeline go with --input"]),
        (["evaluate", "run", "--input", "a.wav"], ["No such option", "--input"]),
        (["report"], ["Missing argument 'RUN...'"]),
        (["data", "verify", "corpus", "--classes", "0"], ["'--classes'", "0 is not in the range x>=1"]),
    ],
)
def test_wrong_use_ends_with_status_2_and_says_how(mmray: Mmray, arguments: list[str], words: list[str]) -> None:
    ended = mmray(*arguments)
    assert ended.status == 2
    assert ended.out == ""
    for word in ["Usage: ", *words]:
        assert word in ended.err


@pytest.mark.parametrize("verb", ["prepare", "train"])
def test_wrong_run_file_is_a_message_and_no_trace(mmray: Mmray, run_file: Path, verb: str) -> None:
    fails(mmray(verb, run_file, "--set", "train.epoch=3"), str(run_file), "train.epoch: unknown key", "'epochs'")
    fails(mmray(verb, run_file.with_name("none.yaml")), "none.yaml: cannot be read: No such file")
    missing = run_file.parent / "nowhere"
    fails(mmray(verb, run_file, "--set", f"dataset.path={missing}"), f"dataset.path='{missing}' does not exist")


def test_file_that_is_no_text_is_named(mmray: Mmray, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(b"name: a-run\n\xde\xad\xbe\xef")
    fails(mmray("config", "show", path), f"{path}: ")


def test_one_mistake_is_one_line(mmray: Mmray, run_file: Path) -> None:
    """The features have a default for each level: where the level is wrong, nothing must be said of them."""
    ended = mmray("config", "show", run_file, "--set", "dataset.level=shot")
    fails(ended, "1 wrong value(s)", "dataset.level='shot'", "'video' or 'frame'")
    assert "features" not in ended.err


def test_wrong_input_ends_the_process_with_status_1(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "from mmray.cli import main; main()",
        "config",
        "show",
        str(tmp_path / "none.yaml"),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    fails(Ended(ended.returncode, ended.stdout, ended.stderr), "none.yaml: cannot be read")
    ended = subprocess.run([*command, "-v"], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr
    assert ended.stderr.rstrip().endswith("cannot be read: No such file or directory")


@pytest.mark.parametrize("flag", ["-v", "--verbose"])
def test_verbose_lets_the_error_through(mmray: Mmray, tmp_path: Path, flag: str) -> None:
    for verb in ("prepare", "train", "evaluate"):
        with pytest.raises(ValueError, match=r"none"):
            mmray(verb, tmp_path / "none", flag)


# config


def test_config_show_prints_the_resolved_run(mmray: Mmray, run_file: Path, tmp_path: Path) -> None:
    ended = mmray("config", "show", run_file, "--set", "train.epochs=3", "--set", "model.l2_penalty=0.5")
    assert (ended.status, ended.err) == (0, "")
    values = yaml.safe_load(ended.out)
    assert values["train"]["epochs"] == 3
    assert values["model"] == {"name": "logistic", "inputs": None, "l2_penalty": 0.5}
    assert values["dataset"]["features"] == {"mean_rgb": 1024, "mean_audio": 128}
    shown = tmp_path / "shown.yaml"
    shown.write_text(ended.out)
    assert config.load(shown).to_dict() == values
    assert mmray("config", "show", shown).out == ended.out


def test_config_schema_is_json_that_refers_to_nothing_it_lacks(mmray: Mmray) -> None:
    ended = mmray("config", "schema")
    assert (ended.status, ended.err) == (0, "")
    schema = json.loads(ended.out)
    assert schema["type"] == "object"
    assert {"name", "task", "dataset", "model"} <= set(schema["required"])
    assert schema["additionalProperties"] is False

    def references(value: object) -> set[str]:
        if isinstance(value, dict):
            own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
            return own.union(*map(references, value.values()))
        return set().union(*map(references, value)) if isinstance(value, list) else set()

    found = references(schema)
    assert found
    assert found <= {f"#/$defs/{name}" for name in schema["$defs"]}


def test_config_schema_takes_what_loads_and_refuses_what_does_not(mmray: Mmray) -> None:
    """An editor checks a run file before `mmray` does: it must come to the same answer."""
    jsonschema = pytest.importorskip("jsonschema")
    check = jsonschema.Draft202012Validator(json.loads(mmray("config", "schema").out)).iter_errors
    run = yaml.safe_load(RUN)
    assert not list(check(run))
    assert not list(check(config.from_dict(dict(run)).to_dict()))
    for change in ({"epochs": 3}, {"train": {"epoch": 3}}, {"train": {"epochs": 0}}, {"model": {"name": "creppe"}}):
        assert list(check(run | change)), change


# synth


SMALL = ["--videos", 40, "--classes", 6, "--set", "rgb_size=5", "--set", "audio_size=3"]


def test_synth_makes_the_corpus_that_was_asked_for(mmray: Mmray, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    ended = mmray("synth", "youtube8m", out, *SMALL, "--seed", 4, "--set", "test_labels=false")
    assert (ended.status, ended.err) == (0, "")
    assert "6 of 6 shards" in ended.out
    assert f"made {out}: 40 items in 10 files" in ended.out
    wanted = youtube8m.Config(num_videos=40, num_classes=6, rgb_size=5, audio_size=3, seed=4, test_labels=False)
    plain = tmp_path / "plain"
    youtube8m.generate(plain, wanted, lambda done, total: None)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {p.name: p.read_bytes() for p in plain.iterdir()}


def test_synth_names_a_wrong_setting_and_the_right_one(mmray: Mmray, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    fails(
        mmray("synth", "youtube8m", out, "--set", "rgb_sizes=5"),
        "mmray synth youtube8m: 1 wrong value(s)",
        "rgb_sizes: unknown key; did you mean 'rgb_size'?",
    )
    fails(mmray("synth", "youtube8m", out, "--set", "rgb_size=none"), "rgb_size='none'", "integer")
    fails(mmray("synth", "youtube8m", out, "--videos", 0), "num_videos=0", "greater than or equal to 1")
    assert not out.exists()


def test_synth_leaves_another_corpus_alone(mmray: Mmray, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    assert mmray("synth", "youtube8m", out, *SMALL).status == 0
    again = mmray("synth", "youtube8m", out, *SMALL)
    assert again.status == 0
    assert f"made {out}: 40 items" in again.out
    fails(mmray("synth", "youtube8m", out, *SMALL, "--seed", 1), f"{out} holds a corpus of other settings")


def test_synth_makes_a_melody_corpus(mmray: Mmray, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    ended = mmray("synth", "melody", out, "--clips", 8, "--seed", 3, "--set", "max_clip_s=1", "--set", "min_clip_s=1")
    assert (ended.status, ended.err) == (0, "")
    assert "8 of 8 clips" in ended.out
    assert f"made {out}: 8 items" in ended.out
    mir1k.generate(tmp_path / "plain", mir1k.Config(num_clips=8, seed=3, min_clip_s=1, max_clip_s=1), lambda *_: None)
    plain = {path.name: path.read_bytes() for path in (tmp_path / "plain").rglob("*.*")}
    assert len(plain) > 16
    assert {path.name: path.read_bytes() for path in out.rglob("*.*")} == plain
    fails(mmray("synth", "melody", tmp_path / "x", "--set", "clips=5"), "mmray synth melody", "clips: unknown key")
    fails(mmray("synth", "melody", tmp_path / "x", "--set", "min_clip_s=20"), "min_clip_s=20.0 is more than max_clip_s")
    assert not (tmp_path / "x").exists()


# data verify


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """40 videos in two shards a split."""
    out = tmp_path / "corpus"
    made = youtube8m.Config(num_videos=40, num_classes=6, rgb_size=5, audio_size=3)
    youtube8m.generate(out, made, lambda done, total: None)
    return out


@pytest.mark.ray
@pytest.mark.usefixtures("ray_runtime")
def test_verify_of_a_clean_corpus(mmray: Mmray, corpus: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    ended = mmray("data", "verify", corpus, "--classes", 6, "--json", report)
    assert ended.status == 0, ended.out
    assert "video level: mean_rgb of 5, mean_audio of 3" in ended.out
    assert "6 shards, " in ended.out
    assert "40 records (test 6, train 28, val 6)" in ended.out
    assert "bad records: 0" in ended.out
    values = json.loads(report.read_text())
    assert values["records"] == 40
    assert values["bad"] == []
    assert values["duplicated_ids"] == {}
    assert values["bytes"] == sum(path.stat().st_size for path in corpus.glob("*.tfrecord"))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_runtime")
def test_verify_names_file_and_byte_of_a_flipped_bit(mmray: Mmray, corpus: Path, tmp_path: Path) -> None:
    """The frame of the second record of a shard begins where the first ends: 16 bytes beyond its length."""
    shard = corpus / "train0001.tfrecord"
    damaged = bytearray(shard.read_bytes())
    second = 16 + int.from_bytes(damaged[:8], "little")
    damaged[second + 12 + 3] ^= 0x04
    shard.write_bytes(damaged)
    report = tmp_path / "report.json"
    ended = mmray("data", "verify", corpus, "--json", report)
    assert ended.status == 1
    assert "39 records" in ended.out
    assert "bad records: 1" in ended.out
    (line,) = [line for line in ended.out.splitlines() if str(shard) in line]
    assert line.startswith(f"  {shard}, record 1, byte {second}: ")
    assert "checksum of the record" in line
    (bad,) = json.loads(report.read_text())["bad"]
    assert (bad["path"], bad["record"], bad["offset"]) == (str(shard), 1, second)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_runtime")
def test_verify_lists_ids_that_occur_twice(mmray: Mmray, tmp_path: Path) -> None:
    for shard, ids in (("train00", ["a", "b", "c"]), ("validate00", ["d", "b"]), ("test00", ["e", "a", "b"])):
        records = [encode_example({"id": id_, "labels": [0], "mean_rgb": [1.0, 2.0]}) for id_ in ids]
        write_tfrecord(tmp_path / f"{shard}.tfrecord", records)
    ended = mmray("data", "verify", tmp_path)
    assert ended.status == 1
    lines = ended.out.splitlines()
    start = lines.index("ids that occur more than once: 2")
    shards = {name: str(tmp_path / f"{name}00.tfrecord") for name in ("train", "validate", "test")}
    assert lines[start + 1 : start + 3] == [
        f"  a: {shards['test']}, {shards['train']}",
        f"  b: {shards['test']}, {shards['train']}, {shards['validate']}",
    ]
    assert lines[start + 3] == "bad records: 0"


def test_verify_of_what_is_no_corpus(mmray: Mmray, tmp_path: Path) -> None:
    fails(mmray("data", "verify", tmp_path / "nowhere"), f"'{tmp_path / 'nowhere'}' does not exist")
    fails(mmray("data", "verify", tmp_path), "no shard there", "*.tfrecord")
    (tmp_path / "x.tfrecord").write_bytes(b"no shard at all")
    fails(mmray("data", "verify", tmp_path), "no shard can be read", "x.tfrecord")


# report and evaluate


def test_report_of_a_folder_that_lacks_what_a_run_has(mmray: Mmray, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    fails(mmray("report", run_dir), f"{run_dir} is not a run folder", "config.yaml, environment.json, dataset.json")
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text("name: run\n")
    fails(mmray("report", run_dir), "it lacks environment.json, dataset.json")
    assert [path.name for path in run_dir.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_folder_that_is_no_run(mmray: Mmray, tmp_path: Path, run_file: Path, verb: str) -> None:
    fails(mmray(verb, tmp_path / "nowhere"), f"{tmp_path / 'nowhere'} is not a run folder: it has no config.yaml")
    (tmp_path / "config.yaml").write_text(run_file.read_text())
    fails(mmray(verb, tmp_path), f"{tmp_path} is not a run folder", "dataset.json")


# import-weights, and predict of single files


@pytest.fixture
def melody_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A melody run, started in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "melody.yaml"
    path.write_text(MELODY_RUN)
    return path


def published_weights(path: Path) -> Path:
    """Random weights of the model of `MELODY_RUN`, under the names that its authors gave them."""
    torch.manual_seed(0)
    layers = {"conv_d_1": (3, 1), "up_conv3_pitch": (4, 64), "up_conv2_pitch": (64, 32), "up_conv1_pitch": (32, 1)}
    modules = {
        name: torch.nn.Sequential(torch.nn.BatchNorm2d(inputs), torch.nn.Conv2d(inputs, outputs, 3))
        for name, (inputs, outputs) in (layers | {"bottom_pitch": (64, 1)}).items()
    }
    torch.save(torch.nn.ModuleDict(modules).state_dict(), path)
    return path


def test_imported_weights_extract_the_melody_of_a_file(mmray: Mmray, melody_file: Path, tmp_path: Path) -> None:
    """In this process, without Ray; as a table, as notes and as sound, and decoded otherwise."""
    weights = published_weights(tmp_path / "best.pt")
    ended = mmray("import-weights", melody_file, weights, "--set", "name=authors")
    assert ended == Ended(0, f"imported {weights} as runs/authors\n", "")
    t = np.arange(8000) / 8000
    soundfile.write(tmp_path / "song.wav", 0.3 * np.sin(2 * np.pi * 220 * t), 8000)
    predict = ("predict", "runs/authors", "--input", "song.wav", "--out")
    ended = mmray(*predict, "song.csv", "--midi", "--sonify")
    assert (ended.status, ended.err) == (0, "")
    assert "wrote 3 files, the first song.csv" in ended.out
    table = np.loadtxt(tmp_path / "song.csv", delimiter=",")
    assert table.shape == (31, 3)
    assert (tmp_path / "song.mid").exists()
    assert soundfile.info(tmp_path / "song.melody.wav").duration == pytest.approx(1)

    settings = ("--set", "task.decode=threshold", "--set", "task.voicing_threshold")
    for threshold, voiced in ((0, True), (1, False)):
        ended = mmray(*predict, "other.csv", *settings[:3], f"{settings[3]}={threshold}")
        assert ended.status == 0, ended.err
        other = np.loadtxt(tmp_path / "other.csv", delimiter=",")
        assert (other[:, 1] > 0).tolist() == [voiced] * 31
        np.testing.assert_array_equal(other[:, 2], table[:, 2])
    fails(mmray("import-weights", melody_file, weights, "--set", "name=authors"), "runs/authors has a checkpoint")


def test_weights_that_can_t_be_imported(mmray: Mmray, melody_file: Path, tmp_path: Path) -> None:
    """One line each, which begins with the file; nothing is left behind."""
    (tmp_path / "text.pt").write_text("weights")
    (tmp_path / "text.safetensors").write_text("weights")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    torch.save({"head.weight": torch.ones(2)}, tmp_path / "other.pt")
    for name, words in (
        ("missing.pt", "no such file"),
        ("text.pt", "holds tensors only"),
        ("text.safetensors", "not a file of safetensors"),
        ("module.pt", "holds tensors only"),
        ("other.pt", "not the released weights of DenseASPP"),
    ):
        ended = mmray("import-weights", melody_file, name)
        fails(ended, f"error: {name}: ", words)
        assert ended.err.count("\n") == 1
        assert "weights_only" not in ended.err
    weights = published_weights(tmp_path / "best.pt")
    fails(mmray("import-weights", melody_file, weights, "--set", "model.growth=2"), "best.pt", "of another model")
    fails(mmray("import-weights", melody_file, weights, "--set", "model.grow=2"), "model.grow: unknown key", "'growth'")
    assert not (tmp_path / "runs" / "melody").exists()


def test_files_that_can_t_be_predicted(mmray: Mmray, melody_file: Path, tmp_path: Path) -> None:
    published_weights(tmp_path / "best.pt")
    assert mmray("import-weights", melody_file, "best.pt").status == 0
    predict = ("predict", "runs/melody", "--input")
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    fails(mmray(*predict, "nothing.wav"), "nothing.wav: nothing; give a sound file, a folder")
    ended = mmray(*predict, "broken.wav", "--out", "broken.csv")
    assert ended.out == "predict: 1 of 1 files, 0 s, melody\n"
    fails(Ended(ended.status, "", ended.err), "1 of 1 files could not be predicted", "broken.wav", "not a sound file")
    fails(mmray(*predict, "broken.wav", "--out", "a.mid"), "a.mid is no place for tables")
    fails(mmray(*predict, "broken.wav", "--set", "dataset.path=x"), "--set dataset.path=x", "task, predict alone")
    fails(mmray(*predict, "broken.wav", "--set", "task.decoder=x"), "task.decoder: unknown key", "'decode'")
    assert not (tmp_path / "broken.csv").exists()
    fails(mmray("predict", "runs/melody"), "the weights of runs/melody were imported", "--corpus mir1k=PATH")
    fails(mmray("predict", "runs/melody", "--corpus", "ikalla=x"), "'ikalla' is not a dataset; did you mean 'ikala'?")


def test_a_task_that_takes_no_files_says_what_it_takes(
    mmray: Mmray, make_run: Callable[..., config.Run], make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    run_dir = run_folder.open_run(make_run(), prepared.read_info(make_dataset()))
    ended = mmray("predict", run_dir, "--input", tmp_path)
    fails(ended, "task.name=video_classification does not predict single files", f"--corpus youtube8m={tmp_path}")
