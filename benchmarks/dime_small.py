"""A small CLIP from what is no pairs, on the playground: what pairs, terms, views and chosen sentences are worth.

    python benchmarks/playground_clip.py --out runs/playground_clip
    python benchmarks/dime_small.py --teacher runs/playground_clip --out runs/dime_small --results results.json
    python benchmarks/dime_small.py --results results.json --table

Judged is zero-shot on combinations of colour and shape that no sentence names to anybody and no image here shows:
scenes of one thing, each class called "a red star", the 28 held-out combinations among themselves and among all 168.

Images are scenes of one thing of the part `seen`. Sentences come from another draw, of which half could be seen in a
scene, so that nothing is paired; the row of pairs has the captions of the same images instead, no teacher, and a text
tower of the teacher's shape that learns from scratch. Rows of sentence selection draw on a second corpus of which a
tenth could be seen: as many of its sentences, chosen by `attar curate --sentences` or at random. All rows share
student, steps, batches and learning rate; two rows have three and twelve times the steps. Cosines are multiplied by
what the teacher learned (17.3), in one row by the released 100. The student's image tower, less than half of the
teacher's, starts from a student of `attar quickstart`, which tells large upright shapes apart and knows no word: so a
row takes a minute. Each seed has a start of its own, as a start moves all rows by more than the rest of a seed does.
The scenes that it and its teacher once learned shapes from had every combination, and no names. Nothing chooses a step:
the last student is judged.

Seeds name start, initialisation, views, orders and the random sentences; teacher, images and corpora are those of seed
0. A finished cell is a file in `--out`, so the same command does what is missing; seed 0 of all rows comes first.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

import attar
from attar.config import SentencesConfig
from attar.data.arrangements import render_arrangement
from attar.data.playground_sentences import draw_sentence
from attar.data.sources import open_source
from attar.models import TwoTowers, load_backbone, load_two_towers, with_projection
from attar.recipes.quickstart import quickstart_config
from attar.recipes.sentences import SENTENCES as SENTENCES_FILE
from attar.recipes.sentences import curate_sentences
from attar.utils.io import new_folder, read_json, sha256_file, write_json, write_text
from attar.utils.seeding import numpy_generator
from machine import given, machine
from playground_clip import EMBED_DIM, IMG_SIZE, TEXT, judge

IMAGE_SEED, CORPUS_SEED, MIXED_SEED = 101, 102, 103
IMAGES, SENTENCES, MIXED, MIXED_SHARE, CHOSEN = 4000, 10_000, 4000, 0.1, 400
TEXT_BATCH = 128
TIMES = {"longer": 3, "longest": 12}  # the steps of the other rows
VIEWS = {"crop_scale": [0.7, 1.0], "crop_ratio": [0.9, 1.1], "flip": 0.0}  # mirrored, left is right
SMALL_TEXT = {"depth": 1, "width": 32, "num_heads": 2}
LIKE_TEACHERS = {"depth": TEXT["layers"], "width": TEXT["width"], "num_heads": TEXT["heads"]}
WITHOUT_SCORES = {"vl_weight": 0.0, "pvl_weight": 0.0}

ROWS: dict[str, dict[str, Any]] = {
    "teacher": {},
    "random": {},
    "unpaired": {},
    "pairs": {
        "dime_fm": {**WITHOUT_SCORES, "contrastive_weight": 1.0, "text_mode": "small_student"},
        "text": LIKE_TEACHERS,
    },
    "feature": {"dime_fm": {**WITHOUT_SCORES, "feature_weight": 1.0}},
    "three_terms": {"dime_fm": {"vl_weight": 0.68, "pvl_weight": 0.22, "udist_weight": 0.10}},
    "no_vl": {"dime_fm": {"vl_weight": 0.0, "pvl_weight": 0.22, "udist_weight": 0.10}},
    "no_pvl": {"dime_fm": {"vl_weight": 0.68, "pvl_weight": 0.0, "udist_weight": 0.10}},
    "selected": {},
    "drawn": {},
    "matched": {"teacher_views": "matched"},
    "small_text": {"dime_fm": {"text_mode": "small_student"}, "text": SMALL_TEXT},
    "longer": {},
    "longest": {"teacher_views": "matched"},
    "released_scale": {"dime_fm": {"scale": 100.0}},
}
NAMES = {
    "teacher": "teacher",
    "random": "student of random weights",
    "unpaired": "DIME-FM, unpaired (vl 0.7, pvl 0.3)",
    "pairs": "contrastive on as many pairs, no teacher",
    "feature": "feature matching alone",
    "three_terms": "all three terms (0.68, 0.22, 0.10)",
    "no_vl": "all three without vl",
    "no_pvl": "all three without pvl",
    "selected": f"{CHOSEN} sentences chosen of the mixed corpus",
    "drawn": f"{CHOSEN} random sentences of the mixed corpus",
    "matched": "DIME-FM, unpaired, matched views",
    "small_text": "DIME-FM, unpaired, small text tower",
    "longer": f"DIME-FM, unpaired, {TIMES['longer']} times the steps",
    "longest": f"DIME-FM, unpaired, matched views, {TIMES['longest']} times the steps",
    "released_scale": "DIME-FM, unpaired, cosines times 100",
}


class Study:
    """The teacher, the data and the folder of finished cells."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.out = args, args.out.resolve()
        self.teacher = args.teacher.resolve()
        settings, file = self.settings(), self.out / "settings.json"
        if file.exists() and read_json(file) != settings:
            raise SystemExit(f"{args.out} holds a study with other settings. Take another --out.")
        write_json(file, settings)
        self.images = f"playground:{IMAGE_SEED}?scenes=arrangements&things=1&size={IMG_SIZE}&n={IMAGES}"

    def settings(self) -> dict[str, Any]:
        """All that shapes a figure."""
        given = {name: getattr(self.args, name) for name in ("steps", "batch_size", "lr", "scale", "pairs_scale")}
        return given | {
            "student": "that of attar quickstart, of the row's seed",
            "teacher": sha256_file(self.teacher / "open_clip_model.safetensors"),
            "img_size": IMG_SIZE,
            "images": IMAGES,
            "sentences": SENTENCES,
            "mixed": {"sentences": MIXED, "could_be_seen": MIXED_SHARE, "taken": CHOSEN},
        }

    def run(self) -> None:
        """Every cell that is missing; then the result file is written anew."""
        for seed in self.args.seeds:
            attar.distill(quickstart_config(str(self.start(seed).parent)).replace(seed=seed))
            for row in self.args.rows:
                file = self.out / "cells" / f"{row}-{seed}.json"
                if not file.exists():
                    print(f"{datetime.datetime.now():%H:%M:%S} {row} {seed}", flush=True)
                    write_json(file, self.cell(row, seed))
                write_json(self.args.results or self.out / "results.json", self.collect())

    def start(self, seed: int) -> Path:
        """What students of a seed start from."""
        return self.out / f"quickstart-{seed}" / "student"

    def about_start(self, seed: int) -> dict[str, Any]:
        """Which start that was, and the shapes that it tells apart."""
        judged = read_json(self.start(seed).parent / "results" / "knn-student.json")
        return {"sha256": sha256_file(self.start(seed) / "model.safetensors"), "knn": judged["value"]}

    def cell(self, row: str, seed: int) -> dict[str, Any]:
        """One student, or what it is compared with, and what it reaches."""
        started = time.perf_counter()
        towers = self.towers(row, seed)
        wall = round(time.perf_counter() - started, 1)
        parameters = {
            "image": sum(value.numel() for value in towers.image.parameters()),
            "text": sum(value.numel() for value in towers.text.parameters()),
        }
        about = {
            "row": row,
            "seed": seed,
            "start": self.about_start(seed),
            "wall_seconds": wall,
            "parameters": parameters,
        }
        if row in ("selected", "drawn"):
            about["could_be_seen"] = could_be_seen(self.corpus(row, seed)[0])
        return about | {"device": self.args.device, "zero_shot": judge(towers)}

    def towers(self, row: str, seed: int) -> TwoTowers:
        """What a row is about."""
        if row == "teacher":
            return load_two_towers(str(self.teacher))
        if row == "random":
            image = load_backbone(str(self.start(seed)), weights="random", img_size=IMG_SIZE, seed=seed)
            return TwoTowers(with_projection(image, EMBED_DIM, seed=seed), load_two_towers(str(self.teacher)).text)
        report = attar.distill_vl(self.config(row, seed))
        return load_two_towers(str(report.run / "student-last"))

    def config(self, row: str, seed: int) -> attar.DistillVlConfig:
        """The run of a row."""
        corpus, features = self.corpus(row, seed)
        scale = self.args.pairs_scale if row == "pairs" else self.args.scale
        own = ROWS[row] | {"dime_fm": {"scale": scale} | ROWS[row].get("dime_fm", {})}
        if row == "pairs":
            own["captions"] = str(self.captions())
        return attar.DistillVlConfig.build(
            {
                "teacher": str(self.teacher),
                "student": str(self.start(seed)),
                "student_weights": "pretrained",
                "images": self.images,
                "sentences": str(corpus),
                "features": str(features),
                "out": str(self.out / "runs" / f"{row}-{seed}"),
                "img_size": IMG_SIZE,
                "batch_size": self.args.batch_size,
                "text_batch_size": TEXT_BATCH,
                "max_steps": self.args.steps * TIMES.get(row, 1),
                "seed": seed,
                "device": self.args.device,
                "views": VIEWS,
                "optim": {"lr": self.args.lr},
                "checkpoint": {"every": self.args.steps},
                **own,
            }
        )

    def corpus(self, row: str, seed: int) -> tuple[Path, Path]:
        """(sentences, folder of what the teacher says) of a row."""
        if row not in ("selected", "drawn"):
            return self.lines("corpus", CORPUS_SEED, SENTENCES, 0.5), self.features("corpus")
        mixed = self.lines("mixed", MIXED_SEED, MIXED, MIXED_SHARE)
        if row == "selected":
            return self.selected(mixed), self.features("selected")
        known = sorted(set(mixed.read_text().splitlines()))
        rows = numpy_generator(seed, "drawn").permutation(len(known))[:CHOSEN]
        file = self.out / "data" / f"drawn-{seed}.txt"
        write_text(file, "".join(f"{known[row]}\n" for row in rows))
        return file, self.features(f"drawn-{seed}")

    def lines(self, name: str, corpus: int, count: int, share: float) -> Path:
        """A corpus as a text file, made once."""
        file = self.out / "data" / f"{name}.txt"
        if not file.exists():
            drawn = (draw_sentence(corpus, row, grounded_share=share).text for row in range(count))
            write_text(file, "".join(f"{text}\n" for text in drawn))
        return file

    def selected(self, mixed: Path) -> Path:
        """Folder of the sentences that the images find."""
        settings = {"images": self.images, "teacher": str(self.teacher), "budget": CHOSEN, "device": "cpu"}
        out = self.out / "selected"
        if not (out / "manifest.json").exists():
            curate_sentences(SentencesConfig.build(settings | {"sentences": str(mixed), "out": str(out)}))
        return out

    def captions(self) -> Path:
        """The caption of each image, as pairs have them."""
        file = self.out / "data" / "captions.jsonl"
        if not file.exists():
            source = open_source(self.images)
            texts = [render_arrangement(IMAGE_SEED, row, things=1, size=16).caption for row in range(IMAGES)]
            pairs = ({"image": source.name(row), "text": text} for row, text in enumerate(texts))
            write_text(file, "".join(json.dumps(pair) + "\n" for pair in pairs))
        return file

    def features(self, name: str) -> Path:
        """A folder for the teacher's answers; those about the images are the same in all."""
        folder, first = self.out / "features" / name, self.out / "features" / "corpus"
        for part in ("images", "image-vectors"):
            if first != folder and (first / part).is_dir() and not (folder / part).exists():
                with new_folder(folder / part) as temporary:
                    shutil.copytree(first / part, temporary, dirs_exist_ok=True)
        return folder

    def collect(self) -> dict[str, Any]:
        """All finished cells, of other commands too, with what a reader needs to repeat them."""
        return {
            "benchmark": "dime_small",
            "date": datetime.date.today().isoformat(),
            "command": f"python benchmarks/dime_small.py --teacher TEACHER --out OUT {given(self.args)}",
            "machine": machine("timm", "open_clip_torch"),
            "settings": self.settings(),
            "teacher": read_json(self.teacher / "accuracy.json"),
            "results": [read_json(path) for path in sorted((self.out / "cells").glob("*.json"))],
        }


