"""Every data set of the table in small: its official layout, a few classes, a few images that say what they show.

An image is a tiny JPEG, and behind its end stands `SPLIT/CLASS`; so a test reads from the bytes what the label must be.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from attar.evaluation.datasets import CORRUPTIONS, Dataset, find_dataset
from attar.evaluation.datasets.layouts import imagenet_wnids

PER_CLASS = {"train": 2, "val": 1, "test": 3}
_BUFFER = io.BytesIO()
Image.new("RGB", (8, 6), (200, 40, 90)).save(_BUFFER, "JPEG")
JPEG = _BUFFER.getvalue()


@dataclass(frozen=True)
class Miniature:
    """A data set in small.

    Attributes:
        make: Writes it below a data root.
        classes: Names of its classes in the order of labels.
        present: Those that have images.
        splits: Those that it has.
        vital: A file or folder without which it cannot be read, below the data root.
    """

    make: Callable[[Path, Miniature], None]
    classes: tuple[str, ...]
    vital: str
    splits: tuple[str, ...] = ("train", "test")
    present: tuple[str, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)

    def items(self) -> Iterator[tuple[str, str, int]]:
        """(split, class, number from 1) of each image, classes interleaved."""
        number = 0
        for split in self.splits:
            for _ in range(PER_CLASS.get(split, 1)):
                for name in self.present or self.classes:
                    number += 1
                    yield split, name, number

    def row(self, name: str) -> Dataset:
        """The table's row with the counts of the miniature."""
        counts = {split: PER_CLASS.get(split, 1) * len(self.present or self.classes) for split in self.splits}
        return find_dataset(name).with_counts(num_classes=len(self.classes), **{**counts, **self.counts})


def write_image(path: Path, split: str, name: str) -> None:
    """A JPEG that says what it shows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(JPEG + f"{split}/{name}".encode())


def write_lines(path: Path, lines: list[str]) -> None:
    """A text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _lists(root: Path, mini: Miniature, image: str, lists: str, line: str) -> None:
    """Images and a list for each split; templates know split, name, number and rank (from 1)."""
    found: dict[str, list[str]] = {split: [] for split in mini.splits}
    for split, name, number in mini.items():
        about = {"split": split, "name": name, "number": number, "rank": mini.classes.index(name) + 1}
        write_image(root / image.format(**about), split, name)
        found[split].append(line.format(**about))
    for split, lines in found.items():
        write_lines(root / lists.format(split=split), lines)


def _aircraft(root: Path, mini: Miniature) -> None:
    base = root / "fgvc-aircraft-2013b/data"
    _lists(base, mini, "images/{number:07}.jpg", "images_variant_{split}.txt", "{number:07} {name}")
    write_lines(base / "variants.txt", list(mini.classes))


def _dtd(root: Path, mini: Miniature) -> None:
    line = "{name}/{name}_{number:04}.jpg"
    _lists(root / "dtd", mini, f"images/{line}", "labels/{split}1.txt", line)
    for split in mini.splits:  # another partition, in which everything is train
        write_lines(root / f"dtd/labels/{split}2.txt", ["banded/banded_0001.jpg"])


def _food(root: Path, mini: Miniature) -> None:
    _lists(root / "food-101", mini, "images/{name}/{number}.jpg", "meta/{split}.txt", "{name}/{number}")
    write_lines(root / "food-101/meta/classes.txt", list(mini.classes))


def _pets(root: Path, mini: Miniature) -> None:
    base = root / "oxford-iiit-pet"
    _lists(base, mini, "images/{name}_{number}.jpg", "annotations/{split}.txt", "{name}_{number} {rank} 1 2")
    (base / "annotations/train.txt").rename(base / "annotations/trainval.txt")


def _sun(root: Path, mini: Miniature) -> None:
    _lists(root / "SUN397", mini, "{name}/sun_{number}.jpg", "{split}.txt", "/{name}/sun_{number}.jpg")
    (root / "SUN397/train.txt").rename(root / "SUN397/Training_01.txt")
    (root / "SUN397/test.txt").rename(root / "SUN397/Testing_01.txt")
    write_lines(root / "SUN397/ClassName.txt", [f"/{name}" for name in mini.classes])


