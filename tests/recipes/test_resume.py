"""Check (c): a run that was killed and resumed ends with the same bytes as one that was not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

STEPS = 24
FLAGS = [
    *("--teacher", "vit_tiny_patch16_224?patch_size=8&embed_dim=48&depth=1&num_heads=2", "--teacher-weights", "random"),
    *("--student", "vit_tiny_patch16_224?patch_size=8&embed_dim=32&depth=1&num_heads=2"),
    *("--data", "playground:0?n=300", "--monitor", "playground:1?n=140", "--img-size", "32", "--batch-size", "16"),
    *(
        "--max-steps",
        str(STEPS),
        "--workers",
        "0",
        "--precision",
        "fp32",
        "--optim.accumulate",
        "2",
        "--optim.lr",
        "1e-3",
    ),
    *("--checkpoint.every", "3", "--monitoring.every", "5", "--monitoring.k", "3", "--log-every", "1"),
]


def start(out: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "attar.cli", "distill", *FLAGS, "--out", str(out)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def steps_in(out: Path) -> list[int]:
    path = out / "metrics.jsonl"
    if not path.is_file():
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return [line["step"] for line in lines if "loss" in line]


def start_until(out: Path, step: int) -> subprocess.Popen[bytes]:
    process = start(out)
    deadline = time.monotonic() + 120
    while max(steps_in(out), default=0) < step:
        assert process.poll() is None, (process.stdout.read() if process.stdout else b"").decode()
        assert time.monotonic() < deadline, f"step {step} never came"
        time.sleep(0.002)
    return process


def kill_after(out: Path, step: int) -> None:
    process = start_until(out, step)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def finish(out: Path) -> None:
    output, _ = start(out).communicate(timeout=180)
    assert "resume" in output.decode() or out.name == "straight"


@pytest.mark.slow
def test_run_killed_at_three_random_steps_ends_with_the_same_bytes(tmp_path: Path) -> None:
    seed = int(os.environ.get("ATTAR_TEST_SEED", "20261122"))
    kills = sorted(random.Random(seed).sample(range(4, STEPS - 1), 3))
    print(f"kills after steps {kills} (ATTAR_TEST_SEED={seed})")
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    finish(straight)
    for step in kills:
        kill_after(killed, step)
    finish(killed)

    for name in ("student/model.safetensors", "student-last/model.safetensors"):
        assert (killed / name).read_bytes() == (straight / name).read_bytes(), name
    newest = f"checkpoints/step-{STEPS:08d}/tensors.safetensors"
    assert (killed / newest).read_bytes() == (straight / newest).read_bytes()
    assert steps_in(killed) == steps_in(straight) == list(range(1, STEPS + 1))
    scores = [
        [json.loads(p.read_text())["value"] for p in sorted((run / "results").glob("*.json"))]
        for run in (straight, killed)
    ]
    assert scores[0] == scores[1]
    assert [path.name for path in killed.rglob(".*")] == []  # what the kills left behind is gone


@pytest.mark.slow
def test_a_second_process_is_refused_while_the_first_one_runs(tmp_path: Path) -> None:
    # catches a lock that goes free before the run ends: the second would go on from the first one's checkpoints
    with start_until(tmp_path, 1) as first:
        first.send_signal(signal.SIGSTOP)
        second = start(tmp_path)
        said, _ = second.communicate(timeout=120)
        first.send_signal(signal.SIGCONT)
        assert second.returncode == 2
        assert f"RunDirectoryError: --out {tmp_path} is in use by process {first.pid} on" in said.decode()
        first.communicate(timeout=120)
    assert first.returncode == 0
    assert steps_in(tmp_path) == list(range(1, STEPS + 1))
    assert [path.name for path in tmp_path.glob(".*")] == []
