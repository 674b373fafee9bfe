"""Check (h) of the evaluation suite: two ranks find what one process finds, and no image counts twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from small_runs import MODEL, environment

IMAGES = 1100  # three blocks of at most 512: an uneven number for two ranks, and a last one that is not full


def judged(folder: Path, ranks: int) -> tuple[list[dict], list[np.ndarray]]:
    """(results, stored features) of a command on so many ranks, with a cache of its own."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m", "--"]
    words = ["evaluate", MODEL, "--weights", "random", "--img-size", "32", "--device", "cpu", "--workers", "0"]
    words += ["--tasks", f"knn:playground:1?n={IMAGES}&variety=0,logistic:playground:1?n={IMAGES}&variety=0"]
    done = subprocess.run(
        [sys.executable, *(launcher if ranks > 1 else ["-m"]), "attar", *words, "--out", str(folder / "out")],
        env=environment(OMP_NUM_THREADS="1", ATTAR_CACHE=str(folder / "cache")),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    results = [json.loads(path.read_text()) for path in sorted((folder / "out/results").glob("*.json"))]
    features = [np.fromfile(path, np.float32) for path in sorted((folder / "cache/features").rglob("values.f32"))]
    return results, features


@pytest.mark.slow
def test_two_ranks_find_what_one_process_finds(tmp_path: Path) -> None:
    # a sampler that pads its last batch would count images twice, and interleaved ranks would swap their labels
    (alone, own), (together, shared) = (judged(tmp_path / str(ranks), ranks) for ranks in (1, 2))
    assert [np.array_equal(a, b) for a, b in zip(own, shared, strict=True)] == [True] * len(own)
    for one, two in zip(alone, together, strict=True):
        assert {**one, "seconds": 0} == {**two, "seconds": 0}
    assert len(alone) == 2
    assert sum(part["images"] for part in alone[0]["source"]["judged"]["data"].values()) == IMAGES
