"""Pools of embedded images that take a blink, and a model whose vectors say what an image looks like."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from attar.curation.pool import Manifest, PoolModel, PoolView, describe_shard, shard_name, write_shard
from attar.curation.vectors import embed_rows
from attar.data.sources import open_source
from attar.data.views import EvaluationView
from attar.models import load_backbone
from attar.utils.io import write_json

REFERENCE = "module:small_pools:Thumbnail"


class Thumbnail(nn.Module):
    """An image's own pixels at 8 x 8, less their mean: like images have like vectors, without any training."""

    def forward(self, pixels):
        """(B, 192, 1, 1)."""
        small = F.adaptive_avg_pool2d(pixels, 8).flatten(1)
        return (small - small.mean(1, keepdim=True))[..., None, None]


def make_pool(folder, places, *, shard=100, order=None, img_size=32):
    """A pool of all images of some places; `order` permutes its rows, which then are no longer those of the places."""
    backbone = load_backbone(REFERENCE, weights="random", img_size=img_size)
    source = open_source(places)
    rows = np.arange(len(source)) if order is None else order
    vectors, _ = embed_rows(backbone, source, rows, EvaluationView(img_size, 1.0))
    write_pool(
        folder,
        [source.name(row) for row in rows],
        [source.uri(row) for row in rows],
        vectors,
        shard=shard,
        places=places,
        fingerprint=source.fingerprint,
        model=PoolModel(
            reference=REFERENCE,
            weights="factory",
            file=None,
            sha256=None,
            licence=None,
            fingerprint="none",
            img_size=img_size,
            mean=backbone.preprocess.mean,
            std=backbone.preprocess.std,
        ),
    )
    return folder


def write_pool(folder, ids, uris, vectors, *, shard, places, fingerprint, model):
    """Shards and manifest as `attar embed` writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for number, start in enumerate(range(0, len(ids), shard)):
        here = slice(start, start + shard)
        path = folder / shard_name(number)
        write_shard(path, ids[here], uris[here], vectors[here].numpy(), [])
        shards.append(describe_shard(path))
    manifest = Manifest(
        versions={"attar": "0"},
        model=model,
        view=PoolView(img_size=model.img_size, crop_pct=1.0, implementation="pil-1"),
        precision="fp32",
        width=vectors.shape[1],
        count=len(ids),
        unreadable=0,
        places=tuple(places),
        fingerprint=fingerprint,
        shard_size=shard,
        batch_size=64,
        shards=tuple(shards),
    )
    write_json(folder / "manifest.json", manifest.model_dump(mode="json"))


def random_pool(folder, vectors, *, shard=50):
    """A pool of given vectors, of images that are nowhere."""
    ids = [f"image {number:04}" for number in torch.randperm(len(vectors)).tolist()]
    model = PoolModel(
        reference=REFERENCE,
        weights="factory",
        file=None,
        sha256=None,
        licence=None,
        fingerprint="none",
        img_size=32,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
    )
    write_pool(folder, ids, ids, vectors, shard=shard, places=["nowhere"], fingerprint="none", model=model)
    return folder
