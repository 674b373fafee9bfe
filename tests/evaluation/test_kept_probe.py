"""A linear probe's outcome is the same after it was on disk."""

from __future__ import annotations

from pathlib import Path

import torch

from attar.evaluation.kept_probe import keep_probe, kept_probe
from attar.evaluation.linear_probe import ProbeHead, ProbeResult
from attar.evaluation.probe_features import Layout


def test_what_was_kept_is_what_was_found(tmp_path: Path) -> None:
    head = ProbeHead(Layout(4, True), 1e-3, torch.randn(3, 20), torch.randn(3))
    found = ProbeResult("paper", {"a": 0.5, "b": 0.25}, "a", head, {"test": 0.5}, (Layout(1, True),), 8, 40)
    keep_probe(tmp_path / "deep" / "head", found)
    again = kept_probe(tmp_path / "deep" / "head")
    assert again is not None
    assert torch.equal(again.head.weight, head.weight)
    assert torch.equal(again.head.bias, head.bias)
    assert (again.head.layout, again.head.lr) == (head.layout, head.lr)
    for name in ("mode", "scores", "chosen", "test", "absent", "batch_size", "steps"):
        assert getattr(again, name) == getattr(found, name)


def test_nothing_is_kept_where_nothing_was_found(tmp_path: Path) -> None:
    assert kept_probe(tmp_path / "head") is None
