"""Every verb from Python, on the playground: no data, no GPU, no network, and as few steps as there can be.

    python examples/every_verb.py --out runs/every_verb

The students are worth nothing: this shows what is called with what, and what comes back. With real images the places
are folders, and the lengths those of the guides. `attar.quickstart()` is a whole run of three minutes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import attar

SMALL = "playground?depth=1"
"""The playground teacher's architecture with one block in place of four."""


def settings_of_a_backbone(out: Path) -> attar.DistillConfig:
    """Unlabelled images, and labelled ones that say whether it helped."""
    return attar.DistillConfig(
        teacher="playground",
        student=SMALL,
        student_weights="teacher",  # random by default
        data="playground:0?n=64",
        monitor="playground:1?n=84",
        out=str(out / "backbone"),
        img_size=64,
        batch_size=16,
        max_steps=4,
        workers=0,
    )


def what_it_will_cost(out: Path) -> attar.Plan:
    """attar plan: a little of the work, timed; nothing of it stays."""
    return attar.plan(settings_of_a_backbone(out), attar.PlanConfig(probe_steps=2, price_per_hour=2.5))


def small_backbone(out: Path) -> attar.DistillReport:
    """attar distill: a small general backbone."""
    return attar.distill(settings_of_a_backbone(out))


def judged(model: Path, out: Path) -> attar.EvaluateReport:
    """attar evaluate: a run's student, its teacher and a random one by the papers' protocols."""
    settings = {"model": str(model), "tasks": "knn:playground:2?n=140", "out": str(out / "judged"), "workers": 0}
    return attar.evaluate(attar.EvaluateConfig.build(settings))


def page(run: Path) -> Path:
    """attar report: figures, curves and what teacher and student see, on one page."""
    return attar.report(attar.ReportConfig(runs=(str(run),), limit=60, maps=2, rows=2, device="cpu", workers=0))


def deployed(run: Path, out: Path) -> attar.ExportReport:
    """attar export: ONNX that gives what the student gives, and an example that runs it."""
    return attar.export(attar.ExportConfig(model=str(run), out=str(out / "onnx"), repeats=3, workers=0))


def packed_images(out: Path) -> attar.PackReport:
    """attar data pack: images scaled down once, into shards that any verb takes."""
    settings = {"data": str(out / "task" / "train"), "out": str(out / "packed"), "short_side": 48, "workers": 0}
    return attar.pack(attar.PackConfig.build(settings))


def pool_of_vectors(out: Path) -> attar.Pool:
    """attar embed: images once, to be searched for any number of tasks."""
    return attar.embed(
        attar.EmbedConfig(
            model="playground", data="playground:3?n=120", img_size=64, out=str(out / "pool"), device="cpu", workers=0
        )
    )


def transfer_set(out: Path) -> attar.CurateReport:
    """attar curate: images of the pool that are like those of the task, and no copies of those that judge."""
    return attar.curate(
        attar.CurateConfig(
            pool=str(out / "pool"),
            queries=str(out / "task"),
            budget=56,
            leak_threshold=0.999,  # the playground's scenes are all alike to its teacher
            duplicate_threshold=None,
            out=str(out / "set"),
            device="cpu",
            workers=0,
        )
    )


def model_for_a_task(out: Path) -> attar.TransferReport:
    """attar transfer: from few labels and the set, a small model that says a class."""
    return attar.transfer(
        attar.TransferConfig(
            teacher="playground",
            student=SMALL,
            labelled=str(out / "task" / "train"),
            test=str(out / "task" / "test"),
            pool=str(out / "set"),
            img_size=64,
            out=str(out / "task-model"),
            workers=0,
            transfer={"max_steps": 3, "batch_size": 16},
            finetune={"max_steps": 3, "batch_size": 14},
        )
    )


def predictions(out: Path) -> Path:
    """attar predict: what the finished model says of images, as a table."""
    file = out / "classes.csv"
    attar.predict(attar.PredictConfig(model=str(out / "task-model"), data=str(out / "task" / "test"), out=str(file)))
    return file


