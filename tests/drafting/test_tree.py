"""Draft trees: what they are made of, what they keep, and what they save."""

import dataclasses
import json
import shutil

import jax.numpy as jnp
import pytest
from helpers import fake_full_model, fake_model
from helpers.draft_cases import guess_of, looking, same_everywhere
from helpers.fake_model import VARIANTS, capped, prompts_of, texts, weights
from helpers.losslessness import KINDS
from hypothesis import given
from hypothesis import strategies as st

from jaxdave import policies
from jaxdave.drafting import tree, tree_table
from jaxdave.drafting.nested import nested
from jaxdave.drafting.tree_table import OPEN_COUNTS, nested_node
from jaxdave.engine import calibration
from jaxdave.engine.generation import generate
from jaxdave.io import checkpoint
from jaxdave.numerics.quantization import EightBit

ONE = policies.static(1)


@pytest.fixture
def demo_copy(tmp_path):
    """The block-causal demo model, without what it was calibrated to."""
    folder = shutil.copytree(checkpoint.find_model("sdar-1m")[1], tmp_path / "demo")
    (folder / tree_table.TABLE_FILE).unlink(missing_ok=True)
    return folder


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=8, max_size=8))
def test_places_are_the_sorted_order(cells):
    scores, is_open = zip(*cells, strict=True)
    blocks = [i // 4 for i in range(8)]
    outlook = looking(scores, blocks, is_open)
    place_L = tree.draft_order(outlook)
    order = sorted(
        (i for i in range(8) if is_open[i]), key=lambda i: (blocks[i], -scores[i], i)
    )
    assert [int(place_L[i]) for i in order] == list(range(len(order)))
    left = sum(is_open[:4]) or sum(is_open[4:])
    assert int(tree.open_count_index(outlook)) == sum(
        left > most for most in OPEN_COUNTS
    )
    gaps = [
        scores[a] - scores[b] if blocks[a] == blocks[b] else float("inf")
        for a, b in zip(order, order[1:], strict=False)
    ]
    gaps += [float("inf")] * (tree_table.NUM_GAPS - len(gaps))
    assert tree.score_gaps(outlook, place_L).tolist() == gaps


@pytest.mark.parametrize(
    ("leaf", "drafts"),
    [
        # Best of the second place; runner-up of the first; both, in 2 steps.
        (((2,), (1,), (1, 2)), [{5: 15}, {4: 24}, {4: 24, 5: 15}]),
        # The third place is in the next block; there is no fifth.
        (((4,), (8,)), [{8: 18}, None]),
    ],
)
def test_slots_become_states(leaf, drafts):
    outlook = looking([0, 0, 0, 0, 9, 8, 0, 0, 7, 6], [0] * 8 + [1] * 2,
                      [i in (4, 5, 8, 9) for i in range(10)])  # fmt: skip
    token = jnp.arange(10, 20, dtype=jnp.int32)[None]
    pred = outlook.pred._replace(token=token, runner_up=token + 10)
    table = same_everywhere(tuple((slot, 0.5) for slot in leaf))
    first = guess_of([-9] * 10)
    found = tree.tree(table).propose(outlook._replace(pred=pred), first, len(leaf) + 1)
    assert (found.tokens_KNL[0, 0] == -9).all() and found.depth_K[0] == 0
    for k, want in enumerate(drafts, start=1):
        assert bool(found.valid_K[k]) == (want is not None)
        if want is not None:
            state = [want.get(i, -9) for i in range(10)]
            assert found.tokens_KNL[k, 0].tolist() == state
            assert int(found.depth_K[k]) == len(want)
    assert found.worth_K.tolist() == [1.0, *[0.5] * len(leaf)]


def test_the_context_is_where_the_order_is_in_doubt():
    leaves = tuple(
        tuple((((2 * close,), 0.5),) for close in range(tree_table.NUM_GAPS + 1))
        for _ in range(len(OPEN_COUNTS) + 1)
    )
    draft = tree.tree(tree_table.TreeTable(1.0, leaves))
    for scores, place in (([9, 8.5, 5, 1], 0), ([9, 7, 5.5, 5], 2), ([9, 7, 5, 3], 8)):
        outlook = looking(scores, [0] * 4, [True] * 4)
        found = draft.propose(outlook, guess_of([-9] * 4), 2)
        filled = [i for i in range(4) if found.tokens_KNL[1, 0, i] != -9]
        assert filled == ([place] if place < 4 else [])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 3])
