"""What goes beside an exported file: settings of its images, an example that runs, and what was measured."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attar.export import preprocess
from attar.models import Backbone
from attar.utils.io import write_json, write_text
from attar.utils.plain import in_cell

RUN_ONNX = '''"""python run_onnx.py IMAGE: what the model says of it. Needs onnxruntime, numpy and pillow alone."""

import sys
from pathlib import Path

import onnxruntime
from preprocess import prepare, read_settings

if len(sys.argv) != 2 or not Path(sys.argv[1]).is_file():
    sys.exit(f"{sys.argv[1]} is no file." if len(sys.argv) == 2 else f"Usage: python {Path(__file__).name} IMAGE")
folder = Path(__file__).parent
image = prepare(sys.argv[1], read_settings(folder))[None]  # a batch of one
session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
for output, values in zip(session.get_outputs(), session.run(None, {"image": image}), strict=True):
    print(output.name, values.shape, *values.ravel().tolist())
'''
RUN_TORCH = '''"""python run_torch.py IMAGE: what the model says of it. Needs torch, numpy and pillow alone."""

import sys
from pathlib import Path

import torch
from preprocess import prepare, read_settings

if len(sys.argv) != 2 or not Path(sys.argv[1]).is_file():
    sys.exit(f"{sys.argv[1]} is no file." if len(sys.argv) == 2 else f"Usage: python {Path(__file__).name} IMAGE")
folder = Path(__file__).parent
image = torch.from_numpy(prepare(sys.argv[1], read_settings(folder))[None])  # a batch of one
model = torch.export.load(folder / "model.pt2").module()
for name, values in zip(read_settings(folder)["outputs"], model(image), strict=True):
    print(name, tuple(values.shape), *values.ravel().tolist())
'''


def write_beside(
    folder: Path,
    backbone: Backbone,
    *,
    script: tuple[str, str],
    outputs: Sequence[str],
    crop_pct: float,
    normalise: str,
    class_names: Sequence[str] = (),
) -> dict[str, Any]:
    """Write `preprocessor.json`, `preprocess.py`, the example, and `classes.txt` where there are classes.

    Args:
        folder: Of the exported file.
        backbone: Whose images they are.
        script: Name and text of the example.
        outputs: Names of what the file gives.
        crop_pct: Share of the resized image that the centre crop keeps.
        normalise: `beside` the file, or `inside` it.
        class_names: Of logits, in order.

    Returns:
        What `preprocessor.json` says.
    """
    size = backbone.img_size
    settings = {
        "img_size": size,
        "crop_pct": crop_pct,
        "resize": "short side, then centre crop, in one bicubic resampling with antialiasing",
        "normalise": normalise,
        "input": f"image: {'uint8 (B, S, S, 3)' if normalise == 'inside' else 'float32 (B, 3, S, S)'}, RGB, S = {size}",
        "mean": list(backbone.preprocess.mean),
        "std": list(backbone.preprocess.std),
        "outputs": list(outputs),
    }
    write_json(folder / "preprocessor.json", settings)
    shutil.copyfile(str(preprocess.__file__), folder / "preprocess.py")
    write_text(folder / script[0], script[1])
    if class_names:
        write_text(folder / "classes.txt", "".join(f"{name}\n" for name in class_names))
    return settings


_OUTPUTS = {
    "embedding": "`embedding` (B, E), one vector an image, not normalised",
    "patch_tokens": "`patch_tokens` (B, N, D), row by row",
    "logits": "`logits`, before a softmax, in the order of `classes.txt`",
}


def export_card(
    title: str,
    *,
    usage: str,
    facts: Mapping[str, str],
    files: Mapping[str, int],
    measured: Mapping[str, str],
    licence: str,
) -> str:
    """Markdown of an exported folder's README.

    Args:
        title: Of the card.
        usage: How the file is used.
        facts: Where the model comes from, a row each.
        files: Bytes of each file, by name.
        measured: Markdown by heading.
        licence: What is known of the terms, in sentences.
    """
    rows = "\n".join(f"| {in_cell(name)} | {in_cell(value)} |" for name, value in facts.items())
    sizes = "\n".join(f"| `{name}` | {size:,} bytes |" for name, size in files.items())
    sections = "".join(f"## {heading}\n\n{text}\n\n" for heading, text in measured.items())
    return (
        f"# {in_cell(title)}\n\n{usage}\n\n| | |\n|---|---|\n{rows}\n\n"
        f"## Files\n\n| | |\n|---|---|\n{sizes}\n\n{sections}"
        f"## Licence\n\n{licence}\n"
    )


def usage_of(settings: Mapping[str, Any], *, target: str) -> str:
    """How a file is used, in Markdown."""
    script, needs = ("run_onnx.py", "onnxruntime") if target == "onnx" else ("run_torch.py", "torch")
    given = "; ".join(_OUTPUTS[name] for name in settings["outputs"])
    inside = (
        "The file normalises its images itself; resizing with antialiasing stays outside of it, in `preprocess.py`."
        if settings["normalise"] == "inside"
        else "Images are resized and normalised by `preprocess.py` as `preprocessor.json` says."
    )
    return (
        f"`python {script} IMAGE` runs it with {needs}, numpy and pillow alone.\n\n"
        f"Takes `{settings['input'].partition(':')[0]}`, {settings['input'].partition(': ')[2]}, a batch of any size;"
        f" gives {given}. {inside}"
    )
