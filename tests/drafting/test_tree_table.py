"""Tables of drafts: grown from paths, filled up, kept in a file, refused."""

import itertools
import json

import numpy as np
import pytest
from helpers.calibration_cases import film_of
from helpers.draft_cases import same_everywhere
from hypothesis import given
from hypothesis import strategies as st

from jaxdave.drafting import tree_table
from jaxdave.drafting.tree_table import CONTEXT_SHAPE, MAX_PLACES, NUM_GAPS, nested_node
from jaxdave.engine import calibration
from jaxdave.engine.calibration import MIN_OBSERVATIONS, VisitedPath
from jaxdave.models.presets import preset

MODEL = preset("sdar-1m")


@given(st.lists(st.permutations(range(4)), min_size=1, max_size=12), st.integers(1, 10))
def test_slots_are_chosen_by_what_each_adds(orders, most):
    paths = [[tuple(sorted(o[: n + 1])) for n in range(4)] for o in orders]
    leaf = tree_table.grow(paths, most)
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
    seen = list(calibration.visited_nodes(film[0], film[1:]))
    assert seen == [(2,), (0, 2), (0, 2, 5)]
    assert list(calibration.visited_nodes(film[0], [])) == []
    ended = film[2]._replace(is_resting=np.bool_(True))
    assert list(calibration.visited_nodes(film[0], [film[1], ended])) == [(2,)]


def test_rare_contexts_have_the_common_leaf():
    close, wide = np.full(NUM_GAPS, 9.0), np.full(NUM_GAPS, 9.0)
    close[1] = 0.1
    often = [VisitedPath(2, close, [(2,)])] * MIN_OBSERVATIONS
    rare = [VisitedPath(2, wide, [(0,)])] * (MIN_OBSERVATIONS - 1)
    table = calibration._build_table(often + rare)
    assert table.leaves[2][1] == (((2,), 1.0),)
    assert [slot for slot, _ in table.leaves[2][NUM_GAPS]] == [(2,), (0,)]
    assert table.leaves[3] == ((),) * CONTEXT_SHAPE[1]


def test_too_few_slots_are_filled_up_with_nested_ones():
    table = same_everywhere((((0,), 0.8), ((4,), 0.6), ((1, 4), 0.4)))
    code, worth = (part[5, 3] for part in tree_table.pack(table, 8))
    assert code.shape == (8, MAX_PLACES) and not code[0].any()
    slots = [{int(p): int(slot[p]) for p in np.flatnonzero(slot)} for slot in code]
    nests = [dict.fromkeys(range(size), 1) for size in range(2, 6)]
    assert slots == [{}, {0: 1}, {2: 1}, {0: 2, 2: 1}, *nests]
    np.testing.assert_allclose(worth, [1, 0.8, 0.6, 0.4, 0.2, 0.1, 0.05, 0.025])
    assert tree_table.pack(table, 1).code.shape[2] == 1
    # More drafts only add to those that fewer have.
    fewer = tree_table.pack(table, 4)
    np.testing.assert_array_equal(fewer.code[5, 3], code[:4])


def test_tables_are_read_as_they_were_written(tmp_path):
    table = same_everywhere((((0,), 0.9), ((0, 3), 0.5)))
    other = same_everywhere((), edge=1.25)
    assert tree_table.read_tables(tmp_path, MODEL) == {}
    tree_table.write_table(tmp_path, "a", table, MODEL)
    tree_table.write_table(tmp_path, "b", other, MODEL)
    assert tree_table.read_tables(tmp_path, MODEL) == {"a": table, "b": other}
    assert [p.name for p in tmp_path.iterdir()] == [tree_table.TABLE_FILE]


def test_quantised_weights_have_their_own_tables_or_those_of_the_floats():
    a, b, c = (same_everywhere((), edge=edge) for edge in (1.0, 2.0, 3.0))
    found = {"x": a, tree_table.quantized_key("x", "int8"): b, "y": c}
    assert tree_table.select_tables(found, None) == {"x": a, "y": c}
    assert tree_table.select_tables(found, "int8") == {"x": b, "y": c}
    alone = {tree_table.quantized_key("x", "int8"): b}
    assert (
        tree_table.select_tables(alone, None),
        tree_table.select_tables(alone, "int8"),
    ) == (
        {},
        {"x": b},
    )
    assert tree_table.quantized_key("x", None) == "x"


GOOD = {
    "edge": 0.5,
    "leaf_of": [[0] * CONTEXT_SHAPE[1]] * CONTEXT_SHAPE[0],
    "leaves": [[]],
}


