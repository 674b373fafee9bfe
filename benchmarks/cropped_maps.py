"""Could one map of the whole image stand for the teacher's answers to its crops? How much of them it explains.

    python benchmarks/cropped_maps.py --data DATA --results FILE

If it could, a teacher would be asked once an image, whatever the crop. Compared are a teacher's patch tokens of a crop,
resized to the image's size as a student sees it, with those of the whole image, cut out where the crop lies
(`roi_align`, two samples a bin and axis) onto the same grid. R2 is the share of their variance that the cut explains,
against each channel's mean over all crops: 1 is the answer itself, 0 no better than the mean, below 0 worse. Nothing is
trained. Views have no other change than the crop: RandAugment and erasing, which a map cannot know, come on top.

Two teachers: a conv net at strides 8 and 32 on CIFAR-10 (DATA as for proteus_small.py), and the playground's ViT.
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.functional import pil_to_tensor

import attar
from attar.data.decode import open_image
from attar.data.sources import open_source
from machine import given, machine

SIZE = 64
AREAS = ((0.08, 0.2), (0.2, 0.35), (0.35, 0.5), (0.5, 0.75), (0.75, 1.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--crops", type=int, default=2000, help="of each range of areas, one an image")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()
    teacher = f"{args.data / 'teachers' / 'resnet10t_64'}"
    cifar, scenes = str(args.data / "cifar10" / "test.parquet"), f"playground:1?n={args.crops}"
    rows = [
        *explained(args, "ResNet-10t, stride 8", f"{teacher}?output_stride=8", cifar),
        *explained(args, "ResNet-10t, stride 32", teacher, cifar),
        *explained(args, "playground's ViT, patch 8", "playground", scenes),
    ]
    if args.results:
        record = {
            "benchmark": "cropped_maps",
            "date": datetime.date.today().isoformat(),
            "command": f"python benchmarks/cropped_maps.py --data DATA {given(args)}",
            "machine": machine("timm", "torchvision"),
            "results": rows,
        }
        args.results.write_text(json.dumps(record, indent=2) + "\n")


def explained(args: argparse.Namespace, name: str, reference: str, images: str) -> list[dict[str, Any]]:
    """R2 of the cut patch tokens, and of their mean against the true mean, by the share of the image in a crop."""
    teacher = attar.load_backbone(reference, img_size=SIZE)
    whole = pixels_of(images, args.crops)
    maps = as_maps(teacher, whole)
    rows = []
    for area in AREAS:
        torch.manual_seed(args.seed)
        boxes = torch.tensor([box_of(image, area) for image in whole])  # (n, 4) left, top, right, bottom in pixels
        crops = torch.cat([resized(image, box) for image, box in zip(whole, boxes, strict=True)])
        true = as_maps(teacher, crops)
        numbered = torch.cat([torch.arange(len(boxes))[:, None], boxes], dim=1).float()
        cut = roi_align(maps, numbered, true.shape[-2:], maps.shape[-1] / SIZE, sampling_ratio=2, aligned=True)
        row = {
            "teacher": name,
            "area": area,
            "crops": len(boxes),
            "r2_patch": r2(cut.flatten(2).mT.flatten(0, 1), true.flatten(2).mT.flatten(0, 1)),
            "r2_mean": r2(cut.mean((2, 3)), true.mean((2, 3))),
        }
        rows.append(row)
        print(f"{name:26} {area[0]:.2f} to {area[1]:.2f}  patch {row['r2_patch']:6.3f}  mean {row['r2_mean']:6.3f}")
    return rows


def pixels_of(images: str, count: int) -> Tensor:
    """(n, 3, 64, 64) float in [0, 1], evenly spread over the images."""
    source = open_source(images)
    rows = [number * len(source) // count for number in range(min(count, len(source)))]
    read = (open_image(source.read(row), name=source.name(row)).resized(None, (SIZE, SIZE)) for row in rows)
    return torch.stack([pil_to_tensor(image) for image in read]) / 255


def box_of(image: Tensor, area: tuple[float, float]) -> list[int]:
    top, left, height, width = RandomResizedCrop.get_params(image, list(area), [3 / 4, 4 / 3])
    return [left, top, left + width, top + height]


def resized(image: Tensor, box: Tensor) -> Tensor:
    left, top, right, bottom = box.tolist()
    crop = image[None, :, top:bottom, left:right]
    return F.interpolate(crop, (SIZE, SIZE), mode="bicubic", antialias=True).clamp(0, 1)


def as_maps(teacher: attar.Backbone, images: Tensor) -> Tensor:
    """(n, D, h, w) patch tokens."""
    tokens = [teacher.tokens(part) for part in images.split(250)]
    return torch.cat([part.patch.mT.unflatten(2, part.grid) for part in tokens])


def r2(found: Tensor, true: Tensor) -> float:
    """(n, D) each: share of the variance around the channels' means that is explained."""
    return round(1 - float((found - true).square().sum() / (true - true.mean(0)).square().sum()), 3)


if __name__ == "__main__":
    main()
