"""Jobs: what is uploaded, who is let in, what is shown of them whatever the network does, and how they end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from mmray import __version__, cli, config
from mmray.datasets.synthetic import youtube8m
from mmray.on_ray import submit
from mmray.on_ray.access import address_of, client, own_token_file, token
from mmray.on_ray.pins import differences, pins_of
from mmray.on_ray.submit import job_of
from mmray.on_ray.upload import PACKAGE, REQUIREMENTS, Upload, paths_in

if TYPE_CHECKING:
    from heads import Head

pytest_plugins = ["heads"]

RUN = {
    "name": "job",
    "out": "s3://bucket/runs",
    "task": "video_classification",
    "dataset": {
        "name": "youtube8m",
        "path": "s3://bucket/corpus",
        "level": "video",
        "num_classes": 12,
        "features": {"mean_rgb": 24, "mean_audio": 8},
    },
    "prepare": {"out": "s3://bucket/prepared"},
    "model": "logistic",
}


# What is uploaded


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def write(path: Path, values: dict[str, object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values))
    return path


def values_of(verb: str, *arguments: str) -> dict[str, object]:
    return cli.cli.commands[verb].make_context(verb, list(arguments)).params


def test_the_package_travels_and_nothing_of_its_making() -> None:
    files = Upload.of_package().files
    assert files["mmray/cli.py"] == PACKAGE / "cli.py"
    assert "mmray/reporting/page.html.j2" in files
    assert not [name for name in files if name.endswith(".pyc") or not name.startswith("mmray/")]
    assert len([name for name in files if name.endswith(".py")]) == len(list(PACKAGE.rglob("*.py")))


def test_the_small_files_that_a_run_names_travel_with_it(here: Path) -> None:
    (here / "names").mkdir()
    (here / "names" / "classes.csv").write_text("index,name\n")
    values = RUN | {"dataset": RUN["dataset"] | {"class_names_file": "names/classes.csv"}}  # type: ignore[operator]
    write(here / "configs" / "run.yaml", values)
    arguments = ("configs/run.yaml", "--set", "train.epochs=3")
    job = job_of("train", arguments, values_of("train", *arguments))
    assert (job.run_name, job.arguments) == ("job", arguments)
    others = {name for name in job.upload.files if not name.startswith("mmray/")}
    assert others == {"configs/run.yaml", "names/classes.csv"}
    job.upload.lay_out(here / "laid")
    assert (here / "laid" / "names" / "classes.csv").read_text() == "index,name\n"
    assert config.load(here / "laid" / "configs" / "run.yaml").name == "job"


def test_a_run_file_from_elsewhere_travels_under_its_name(here: Path) -> None:
    path = write(here.parent / "elsewhere" / "other.yaml", RUN)
    arguments = ("--set", "seed=1", str(path))
    job = job_of("train", arguments, values_of("train", *arguments))
    assert job.arguments == ("--set", "seed=1", "other.yaml")
    assert job.upload.files["other.yaml"] == path


def test_paths_that_would_be_lost_are_refused_together(here: Path) -> None:
    (here / "corpus").mkdir()
    text = {"path": "../text.csv", "vectors": "/shared/vectors.bin", "cache": "texts"}
    dataset = RUN["dataset"] | {"path": "corpus", "text": text}  # type: ignore[operator]
    write(here / "run.yaml", RUN | {"out": "runs", "dataset": dataset})
    with pytest.raises(ValueError, match="name storage that all nodes see") as error:
        job_of("train", ("run.yaml",), values_of("train", "run.yaml"))
    lost = re.findall(r"--set (\S+)=…/(\S+)", str(error.value))
    assert lost == [
        ("out", "runs"), ("dataset.path", "corpus"),
        ("dataset.text.path", "../text.csv"), ("dataset.text.cache", "texts"),
    ]  # fmt: skip


def test_names_of_columns_are_no_paths() -> None:
    values = {"dataset": {"path": "a", "columns": {"path": "file"}, "corpora": [{"path": "b"}, {"labels_path": "c"}]}}
    assert list(paths_in(values)) == [
        ("dataset.path", "a"), ("dataset.corpora.0.path", "b"), ("dataset.corpora.1.labels_path", "c")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("verb", "arguments", "lost"),
    [
        ("report", ("runs/a", "s3://bucket/b", "/shared/c"), "runs/a"),
        ("ensemble", ("s3://bucket/a", "s3://bucket/b", "--out", "runs/both"), "runs/both"),
        ("predict", ("/shared/a", "--corpus", "youtube8m=data/x"), "data/x"),
    ],
)
def test_run_folders_must_be_where_nodes_see_them(verb: str, arguments: tuple[str, ...], lost: str) -> None:
    with pytest.raises(ValueError, match=f"^{lost}: relative paths mean nothing in the cluster"):
        job_of(verb, arguments, values_of(verb, *arguments))


def test_a_job_is_named_after_its_run() -> None:
    arguments = ("s3://bucket/runs/a", "s3://bucket/runs/b", "--out", "s3://bucket/runs/both")
    assert job_of("ensemble", arguments, values_of("ensemble", *arguments)).run_name == "both"
    assert job_of("evaluate", arguments[:1], values_of("evaluate", *arguments[:1])).run_name == "a"


def test_a_large_upload_is_refused_with_the_largest_files(tmp_path: Path) -> None:
    upload = Upload()
    for number, size_kb in enumerate((5, 300, 100, 900, 700, 200, 1)):
        path = tmp_path / f"file-{number}"
        path.write_bytes(bytes(size_kb * 1000))
        upload.files[path.name] = path
    upload.check(2.206)
    with pytest.raises(ValueError, match=r"the upload is 7 files, 2\.2 MB, more than --limit-mb 2\.2;") as error:
        upload.check(2.2)
    assert re.findall(r"([\d.]+) MB  file-(\d)", str(error.value)) == [
        ("0.9", "3"), ("0.7", "4"), ("0.3", "1"), ("0.2", "5"), ("0.1", "2")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("tarin", "run.yaml"), "did you mean 'train'?"),
        (("train", "run.yaml", "--epochs", "3"), "No such option"),
        (("train", "run.yaml"), "trian: unknown key; did you mean 'train'?"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_sent(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    words: str,
) -> None:
    write(here / "run.yaml", RUN | {"trian": {}})
    monkeypatch.setattr(sys, "argv", ["mmray", "submit", *arguments, "--address", "http://127.0.0.1:1"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code in (1, 2)
    assert words in capsys.readouterr().err


# Which packages it runs with


def test_pins_are_those_of_requirements_for_what_mmray_imports() -> None:
    pins = pins_of(REQUIREMENTS)
    names = {re.split("==", pin)[0] for pin in pins}
    assert {"torch", "ray", "numpy", "optuna"} <= names
    assert "pytest" not in names
    assert all(re.fullmatch(r"[\w.-]+(\[[\w,]+\])?==\S+( ; .+)?", pin) for pin in pins)
    assert differences(pins) == []  # this environment is made of them


def test_another_version_or_none_is_told() -> None:
    torch = metadata.version("torch").partition("+")[0]
    pins = [f"torch=={torch}", "click==0.1", "not-there-at-all==2.0", "click==0.2 ; python_version < '3'"]
    there = metadata.version("click")
    assert differences(pins) == [f"click is {there}, pinned is 0.1", "not-there-at-all is missing, pinned is 2.0"]


@pytest.mark.parametrize("packages", ["check", "install", "any"])
def test_packages_are_held_to_the_pins_as_asked(packages: submit.Packages, monkeypatch: pytest.MonkeyPatch) -> None:
    """What reaches Ray, and that Ray takes it."""
    from ray.runtime_env import RuntimeEnv

    class Cluster:
        def submit_job(self, **given: object) -> str:
            sent.update(given)
            folder = Path(str(sent["runtime_env"]["working_dir"]))
            sent["files"] = {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}
            return "id"

    sent: dict[str, Any] = {}
    monkeypatch.setattr(submit, "client", lambda address: Cluster())
    job = submit.Job("train", ("a b.yaml",), "run", Upload())
    assert submit.submit(job, "http://127.0.0.1:1", packages=packages, detach=True) == 0
    command = "exec python -m mmray train 'a b.yaml'"
    environment = RuntimeEnv(**{k: v for k, v in sent["runtime_env"].items() if k != "working_dir"})
    if packages == "check":
        assert sent["entrypoint"] == f"python -m mmray.on_ray.pins pins.txt && {command}"
        assert sent["files"]["pins.txt"].splitlines() == pins_of(REQUIREMENTS)
    else:
        assert sent["entrypoint"] == command
    if packages == "install":
        assert environment.pip_config()["packages"] == ["-r ${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/requirements.txt"]
        assert sent["files"]["requirements.txt"] == REQUIREMENTS.read_text()
    else:
        assert not environment.has_pip()
    assert environment["env_vars"]["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] == "0.2"
    assert re.fullmatch(r"train-run-[0-9a-f]{8}", sent["submission_id"])


def test_patience_with_a_network_ends(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [1000.0]
    monkeypatch.setattr(submit.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(submit.time, "sleep", lambda pause_s: now.__setitem__(0, now[0] + pause_s))
    patience = submit._Patience()
    now[0] += 5000.0  # a job that was silent for long, over a connection that held
    tries = 0

    def try_for_ever() -> None:
        nonlocal tries
        while True:
            patience.failed(OSError("cut"))
            tries += 1
            patience.wait()

    with pytest.raises(ValueError, match="has not answered for 10 minutes: cut"):
        try_for_ever()
    assert 600 < now[0] - 6000 < 600 + 2 * 15
    assert tries < 60
    assert capsys.readouterr().err.count("connection lost") == 1


# Who is let in


def test_the_token_file_is_the_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "below" / "token"))
    assert token() is None
    path = own_token_file()
    assert path.stat().st_mode & 0o777 == 0o600
    held = token()
    assert held == path.read_text()
    assert len(held) == 64
    path.chmod(0o644)  # as Ray makes them
    assert own_token_file().stat().st_mode & 0o777 == 0o600
    assert token() == held
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert token() is None
    path.rename(tmp_path / "another")
    path.symlink_to(tmp_path / "another")
    with pytest.raises(ValueError, match="is a link"):
        own_token_file()


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ValueError, match="no cluster is named"):
        address_of(None)
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265/")
    assert address_of(None) == "http://head:8265"
    assert address_of("https://other") == "https://other"
    for wrong, words in (("head:6379", "the dashboard's address"), ("http://me:word@head", "user or password")):
        with pytest.raises(ValueError, match=words) as error:
            address_of(wrong)
        assert "word@" not in str(error.value)


@pytest.mark.ray
def test_without_the_token_nobody_is_let_in(head: Head, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.delenv("RAY_AUTH_MODE")
    with pytest.raises(ValueError, match="asks for a token, and there is none in"):
        client(head.url)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    with pytest.raises(ValueError, match="refuses the token of RAY_AUTH_TOKEN"):
        client(head.url)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ValueError, match="asks for a token, and RAY_AUTH_MODE is not token"):
        client(head.url)


def test_where_nothing_listens_is_told() -> None:
    with pytest.raises(ValueError, match=r"no cluster answers at http://127\.0\.0\.1:9;"):
        client("http://127.0.0.1:9")


def test_secrets_are_not_sent_in_the_environment_of_a_job() -> None:
    job = submit.Job("train", (), "a", Upload())
    assert submit._environment(job, ["NCCL_DEBUG=INFO"])["NCCL_DEBUG"] == "INFO"
    for name in ("AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN", "DB_PASSWORD", "api_key"):
        with pytest.raises(ValueError, match="looks like a secret") as error:
            submit._environment(job, [f"{name}=hush"])
        assert "hush" not in str(error.value)


# What is shown of a job, and how it ends


class CuttingProxy(threading.Thread):
    """Passes connections on to a port, and cuts the first `cuts` that follow a log after `after` bytes of it."""

    def __init__(self, port: int, cuts: int, after: int) -> None:
        super().__init__(daemon=True)
        self.port, self.cuts, self.after = port, cuts, after
        self.server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.server.getsockname()[1]}"
        self.start()

    def run(self) -> None:
        while True:
            try:
                inner, _ = self.server.accept()
            except OSError:
                return
            threading.Thread(target=self.connect, args=(inner,), daemon=True).start()

    def connect(self, inner: socket.socket) -> None:
        request = inner.recv(65536)
        outer = socket.create_connection(("127.0.0.1", self.port))
        outer.sendall(request)
        budget = None
        if b"/logs/tail" in request and self.cuts:
            self.cuts -= 1
            budget = self.after
        threading.Thread(target=self.pump, args=(inner, outer, None), daemon=True).start()
        self.pump(outer, inner, budget)

    def pump(self, source: socket.socket, target: socket.socket, budget: int | None) -> None:
        try:
            while data := source.recv(4096 if budget is None else max(1, min(4096, budget))):
                target.sendall(data)
                if budget is not None and (budget := budget - len(data)) <= 0:
                    for end in (source, target):
                        end.shutdown(socket.SHUT_RDWR)  # the other thread waits on them: to close them would do nothing
                    return
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return


Start = Callable[[str], str]


@pytest.fixture
def start(as_its_user: Head) -> Start:
    """Submit a command as it stands; return the job's id."""
    return lambda command: client(as_its_user.url).submit_job(entrypoint=command)


