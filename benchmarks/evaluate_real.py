"""`attar evaluate` on real images: a teacher, a student distilled from it and a random student, honest and paper mode.

    python benchmarks/evaluate_real.py --data DATA --run RUN --out runs/evaluate_real

DATA as for proteus_small.py; RUN is any run of attar whose teacher was that of DATA. Tasks: k-NN, linear probe and
logistic regression on CIFAR-10 (all 50,000 images to learn from and 10,000 to report); linear probe and logistic
regression on the 25 classes of Caltech that the teacher never saw, split by the rule of DATA; linear segmentation of
CamVid with the IoU of each class. In paper mode CIFAR-10 has no linear probe and CamVid no figure: ten views of 50,000
images and 60,000 steps are no work for two cores. The same command goes on.
"""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path

import attar
from attar.reports import comparison_table, read_results
from attar.utils.io import write_json
from machine import machine
from proteus_small import is_held_back

TOO_LONG = ("by_head", "val_by_lambda", "test_by_lambda")
CLASSES_SEEN = 26  # the first of Caltech's, in alphabetical order, taught the teacher


def link_caltech(data: Path, folder: Path) -> Path:
    """`train` and `test` with links to the images of the classes the teacher never saw."""
    classes = sorted(path for path in (data / "caltech_51").iterdir() if path.is_dir())[CLASSES_SEEN:]
    for image in (image for name in classes for image in sorted(name.iterdir())):
        part = "test" if is_held_back(f"{image.parent.name}/{image.name}") else "train"
        link = folder / part / image.parent.name / image.name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(image.resolve())
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets and teachers")
    parser.add_argument("--run", required=True, help="directory of a run: its student, teacher and random student")
    parser.add_argument("--out", type=Path, default=Path("runs/evaluate_real"))
    parser.add_argument("--results", type=Path, help="result file; by default results.json in --out")
    parser.add_argument("--modes", nargs="+", choices=["honest", "paper"], default=["honest", "paper"])
    args = parser.parse_args()
    cifar10, caltech = args.data / "cifar10", link_caltech(args.data, args.out / "caltech_25")
    camvid = f"{args.data / 'camvid'}?classes=11"
    tasks = [f"{protocol}:{cifar10}" for protocol in ("knn", "logistic")]
    tasks += [f"{protocol}:{caltech}" for protocol in ("linear", "logistic")]
    for mode in args.modes:
        some = (*tasks, f"linear:{cifar10}", f"segmentation:{camvid}") if mode == "honest" else tuple(tasks)
        attar.evaluate(attar.EvaluateConfig(model=args.run, tasks=some, out=str(args.out / "judged"), mode=mode))
    results = read_results(args.out / "judged" / "results")
    shown = {str(cifar10): "CIFAR-10", str(caltech): "Caltech, 25 unseen classes", camvid: "CamVid"}
    rows = [
        {"task": f"{r.task.partition(':')[0]}: {shown.get(r.task.partition(':')[2], r.task)}", "role": r.role}
        | {"mode": r.mode, "metric": r.metric, "value": r.value, "ci95": r.ci95, "n": r.n, "seconds": r.seconds}
        | {"protocol": r.protocol, "details": {k: v for k, v in r.details.items() if k not in TOO_LONG}}
        for r in results
    ]
    written = {
        "benchmark": "evaluate_real",
        "date": datetime.date.today().isoformat(),
        "command": f"python benchmarks/evaluate_real.py --data DATA --run RUN --modes {' '.join(args.modes)}",
        "machine": machine(),
        "results": rows,
    }
    write_json(args.results or args.out / "results.json", written)
    print(comparison_table(results))


if __name__ == "__main__":
    main()
