"""Choosing among 1,000,000 sentences with 10,000 images at width 512: time, and peak memory of the whole process.

    python benchmarks/sentences.py --out benchmarks/results/DATE-sentences.json

Clustered random unit vectors: sentences in shards of float16 as `attar curate --sentences` keeps them, images in one
file. A fresh process then does what the verb does with them, and nothing else:

- `search`: the `--k` most similar sentences of every image, exact, a shard at a time.
- `topk_union` and `assignment_greedy` among these.

Memory is `ru_maxrss` of that process, interpreter and libraries (about 300 MB) included. For `--checked` images
everything is compared once more in float64 and sorted whole: similarities and sentences must be the same. With
`--reference` the same search is done as one would write it, blocks of float32 products and `topk`, for the ratio of the
times; it breaks ties anyhow and rounds. A few minutes on two cores.
"""

from __future__ import annotations

import argparse
import datetime
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from attar.curation.corpus import Corpus
from attar.curation.grounding import assignment_greedy, topk_union
from attar.curation.search import Found, search
from attar.curation.sentence_vectors import vector_blocks, vectors_name
from attar.utils.seeding import torch_generator
from machine import machine

CLUSTERS, NOISE = 2000, 1.0


def main() -> None:
    args = parse()
    if args.measure:
        print(json.dumps(measured(args)))
        return
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        args.folder = Path(folder)
        write(args)
        names = ("sentences", "images", "width", "k", "shard", "checked", "seed", "threads", "folder")
        words = [f"--{name}={getattr(args, name)}" for name in names] + ["--reference"] * args.reference
        done = subprocess.run(
            [sys.executable, __file__, "--measure", *words], stdout=subprocess.PIPE, text=True, check=True
        )
    torch.set_num_threads(args.threads)
    settings = {name: getattr(args, name) for name in names if name != "folder"}
    result = {
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python benchmarks/sentences.py", *(f"--{n} {v}" for n, v in settings.items())])
        + " --reference" * args.reference,
        "settings": settings,
        "machine": machine("numpy"),
    } | json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(result, indent=2))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=int, default=1_000_000)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--shard", type=int, default=16_384)
    parser.add_argument("--checked", type=int, default=20, help="images whose result is compared with a full sort")
    parser.add_argument("--reference", action="store_true", help="time blocks of float32 products and topk too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scratch", type=Path, help="folder with room for the vectors, 1 GB")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def write(args: argparse.Namespace) -> None:
    for number, rows in enumerate(rows_of_shards(args)):
        np.save(args.folder / vectors_name(number), unit_rows(args, f"sentences {number}", rows).numpy())
    np.save(args.folder / "images.npy", unit_rows(args, "images", args.images).numpy())


def rows_of_shards(args: argparse.Namespace) -> tuple[int, ...]:
    return tuple(min(args.shard, args.sentences - start) for start in range(0, args.sentences, args.shard))


def unit_rows(args: argparse.Namespace, name: str, count: int) -> Tensor:
    """(count, D) float16 of length 1 around directions that all share."""
    generator = torch_generator(args.seed, name)
    centres = F.normalize(torch.randn(CLUSTERS, args.width, generator=torch_generator(args.seed, "centres")), dim=1)
    own = F.normalize(torch.randn(count, args.width, generator=generator), dim=1)
    chosen = centres[torch.randint(CLUSTERS, (count,), generator=generator)]
    return F.normalize(chosen + NOISE * own, dim=1).half()


def measured(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    corpus = Corpus(args.folder, rows_of_shards(args), {}, "synthetic", hashes=())
    queries = torch.from_numpy(np.load(args.folder / "images.npy"))
    watch = Watch()
    found = search(vector_blocks(corpus, args.folder), queries, k=args.k)
    watch.lap("search")
    union = topk_union(found)
    watch.lap("topk_union")
    own = assignment_greedy(found)
    watch.lap("assignment_greedy")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # before the checks below
    products = args.sentences * args.images * args.width * 2 / watch.seconds["search"] / 1e9
    result: dict[str, Any] = {
        "seconds": watch.seconds,
        "cpu_seconds": watch.cpu_seconds,
        "gflops": round(products, 1),
        "peak_mb": round(peak, 1),
        "chosen": {"topk_union": len(union), "assignment_greedy": len(own)},
        "exact": is_exact(args, corpus, queries, found),
    }
    if args.reference:
        watch.restart()
        plain(args, corpus, queries)
        watch.lap("reference")
        result["search_over_reference"] = round(watch.seconds["search"] / watch.seconds["reference"], 2)
    return result


class Watch:
    """Seconds of each step by the clock, and those of all cores: far apart where others use them too."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}
        self.restart()

    def restart(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    def lap(self, name: str) -> None:
        self.seconds[name] = round(time.perf_counter() - self._start[0], 2)
        self.cpu_seconds[name] = round(time.process_time() - self._start[1], 2)
        self.restart()


def is_exact(args: argparse.Namespace, corpus: Corpus, queries: Tensor, found: Found) -> bool:
    """Whether the first images have what comparing everything in float64 and sorting it whole gives them."""
    mine = queries[: args.checked].double()
    scores = torch.cat([mine @ rows.double().T for rows, _ in vector_blocks(corpus, args.folder)], dim=1)
    order = scores.argsort(dim=1, descending=True, stable=True)[:, : args.k]
    same_places = torch.equal(order, found.place[: args.checked])
    return same_places and torch.equal(scores.gather(1, order), found.similarity[: args.checked])


def plain(args: argparse.Namespace, corpus: Corpus, queries: Tensor, rows_at_once: int = 1000) -> tuple[Tensor, Tensor]:
    """The nearest by blocks of float32 products, as one would write it."""
    wide = queries.float()
    best = torch.full((len(wide), args.k), -torch.inf), torch.zeros((len(wide), args.k), dtype=torch.int64)
    for rows, places in vector_blocks(corpus, args.folder):
        for start in range(0, len(wide), rows_at_once):
            here = slice(start, start + rows_at_once)
            values, where = (wide[here] @ rows.float().T).topk(min(args.k, len(rows)), dim=1)
            both = torch.cat([best[0][here], values], 1), torch.cat([best[1][here], places[where]], 1)
            best[0][here], kept = both[0].topk(args.k, dim=1)
            best[1][here] = both[1].gather(1, kept)
    return best


if __name__ == "__main__":
    main()