@pytest.mark.ray
def test_a_log_is_shown_whole_and_once_over_a_connection_that_breaks(
    start: Start, as_its_user: Head, tmp_path: Path
) -> None:
    lines = [f"line {number:03} {'ä' * 60}\n" for number in range(40)]
    seen = tmp_path / "seen"  # the job ends only when all cuts were made
    script = (
        f"""cat <<'END'\n{"".join(lines)}END\nwhile [ ! -e {seen} ]; do sleep 0.1; done; printf 'no newline'; exit 7"""
    )
    (tmp_path / "script").write_text(script)
    job_id = start(f"sh {tmp_path}/script")
    proxy = CuttingProxy(int(as_its_user.url.rpartition(":")[2]), cuts=3, after=1500)
    shown: list[str] = []

    def show(text: str) -> None:
        shown.append(text)
        if not proxy.cuts:
            seen.touch()

    assert submit.follow(client(proxy.url), job_id, show) == 7
    text = "".join(shown)
    mine = re.findall(r"line \d{3} ä+\n|no newline", text)  # between them Ray writes of itself
    assert mine == [*lines, "no newline"]


@pytest.mark.ray
def test_a_plain_ray_job_is_listed_by_what_it_runs_and_says_what_killed_it(start: Start, as_its_user: Head) -> None:
    job_id = start("kill -9 $$; python jobs/train.py configs/smoke/text.yaml")
    jobs = client(as_its_user.url)
    assert submit.follow(jobs, job_id, lambda text: None) == 128 + signal.SIGKILL
    (row,) = [row for row in submit.table(jobs) if row["id"] == job_id]
    assert (row["status"], row["verb"], row["run"]) == ("failed", "train", "text")
    begun = datetime.fromisoformat(row["start"]).timestamp()
    assert time.time() - 600 < begun <= time.time()


