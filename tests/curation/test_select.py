import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attar.curation.select import (
    Gate,
    Pick,
    best_match,
    class_balanced,
    neighbours_of,
    query_balanced,
    share_of_query,
    until_full,
)
from attar.errors import ConfigError

Lists = list[list[tuple[int, float]]]


def ranked(similarity: list[list[float]]) -> Lists:
    """Candidates of each query: all items by (similarity desc, id asc)."""
    return [sorted(enumerate(row), key=lambda entry: (-entry[1], entry[0])) for row in similarity]


TOY = ranked([[0.9, 0.8, 0.7, 0.1, 0.2, 0.3], [0.95, 0.85, 0.1, 0.5, 0.4, 0.3]])  # spec task_transfer §5, O4


def shares(picks: list[Pick], queries: int) -> list[list[int]]:
    return [[pick.item for pick in picks if pick.query == query] for query in range(queries)]


def test_o4_round_robin_shares_the_toy_pool() -> None:
    picks, short = query_balanced(TOY, [2, 2], Gate())
    assert shares(picks, 2) == [[0, 2], [1, 3]]  # without unique assignment it would be [0, 1] twice
    assert [(pick.rank, pick.round) for pick in picks] == [(0, 0), (1, 0), (2, 1), (2, 1)]
    assert not short
    assert shares(query_balanced(TOY, [3, 3], Gate())[0], 2) == [[0, 2, 5], [1, 3, 4]]


def test_o4_one_query_after_the_other_would_share_otherwise() -> None:
    """The wrong formula: each query takes its whole share before the next one is asked."""
    gate = Gate()
    first, _ = query_balanced(TOY[:1], [2], gate)
    second, _ = query_balanced(TOY[1:], [2], gate)
    assert [[p.item for p in first], [p.item for p in second]] == [[0, 1], [3, 4]]


def test_o4_a_pool_too_small_is_a_shortfall_and_no_duplicate() -> None:
    picks, short = query_balanced(TOY, [4, 4], Gate())
    items = [pick.item for pick in picks]
    assert sorted(items) == [0, 1, 2, 3, 4, 5]
    assert short == {0, 1}


def test_o4_best_match_owns_unequal_shares() -> None:
    picks, _ = best_match(TOY, 4, Gate(), is_all=True)
    assert [(pick.item, pick.query) for pick in picks] == [(0, 1), (1, 1), (2, 0), (3, 1)]


def test_best_match_takes_nothing_that_a_longer_list_could_beat() -> None:
    cut = [own[:2] for own in TOY]  # item 2, at 0.7, is behind the end of the first list
    picks, short = best_match(cut, 3, Gate())
    assert [pick.item for pick in picks] == [0]  # 0.85 ends a list, something as good may follow
    assert short


@pytest.mark.parametrize(("queries", "share"), [(1200, 127), (2401, 63), (4802, 31), (9605, 15), (19210, 7)])
def test_o6_budget_of_the_published_lists(queries: int, share: int) -> None:
    assert share_of_query(queries, 153_680) == share  # B // N_q, without the queries themselves, is one more
    retrieved = {1200: 152_400, 2401: 151_263, 4802: 148_862, 9605: 144_075, 19210: 134_470}
    assert queries * share == retrieved[queries]
    assert share_of_query(queries, 153_680, include_queries=False) == share + 1


def test_a_budget_below_the_queries_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"budget 19 leaves no image .* Give 20 at least"):
        share_of_query(10, 19)


similarities = st.integers(1, 4).flatmap(
    lambda queries: st.integers(1, 12).flatmap(
        lambda items: st.lists(
            st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.5, 0.7, 0.9]), min_size=items, max_size=items),
            min_size=queries,
            max_size=queries,
        )
    )
)


@settings(deadline=None)
@given(
    similarities,
    st.integers(1, 5),
    st.sets(st.integers(0, 11)),
    st.sets(st.tuples(st.integers(0, 11), st.integers(0, 11))),
)
def test_o5_invariants_of_round_robin(
    similarity: list[list[float]], k: int, banned: set[int], pairs: set[tuple[int, int]]
) -> None:
    lists, queries, items = ranked(similarity), len(similarity), len(similarity[0])
    near: dict[int, list[int]] = {}
    for one, other in pairs:
        if one != other:
            near.setdefault(one, []).append(other)
            near.setdefault(other, []).append(one)
    smaller, short = query_balanced(lists, [k] * queries, Gate(banned, near))
    larger, _ = query_balanced(lists, [k + 1] * queries, Gate(banned, near))
    taken = [pick.item for pick in smaller]
    assert len(set(taken)) == len(taken)
    assert not set(taken) & banned
    assert not any(other in taken for item in taken for other in near.get(item, ()))
    assert larger[: len(smaller)] == smaller or short  # R(k) is a prefix of R(k + 1), as a whole ...
    for small, large in zip(shares(smaller, queries), shares(larger, queries), strict=True):
        assert large[: len(small)] == small  # ... and for each query
    for query, own in enumerate(shares(smaller, queries)):
        assert len(own) == k or query in short
    if not near and items - len(banned & set(range(items))) >= queries * k:
        assert not short  # equal shares wherever the pool suffices


@given(similarities, st.integers(1, 12))
def test_longer_lists_change_nothing_unless_a_list_ran_out(similarity: list[list[float]], length: int) -> None:
    lists, quotas = ranked(similarity), [2] * len(similarity)
    cut, short = query_balanced([own[:length] for own in lists], quotas, Gate())
    if not short:
        assert cut == query_balanced(lists, quotas, Gate())[0]
    best, short = best_match([own[:length] for own in lists], 3, Gate())
    if not short:
        assert best == best_match(lists, 3, Gate(), is_all=True)[0]


def test_near_duplicates_leave_the_best_ranked_and_a_chain_takes_out_no_more_than_its_links() -> None:
    lists = ranked([[0.9, 0.8, 0.7, 0.6]])
    near = neighbours_of([(0, 1), (1, 2)], range(4))  # type: ignore[arg-type]
    gate = Gate(near=near)
    picks, _ = query_balanced(lists, [3], gate)
    assert [pick.item for pick in picks] == [0, 2, 3]  # union-find would make 0, 1, 2 one and leave out 2
    assert gate.duplicates == {1}


def test_classes_share_equally_however_many_queries_they_have() -> None:
    lists = ranked([[0.9, 0.8, 0.7, 0.6, 0.5, 0.4]] * 3)
    picks, short = class_balanced(lists, [0, 0, 1], {0: 3, 1: 3}, Gate())
    assert [pick.query for pick in picks] == [0, 2, 1, 2, 0, 2]  # query_balanced would give class 0 two of three
    assert [pick.item for pick in picks] == [0, 1, 2, 3, 4, 5]
    assert not short
    assert class_balanced(lists, [0, 0, 1], {0: 4, 1: 4}, Gate())[1] == {0, 1, 2}


def test_sources_share_equally_until_one_is_used_up() -> None:
    lists = [[(0, 0.0)], [(1, 0.0), (2, 0.0), (3, 0.0), (4, 0.0)]]
    picks, short = until_full(lists, 4, Gate())
    assert [pick.item for pick in picks] == [0, 1, 2, 3]
    assert not short
    assert until_full(lists, 6, Gate())[1] == {0, 1}
