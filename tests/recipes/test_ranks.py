"""Check (d): ranks that are killed, stopped or wrong, in real processes under torchrun, and the run that goes on."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from safetensors.torch import load_file

from attar.data.sampler import ViewOrder
from attar.data.sources import open_source
from small_runs import MODEL, environment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the processes of a job in /proc"),
]
STEPS, BATCH, IMAGES = 40, 16, 300
FLAGS = [
    *("--teacher", MODEL, "--teacher-weights", "random", "--student", MODEL, "--data", f"playground:0?n={IMAGES}"),
    *("--img-size", "32", "--batch-size", str(BATCH), "--max-steps", str(STEPS), "--precision", "fp32"),
    *("--device", "cpu", "--workers", "0", "--optim.lr", "1e-3", "--checkpoint.every", "4", "--log-every", "1"),
]
ATTARS_TRACEBACK = re.compile(r'File ".*/(attar|sometimes)[/.]')
MONITOR = ("--monitor", "playground:1?n=60", "--monitoring.every", "15", "--monitoring.k", "3")


class Job:
    """`attar distill` on several ranks; every process of it carries a mark, by which it is found and ended."""

    def __init__(self, out: Path, *flags: str, ranks: int = 2, restarts: int = 0, **variables: str) -> None:
        self.out, self.name = out, uuid.uuid4().hex
        self.log = out.parent / f"{out.name}-{self.name[:6]}.txt"
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        launcher += [f"--max-restarts={restarts}", "-m", "--", "attar"]
        with self.log.open("w") as log:
            self.launcher = subprocess.Popen(
                [sys.executable, *(launcher if ranks > 1 else ["-m", "attar"]), "distill", *flags, "--out", str(out)],
                env=environment(OMP_NUM_THREADS="1", ATTAR_TEST_JOB=self.name, **variables),
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_error: object) -> None:
        for pid in (self.launcher.pid, *self.alive()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.launcher.wait()

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def alive(self) -> dict[int, dict[str, str]]:
        """Environment of each living process of the job, by its number; launcher and loader's workers too."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended meanwhile, or is another user's
                words = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
                variables = dict(word.split("=", 1) for word in words if "=" in word)
                if variables.get("ATTAR_TEST_JOB") == self.name:
                    found[int(folder.name)] = variables
        return found

    def rank(self, number: int) -> int:
        """Process of a rank."""
        for pid, variables in self.alive().items():
            with contextlib.suppress(OSError):
                parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
                if parent == self.launcher.pid and variables.get("RANK") == str(number):
                    return pid
        raise AssertionError(f"rank {number} is not there:\n{self.said}")

    def wait_for_step(self, step: int) -> None:
        deadline = time.monotonic() + 150
        while max(steps_in(self.out), default=0) < step:
            assert self.launcher.poll() is None, self.said
            assert time.monotonic() < deadline, f"step {step} never came:\n{self.said}"
            time.sleep(0.002)

    def end(self, timeout_s: float = 200) -> int:
        """Exit code of the launcher, once no process of the job is left."""
        code = self.launcher.wait(timeout_s)
        deadline = time.monotonic() + 10
        while left := self.alive():
            assert time.monotonic() < deadline, f"{len(left)} processes outlive their job:\n{self.said}"
            time.sleep(0.1)
        return code


def steps_in(out: Path) -> list[int]:
    return [int(line["step"]) for line in lines_in(out) if "loss" in line]


def lines_in(out: Path) -> list[dict[str, float]]:
    path = out / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def assert_same_run(out: Path, straight: Path, *, tolerance: float) -> None:
    """Each step once, losses, scores and students alike; without a tolerance to the last bit."""
    assert steps_in(out) == list(range(1, STEPS + 1))
    for mine, other in zip(lines_in(out), lines_in(straight), strict=True):
        for name in mine.keys() - {"time", "images_per_second"}:
            assert mine[name] == pytest.approx(other[name], rel=tolerance, abs=0), (mine["step"], name)
    for name in ("student/model.safetensors", "student-last/model.safetensors"):
        mine_tensors, others = load_file(out / name), load_file(straight / name)
        assert mine_tensors.keys() == others.keys()
        for key, value in mine_tensors.items():
            assert (value - others[key]).abs().max() <= tolerance, (name, key)