def _caltech(folder: str) -> Callable[[Path, Miniature], None]:
    def make(root: Path, mini: Miniature) -> None:
        image = "{name}/image_{number:04}.jpg"
        _lists(root / folder, mini, f"101_ObjectCategories/{image}", "{split}.one", image + " {rank}")
        for split in mini.splits:  # ranks count from 0 here
            lines = (root / folder / f"{split}.one").read_text().splitlines()
            shifted = [f"{line.split()[0]} {int(line.split()[1]) - 1}" for line in lines]
            write_lines(root / folder / f"{split}.txt", shifted)

    return make


def _cars(root: Path, mini: Miniature) -> None:
    base = root / "stanford_cars"
    kind = [("bbox_x1", "O"), ("class", "O"), ("fname", "O")]
    (base / "devkit").mkdir(parents=True)
    savemat(base / "devkit/cars_meta.mat", {"class_names": np.array([list(mini.classes)], dtype=object)})
    for split, path in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        rows = [(1, mini.classes.index(name) + 1, f"{number:05}.jpg") for s, name, number in mini.items() if s == split]
        savemat(base / path, {"annotations": np.array([rows and tuple(row) for row in rows], dtype=kind)[None]})
    for split, name, number in mini.items():
        write_image(base / f"cars_{split}/{number:05}.jpg", split, name)


def _flowers(root: Path, mini: Miniature) -> None:
    base, entries = root / "flowers-102", list(mini.items())
    for split, name, number in entries:
        write_image(base / f"jpg/image_{number:05}.jpg", split, name)
    savemat(base / "imagelabels.mat", {"labels": np.array([[int(name) for _, name, _ in entries]], dtype=np.uint8)})
    keys = {"train": "trnid", "val": "valid", "test": "tstid"}
    numbers = {key: np.array([[number for s, _, number in entries if s == split]]) for split, key in keys.items()}
    savemat(base / "setid.mat", numbers)


def _voc(root: Path, mini: Miniature) -> None:
    """Images of two classes each, of one, and of one that has only difficult objects of another."""
    base = root / "VOCdevkit/VOC2007"
    images: dict[str, list[tuple[str, set[str], str]]] = {split: [] for split in mini.splits}
    for split, name, number in mini.items():
        other = mini.classes[(mini.classes.index(name) + 1) % len(mini.classes)]
        shown = {name, other} if number % 2 else {name}
        images[split].append((f"{number:06}", shown, other))
        write_image(base / f"JPEGImages/{number:06}.jpg", split, "+".join(sorted(shown)))
    for split, rows in images.items():
        for name in mini.classes:
            flags = ["1" if name in shown else "0" if name == difficult else "-1" for _, shown, difficult in rows]
            lines = [f"{image} {flag:>2}" for (image, _, _), flag in zip(rows, flags, strict=True)]
            write_lines(base / f"ImageSets/Main/{name}_{split}.txt", lines)
        write_lines(base / f"ImageSets/Main/{split}.txt", [image for image, _, _ in rows])


def _cub(root: Path, mini: Miniature) -> None:
    base, entries = root / "CUB_200_2011", list(mini.items())
    paths = [f"{name}/{name[4:]}_{number:04}.jpg" for _, name, number in entries]
    for (split, name, _), path in zip(entries, paths, strict=True):
        write_image(base / "images" / path, split, name)
    ranks = [mini.classes.index(name) + 1 for _, name, _ in entries]
    write_lines(base / "images.txt", [f"{row} {path}" for row, path in enumerate(paths, 1)])
    write_lines(base / "image_class_labels.txt", [f"{row} {rank}" for row, rank in enumerate(ranks, 1)])
    write_lines(
        base / "train_test_split.txt", [f"{n} {int(split == 'train')}" for n, (split, _, _) in enumerate(entries, 1)]
    )
    write_lines(base / "classes.txt", [f"{rank} {name}" for rank, name in enumerate(mini.classes, 1)])


def _folders(image: str, **places: str) -> Callable[[Path, Miniature], None]:
    def make(root: Path, mini: Miniature) -> None:
        for split, name, number in mini.items():
            path = image.format(place=places.get(split, split), name=name, number=number)
            write_image(root / path, split, name)

    return make


def _gtsrb(root: Path, mini: Miniature) -> None:
    base, rows = root / "gtsrb", ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for split, name, number in mini.items():
        if split == "train":
            write_image(base / f"GTSRB/Training/{name}/{number:05}.ppm", split, name)
            write_lines(base / f"GTSRB/Training/{name}/GT-{name}.csv", ["Filename;ClassId"])
        else:
            write_image(base / f"GTSRB/Final_Test/Images/{number:05}.ppm", split, name)
            rows.append(f"{number:05}.ppm;8;6;0;0;7;5;{int(name)}")
    write_lines(base / "GT-final_test.csv", rows)


