"""Tables of drafts: grown from paths, filled up, kept in a file, refused."""

import itertools
import json

import numpy as np
import pytest
from calibration import film_of
from drafting import same_everywhere
from hypothesis import given
from hypothesis import strategies as st

from jaxdave import calibrate, tables
from jaxdave.calibrate import FEWEST, Seen
from jaxdave.tables import CLOSE, CONTEXTS, PLACES, chain


@given(st.lists(st.permutations(range(4)), min_size=1, max_size=12), st.integers(1, 10))
def test_slots_are_chosen_by_what_each_adds(orders, most):
    paths = [[tuple(sorted(o[: n + 1])) for n in range(4)] for o in orders]
    leaf = tables.grown(paths, most)
    chosen = [slot for slot, _ in leaf]

    def followed(slots):
        return sum(
            len(list(itertools.takewhile(lambda s: s in slots, path))) for path in paths
        )

    assert len(set(chosen)) == len(chosen) <= most
    every = {slot for path in paths for slot in path}
    assert len(chosen) == min(most, len(every))
    # No other first slot would have followed more of the paths.
    assert followed(chosen[:1]) >= max(
        sum(path[0] == slot for path in paths) for slot in every
    )
    gains = [followed(chosen[:n]) for n in range(len(chosen) + 1)]
    assert gains == sorted(gains) and len(set(gains)) == len(gains)
    # What a slot is worth is the share of paths that get there, and never grows.
    worth = [likely for _, likely in leaf]
    assert worth == sorted(worth, reverse=True)
    starts = sum(path[0] == chosen[0] for path in paths)
    assert worth[0] == pytest.approx(starts / len(paths), abs=1e-4)
    # Every slot can be reached by way of others, or is the first of a path.
    for at, slot in enumerate(chosen):
        nearer = {s for s in chosen[:at] if set(s) < set(slot)}
        assert len(slot) == 1 or any(len(s) == len(slot) - 1 for s in nearer)


def test_a_path_is_followed_to_its_first_surprise():
    # The prediction orders positions 2, 0, 3, 1; of position 3 it is wrong, and its
    # second best is right; of position 1 both are wrong.
    film = film_of(
        [(0, 7), (2, 9), (3, 5), (1, 8)],
        places=[1, 3, 0, 2],
        tokens=[7, 1, 9, 6],
        runners=[0, 2, 0, 5],
    )
    seen = list(calibrate.visited(film[0], film[1:]))
    assert seen == [(2,), (0, 2), (0, 2, 5)]
    assert list(calibrate.visited(film[0], [])) == []
    ended = film[2]._replace(rests=np.bool_(True))
    assert list(calibrate.visited(film[0], [film[1], ended])) == [(2,)]


def test_rare_contexts_have_the_common_leaf():
    close, wide = np.full(CLOSE, 9.0), np.full(CLOSE, 9.0)
    close[1] = 0.1
    often = [Seen(2, close, [(2,)])] * FEWEST
    rare = [Seen(2, wide, [(0,)])] * (FEWEST - 1)
    table = calibrate._table(often + rare)
    assert table.leaves[2][1] == (((2,), 1.0),)
    assert [slot for slot, _ in table.leaves[2][CLOSE]] == [(2,), (0,)]
    assert table.leaves[3] == ((),) * CONTEXTS[1]


def test_too_few_slots_are_filled_up_with_nested_ones():
    table = same_everywhere((((0,), 0.8), ((4,), 0.6), ((1, 4), 0.4)))
    code, worth = (part[5, 3] for part in tables.packed(table, 8))
    assert code.shape == (8, PLACES) and not code[0].any()
    slots = [{int(p): int(slot[p]) for p in np.flatnonzero(slot)} for slot in code]
    nests = [dict.fromkeys(range(size), 1) for size in range(2, 6)]
    assert slots == [{}, {0: 1}, {2: 1}, {0: 2, 2: 1}, *nests]
    np.testing.assert_allclose(worth, [1, 0.8, 0.6, 0.4, 0.2, 0.1, 0.05, 0.025])
    assert tables.packed(table, 1).code.shape[2] == 1
    # More drafts only add to those that fewer have.
    fewer = tables.packed(table, 4)
    np.testing.assert_array_equal(fewer.code[5, 3], code[:4])


def test_tables_are_read_as_they_were_written(tmp_path):
    table = same_everywhere((((0,), 0.9), ((0, 3), 0.5)))
    other = same_everywhere((), edge=1.25)
    assert tables.read(tmp_path) == {}
    tables.write(tmp_path, "a", table)
    tables.write(tmp_path, "b", other)
    assert tables.read(tmp_path) == {"a": table, "b": other}
    assert [p.name for p in tmp_path.iterdir()] == [tables.FILE]


def test_quantised_weights_have_their_own_tables_or_those_of_the_floats():
    a, b, c = (same_everywhere((), edge=edge) for edge in (1.0, 2.0, 3.0))
    found = {"x": a, tables.of_weights("x", "int8"): b, "y": c}
    assert tables.fitting(found, None) == {"x": a, "y": c}
    assert tables.fitting(found, "int8") == {"x": b, "y": c}
    alone = {tables.of_weights("x", "int8"): b}
    assert (tables.fitting(alone, None), tables.fitting(alone, "int8")) == (
        {},
        {"x": b},
    )
    assert tables.of_weights("x", None) == "x"


GOOD = {"edge": 0.5, "leaf_of": [[0] * CONTEXTS[1]] * CONTEXTS[0], "leaves": [[]]}


@pytest.mark.parametrize(
    "spoiled",
    [
        {"leaves": 3}, {"leaf_of": []}, {"leaf_of": [[0]]}, {"leaves": []},
        {"leaves": [[[0.5, 99]]]}, {"leaves": [[[1.5, 0]]]}, {"leaves": [[[0.5, "x"]]]},
        {"edge": None},
    ],
)  # fmt: skip
def test_a_spoiled_table_is_refused(tmp_path, spoiled):
    good = {"version": 2, "tables": {"a": GOOD}}
    (tmp_path / tables.FILE).write_text(json.dumps(good))
    assert tables.read(tmp_path) == {"a": same_everywhere(())}
    bad = {"version": 2, "tables": {"a": {**GOOD, **spoiled}}}
    (tmp_path / tables.FILE).write_text(json.dumps(bad))
    with pytest.raises(ValueError, match=tables.FILE) as error:
        tables.read(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["[]", "{", '{"version": 3}', '{"version": 2}'])
def test_what_is_no_file_of_tables_is_refused(tmp_path, content):
    (tmp_path / tables.FILE).write_text(content)
    with pytest.raises(ValueError, match=tables.FILE) as error:
        tables.read(tmp_path)
    assert "\n" not in str(error.value)


def test_the_old_format_is_refused_with_its_mend(tmp_path):
    old = {"static(1), block 4, exact": [[[0], [0, 1]]] * 17}
    (tmp_path / tables.FILE).write_text(json.dumps(old))
    for call in (tables.read, lambda at: tables.write(at, "a", same_everywhere(()))):
        with pytest.raises(ValueError, match="version=None and must have 2") as error:
            call(tmp_path)
        assert "jaxdave calibrate" in str(error.value)


def test_nested_slots():
    assert [chain(size) for size in range(3)] == [(), (0,), (0, 2)]
