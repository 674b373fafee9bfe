"""`attar doctor`: what is installed here, what is wrong, and how to mend it. Imports nothing that may be broken."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from attar._version import __version__
from attar.errors import first_line
from attar.utils.io import cache_dir

State = Literal["ok", "note", "wrong"]
_FREE_GIB = 5  # less than this is worth a note


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was looked at, what was found, and the remedy if something is wrong."""

    state: State
    subject: str
    text: str
    remedy: str = ""


def doctor() -> int:
    """Print each finding once it is known; exit code 1 if something is wrong."""
    mark = {"ok": " ok ", "note": "note", "wrong": "WRONG"}
    wrong = 0
    print(f"attar {__version__}", flush=True)
    for finding in (finding for check in CHECKS for finding in check()):
        print(f"  {mark[finding.state]:6} {finding.subject:12} {finding.text}", flush=True)
        if finding.remedy:
            print(f"  {'':19} -> {finding.remedy}", flush=True)
        wrong += finding.state == "wrong"
    print(f"{wrong} thing{'s' * (wrong != 1)} to mend." if wrong else "Nothing to mend.")
    return 1 if wrong else 0


def check_python() -> Iterator[Finding]:
    """Python and the machine."""
    fits = sys.version_info >= (3, 11)
    remedy = "" if fits else "attar needs Python 3.11 or later"
    yield Finding("ok" if fits else "wrong", "Python", f"{platform.python_version()} on {platform.platform()}", remedy)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("ok", "cores", str(cores))


def check_flavours() -> Iterator[Finding]:
    """torch and torchvision must be of the same flavour, or `import torchvision` fails and timm with it."""
    found = {name: _version_of(name) for name in ("torch", "torchvision")}
    for name, text in found.items():
        if text is None:
            yield Finding("wrong", name, "not installed", f"pip install {name}")
    if None in found.values():
        return
    yield mixed_flavours(str(found["torch"]), str(found["torchvision"]))
    for name in ("torch", "torchvision", "timm"):
        try:
            importlib.import_module(name)
        except Exception as error:
            reason = first_line(error)
            remedy = "pip install --force-reinstall torch torchvision (both from the same place)"
            yield Finding("wrong", name, f"{_version_of(name)} does not import: {reason}", remedy)
        else:
            yield Finding("ok", name, str(_version_of(name)))


def mixed_flavours(torch_version: str, torchvision_version: str) -> Finding:
    """Compare the local parts (`+cpu`, `+cu130`) of both versions; a plain one goes with plain and CUDA builds."""
    flavours = [text.partition("+")[2] for text in (torch_version, torchvision_version)]
    text = f"torch {torch_version} with torchvision {torchvision_version}"
    if ("cpu" in flavours and flavours[0] != flavours[1]) or (all(flavours) and flavours[0] != flavours[1]):
        remedy = "install the ordinary pair of both: pip install --upgrade --force-reinstall torch torchvision"
        return Finding("wrong", "flavours", f"{text} do not go together", remedy)
    return Finding("ok", "flavours", text)


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def check_gpu() -> Iterator[Finding]:
    """CUDA devices."""
    try:
        import torch
    except Exception:
        return
    if not torch.cuda.is_available():
        yield Finding("note", "GPU", "none that torch can use; everything runs on the CPU, slowly")
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bf16"
        yield Finding("ok", f"cuda:{index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {bf16}")


def check_decoders() -> Iterator[Finding]:
    """Image decoders."""
    from PIL import features

    formats = [
        name for name, feature in (("JPEG", "jpg"), ("PNG", "zlib"), ("WebP", "webp")) if features.check(feature)
    ]
    turbo = "libjpeg-turbo" if features.check_feature("libjpeg_turbo") else "plain libjpeg (slow)"
    yield Finding("ok", "Pillow", f"{version('pillow')}: {', '.join(formats)}; {turbo}")


def check_extras() -> Iterator[Finding]:
    """Optional packages."""
    extras = {
        "vl": "open_clip",
        "hf": "transformers",
        "ray": "ray",
        "onnx": "onnxruntime",
        "dense": "segmentation_models_pytorch",
        "decode": "torchcodec",
        "tb": "tensorboard",
    }
    present = [extra for extra, module in extras.items() if importlib.util.find_spec(module)]
    absent = [extra for extra in extras if extra not in present]
    yield Finding("ok", "extras", f"present: {', '.join(present) or 'none'}; absent: {', '.join(absent) or 'none'}")


def check_cache() -> Iterator[Finding]:
    """The cache folder, writable and with room."""
    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        yield Finding(
            "wrong", "cache", f"{folder} cannot be written ({error.strerror})", "set ATTAR_CACHE to a folder of yours"
        )
        return
    for subject, place in (("cache", folder), ("here", Path.cwd())):
        free = shutil.disk_usage(place).free / 2**30
        state: State = "ok" if free > _FREE_GIB else "note"
        yield Finding(state, subject, f"{place}, {free:,.0f} GiB free")


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    check_python,
    check_flavours,
    check_gpu,
    check_decoders,
    check_extras,
    check_cache,
)