def assert_ends_with_reason(job: Job, *, killed: int, survivor: int) -> None:
    started = time.monotonic()
    code = job.end(timeout_s=60)
    print(f"rank {killed} killed: everything had ended {time.monotonic() - started:.1f} s later, exit code {code}")
    assert code != 0
    assert f"[rank {survivor}] LostRankError: rank {survivor} lost another rank (connection " in job.said
    root = job.said.partition("Root Cause")[2]
    assert re.search(rf"rank +: {killed} .*\n.*exitcode +: -9 .*SIGKILL", root), job.said
    assert not ATTARS_TRACEBACK.search(job.said)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks that nothing happens to."""
    out = tmp_path_factory.mktemp("ranks") / "straight"
    with Job(out, *FLAGS, *MONITOR) as job:
        assert job.end() == 0, job.said
    return out


def test_a_sharded_run_is_the_same_run(straight: Path, tmp_path: Path) -> None:
    # catches a last student that is its moving average: both come in one copy, one after the other
    out = tmp_path / "run"
    with Job(out, *FLAGS, *MONITOR, "--parallel.engine", "fsdp2", "--parallel.shard-teacher") as job:
        assert job.end() == 0, job.said
    assert_same_run(out, straight, tolerance=1e-4)


def test_a_killed_rank_ends_the_job_and_the_same_command_goes_on(straight: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with Job(out, *FLAGS, *MONITOR) as job:
        job.wait_for_step(6)
        os.kill(job.rank(1), signal.SIGKILL)
        assert_ends_with_reason(job, killed=1, survivor=0)
    with Job(out, *FLAGS, *MONITOR, "--workers", "1") as job:  # a worker that has lost its rank must go too
        job.wait_for_step(18)
        os.kill(job.rank(0), signal.SIGKILL)
        assert_ends_with_reason(job, killed=0, survivor=1)
    with Job(out, *FLAGS, *MONITOR) as job:
        assert job.end() == 0, job.said
        assert "resume   from step-000000" in job.said
    assert_same_run(out, straight, tolerance=0.0)


def test_a_stopped_rank_is_woken_to_end_with_the_others(straight: Path, tmp_path: Path) -> None:
    # catches survivors that only leave: torchrun waits 30 s more for the one that sees no signal
    out = tmp_path / "run"
    with Job(out, *FLAGS, *MONITOR, "--parallel.timeout-s", "10") as job:
        job.wait_for_step(6)
        os.kill(job.rank(0), signal.SIGSTOP)
        assert job.end(timeout_s=60) != 0
        assert "forcefully exiting" not in job.said  # by torchrun, of a process that does not hear it
        assert "[rank 1] LostRankError: rank 1 lost another rank (timed out)" in job.said
        assert not ATTARS_TRACEBACK.search(job.said)
    with Job(out, *FLAGS, *MONITOR) as job:
        assert job.end() == 0, job.said
    assert_same_run(out, straight, tolerance=0.0)


def test_an_elastic_job_restarts_by_itself(straight: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with Job(out, *FLAGS, *MONITOR, restarts=1) as job:
        job.wait_for_step(18)
        os.kill(job.rank(1), signal.SIGKILL)
        assert job.end() == 0, job.said
        assert job.said.count("resume   from step-000000") == 1
    assert_same_run(out, straight, tolerance=0.0)


def test_a_stopped_job_goes_on_with_other_numbers_of_ranks(straight: Path, tmp_path: Path) -> None:
    out, flags = tmp_path / "run", [*FLAGS, *MONITOR]
    for ranks, step in ((2, 6), (1, 18)):
        with Job(out, *flags, "--workers", "1", ranks=ranks) as job:
            job.wait_for_step(step)
            for pid in job.alive():  # as Slurm does: launcher, ranks and workers; the launcher repeats it
                os.kill(pid, signal.SIGTERM)
            assert job.end(timeout_s=60) != 0
            stopped = re.findall(r"Interrupted: stopped by SIGTERM after step (\d+); a checkpoint is saved", job.said)
            assert stopped == [str(steps_in(out)[-1])], job.said  # said once, and no step is lost
            assert (out / f"checkpoints/step-{int(stopped[0]):08d}").is_dir()
            assert "LostRankError" not in job.said  # both stopped after the same step
    with Job(out, *flags) as job:
        assert job.end() == 0, job.said
    assert_same_run(out, straight, tolerance=1e-4)


def test_a_loss_that_is_not_finite_on_one_rank_ends_all_with_one_reason(tmp_path: Path) -> None:
    (tmp_path / "sometimes.py").write_text(
        "import os, torch\n"
        "class Teacher(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.patch = torch.nn.Conv2d(3, 32, 8, 8)\n"
        "    def forward(self, x):\n"
        "        return self.patch(x) * float('nan' if os.environ['RANK'] == '1' else '1')\n"
        "build = Teacher\n"
    )
    where = f"{tmp_path}{os.pathsep}{environment()['PYTHONPATH']}"
    flags = [*FLAGS, "--teacher", "module:sometimes:build", "--teacher-weights", "pretrained"]
    with Job(tmp_path / "run", *flags, PYTHONPATH=where) as job:
        assert job.end() != 0
        said = job.said
    attars, _, torchruns = said.partition("Traceback")
    assert attars.count("NonFiniteError: the loss of step 1 is nan") == 1, said
    assert "NonFiniteError: the loss of step 1 is nan" in torchruns.partition("Root Cause")[2], said
    assert not ATTARS_TRACEBACK.search(said)
    source = open_source(f"playground:0?n={IMAGES}")
    samples, _ = ViewOrder(IMAGES, 0, 3).at(range(BATCH // 2, BATCH))  # the share of rank 1
    assert f"images: {', '.join(source.name(int(sample)) for sample in samples)}\n" in attars
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--batch-size", "15"], "ConfigError: batch_size 15 does not divide into 2 ranks x 1 micro-batches (optim"),
        (["--data", "no-such-folder"], "DataError: "),
    ],
)
def test_a_wrong_setting_is_told_before_anything_starts(flags: list[str], reason: str, tmp_path: Path) -> None:
    with Job(tmp_path / "run", *FLAGS, *flags) as job:
        started = time.monotonic()
        assert job.end(timeout_s=60) != 0
        print(f"{flags}: {time.monotonic() - started:.1f} s from command to end")
        said = job.said
    attars, _, torchruns = said.partition("Traceback")
    assert f"[rank 0] {reason}" in attars, said
    assert f"traceback : {reason}" in torchruns, said
    assert not ATTARS_TRACEBACK.search(said)
    assert not (tmp_path / "run" / "run.json").exists()
