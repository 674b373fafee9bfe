"""Tar shards for tests, and rows of sources for their loaders."""

import io
import os
import tarfile

import numpy as np
from torch.utils.data import Dataset


def write_tar(path, members, format=tarfile.USTAR_FORMAT):
    """A tar with members (name, bytes) in order; returns its path as text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return str(path)


def sample(key, label, data=None, ending="jpg"):
    """An image and its class, as WebDataset names them."""
    return [(f"{key}.{ending}", data if data is not None else key.encode()), (f"{key}.cls", b"%d" % label)]


class Bytes(Dataset):
    """Rows of a source; here, since a worker that is not forked imports it by its module's name."""

    def __init__(self, source):
        self.source = source

    def __len__(self):
        return len(self.source)

    def __getitem__(self, row):
        return os.getpid(), self.source.name(row), np.asarray(self.source.read(row)).tobytes()