def test_trees_keep_the_text(kind, count):
    rule = policies.static(count)

    def built(drafts, draft):
        if kind == "causal":
            return fake_model.build(rule, drafts, 4, 16, draft=draft)
        return fake_full_model.build(rule, drafts, 8, 16, kind, True, draft=draft)

    prompts = prompts_of([5, 9], 0)
    table = calibration.calibrate(
        built(6, nested), weights(0), [prompts], lambda n: None, count
    )
    assert any(leaf for some in table.leaves for leaf in some)
    decoder = built(6, tree.tree(table, 0.0, count))
    for salt, variant in enumerate(sorted(VARIANTS)):
        net, prompts = weights(salt, **VARIANTS[variant]), prompts_of([6, 3, 11], salt)
        plain, canvases = fake_model.decode(capped(decoder, 1), net, prompts)
        quick, others = fake_model.decode(decoder, net, prompts)
        assert texts(quick) == texts(plain)
        assert (canvases == others).all()
        for a, b in zip(quick.completions, plain.completions, strict=True):
            assert a.nfe.total <= b.nfe.total == b.steps
    assert sum(r.nfe.total for r in quick.completions) < sum(
        r.steps for r in quick.completions
    )


def test_steps_are_ordered_by_the_tokens_that_they_draw():
    """By hand, two steps of noise over four open positions of one block."""
    outlook = looking([0] * 4, [0] * 4, [True] * 4)
    score = jnp.array([[9.0, 8.5, 1.0, 2.0], [0.0, 3.0, 7.0, 6.0]])
    token = jnp.arange(8, dtype=jnp.int32).reshape(2, 4)
    pred = outlook.pred._replace(score=score, token=token, runner_up=token + 10)
    outlook = outlook._replace(pred=pred)
    order_L, gap_P = tree.order_by_steps(outlook, 3)
    # Step 0 takes position 0; step 1 and, for want of more noise, all later ones see
    # the scores of the second row.
    assert order_L.tolist() == [0, 3, 1, 2]
    assert gap_P[:4].tolist() == [0.5, 1.0, 3.0, float("inf")]
    table = same_everywhere((((0,), 0.9), ((0, 2), 0.8), ((2,), 0.7), ((1, 2), 0.6)))
    found = tree.tree(table, 0.7).propose(outlook, guess_of([-9] * 4), 5)
    assert found.tokens_KNL[1:, 0].tolist() == [
        [0, -9, -9, -9],
        [0, -9, 6, -9],  # the second of two steps draws the token of step 1
        [-9, -9, 2, -9],  # alone the same place is filled by step 0
        [10, -9, 6, -9],
    ]
    assert found.depth_K.tolist() == [0, 1, 2, 1, 2] and bool(found.valid_K.all())


@pytest.mark.parametrize("kind", KINDS)
def test_trees_keep_the_text_at_a_temperature(kind):
    table = same_everywhere(
        (((0,), 0.9), ((2,), 0.6), ((0, 2), 0.5), ((0, 4), 0.4), ((1,), 0.3))
    )
    more = dict(draft=tree.tree(table, 0.7), temperature=0.7)
    if kind == "causal":
        decoder = fake_model.build(ONE, 6, 4, 16, **more)
    else:
        decoder = fake_full_model.build(ONE, 6, 8, 16, kind, True, **more)
    saved = 0
    for salt, variant in enumerate(sorted(VARIANTS)):
        net, prompts = weights(salt, **VARIANTS[variant]), prompts_of([6, 3, 11], salt)
        plain, canvases = fake_model.decode(capped(decoder, 1), net, prompts, seed=salt)
        quick, others = fake_model.decode(decoder, net, prompts, seed=salt)
        assert texts(quick) == texts(plain)
        assert (canvases == others).all()
        for a, b in zip(quick.completions, plain.completions, strict=True):
            assert a.nfe.total <= b.nfe.total == b.steps
            saved += b.nfe.total - a.nfe.total
    assert saved > 0


@pytest.mark.parametrize("count", [1, 2])
def test_a_table_of_nested_sets_drafts_what_nested_does(count):
    leaf = tuple((nested_node(count * n), 0.9**n) for n in range(1, 8))
    draft, rule = tree.tree(same_everywhere(leaf), 0.0, count), policies.static(count)
    same = (
        fake_model.build(rule, 6, 4, 16),
        fake_model.build(rule, 6, 4, 16, draft=draft),
    )
    for salt in range(4):
        prompts = prompts_of([6, 3, 11], salt)
        rows = [generate(d, weights(salt), prompts).completions for d in same]
        assert rows[0] == rows[1]


def test_at_a_temperature_too_nested_sets_are_nested_drafts():
    """They foresee the noise of later steps as nested drafts do."""
    table = same_everywhere(tuple((nested_node(n), 0.9**n) for n in range(1, 8)))
    same = (
        fake_model.build(ONE, 6, 4, 16, temperature=1.0),
        fake_model.build(ONE, 6, 4, 16, draft=tree.tree(table, 1.0), temperature=1.0),
    )
    for salt in range(4):
        prompts = prompts_of([6, 3, 11], salt)
        rows = [generate(d, weights(salt), prompts, seed=salt) for d in same]
        assert rows[0].completions == rows[1].completions


def test_a_tree_made_of_a_network_saves_calls_there():
    plain = fake_full_model.build(ONE, 6, 16, 16, "dual")
    prompts = prompts_of([4, 7, 9, 12, 5, 8], 1)
    net = weights(1)
    table = calibration.calibrate(plain, net, [prompts], lambda n: None)
    decoder = fake_full_model.build(ONE, 6, 16, 16, "dual", draft=tree.tree(table))
    calls = [
        sum(row.nfe.total for row in generate(d, net, prompts).completions)
        for d in (plain, decoder)
    ]
    assert calls[1] < calls[0]


