"""How tiles of 8-bit products are shared, by csrc/scaled_mm_sm90_walk.cuh on the processor."""

from __future__ import annotations

import random

import pytest
from host_compiler import COMPILER
from shared_tiles import Share, places, share, whole_places

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no g++ to compile the walk")

DRAW = random.Random(1)
PROBLEMS = [
    (DRAW.choice((1, 2, 9, 20)), DRAW.randint(1, 90), DRAW.randint(1, 90), clusters)
    for _ in range(40)
    for clusters in (66, 132, 7)
]


@pytest.mark.parametrize(("along_m", "pairs", "steps", "clusters"), PROBLEMS)
def test_every_step_once(along_m: int, pairs: int, steps: int, clusters: int) -> None:
    """And sums come from clusters before, which have not waited for others then."""
    blocks = 1 if clusters == 132 else 2
    shared = share(along_m * pairs, clusters, steps)
    every = places(along_m, pairs, steps, clusters, shared, blocks)
    seen: dict[tuple[int, int, int], int] = {}
    for cluster, own in enumerate(every):
        gives = [i for i, place in enumerate(own) if place.last < steps]
        takes = [i for i, place in enumerate(own) if place.last == steps and place.first > 0]
        assert len(gives) <= 1  # there is one place for sums
        assert len(takes) <= 1
        assert not takes or not gives or gives < takes
        for place in own:
            assert 0 <= place.first < place.last <= steps
            for step in range(place.first, place.last):
                assert (place.m, place.pair, step) not in seen
                seen[place.m, place.pair, step] = cluster
            assert 0 <= place.first_giver <= cluster
    assert len(seen) == along_m * pairs * steps
    for cluster, own in enumerate(every):
        for place in own:
            before = {seen[place.m, place.pair, step] for step in range(place.first)}
            assert before == set(range(place.first_giver, cluster)), place


@pytest.mark.parametrize(("along_m", "pairs", "blocks"), [(1, 1, 1), (20, 40, 132), (9, 15, 132)])
def test_whole_tiles_once(along_m: int, pairs: int, blocks: int) -> None:
    """In the same order as where some are shared."""
    every = whole_places(along_m, pairs, blocks)
    tiles = [tile for own in every for tile in own]
    assert sorted(tiles) == [(m, pair) for m in range(along_m) for pair in range(pairs)]
    walked = places(along_m, pairs, 1, blocks, Share(along_m * pairs, 0), 1)
    assert every[: len(walked)] == [[(at.m, at.pair) for at in own] for own in walked]


@pytest.mark.parametrize("steps", [1, 4, 9, 32, 224])
@pytest.mark.parametrize("clusters", [66, 132])
def test_what_is_shared(clusters: int, steps: int) -> None:
    for tiles in range(1, 5 * clusters):
        whole, sharers = share(tiles, clusters, steps)
        assert 0 <= whole <= tiles
        assert 0 <= sharers <= clusters
        if sharers == 0:
            assert whole == tiles
            continue
        assert whole % clusters == 0  # all have as many
        assert (tiles - whole) * steps >= 4 * sharers
        assert sharers <= 4 * (tiles - whole)
        # No cluster has more than it would have of whole tiles.
        assert whole // clusters * steps + -(-(tiles - whole) * steps // sharers) <= (
            -(-tiles // clusters) * steps
        )


def test_some_shares() -> None:
    assert share(66, 66, 64) == Share(66, 0)  # one for each
    assert share(20, 66, 136) == Share(0, 60)  # thirds
    assert share(40, 66, 64) == Share(0, 66)
    assert share(68, 66, 40) == Share(0, 66)  # 2 left would be shared by too many
    assert share(112, 66, 32) == Share(66, 66)
    assert share(1, 66, 64) == Share(0, 4)
    assert share(40, 66, 4) == Share(40, 0)  # too short