@pytest.mark.ray
def test_a_job_that_is_not_there_is_told(as_its_user: Head) -> None:
    with pytest.raises(ValueError, match="no job nowhere; mmray jobs lists them"):
        submit.follow(client(as_its_user.url), "nowhere")
    with pytest.raises(ValueError, match="nowhere can't be stopped"):
        submit.stop(client(as_its_user.url), "nowhere")


@pytest.mark.ray
@pytest.mark.parametrize(
    ("choice", "ends_as"), [("stop", "stopped"), pytest.param("detach", "running", marks=pytest.mark.slow)]
)
def test_ctrl_c_leaves_or_stops_the_job_as_asked(as_its_user: Head, choice: str, ends_as: str, here: Path) -> None:
    """The command line in a process of its own, which gets the signal that a terminal sends."""
    code = (
        "import sys; from mmray.on_ray import submit; from mmray.on_ray.upload import Upload\n"
        "submit._command = lambda job: 'python -m mmray --version && echo begun && exec sleep 60'\n"
        "sys.exit(submit.submit(submit.Job('train', (), 'nap', Upload.of_package()), sys.argv[1], "
        "on_interrupt=sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, as_its_user.url, choice]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if line == "begun\n":
            break
    else:
        pytest.fail("".join(lines))
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 130, rest
    assert f"mmray, version {__version__}\n" in lines  # by the uploaded package, and past the check of packages
    job_id = next(line.split()[1] for line in lines if line.startswith("submitted "))
    jobs = client(as_its_user.url)
    (row,) = [row for row in submit.table(jobs) if row["id"] == job_id]
    assert (row["status"], row["verb"], row["run"]) == (ends_as, "train", "nap")
    if choice == "detach":
        assert f"mmray jobs --follow {job_id}" in rest
        submit.stop(jobs, job_id)
        assert submit.follow(jobs, job_id, lambda text: None) == 130


@pytest.fixture(scope="module")
def submitted(head: Head, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """What `mmray submit prepare` printed, and the folder that it prepared into."""
    root = tmp_path_factory.mktemp("submitted")
    made = youtube8m.Config(num_videos=60, num_classes=12, rgb_size=24, audio_size=8)
    youtube8m.generate(root / "corpus", made, lambda done, total: None)
    dataset = RUN["dataset"] | {"path": str(root / "corpus")}  # type: ignore[operator]
    values = RUN | {"out": str(root / "runs"), "dataset": dataset, "prepare": {"out": str(root / "prepared")}}
    write(root / "tiny.yaml", values)
    command = [sys.executable, "-m", "mmray", "submit", "prepare", "tiny.yaml", "--address", head.url]
    path = os.pathsep.join([str(PACKAGE.parent), *sys.path])
    done = subprocess.run(
        command, cwd=root, env=head.environment | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, root


@pytest.mark.ray
@pytest.mark.e2e
@pytest.mark.slow
def test_a_verb_runs_in_the_cluster(submitted: tuple[str, Path], as_its_user: Head) -> None:
    output, root = submitted
    (info,) = (root / "prepared").glob("*/dataset.json")
    assert json.loads(info.read_text())["rows_out"] == 60
    files, size_mb = re.search(r"uploading (\d+) files, ([\d.]+) MB", output).groups()  # type: ignore[union-attr]
    assert int(files) > 100
    assert float(size_mb) < 5
    job_id = re.search(r"submitted (prepare-job-\w+)", output)[1]  # type: ignore[index]
    (row,) = [row for row in submit.table(client(as_its_user.url)) if row["id"] == job_id]
    assert (row["status"], row["verb"], row["run"]) == ("succeeded", "prepare", "job")
    assert 0 < row["seconds"] < 180
    listed = submit.said(submit.table(client(as_its_user.url)))
    assert re.search(rf"^{job_id} +succeeded +prepare +job ", listed, re.MULTILINE)
