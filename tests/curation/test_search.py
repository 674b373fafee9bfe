import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attar.curation.search import NOBODY, Found, merge, merge_all, near_pairs, search
from attar.errors import ConfigError, ShapeError


def unit_rows(count: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, width, generator=generator), dim=1).half()


def by_full_sort(pool: Tensor, places: Tensor, queries: Tensor, k: int) -> Found:
    """Everything compared in float64, sorted by (similarity desc, id asc)."""
    similarity = queries.half().double() @ pool.double().T
    rows = [sorted(zip((-s).tolist(), places.tolist(), strict=True))[:k] for s in similarity]
    return Found(
        torch.tensor([[-s for s, _ in row] for row in rows], dtype=torch.float64),
        torch.tensor([[place for _, place in row] for row in rows]),
    )


def same(one: Found, other: Found) -> bool:
    return torch.equal(one.similarity, other.similarity) and torch.equal(one.place, other.place)


@pytest.mark.parametrize("k", [1, 7, 300, 900])
@pytest.mark.parametrize("tile", [(64, 16), (5, 300), (3, 1024), (1024, 32_768)])
def test_blocked_search_equals_a_full_sort_for_any_tile(tile: tuple[int, int], k: int) -> None:
    pool, queries, places = unit_rows(1000, 24), unit_rows(11, 24, seed=1), torch.randperm(1000)
    assert same(search([(pool, places)], queries, k=k, tile=tile), by_full_sort(pool, places, queries, k))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 40), st.lists(st.integers(0, 60), max_size=5))
def test_any_order_and_split_of_a_pool_with_equal_rows_gives_the_same(seed: int, k: int, cuts: list[int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    pool, queries = unit_rows(6, 8, seed).repeat(10, 1), unit_rows(4, 8, seed + 1)  # ten copies of six rows
    places = torch.randperm(60, generator=generator)
    shuffled = torch.randperm(60, generator=generator)
    edges = [0, *sorted(cuts), 60]
    blocks = [(pool[shuffled][a:b], places[shuffled][a:b]) for a, b in itertools.pairwise(edges)]
    assert same(search(blocks, queries, k=k), search([(pool, places)], queries, k=k))
    assert same(search([(pool, places)], queries, k=k), by_full_sort(pool, places, queries, k))


@pytest.mark.parametrize("is_quick", [True, False])
def test_coarse_products_change_nothing(monkeypatch: pytest.MonkeyPatch, is_quick: bool) -> None:
    """Also where bfloat16 cannot tell rows apart (all within 0.01), and float32 looks again."""
    monkeypatch.setattr("attar.curation.search._is_quick_in_bfloat16", lambda device: is_quick)
    far = unit_rows(3000, 64)
    close = F.normalize(unit_rows(1, 64, seed=5).float() + 0.02 * far.float(), dim=1).half()
    queries, places = torch.cat([far[:9], close[:9]]), torch.randperm(6000)
    found = search([(torch.cat([far, close]), places)], queries, k=20, tile=(7, 2000))
    assert same(found, by_full_sort(torch.cat([far, close]), places, queries, 20))


def test_float32_noise_does_not_decide() -> None:
    """Rows that differ by the last bit of one channel: float32 products of length 384 cannot tell them apart."""
    row = unit_rows(1, 384)[0]
    pool = row.repeat(500, 1)
    for number in range(1, 500):
        pool[number, number % 384] = torch.nextafter(pool[number, number % 384], torch.tensor(2.0).half())
    queries, places = unit_rows(3, 384, seed=2) * 0.1 + row, torch.randperm(500)
    queries = F.normalize(queries.float(), dim=1)
    found = search([(pool, places)], queries, k=50, tile=(2, 128))
    assert same(found, by_full_sort(pool, places, queries, 50))
    assert len(found.similarity[0].unique()) > 10  # else the ids alone would have decided


def test_merging_is_associative_and_commutative_and_nothing_is_its_unit() -> None:
    pool, queries = unit_rows(30, 4).repeat(3, 1), unit_rows(5, 4, seed=3)
    places = torch.randperm(90)
    a, b, c = (search([(pool[i::3], places[i::3])], queries, k=12) for i in range(3))
    assert same(merge(merge(a, b), c), merge(a, merge(b, c)))
    assert same(merge(a, b), merge(b, a))
    assert same(merge(a, Found.nothing(5, 12)), a)
    assert same(merge_all([c, a, b]), search([(pool, places)], queries, k=12))


def test_a_small_pool_leaves_the_rest_empty() -> None:
    found = search([(unit_rows(3, 4), torch.arange(3))], unit_rows(2, 4, seed=1), k=5)
    assert (found.place[:, 3:] == NOBODY).all()
    assert torch.isinf(found.similarity[:, 3:]).all()
    assert (found.place[:, :3] >= 0).all()


def test_an_image_of_the_pool_finds_itself_first() -> None:
    pool = unit_rows(200, 32)
    found = search([(pool, torch.arange(200))], pool[17:19], k=2)
    assert found.place[:, 0].tolist() == [17, 18]
    assert found.similarity[:, 0].tolist() == pytest.approx([1, 1], abs=1e-3)


def test_near_pairs_are_those_of_the_whole_matrix() -> None:
    rows = F.normalize(unit_rows(60, 6).repeat(2, 1).float() + 0.25 * unit_rows(120, 6, seed=4).float(), dim=1).half()
    similarity = rows.double() @ rows.double().T
    wanted = {(i, j) for i, j in (similarity.triu(1) >= 0.97).nonzero().tolist()}
    found = list(near_pairs(rows, threshold=0.97, tile=17))
    assert 60 > len(found) == len(wanted) > 10
    assert {(i, j) for i, j, _ in found} == wanted
    assert all(value == similarity[i, j] for i, j, value in found)


def test_what_cannot_be_searched_is_said() -> None:
    pool = unit_rows(3, 4)
    with pytest.raises(ShapeError, match=r"width 4, the queries of 5"):
        search([(pool, torch.arange(3))], unit_rows(1, 5), k=1)
    with pytest.raises(ConfigError, match="k is 0"):
        search([(pool, torch.arange(3))], pool, k=0)
