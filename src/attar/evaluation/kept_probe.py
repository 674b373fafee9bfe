"""What a linear probe found, on disk: its head serves shifted test sets later, without training it again."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from safetensors.torch import load_file, save_file

from attar.evaluation.linear_probe import ProbeHead, ProbeResult
from attar.evaluation.probe_features import Layout
from attar.utils.io import new_folder, read_json, write_json


def keep_probe(folder: Path, found: ProbeResult) -> None:
    """Write the chosen head and how it was chosen into a folder, whole or not at all."""
    head = found.head
    about = {
        "mode": found.mode,
        "scores": dict(found.scores),
        "chosen": found.chosen,
        "test": dict(found.test),
        "absent": [asdict(layout) for layout in found.absent],
        "batch_size": found.batch_size,
        "steps": found.steps,
        "layout": asdict(head.layout),
        "lr": head.lr,
    }
    with new_folder(folder) as temporary:
        save_file({"weight": head.weight.contiguous(), "bias": head.bias.contiguous()}, temporary / "head.safetensors")
        write_json(temporary / "probe.json", about)


def kept_probe(folder: Path) -> ProbeResult | None:
    """What `keep_probe` wrote, None where there is nothing."""
    if not folder.is_dir():
        return None
    about, tensors = read_json(folder / "probe.json"), load_file(folder / "head.safetensors")
    head = ProbeHead(Layout(**about.pop("layout")), about.pop("lr"), tensors["weight"], tensors["bias"])
    absent = tuple(Layout(**layout) for layout in about.pop("absent"))
    return ProbeResult(head=head, absent=absent, **about)