@pytest.mark.parametrize(
    "spoiled",
    [
        {"leaves": 3}, {"leaf_of": []}, {"leaf_of": [[0]]}, {"leaves": []},
        {"leaves": [[[0.5, 99]]]}, {"leaves": [[[1.5, 0]]]}, {"leaves": [[[0.5, "x"]]]},
        {"edge": None},
    ],
)  # fmt: skip
def test_a_spoiled_table_is_refused(tmp_path, spoiled):
    write_file(tmp_path, {"a": GOOD})
    assert tree_table.read_tables(tmp_path, MODEL) == {"a": same_everywhere(())}
    write_file(tmp_path, {"a": {**GOOD, **spoiled}})
    assert "is no table of drafts" in refusal(tmp_path)


def write_file(folder, tables, **changes) -> None:
    raw = {
        "version": tree_table.TABLE_VERSION,
        "model": tree_table.model_label(MODEL),
        "digest": tree_table.tables_digest(tables),
        "tables": tables,
    }
    text = json.dumps({**raw, **changes})
    (folder / tree_table.TABLE_FILE).write_text(text)


def refusal(folder, model=MODEL) -> str:
    """The one line in which the tables of a folder are refused."""
    with pytest.raises(ValueError, match=tree_table.TABLE_FILE) as error:
        tree_table.read_tables(folder, model)
    message = str(error.value)
    assert "\n" not in message and "jaxdave calibrate" in message
    return message


@pytest.mark.parametrize("change", ["share", "edge", "name", "one less"])
def test_what_was_edited_or_cut_is_refused(tmp_path, change):
    leaves = {**GOOD, "leaves": [[[0.5, 0]]]}
    tables = {"a": leaves, "b": GOOD}
    digest = tree_table.tables_digest(tables)
    changed = {
        "share": {"a": {**leaves, "leaves": [[[0.75, 0]]]}, "b": GOOD},
        "edge": {"a": {**leaves, "edge": 0.25}, "b": GOOD},
        "name": {"a, int8": leaves, "b": GOOD},
        "one less": {"a": leaves},
    }[change]
    write_file(tmp_path, tables)
    assert len(tree_table.read_tables(tmp_path, MODEL)) == 2
    write_file(tmp_path, changed, digest=digest)
    assert "was changed after it was written" in refusal(tmp_path)


@pytest.mark.parametrize(
    "other",
    [preset("llada-1m"), preset("sdar-1m", num_layers=5), preset("sdar-1m", hidden=64)],
)
def test_tables_of_another_model_are_refused_and_replaced(tmp_path, other):
    table = same_everywhere((((0,), 0.9),))
    tree_table.write_table(tmp_path, "a", table, other)
    assert tree_table.model_label(other) in refusal(tmp_path)
    tree_table.write_table(tmp_path, "b", table, MODEL)
    assert tree_table.read_tables(tmp_path, MODEL) == {"b": table}


def test_steps_of_two_tokens_are_nodes_of_two_places():
    film = film_of([(2, 12), (0, 10), (1, 21), (3, 13)], [1, 2, 0, 3], TOKENS, RUNNERS)
    seen = [film[0], film[2], film[4]]
    nodes = list(calibration.visited_nodes(seen[0], seen[1:], 2))
    assert nodes == [(0, 2), (0, 2, 5, 6)]
    # The last step of a block may be of one.
    shorter = [film[0], film[2], film[3]]
    assert list(calibration.visited_nodes(shorter[0], shorter[1:], 2))[1] == (0, 2, 5)
    # A step of more tokens than the policy commits is no step of it.
    assert list(calibration.visited_nodes(seen[0], seen[1:])) == []


def test_nested_nodes_are_as_long_as_steps():
    filled = tree_table.fill_with_nested((((0, 4), 0.9),), 3, 2)
    assert [node for node, _ in filled] == [(0, 4), (0, 2), (0, 2, 4, 6)]


TOKENS, RUNNERS = [10, 11, 12, 13], [20, 21, 22, 23]


@pytest.mark.parametrize("content", ["[]", "{", '{"version": 3}', '{"version": 2}'])
def test_what_is_no_file_of_tables_is_refused(tmp_path, content):
    (tmp_path / tree_table.TABLE_FILE).write_text(content)
    with pytest.raises(ValueError, match=tree_table.TABLE_FILE) as error:
        tree_table.read_tables(tmp_path, MODEL)
    assert "\n" not in str(error.value)


def test_the_old_format_is_refused_with_its_mend(tmp_path):
    old = {"static(1), block 4, exact": [[[0], [0, 1]]] * 17}
    (tmp_path / tree_table.TABLE_FILE).write_text(json.dumps(old))
    for call in (
        lambda at: tree_table.read_tables(at, MODEL),
        lambda at: tree_table.write_table(at, "a", same_everywhere(()), MODEL),
    ):
        with pytest.raises(ValueError, match="version=None and must have 3") as error:
            call(tmp_path)
        assert "jaxdave calibrate" in str(error.value)


def test_nested_slots():
    assert [nested_node(size) for size in range(3)] == [(), (0,), (0, 2)]
