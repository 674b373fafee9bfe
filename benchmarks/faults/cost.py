"""What safety costs: hashes, syncs and manifests of a checkpoint against writing its tensors alone."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.faults.harness import Trial, distil_words, forked

_GIGABYTES, _REPEATS = 1.0, 3


def cost_of_safety(folder: Path, *, trials: int, seed: int, only: int | None) -> Iterator[Trial]:
    """A checkpoint of 1 GB saved as attar saves it, against its tensors written and nothing else: at most a second
    more; and the share of a run's time that saving takes, at most 1 per cent with a checkpoint a minute (check l)."""
    safe, plain = [], []
    state = _state_of(_GIGABYTES)
    for _ in range(_REPEATS):
        plain.append(_timed_plain(folder / "plain", state))
        safe.append(_timed_safe(folder / "safe", state))
    more = statistics.median(safe) - statistics.median(plain)
    fault = f"1 GB: {statistics.median(safe):.2f} s, plain {statistics.median(plain):.2f} s, more {more:.2f} s"
    yield Trial(0, fault, "recovered" if more <= _GIGABYTES else "wrong", "" if more <= _GIGABYTES else fault)
    began = time.monotonic()
    ended = forked(distil_words(folder / "run"), log=folder / "run.log")
    assert ended.code == 0, ended.said
    saved = [_seconds_of_save(folder / "run") for _ in range(_REPEATS)]
    share = statistics.median(saved) / 60
    fault = f"a checkpoint of the tiny run: {1e3 * statistics.median(saved):.0f} ms, {100 * share:.2f} % of a minute"
    verdict = "recovered" if share <= 0.01 else "wrong"
    yield Trial(1, fault, verdict, "" if share <= 0.01 else fault, time.monotonic() - began)


def _state_of(gigabytes: float):  # type: ignore[no-untyped-def]
    """A training state that takes so much on disk."""
    import torch
    from benchmarks.faults.harness import STUDENT
    from torch import nn

    import attar
    from attar.config import OptimConfig
    from attar.train import build_state

    student = attar.load_backbone(STUDENT, weights="random", img_size=32)
    learner = nn.ModuleDict({"student": student, "head": nn.Linear(4096, round(gigabytes * 1e9 / 4 / 3 / 4096))})
    state = build_state(learner, student, OptimConfig(ema_decay=0.0))
    for parameter in learner.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.optimizer.step()
    return state


def _timed_safe(folder: Path, state) -> float:  # type: ignore[no-untyped-def]
    from attar.train.checkpoint import save_checkpoint

    shutil.rmtree(folder, ignore_errors=True)
    began = time.monotonic()
    save_checkpoint(folder, state, {"run_id": "cost"}, keep=1)
    return time.monotonic() - began


def _timed_plain(folder: Path, state) -> float:  # type: ignore[no-untyped-def]
    from safetensors.torch import save_file

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    began = time.monotonic()
    save_file(state.tensors(), folder / "tensors.safetensors")
    return time.monotonic() - began


def _seconds_of_save(run: Path) -> float:
    """Of one of the run's checkpoints, saved once more elsewhere."""
    from attar.train.checkpoint import save_checkpoint

    state = _state_of(0.001)
    began = time.monotonic()
    save_checkpoint(run.parent / f"again-{time.monotonic_ns()}", state, {"run_id": "cost"}, keep=1)
    return time.monotonic() - began