def could_be_seen(place: Path) -> int:
    """How many sentences of a choice from the mixed corpus a scene could show."""
    drawn = (draw_sentence(MIXED_SEED, row, grounded_share=MIXED_SHARE) for row in range(MIXED))
    seen = {sentence.text for sentence in drawn if sentence.is_grounded}
    if place.is_dir():
        texts = pq.read_table(place / SENTENCES_FILE, columns=["text"])["text"].to_pylist()
    else:
        texts = place.read_text(encoding="utf-8").splitlines()
    return sum(text in seen for text in texts)


def table(results: dict[str, Any]) -> str:
    """Markdown: zero-shot in per cent, means over seeds with their standard deviation; parameters; seconds.

    A difference is that of students of one seed; an interval, of one student, is about the scenes.
    """
    heading = ["row", "held out, of 28", "95 %", "over unpaired", "held out, of 168", "seen, of 140"]
    heading += ["parameters, image", "text", "s"]
    lines = [f"| {' | '.join(heading)} |", "|" + "---|" * len(heading)]
    for row, name in NAMES.items():
        cells = [cell for cell in results["results"] if cell["row"] == row]
        if cells:
            lines.append(f"| {' | '.join([name, *figures(cells, results['results'])])} |")
    return "\n".join(lines)


def figures(cells: list[dict[str, Any]], everything: list[dict[str, Any]]) -> list[str]:
    """The columns of a row."""
    unpaired = {
        cell["seed"]: cell["zero_shot"]["held_out"]["value"] for cell in everything if cell["row"] == "unpaired"
    }
    own = {cell["seed"]: cell["zero_shot"]["held_out"]["value"] for cell in cells}
    over = [own[seed] - unpaired[seed] for seed in own.keys() & unpaired.keys()]
    is_compared = over and cells[0]["row"] not in ("teacher", "random", "unpaired")
    scores = [cell["zero_shot"] for cell in cells]
    held = [score["held_out"] for score in scores]
    low, high = (statistics.mean(score["ci95"][side] for score in held) for side in (0, 1))
    parameters = cells[0]["parameters"]
    return [
        percent([score["value"] for score in held]),
        f"{100 * low:.1f} to {100 * high:.1f}",
        f"{'+' * (statistics.mean(over) >= 0)}{percent(over)}" if is_compared else "",
        percent([score["held_out_among_all"]["value"] for score in scores]),
        percent([score["seen"]["value"] for score in scores]),
        *(f"{parameters[tower] / 1e6:.2f} M" for tower in ("image", "text")),
        f"{statistics.mean(cell['wall_seconds'] for cell in cells):.0f}",
    ]


def percent(values: list[float]) -> str:
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, help="what playground_clip.py wrote")
    parser.add_argument("--out", type=Path, default=Path("runs/dime_small"))
    parser.add_argument("--results", type=Path, help="result file; by default results.json in --out")
    parser.add_argument("--table", action="store_true", help="print the table of a result file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--device", default="cpu", help="where students learn")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--scale", type=float, default=17.3, help="multiplies cosines in all rows but that of pairs")
    parser.add_argument("--pairs-scale", type=float, default=20.0, help="likewise in that one")
    args = parser.parse_args()
    if not args.table:
        if args.teacher is None:
            parser.error("--teacher is needed")
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        Study(args).run()
    print(table(json.loads((args.results or args.out / "results.json").read_text())))


if __name__ == "__main__":
    main()
