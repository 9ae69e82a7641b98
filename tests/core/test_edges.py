"""Laws at their edges: batches, buckets, streams, ends, full windows, odd drafts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import fake_model, oracle
from helpers.fake_model import (
    MASK,
    SIZE,
    STOP,
    VARIANTS,
    build,
    capped,
    prompts_of,
    texts,
    weights,
)

from jaxdave import policies
from jaxdave.core.draft_api import DraftSet
from jaxdave.drafting import nested
from jaxdave.engine import decoders
from jaxdave.engine.generation import generate
from jaxdave.engine.streaming import partial_answer, snapshots, stream

NOISY = {"temperature": 0.7, "top_k": 5}


@pytest.mark.parametrize(
    ("policy", "drafts", "length"),
    [
        pytest.param(policies.threshold(0.0), 3, 4, marks=pytest.mark.slow),
        (policies.static(4), 9, 4),
        (policies.threshold(0.0), 4, 32),
    ],
    ids=["threshold", "static", "threshold-long"],
)
def test_drafts_may_fill_the_whole_window(policy, drafts, length):
    room = max(40, 5 * length)
    decoder = build(policy, drafts, length, room, temperature=1.0)
    prompts, net = prompts_of([5, 8, 3]), weights(1, **VARIANTS["fixed"])
    plain = generate(capped(decoder, 1), net, prompts)
    quicker = generate(decoder, net, prompts)
    assert [row.steps for row in quicker.completions] == [
        row.steps for row in plain.completions
    ]
    assert texts(quicker) == texts(plain)
    assert all(sum(row.accepted) == row.steps - 1 for row in quicker.completions)


@pytest.mark.parametrize(
    ("drafts", "length"),
    [
        pytest.param(1, 4, marks=pytest.mark.slow),
        (5, 1),
        pytest.param(8, 4, marks=pytest.mark.slow),
        pytest.param(3, 8, marks=pytest.mark.slow),
        (16, 32),
    ],
)
def test_calls_have_a_formula(drafts, length):
    decoder = build(policies.static(1), drafts, length, 37)
    prompts = prompts_of([1, 12, 30])
    for variant in ("fixed", "ties"):
        net = weights(5, **VARIANTS[variant])
        for cap in {1, 2, drafts}:
            cap = min(cap, drafts)
            rows = generate(capped(decoder, cap), net, prompts).completions
            for prompt, row in zip(prompts, rows, strict=True):
                # A token a step, to the end of the block of the last one.
                end = -(-(len(prompt) + 37) // length) * length
                steps = end - len(prompt)
                assert row.steps == steps
                assert row.nfe.prefill == 1
                assert row.nfe.total == 1 + -(-(steps - 1) // cap)


@pytest.fixture(scope="module")
def noisy():
    """A decoder at a temperature, and what it says to a batch."""
    decoder = build(policies.static(1), 8, 4, 16, **NOISY)
    prompts = prompts_of([4, 16, 8], 9, MASK)
    said = texts(generate(decoder, weights(2), prompts, seed=1))
    return decoder, prompts, said


def test_plain_decoding_in_its_own_shape(noisy):
    _, prompts, said = noisy
    plain = build(policies.static(1), 1, 4, 16, **NOISY)
    result = generate(plain, weights(2), prompts, seed=1)
    assert texts(result) == said
    assert all(row.nfe.total == row.steps == 16 for row in result.completions)


def test_a_row_alone_says_the_same(noisy):
    decoder, prompts, said = noisy
    for prompt, row in zip(prompts, said, strict=True):
        assert texts(generate(decoder, weights(2), [prompt], seed=1)) == [row]


def test_a_longer_bucket_changes_nothing(noisy):
    decoder, prompts, said = noisy
    longer = [*prompts[:2], prompts_of([150])[0]]
    assert texts(generate(decoder, weights(2), longer, seed=1))[:2] == said[:2]


def test_more_room_only_extends(noisy):
    _, prompts, said = noisy
    roomy = build(policies.static(1), 8, 4, 32, **NOISY)
    for row, short in zip(
        generate(roomy, weights(2), prompts, seed=1).completions, said, strict=True
    ):
        assert len(row.token_ids) == 32
        assert row.token_ids[:16] == short[0]


@pytest.mark.parametrize("variant", ["table", "stops"])
def test_a_stream_says_the_same(noisy, variant):
    decoder, prompts, _ = noisy
    net = weights(2, **VARIANTS[variant])
    result = generate(decoder, net, prompts, seed=1)
    said: list[list[int]] = [[] for _ in prompts]
    last_call = [0] * len(prompts)
    for update in stream(decoder, net, prompts, seed=1):
        row = update.row
        begin = len(prompts[row]) + len(said[row])
        assert update.positions == tuple(range(begin, begin + len(update.token_ids)))
        assert update.call >= last_call[row]
        said[row].extend(update.token_ids)
        last_call[row] = update.call
    assert [tuple(ids) for ids in said] == [row.token_ids for row in result.completions]
    assert all(
        call <= row.nfe.verify
        for call, row in zip(last_call, result.completions, strict=True)
    )


@pytest.mark.parametrize("variant", ["table", "stops"])
def test_snapshots_show_every_call(noisy, variant):
    decoder, prompts, _ = noisy
    net = weights(2, **VARIANTS[variant])
    rows = generate(decoder, net, prompts, seed=1).completions
    calls = snapshots(decoder, net, prompts, seed=1)
    seen = list(calls)
    assert [one.call for one in seen] == list(range(len(seen)))
    assert [bool(one.done_B.all()) for one in seen] == [False] * (len(seen) - 1) + [
        True
    ]
    for row, (prompt, completion) in enumerate(zip(prompts, rows, strict=True)):
        tokens_CT = np.stack([one.tokens_BT[row] for one in seen])
        for at, (token, call) in enumerate(
            zip(completion.token_ids, completion.committed_at, strict=True), len(prompt)
        ):
            # Masked until the call that committed it, and the token from then on.
            history = [MASK] * call + [token] * (len(seen) - call)
            assert tokens_CT[:, at].tolist() == history
        partial = [partial_answer(decoder, one, len(prompt), row) for one in seen]
        for one, tokens_T in zip(partial, tokens_CT, strict=True):
            known, both = len(one.final_ids), one.final_ids + one.open_ids
            end = len(prompt) + len(both)
            assert one.final_ids == completion.token_ids[:known]
            assert both == tuple(tokens_T[len(prompt) : end])
            if one.open_ids:
                # From the first mask to the end of its block, or to an end token.
                assert one.open_ids[0] == MASK and STOP not in one.open_ids
                is_cut = tokens_T[end] == STOP or len(both) == decoder.max_new_tokens
                assert is_cut or end % decoder.spec.layout.block_length == 0
        assert partial[-1] == (completion.token_ids, ())
        assert any(one.open_ids for one in partial)
    ended = [calls.completion(row) for row in range(len(prompts))]
    assert [one.token_ids for one in ended] == [one.token_ids for one in rows]
    assert [one.committed_at for one in ended] == [one.committed_at for one in rows]


def test_an_end_token_waits_for_masks_on_its_left():
    decoder, waited = build(policies.static(1), 8, 8, 40), 0
    for salt in range(12):
        net = weights(salt, **VARIANTS["stops"])
        prompts = prompts_of([3, 14, 21], salt, MASK)
        for row, prompt in zip(
            generate(decoder, net, prompts).completions, prompts, strict=True
        ):
            want = oracle.oracle(net, prompt, 40, 8, "static(1)")
            assert row.token_ids == want.token_ids
            assert row.finish_reason == want.finish_reason
            assert all(0 <= call <= row.nfe.verify for call in row.committed_at)
            waited += want.waited and want.finish_reason == "stop"
    assert waited > 5


def test_stop_ids_in_a_prompt_end_nothing(noisy):
    decoder = noisy[0]
    prompts = [[STOP] * 3, [1, STOP], [STOP, STOP, 2, 3, STOP]]
    for row in generate(decoder, weights(0), prompts).completions:
        assert (row.finish_reason, len(row.token_ids)) == ("length", 16)


@pytest.mark.parametrize("room", [1, pytest.param(2, marks=pytest.mark.slow), 3])
def test_more_drafts_than_masks(room):
    decoder = build(policies.static(1), 32, 4, room)
    net, prompts = weights(4), prompts_of([4, 6, 7])
    result, canvases = fake_model.decode(decoder, net, prompts)
    for row, prompt, canvas in zip(result.completions, prompts, canvases, strict=True):
        want = oracle.oracle(net, prompt, room, 4, "static(1)")
        assert row.token_ids == want.token_ids
        assert (canvas[len(want.canvas) :] == MASK).all()


def wild(outlook, first, budget):
    """Nested drafts spoiled: repeated, shuffled, half of them wrong, depths astray."""
    good = nested.propose_nested(outlook, first, budget)
    key = jax.random.fold_in(jax.random.PRNGKey(0), first.policy_state.n)
    noise = jax.random.randint(key, good.tokens_KNL.shape, 0, SIZE, jnp.int32)
    open_L = good.tokens_KNL[0] == MASK
    spoiled = jnp.where(open_L[None] & (noise % 5 == 0), noise, good.tokens_KNL)
    order = jnp.arange(budget) // 2 * 2
    third = (jnp.arange(budget) % 3 == 0)[:, None, None]
    tokens = jnp.where(third, spoiled, good.tokens_KNL)
    depth = jnp.where(jnp.arange(budget) % 4 == 3, 1, good.depth_K[order])
    return DraftSet(
        tokens[order].at[0].set(good.tokens_KNL[0]),
        depth.at[0].set(0),
        good.valid_K[order].at[0].set(True),
        good.worth_K,
    )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_draft_function_can_change_the_text(temperature):
    policy = policies.threshold(0.3)
    decoder = build(policy, 8, 4, 24, temperature=temperature, draft=wild)
    for salt, variant in enumerate(sorted(VARIANTS)):
        net, prompts = weights(salt, **VARIANTS[variant]), prompts_of([5, 12, 3], salt)
        plain = generate(capped(decoder, 1), net, prompts)
        assert texts(generate(decoder, net, prompts)) == texts(plain)
        if temperature == 0:
            for row, prompt in zip(plain.completions, prompts, strict=True):
                want = oracle.oracle(net, prompt, 24, 4, policy.name)
                assert row.token_ids == want.token_ids


@pytest.mark.parametrize(
    ("policy", "drafts", "length", "sampling"),
    [
        pytest.param(policies.static(1), 8, 4, {}, marks=pytest.mark.slow),
        pytest.param(policies.threshold(0.3), 5, 8, {}, marks=pytest.mark.slow),
        (policies.static(1), 8, 4, {"temperature": 1.0, "top_k": 5}),
    ],
    ids=["static", "threshold", "sampled"],
)
def test_tiny_transformers_keep_their_text(policy, drafts, length, sampling):
    decoder = decoders.freedave(
        fake_model.TINY, policy, draft_steps=drafts, block_length=length,
        max_new_tokens=24, numerics="exact", **sampling,
    )  # fmt: skip
    prompts, saved = prompts_of([5, 18, 9], 1, 30), 0
    for seed in range(6):
        params = fake_model.tiny_params(seed)
        plain, canvases = fake_model.decode(capped(decoder, 1), params, prompts)
        for cap in (3, drafts):
            result, others = fake_model.decode(capped(decoder, cap), params, prompts)
            assert texts(result) == texts(plain)
            assert (canvases == others).all()
        for a, b in zip(result.completions, plain.completions, strict=True):
            assert a.nfe.total <= b.nfe.total == b.steps
            assert all(0 <= i < 36 for i in a.token_ids)
            saved += b.nfe.total - a.nfe.total
        alone = generate(decoder, params, prompts[1:2])
        assert texts(alone) == texts(plain)[1:2]
    assert saved > 0
