"""What safety costs: hashes, syncs and manifests of a checkpoint against writing its tensors alone."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.faults.harness import STUDENT, Trial

_GIGABYTES, _SMALL_GIGABYTES, _REPEATS = 1.0, 0.264, 3  # of weights and both moments; ViT-S has 22 M weights
_MOST_SECONDS, _MOST_SHARE, _INTERVAL_S = 1.0, 0.01, 60.0


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
    is_cheap = more <= _MOST_SECONDS
    yield Trial(0, fault, "recovered" if is_cheap else "wrong", "" if is_cheap else fault)
    began = time.monotonic()
    small = _state_of(_SMALL_GIGABYTES)
    saved = statistics.median(_timed_safe(folder / "small", small) for _ in range(_REPEATS))
    share = saved / _INTERVAL_S
    fault = f"a student of 88 MB with its optimizer: {1e3 * saved:.0f} ms, {100 * share:.2f} % of a minute"
    verdict = "recovered" if share <= _MOST_SHARE else "wrong"
    yield Trial(1, fault, verdict, "" if share <= _MOST_SHARE else fault, time.monotonic() - began)


def _state_of(gigabytes: float):  # type: ignore[no-untyped-def]
    """A training state that takes so much on disk."""
    import torch
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


def _nothing_waits(folder: Path) -> None:
    """Remove what was saved before, and let the disk finish: else one save pays for what another left unsynced."""
    shutil.rmtree(folder, ignore_errors=True)
    os.sync()


def _timed_safe(folder: Path, state) -> float:  # type: ignore[no-untyped-def]
    from attar.train.checkpoint import save_checkpoint

    _nothing_waits(folder)
    began = time.monotonic()
    save_checkpoint(folder, state, {"run_id": "cost"}, keep=1)
    return time.monotonic() - began


def _timed_plain(folder: Path, state) -> float:  # type: ignore[no-untyped-def]
    from safetensors.torch import save_file

    _nothing_waits(folder)
    folder.mkdir()
    began = time.monotonic()
    save_file(state.tensors(), folder / "tensors.safetensors")
    return time.monotonic() - began