def _memes(root: Path, mini: Miniature) -> None:
    lines: dict[str, list[str]] = {"train": [], "test": []}
    for split, name, number in mini.items():
        write_image(root / f"hateful_memes/img/{number:05}.png", split, name)
        about = {"id": number, "img": f"img/{number:05}.png", "label": int(name), "text": "a\u2028b"}
        lines[split].append(json.dumps(about, ensure_ascii=False))
    write_lines(root / "hateful_memes/train.jsonl", lines["train"])
    write_lines(root / "hateful_memes/dev.jsonl", lines["test"])


def _mnist(root: Path, mini: Miniature) -> None:
    """Each digit's pixels have the value of its class."""
    base = root / "MNIST/raw"
    base.mkdir(parents=True)
    for split, stem in (("train", "train"), ("test", "t10k")):
        labels = np.array([int(name) for s, name, _ in mini.items() if s == split], dtype=np.uint8)
        pixels = np.repeat(labels, 28 * 28)
        (base / f"{stem}-images-idx3-ubyte").write_bytes(
            struct.pack(">4i", 2051, len(labels), 28, 28) + pixels.tobytes()
        )
        (base / f"{stem}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, len(labels)) + labels.tobytes())


def _cifar(folder: str, files: dict[str, list[str]], lead: bytes, names: str) -> Callable[[Path, Miniature], None]:
    """Red has the value of the class, green 100, blue 200; rows of a split go over its files in turn."""

    def make(root: Path, mini: Miniature) -> None:
        (root / folder).mkdir(parents=True)
        for split, parts in files.items():
            rows = [mini.classes.index(name) for s, name, _ in mini.items() if s == split]
            for number, part in enumerate(parts):
                records = [
                    lead + bytes([row]) + bytes([row]) * 1024 + b"\x64" * 1024 + b"\xc8" * 1024
                    for row in np.array_split(rows, len(parts))[number].tolist()
                ]
                (root / folder / part).write_bytes(b"".join(records))
        write_lines(root / folder / names, list(mini.classes))

    return make


def _pcam(root: Path, mini: Miniature) -> None:
    import h5py

    (root / "pcam").mkdir(parents=True)
    for split in mini.splits:
        stem = root / f"pcam/camelyonpatch_level_2_split_{'valid' if split == 'val' else split}"
        labels = np.array([int(name) for s, name, _ in mini.items() if s == split], dtype=np.uint8)
        with h5py.File(f"{stem}_x.h5", "w") as file:
            file["x"] = np.broadcast_to(labels[:, None, None, None], (len(labels), 4, 4, 3))
        with h5py.File(f"{stem}_y.h5", "w") as file:
            file["y"] = labels[:, None, None, None]


OBJECTNET = {"alarm_clock": "Alarm clock", "backpack": "Backpack", "zebra_toy": "Zebra toy", "apron": "Apron"}
TO_IMAGENET = {"Zebra toy": "text five", "Backpack": "text two; text seven", "Alarm clock": "text nine"}


def _objectnet(root: Path, mini: Miniature) -> None:
    """Four folders, three of which ImageNet knows. Its 2012 number is 3 more than a head's class."""
    base = root / "objectnet-1.0"
    folders = {label: name for name, label in OBJECTNET.items()}
    for split, name, number in mini.items():
        write_image(base / f"images/{folders[name]}/{number}.png", split, name)
    write_image(base / "images/apron/1.png", "test", "Apron")
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    (base / "mappings").mkdir()
    for name, value in (
        ("folder_to_objectnet_label.json", OBJECTNET),
        ("objectnet_to_imagenet_1k.json", TO_IMAGENET),
        ("pytorch_to_imagenet_2012_id.json", {str(rank): (rank + 3) % 11 for rank in range(11)}),
    ):
        (base / "mappings" / name).write_text(json.dumps(value))
    write_lines(base / "mappings/imagenet_to_label_2012_v2", [f"text {word}" for word in words])


def _real(root: Path, mini: Miniature) -> None:
    """Four validation images: two labels, one that is not its folder's, none, one."""
    given = [[0, 5], [7], [], [2]]
    folders = (0, 1, 0, 2)
    for number, (ranks, folder) in enumerate(zip(given, folders, strict=True), 1):
        path = root / f"imagenet/val/{mini.classes[folder]}/ILSVRC2012_val_{number:08}.JPEG"
        write_image(path, "test", "+".join(mini.classes[rank] for rank in ranks))
    (root / "imagenet/real.json").write_text(json.dumps(given))


def _v2(root: Path, mini: Miniature) -> None:
    for split, name, number in mini.items():
        write_image(root / f"imagenetv2-matched-frequency/{mini.classes.index(name)}/{number}.jpeg", split, name)


def _apple(folder: str, image: dict[str, str], lists: dict[str, str]) -> Callable[[Path, Miniature], None]:
    def make(root: Path, mini: Miniature) -> None:
        lines: dict[str, list[str]] = {split: [] for split in mini.splits}
        for split, name, number in mini.items():
            write_image(root / folder / image[split].format(name=name, number=number), split, name)
            lines[split].append(f"{number}.jpg,{name}")
        for split in mini.splits:
            write_lines(root / folder / lists[split], lines[split])

    return make


_ALL = imagenet_wnids()
_APPLE = {"train": "train_full.txt", "val": "val.txt", "test": "test.txt"}
_WITH_VAL = ("train", "val", "test")
_BATCHES = {"train": [f"data_batch_{number}.bin" for number in range(1, 6)], "test": ["test_batch.bin"]}
_CIFAR100 = {"train": ["train.bin"], "test": ["test.bin"]}

MINIATURES = {
    "aircraft": Miniature(
        _aircraft, ("Yak-42", "Cessna 172", "707-320"), "fgvc-aircraft-2013b/data/variants.txt", _WITH_VAL
    ),
    "caltech101": Miniature(
        _caltech("caltech101"), ("BACKGROUND_Google", "Faces", "Faces_easy", "ant"), "caltech101/train.txt"
    ),
    "caltech101_elevater": Miniature(
        _caltech("caltech101_elevater"), ("BACKGROUND_Google", "Faces", "ant"), "caltech101_elevater/train.txt"
    ),
    "cars": Miniature(
        _cars, ("Yugo GV 1985", "Ram C/V Van 2012", "Acura RL 2012"), "stanford_cars/devkit/cars_meta.mat"
    ),
    "cifar10": Miniature(
        _cifar("cifar-10-batches-bin", _BATCHES, b"", "batches.meta.txt"),
        ("airplane", "automobile", "bird"),
        "cifar-10-batches-bin/data_batch_4.bin",
    ),
    "cifar100": Miniature(
        _cifar("cifar-100-binary", _CIFAR100, b"\x13", "fine_label_names.txt"),
        ("apple", "aquarium_fish", "baby"),
        "cifar-100-binary/fine_label_names.txt",
    ),
    "dtd": Miniature(_dtd, ("banded", "polka-dotted", "woven"), "dtd/labels/train1.txt", _WITH_VAL),
    "flowers102": Miniature(_flowers, ("1", "2", "3"), "flowers-102/setid.mat", _WITH_VAL),
    "food101": Miniature(_food, ("waffles", "apple_pie", "pho"), "food-101/meta/classes.txt"),
    "pets": Miniature(_pets, ("Sphynx", "Abyssinian", "american_bulldog"), "oxford-iiit-pet/annotations/trainval.txt"),
    "sun397": Miniature(_sun, ("b/barn", "a/apse/indoor", "a/apse/outdoor"), "SUN397/Training_01.txt"),
    "voc2007": Miniature(_voc, ("aeroplane", "cat", "dog"), "VOCdevkit/VOC2007/ImageSets/Main", _WITH_VAL),
    "cub200": Miniature(_cub, ("001.Auk", "002.Sooty_Albatross", "003.Ani"), "CUB_200_2011/train_test_split.txt"),
    "country211": Miniature(
        _folders("country211/{place}/{name}/{number}.jpg", val="valid"),
        ("AD", "AE", "ZW"),
        "country211/train",
        _WITH_VAL,
    ),
    "eurosat": Miniature(
        _folders("eurosat_clip/{place}/{name}/{number}.jpg"),
        ("AnnualCrop", "River", "SeaLake"),
        "eurosat_clip/train",
        _WITH_VAL,
    ),
    "fer2013": Miniature(
        _folders("fer2013/{place}/{name}/{number}.png"),
        ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"),
        "fer2013/train",
        _WITH_VAL,
    ),
    "gtsrb": Miniature(_gtsrb, ("00000", "00001", "00002"), "gtsrb/GTSRB/Training"),
    "hateful_memes": Miniature(_memes, ("0", "1"), "hateful_memes/train.jsonl"),
    "kitti_distance": Miniature(
        _folders("kitti_distance/{place}/{name}/{number}.png"), ("0", "1", "2", "3"), "kitti_distance/train", _WITH_VAL
    ),
    "mnist": Miniature(_mnist, tuple("0123456789"), "MNIST/raw/train-labels-idx1-ubyte"),
    "pcam": Miniature(_pcam, ("0", "1"), "pcam/camelyonpatch_level_2_split_train_y.h5", _WITH_VAL),
    "sst2": Miniature(
        _folders("rendered-sst2/{place}/{name}/{number}.png", val="valid"),
        ("negative", "positive"),
        "rendered-sst2/train",
        _WITH_VAL,
    ),
    "resisc45": Miniature(
        _folders("resisc45_clip/{place}/{name}/{number}.jpg"),
        ("airplane", "sea_ice", "stadium"),
        "resisc45_clip/train",
        _WITH_VAL,
    ),
    "imagenet": Miniature(
        _folders("imagenet/{place}/{name}/{number}.JPEG", test="val"),
        _ALL,
        "imagenet/train",
        present=(_ALL[0], _ALL[10], _ALL[999]),
    ),
    "imagenet-real": Miniature(_real, _ALL, "imagenet/val", ("test",), counts={"test": 3}),
    "imagenetv2": Miniature(
        _v2, _ALL, "imagenetv2-matched-frequency/10", ("test",), present=(_ALL[1], _ALL[2], _ALL[10], _ALL[999])
    ),
    "imagenet-a": Miniature(
        _folders("imagenet-a/{name}/{number}.jpg"),
        imagenet_wnids("a"),
        "imagenet-a/n01498041",
        ("test",),
        present=("n01498041", "n12267677"),
    ),
    "imagenet-r": Miniature(
        _folders("imagenet-r/{name}/{number}.jpg"),
        imagenet_wnids("r"),
        "imagenet-r/n01443537",
        ("test",),
        present=("n01443537", "n12267677"),
    ),
    "imagenet-sketch": Miniature(
        _folders("imagenet-sketch/sketch/{name}/{number}.JPEG"),
        _ALL,
        "imagenet-sketch/sketch",
        ("test",),
        present=(_ALL[0], _ALL[500]),
    ),
    "objectnet": Miniature(
        _objectnet,
        ("Alarm clock", "Backpack", "Zebra toy"),
        "objectnet-1.0/mappings/folder_to_objectnet_label.json",
        ("test",),
    ),
    "imagenet-c": Miniature(
        _folders("ImageNet-C/{place}/{name}/ILSVRC2012_val_{number:08}.JPEG"),
        _ALL,
        f"ImageNet-C/{CORRUPTIONS[0]}",
        (f"{CORRUPTIONS[0]}/1", f"{CORRUPTIONS[14]}/5", "saturate/3"),
        present=(_ALL[0], _ALL[500]),
    ),
    "places365_apple": Miniature(
        _apple(
            "places365",
            {"train": "train/{name}/{number}.jpg", "val": "val/{number}.jpg", "test": "val/{number}.jpg"},
            _APPLE,
        ),
        ("airfield", "hunting_lodge_outdoor", "raft"),
        "places365/train_full.txt",
        _WITH_VAL,
    ),
    "eurosat_apple": Miniature(
        _apple("EuroSAT", dict.fromkeys(_WITH_VAL, "2750/{name}/{number}.jpg"), _APPLE),
        ("AnnualCrop", "River", "SeaLake"),
        "EuroSAT/train_full.txt",
        _WITH_VAL,
    ),
    "ham10k_apple": Miniature(
        _apple(
            "HAM10K",
            {
                "train": "ISIC2018_Task3_Training_Input/{number}.jpg",
                "val": "ISIC2018_Task3_Validation_Input/{number}.jpg",
                "test": "ISIC2018_Task3_Test_Input/{number}.jpg",
            },
            _APPLE,
        ),
        ("AKIEC", "BCC", "NV"),
        "HAM10K/train_full.txt",
        _WITH_VAL,
    ),
    "imagenet_apple": Miniature(
        _apple(
            "imagenet",
            {"train": "train/{name}/{number}.jpg", "test": "val/{name}/{number}.jpg"},
            {"train": "train_full.txt", "test": "val.txt"},
        ),
        (_ALL[0], _ALL[500], _ALL[999]),
        "imagenet/train_full.txt",
    ),
}
