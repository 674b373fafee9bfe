"""How fast does attar embed a folder, against the loop that one writes with timm for it?

    python benchmarks/embed.py --data SHARED/data --precision fp32 bf16 --repeats 5 --out FILE

The same photos (ImageNet-1000 and Caltech, one folder a class), model, batch and number of loader processes:

- attar: `attar.embed` from opening the folder, whose index is not cached, to the manifest; shards synced and hashed;
  with `--precision fp32 bf16` under bf16 autocast too, for a CPU that has it (avx512_bf16, amx_bf16);
- timm: `ImageFolder`, timm's own transform, a `DataLoader`, `forward_features` and `forward_head(pre_logits=True)`
  in inference mode and fp32, vectors of length 1 as float16, `numpy.save`.

Two models: the real teacher at 64 px, where the loader is the limit, and a ViT-Tiny with random weights at 224 px,
where the model is. Each run is a fresh process, imports not counted; the ways take turns, and the order within a turn
alternates; medians of images a second, and of the ratios of each turn with the lowest and highest. The vectors of both
are compared, too: attar decodes large JPEGs at reduced scale, so they are close, not equal. About twelve minutes on two
cores, twenty with bf16.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from machine import given

ROWS = {  # name: (model, weights, pixels, folders of photos)
    "teacher, 64 px": ("teachers/resnet10t_64", "pretrained", 64, ("imagenet_1000", "caltech_51")),
    "ViT-Tiny, 224 px": ("vit_tiny_patch16_224", "random", 224, ("imagenet_1000", "caltech_51")),
}
BATCH_SIZE, SHARD_SIZE = 64, 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32"], help="attar's")
    parser.add_argument("--images", type=int, help="photos at most, evenly spread; by default all")
    parser.add_argument("--row", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", choices=sorted(MEASURES), help=argparse.SUPPRESS)  # what a fresh process does
    parser.add_argument("--settings", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(MEASURES[args.measure](**args.settings)))
        return
    ways = [WAYS[precision] for precision in dict.fromkeys(args.precision)] + ["timm"]
    record = {
        "benchmark": "embed",
        "date": datetime.date.today().isoformat(),
        "command": f"python benchmarks/embed.py --data SHARED/data {given(args)}",
        "machine": {
            "cpu": cpu_name(),
            "cores": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "torchvision", "timm", "pillow", "pyarrow")},
        },
        "settings": {"batch_size": BATCH_SIZE, "shard_size": SHARD_SIZE, "workers": args.workers},
        "results": [compare(args, name, ways) for name in args.row],
    }
    text = json.dumps(record, indent=2)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")


def compare(args: argparse.Namespace, name: str, ways: list[str]) -> dict[str, Any]:
    """All ways over the same photos in turns."""
    data = args.data.resolve()
    model, weights, img_size, folders = ROWS[name]
    with tempfile.TemporaryDirectory() as temporary:
        images = Path(temporary) / "images"
        link_photos([data / folder for folder in folders], images, args.images)
        reference = str(data / model) if (data / model).is_dir() else model
        found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
        for turn in range(args.repeats):
            for way in ways[:: 1 if turn % 2 == 0 else -1]:
                settings = {"model": reference, "weights": weights, "img_size": img_size, "workers": args.workers}
                settings |= {"images": str(images), "out": f"{temporary}/{way}-{turn}"}
                found[way].append(measure(way, settings, cache=f"{temporary}/cache-{way}-{turn}"))
        cosines = {way: compare_vectors(f"{temporary}/{way}-0", f"{temporary}/timm-0") for way in ways if way != "timm"}
    return {
        "row": name,
        "images": found["timm"][0]["images"],
        "images_per_s": {way: statistics.median(run["images_per_s"] for run in runs) for way, runs in found.items()},
        **{f"{way}_over_timm": ratio(found[way], found["timm"]) for way in cosines},
        "peak_memory_mb": {way: max(run["peak_mb"] for run in runs) for way, runs in found.items()},
        "cosine_between_them": cosines,
        "runs": found,
    }


def link_photos(folders: list[Path], images: Path, most: int | None) -> None:
    """A folder a class, with links to all photos or to so many of them, evenly spread."""
    photos = [photo for folder in folders for photo in sorted(folder.glob("*/*"))]
    count = min(most or len(photos), len(photos))
    for photo in (photos[number * len(photos) // count] for number in range(count)):
        place = images / f"{photo.parts[-3]}-{photo.parts[-2]}" / photo.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(photo)


def ratio(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> dict[str, float]:
    """How many times as fast: median, lowest and highest of the turns."""
    turns = [round(mine["images_per_s"] / other["images_per_s"], 3) for mine, other in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(turns), "lowest": min(turns), "highest": max(turns)}


def measure(way: str, settings: dict[str, Any], *, cache: str) -> dict[str, Any]:
    """One of `MEASURES` in a fresh process."""
    command = [sys.executable, __file__, "--data", ".", "--measure", way, "--settings", json.dumps(settings)]
    done = subprocess.run(command, env=os.environ | {"ATTAR_CACHE": cache}, stdout=subprocess.PIPE, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def with_attar(
    model: str, weights: str, img_size: int, workers: int, images: str, out: str, *, precision: Any = "fp32"
) -> dict[str, Any]:
    """`attar.embed` from folder to manifest."""
    import attar
    import attar.recipes.embed  # imports are not what is measured

    config = attar.EmbedConfig(
        model=model,
        weights=weights,
        img_size=img_size,
        workers=workers,
        data=(images,),
        out=out,
        batch_size=BATCH_SIZE,
        shard_size=SHARD_SIZE,
        precision=precision,
        device="cpu",
    )
    began = time.perf_counter()
    pool = attar.embed(config)
    return outcome(len(pool), time.perf_counter() - began)


def with_timm(model: str, weights: str, img_size: int, workers: int, images: str, out: str) -> dict[str, Any]:
    """The plain loop."""
    import numpy as np
    import torch
    from timm.data import create_transform, resolve_data_config
    from torch.nn.functional import normalize
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    import attar.models  # noqa: F401  for the same weights

    began = time.perf_counter()
    network = plain_model(model, weights, img_size)
    settings = resolve_data_config({"input_size": (3, img_size, img_size), "crop_pct": 1.0}, model=network)
    dataset = ImageFolder(images, create_transform(**settings))
    loader = DataLoader(dataset, batch_size=BATCH_SIZE, num_workers=workers)
    vectors = []
    with torch.inference_mode():
        for views, _ in loader:
            features = network.forward_head(network.forward_features(views), pre_logits=True)
            vectors.append(normalize(features, dim=1).half())
    np.save(f"{out}.npy", torch.cat(vectors).numpy())
    return outcome(len(dataset), time.perf_counter() - began)


def plain_model(model: str, weights: str, img_size: int) -> Any:
    """The timm model with the weights that attar gives it."""
    import attar

    return attar.load_backbone(model, weights=weights, img_size=img_size).model.eval()


def outcome(images: int, seconds: float) -> dict[str, Any]:
    """What a run took."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "images": images,
        "seconds": round(seconds, 2),
        "images_per_s": round(images / seconds, 2),
        "peak_mb": round(peak),
    }


def compare_vectors(pool: str, file: str) -> dict[str, float]:
    """Cosines between the rows of both ways; the folder's order is the same, class by class and name by name."""
    import numpy as np

    import attar

    ours = np.concatenate([block.float().numpy() for _, block in attar.Pool.open(pool).blocks()])
    theirs = np.load(f"{file}.npy").astype(np.float32)
    cosines = (ours * theirs).sum(1)
    return {"mean": round(float(cosines.mean()), 5), "lowest": round(float(cosines.min()), 5)}


def cpu_name() -> str:
    """The processor's name for the record."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


WAYS = {"fp32": "attar", "bf16": "attar_bf16"}  # attar's, by precision
MEASURES: dict[str, Callable[..., dict[str, Any]]] = {
    "attar": with_attar,
    "attar_bf16": functools.partial(with_attar, precision="bf16"),
    "timm": with_timm,
}

if __name__ == "__main__":
    main()
