"""Draft trees: what they are made of, what they keep, and what they save."""

import dataclasses
import itertools
import json
import shutil

import full_toys
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from calibration import film_of
from hypothesis import given
from hypothesis import strategies as st
from toys import VARIANTS, capped, prompts_of, texts, weights

from jaxdave import calibrate, checkpoint, policies, trees
from jaxdave.draft import Outlook, nested
from jaxdave.run import generate
from jaxdave.trees import MOST_LEFT, PLACES, Table
from jaxdave.types import Prediction

ONE = policies.static(1)
quick = pytest.mark.usefixtures("quick_compiles")


@pytest.fixture
def demo_copy(tmp_path):
    """The block-causal demo model, without what it was calibrated to."""
    folder = shutil.copytree(checkpoint.find("sdar-1m")[1], tmp_path / "demo")
    (folder / trees.FILE).unlink(missing_ok=True)
    return folder


def looking(scores, blocks, is_open) -> Outlook:
    score_L = jnp.asarray(scores, jnp.float32)
    none = jnp.zeros((1, len(scores)), jnp.int32)
    pred = Prediction(none, *[score_L[None]] * 4, none)
    masks = jnp.asarray(is_open, bool), jnp.asarray(blocks, jnp.int32)
    return Outlook(lambda *a: None, pred, *masks, lambda tokens_L: jnp.bool_(False))  # pyright: ignore


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=8, max_size=8))
def test_places_are_the_sorted_order(cells):
    scores, is_open = zip(*cells, strict=True)
    blocks = [i // 4 for i in range(8)]
    place_L = trees.place_of(looking(scores, blocks, is_open))
    order = sorted(
        (i for i in range(8) if is_open[i]), key=lambda i: (blocks[i], -scores[i], i)
    )
    assert [int(place_L[i]) for i in order] == list(range(len(order)))
    left = [sum(is_open[:4]), sum(is_open[4:])]
    assert int(trees.left_of(looking(scores, blocks, is_open))) == (left[0] or left[1])


@given(st.lists(st.permutations(range(4)), min_size=1, max_size=12), st.integers(1, 10))
def test_slots_are_chosen_by_what_each_adds(orders, most):
    paths = [[tuple(sorted(o[: n + 1])) for n in range(4)] for o in orders]
    chosen = trees.grown(paths, most)

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


def test_a_path_is_followed_to_its_first_surprise():
    # The prediction orders positions 2, 0, 3, 1 and is wrong about position 3.
    film = film_of(
        [(0, 7), (2, 9), (3, 5), (1, 8)], places=[1, 3, 0, 2], tokens=[7, 8, 9, 6]
    )
    assert list(calibrate.visited(film)) == [(1,), (0, 1)]
    assert list(calibrate.visited(film[:1])) == []


def test_too_few_slots_are_filled_up_with_nested_ones():
    table = Table((((0,), (2,), (0, 2)),) * (MOST_LEFT + 1))
    flags = trees.packed(table, 8)
    assert flags.shape == (MOST_LEFT + 1, 8, PLACES) and not flags[:, 0].any()
    sets = [tuple(np.flatnonzero(slot)) for slot in flags[5]]
    assert sets == [
        (),
        (0,),
        (2,),
        (0, 2),
        (0, 1),
        (0, 1, 2),
        (0, 1, 2, 3),
        (0, 1, 2, 3, 4),
    ]
    assert trees.packed(table, 1).shape[1] == 1


@quick
@pytest.mark.parametrize("kind", ["causal", "none", "prefix", "dual"])
def test_trees_keep_the_text(kind):
    def built(drafts, draft):
        if kind == "causal":
            return toys.build(ONE, drafts, 4, 16, draft=draft)
        return full_toys.build(ONE, drafts, 8, 16, kind, True, draft=draft)

    prompts = prompts_of([5, 9], 0)
    table = calibrate.calibrate(built(6, nested), weights(0), [prompts], lambda n: None)
    assert any(table.slots)
    decoder = built(6, trees.tree(table))
    for salt, variant in enumerate(sorted(VARIANTS)):
        net, prompts = weights(salt, **VARIANTS[variant]), prompts_of([6, 3, 11], salt)
        plain, canvases = toys.decode(capped(decoder, 1), net, prompts)
        quick, others = toys.decode(decoder, net, prompts)
        assert texts(quick) == texts(plain)
        assert (canvases == others).all()
        for a, b in zip(quick.rows, plain.rows, strict=True):
            assert a.nfe.total <= b.nfe.total == b.steps
    assert sum(r.nfe.total for r in quick.rows) < sum(r.steps for r in quick.rows)


@quick
def test_a_table_of_nested_sets_drafts_what_nested_does():
    chain = tuple(tuple(range(n)) for n in range(1, 8))
    table = Table((chain,) * (MOST_LEFT + 1))
    same = toys.build(ONE, 6, 4, 16), toys.build(ONE, 6, 4, 16, draft=trees.tree(table))
    for salt in range(4):
        prompts = prompts_of([6, 3, 11], salt)
        rows = [generate(d, weights(salt), prompts).rows for d in same]
        assert rows[0] == rows[1]


@quick
def test_a_tree_made_of_a_network_saves_calls_there():
    plain = full_toys.build(ONE, 6, 16, 16, "dual")
    prompts = prompts_of([4, 7, 9, 12, 5, 8], 1)
    net = weights(1)
    table = calibrate.calibrate(plain, net, [prompts], lambda n: None)
    decoder = full_toys.build(ONE, 6, 16, 16, "dual", draft=trees.tree(table))
    calls = [
        sum(row.nfe.total for row in generate(d, net, prompts).rows)
        for d in (plain, decoder)
    ]
    assert calls[1] < calls[0]


def test_tables_are_read_as_they_were_written(tmp_path):
    table = Table((((0,), (0, 1), (3,)),) * (MOST_LEFT + 1))
    other = Table(((),) * (MOST_LEFT + 1))
    assert trees.read(tmp_path) == {}
    trees.write(tmp_path, "a", table)
    trees.write(tmp_path, "b", other)
    assert trees.read(tmp_path) == {"a": table, "b": other}
    assert [p.name for p in tmp_path.iterdir()] == [trees.FILE]


@pytest.mark.parametrize(
    "content",
    ['{"a": 3}', '{"a": []}', '{"a": [[[99]]]}', "[]", '{"a": [[["x"]]]}', "{"],
)
def test_a_spoiled_table_is_refused(tmp_path, content):
    (tmp_path / trees.FILE).write_text(content)
    with pytest.raises(ValueError, match=trees.FILE) as error:
        trees.read(tmp_path)
    assert "\n" not in str(error.value)


def test_a_tree_is_used_where_it_fits():
    config = toys.CONFIG
    table = Table(((),) * (MOST_LEFT + 1))
    tables = {trees.key_of(config, 4, None): table}
    best = lambda policy, **more: trees.best_of(  # noqa: E731
        tables, config, policy, block_length=4, **more
    )
    assert best(ONE) is trees.tree(table)
    assert best(policies.static(2)) is nested
    assert best(ONE, temperature=0.7) is nested
    assert trees.best_of(tables, config, ONE, block_length=8) is nested
    full = dataclasses.replace(full_toys.CONFIG, block_length=8)
    assert trees.key_of(full, None, None) == trees.key_of(full, 8, "dual")


@pytest.mark.parametrize("name", ["sdar-1m", "llada-1m", "dream-1m"])
def test_demo_models_ship_with_their_tables(name):
    model = checkpoint.load(name)
    assert trees.best_of(model.tables, model.config, ONE) is not nested


def test_the_command_line_calibrates_and_uses_it(run, tmp_path, demo_copy):
    options = ("--model", demo_copy, "--max-new-tokens", 16)
    code, out, _ = run("calibrate", *options, "--problems", 2)
    assert code == 0 and trees.FILE in out
    (key,) = json.loads((demo_copy / trees.FILE).read_text())
    assert key == "static(1), block 4, exact"
    told = [
        run("generate", "Tom has 2 pens.", *options, "--json", *more)
        for more in (("--draft", "tree"), ("--draft", "nested"))
    ]
    assert told[0][0] == told[1][0] == 0
    a, b = (json.loads(out) for _, out, _ in told)
    assert a["token_ids"] == b["token_ids"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("calibrate", "--problems", 0), "problems=0"),
        (("calibrate", "--prompts", "missing.jsonl"), "missing.jsonl"),
        (("generate", "x", "--draft", "forest"), "draft='forest' is unknown"),
    ],
)
def test_bad_settings_are_one_line(run, words, says):
    code, out, err = run(*words)
    assert (code, out) == (2, "") and says in err
    assert err.count("\n") == 1 and "Traceback" not in err
