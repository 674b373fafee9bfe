from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attar.errors import ConfigError, DataError, ShapeError
from attar.evaluation.neighbours import nearest


def coarse(count: int, *, seed: int) -> Tensor:
    """Rows of 8 channels, four of them -1 or 1: lengths and similarities are exact, and most of them are tied."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (count, 8), generator=generator) * 2.0 - 1
    return signs.where(torch.rand(count, 8, generator=generator).argsort(1) < 4, 0)


def plain(bank: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The definition: all similarities in float64, sorted by (similarity descending, row ascending)."""
    similarity = F.normalize(queries.double(), dim=1) @ F.normalize(bank.double(), dim=1).T
    order = np.lexsort((np.broadcast_to(np.arange(len(bank)), similarity.shape), -similarity.numpy()), axis=1)
    rows = torch.from_numpy(order[:, :k].copy())
    return similarity.gather(1, rows), rows


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 60),
    queries=st.integers(0, 9),
    k=st.integers(1, 70),
    tile=st.tuples(st.integers(1, 10), st.integers(1, 64)),
    seed=st.integers(0, 99),
)
def test_is_a_full_sort_whatever_the_tiles(n: int, queries: int, k: int, tile: tuple[int, int], seed: int) -> None:
    # catches topk's own choice among equals, a merge that prefers the later tile, rows counted from the tile's start
    bank, wanted = coarse(n, seed=seed), coarse(queries, seed=seed + 1000)
    similarity, rows = nearest(bank, wanted, k=k, tile=tile)
    expected_similarity, expected_rows = plain(bank, wanted, k)
    assert rows.tolist() == expected_rows.tolist()
    torch.testing.assert_close(similarity.double(), expected_similarity, rtol=0, atol=0)


def test_copies_of_one_row_come_in_their_order() -> None:
    row = F.normalize(torch.randn(1, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    _, rows = nearest(row.expand(1000, -1), row, k=7, tile=(4, 100))
    assert rows.tolist() == [list(range(7))]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_memory_map_of_any_precision_gives_what_its_values_give(tmp_path: Path, dtype: type) -> None:
    generator = np.random.default_rng(0)
    file = np.lib.format.open_memmap(tmp_path / "bank.npy", mode="w+", dtype=dtype, shape=(300, 16))
    file[:] = generator.normal(size=(300, 16))
    file.flush()
    bank = np.load(tmp_path / "bank.npy", mmap_mode="r")  # read-only, of which torch warns
    queries = torch.from_numpy(generator.normal(size=(20, 16)))
    similarity, rows = nearest(bank, queries, k=5, tile=(8, 64))
    expected_similarity, expected_rows = plain(torch.from_numpy(bank.astype(np.float32)), queries, 5)
    assert similarity.dtype == torch.float32
    torch.testing.assert_close(similarity.double(), expected_similarity, rtol=0, atol=1e-6)
    assert (rows == expected_rows).double().mean() > 0.98  # all but those that float32 cannot tell apart


def test_the_arguments_stay_as_they_were() -> None:
    # rows are normalised in place, in a copy
    bank, queries = torch.randn(10, 4), torch.randn(3, 4)
    before = bank.clone(), queries.clone()
    nearest(bank, queries, k=2)
    assert torch.equal(bank, before[0])
    assert torch.equal(queries, before[1])


def test_rows_of_zeros_are_similar_to_nothing() -> None:
    similarity, rows = nearest(torch.tensor([[0.0, 0.0], [-1.0, 0.0]]), torch.tensor([[1.0, 0.0]]), k=2)
    assert (similarity.tolist(), rows.tolist()) == ([[0.0, -1.0]], [[0, 1]])


def test_what_cannot_be_compared_is_an_error() -> None:
    with pytest.raises(ShapeError, match="width 4, the queries of 3"):
        nearest(torch.ones(2, 4), torch.ones(2, 3), k=1)
    with pytest.raises(DataError, match="empty"):
        nearest(torch.ones(0, 4), torch.ones(2, 4), k=1)
    with pytest.raises(ConfigError, match="k is 0"):
        nearest(torch.ones(2, 4), torch.ones(2, 4), k=0)


PEAK = """
import resource, sys
import numpy as np
import torch
from attar.evaluation.neighbours import nearest
torch.set_num_threads(1)
bank = np.load(sys.argv[1], mmap_mode="r")
bank.sum(dtype=np.float32)  # the map's pages are data, not what the search needs
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
nearest(bank, bank[:600], k=200)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
def test_memory_is_a_few_tiles_even_if_everything_is_tied(tmp_path: Path) -> None:
    # 131,072 x 64 float16 of 4 rows: without tiles 800 MiB
    bank = np.tile(coarse(4, seed=0).repeat(1, 8).numpy().astype(np.float16), (32_768, 1))
    np.save(tmp_path / "bank.npy", bank)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "bank.npy")], capture_output=True, text=True, check=True
    )
    assert float(done.stdout.splitlines()[-1]) < 600  # MiB