def test_a_tree_is_used_where_it_fits():
    config = fake_model.CONFIG
    table = same_everywhere(())
    known = {tree_table.table_key(config, 4, None): table}
    best = lambda policy, **more: tree.tree_or_nested(  # noqa: E731
        known, config, policy, block_length=4, **more
    )
    assert best(ONE) is tree.tree(table, 0.0)
    assert best(policies.static(2)) is nested
    known[tree_table.table_key(config, 4, None, 2)] = table
    assert best(policies.static(2)) is tree.tree(table, 0.0, 2)
    # Steps of two tokens are not ordered by what each draws.
    assert best(policies.static(2), temperature=0.7) is nested
    for other in (policies.threshold(0.9), policies.left_to_right(1)):
        assert best(other) is nested
    assert best(ONE, temperature=0.7) is tree.tree(table, 0.7)
    assert tree.tree_or_nested(known, config, ONE, block_length=8) is nested
    full = dataclasses.replace(fake_full_model.CONFIG, block_length=8)
    assert tree_table.table_key(full, None, None) == tree_table.table_key(
        full, 8, "dual"
    )


@pytest.mark.parametrize("name", ["sdar-1m", "llada-1m", "dream-1m"])
def test_demo_models_ship_with_their_tables(name):
    model = checkpoint.load(name)
    assert tree.tree_or_nested(model.tables, model.config, ONE) is not nested
    # Two tokens a step: under full attention alone is there an order worth a table.
    two = tree.tree_or_nested(model.tables, model.config, policies.static(2))
    assert (two is nested) == (name == "sdar-1m")


def test_the_command_line_calibrates_and_uses_it(run, tmp_path, demo_copy):
    options = ("--model", demo_copy, "--max-new-tokens", 16)
    code, out, _ = run("calibrate", *options, "--problems", 2)
    assert code == 0 and tree_table.TABLE_FILE in out
    (key,) = json.loads((demo_copy / tree_table.TABLE_FILE).read_text())["tables"]
    assert key == "static(1), block 4, exact"
    answers = [
        run("generate", "Tom has 2 pens.", *options, "--json", *more)
        for more in (("--draft", "tree"), ("--draft", "nested"))
    ]
    assert answers[0][0] == answers[1][0] == 0
    a, b = (json.loads(out) for _, out, _ in answers)
    assert a["token_ids"] == b["token_ids"]
    two = ("--tokens-per-step", 2, "--problems", 1)
    assert run("calibrate", *options, *two)[0] == 0
    names = sorted(
        json.loads((demo_copy / tree_table.TABLE_FILE).read_text())["tables"]
    )
    assert names == ["static(1), block 4, exact", "static(2), block 4, exact"]


def test_a_table_of_another_model_is_said_once_and_drafts_are_nested(
    run, demo_copy, caplog
):
    other = checkpoint.find_model("llada-1m")[1] / tree_table.TABLE_FILE
    shutil.copy(other, demo_copy / tree_table.TABLE_FILE)
    code, out, _ = run(
        "generate", "Tom has 2 pens.", "--model", demo_copy, "--max-new-tokens", 8
    )
    assert code == 0 and out
    assert caplog.text.count("is of another model") == 1
    assert "drafts are nested" in caplog.text


def test_int8_weights_are_calibrated_beside_the_floats(run, demo_copy, monkeypatch):
    def seen(decoder, params, batches, tick, tokens_per_step):
        return same_everywhere(
            (), edge=float(isinstance(params["embedding"], EightBit))
        )

    monkeypatch.setattr(calibration, "calibrate", seen)
    words = ("calibrate", "--model", demo_copy, "--max-new-tokens", 8, "--problems", 1)
    for more, key in (((), "exact"), (("--quantize", "int8"), "exact, int8")):
        code, out, _ = run(*words, *more)
        assert code == 0 and f"(static(1), block 4, {key})" in out
    for quantize, edge in ((None, 0.0), ("int8", 1.0)):
        found = checkpoint.load(demo_copy, quantize=quantize).tables
        assert found == {"static(1), block 4, exact": same_everywhere((), edge=edge)}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("calibrate", "--quantize", "int3"), "quantize='int3' is unknown"),
        (("calibrate", "--problems", 0), "problems=0"),
        (("calibrate", "--policy", "threshold:threshold=0.9"), "tables are for static"),
        (("calibrate", "--policy", "left_to_right"), "tables are for static"),
        (("calibrate", "--prompts", "missing.jsonl"), "missing.jsonl"),
        (("generate", "x", "--draft", "forest"), "draft='forest' is unknown"),
    ],
)
def test_bad_settings_are_one_line(run, words, says):
    code, out, err = run(*words)
    assert (code, out) == (2, "") and says in err
    assert err.count("\n") == 1 and "Traceback" not in err