def what_each_ingredient_is_worth(out: Path) -> attar.StudyReport:
    """attar transfer --study: the same, row by row, number of labels by number of labels, seed by seed."""
    return attar.study(
        attar.StudyConfig(
            teacher="playground",
            student=SMALL,
            labelled=str(out / "task" / "train"),
            val=str(out / "task" / "test"),
            pool=str(out / "set"),
            rows=("scratch", "task"),
            labels=(1,),
            seeds=(0,),
            img_size=64,
            out=str(out / "study"),
            workers=0,
            transfer={"max_steps": 2, "batch_size": 16},
            finetune={"max_steps": 2, "batch_size": 14},
        )
    )


def visible_sentences(out: Path) -> attar.SentencesReport:
    """attar curate --sentences: of a corpus, those that images show, by a teacher of two towers."""
    return attar.curate_sentences(
        attar.SentencesConfig(
            sentences=str(out / "corpus.txt"),
            images="playground:5?scenes=arrangements&n=24",
            teacher=str(out / "clip"),
            budget=40,
            out=str(out / "sentences"),
            device="cpu",
            workers=0,
        )
    )


def small_clip(out: Path) -> attar.DistillVlReport:
    """attar distill-vl: images and sentences that are no pairs."""
    return attar.distill_vl(
        attar.DistillVlConfig(
            teacher=str(out / "clip"),
            student="playground?depth=1",
            images="playground:5?scenes=arrangements&n=48",
            sentences=str(out / "sentences"),
            monitor="playground:6?scenes=arrangements&part=held_out&things=1&n=56",
            out=str(out / "small-clip"),
            img_size=64,
            batch_size=16,
            max_steps=3,
            workers=0,
            monitoring={"templates": "a {}"},
        )
    )


def write_clip(folder: Path) -> None:
    """A CLIP of two small towers with random weights, since none can be fetched here; yours is a reference."""
    import open_clip

    from attar.export import write_two_towers
    from attar.models import load_two_towers

    tower = {"width": 32, "layers": 1}
    settings = {
        "embed_dim": 16,
        "vision_cfg": tower | {"image_size": 64, "head_width": 16, "patch_size": 16},
        "text_cfg": tower | {"heads": 2, "context_length": 16, "vocab_size": 49408},
    }
    with tempfile.TemporaryDirectory() as models:
        (Path(models) / "every-verb.json").write_text(json.dumps(settings))
        open_clip.add_model_config(Path(models))
    towers = load_two_towers("open_clip:every-verb", weights="random")
    write_two_towers(folder, towers.image, towers.text, card="A CLIP of random weights.", scale=100.0)


def write_task(folder: Path) -> None:
    """Labelled images as anybody has them: a folder for each class, apart for learning and for judging."""
    from PIL import Image

    from attar.data.playground import CLASS_NAMES, render_scene

    for part, seed, count in (("train", 11, 28), ("test", 12, 28)):
        for number in range(count):
            scene = render_scene(seed, number)
            path = folder / part / CLASS_NAMES[scene.label] / f"{number:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(scene.image).save(path)


def write_corpus(file: Path) -> None:
    """Sentences that belong to no image; half of them say what cannot be seen."""
    from attar.data.playground_sentences import draw_sentence

    file.write_text("\n".join(draw_sentence(7, number).text for number in range(200)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/every_verb"))
    out = parser.parse_args().out
    write_task(out / "task")
    write_clip(out / "clip")
    write_corpus(out / "corpus.txt")
    print(f"{what_it_will_cost(out).seconds:.0f} seconds expected")
    backbone = small_backbone(out)
    print(backbone.verdict)
    print(judged(backbone.run, out).table)
    print(page(backbone.run))
    print(deployed(backbone.run, out).out)
    print(packed_images(out).images, "images packed")
    print(len(pool_of_vectors(out)), "vectors")
    print(transfer_set(out).images, "images in the set")
    print(model_for_a_task(out).verdict)
    print(predictions(out).read_text().splitlines()[:3])
    print(what_each_ingredient_is_worth(out).out)
    print(visible_sentences(out).sentences, "sentences")
    print(small_clip(out).verdict)


if __name__ == "__main__":
    main()
