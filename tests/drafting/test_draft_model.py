"""A draft model: it keeps the text, remembers the accepted path, and can save calls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import fake_model
from helpers.fake_model import MASK, ROWS, STOP, capped, prompts_of, texts, weights

from jaxdave import policies
from jaxdave.core.draft_api import DraftedParams, DraftFn, draft_params
from jaxdave.drafting.draft_model import (
    DraftModelConfig,
    draft_model,
    init_draft_params,
    read_token,
)
from jaxdave.drafting.guesses import with_guesses
from jaxdave.drafting.nested import nested
from jaxdave.engine.generation import generate, prefill_prompts
from jaxdave.engine.streaming import stream

CONFIG = DraftModelConfig(vocab_rows=ROWS, mask_id=MASK, features=8)


def decoder_of(policy, **more):
    return fake_model.build(policy, 5, 4, 20, draft=draft_model(CONFIG), **more)


def params_of(salt, **variant):
    return DraftedParams(
        model=weights(salt, **variant), draft=init_draft_params(CONFIG, salt)
    )


@pytest.mark.parametrize(
    ("policy", "temperature"),
    [
        pytest.param(policies.static(1), 0.0, marks=pytest.mark.slow),
        (policies.threshold(0.3), 0.0),
        (policies.left_to_right(1), 1.0),
    ],
)
def test_any_draft_model_keeps_the_text(policy, temperature):
    decoder = decoder_of(policy, temperature=temperature)
    for salt in range(6):
        params, prompts = params_of(salt), prompts_of([5, 9, 30], salt)
        plain, tokens = fake_model.decode(capped(decoder, 1), params, prompts)
        drafted, others = fake_model.decode(decoder, params, prompts)
        assert texts(drafted) == texts(plain)
        np.testing.assert_array_equal(others, tokens)
        for a, b in zip(drafted.completions, plain.completions, strict=True):
            assert a.nfe.total <= b.nfe.total
        updates = stream(decoder, params, prompts[:1])
        assert (
            sum((update.token_ids for update in updates), ())
            == plain.completions[0].token_ids
        )


def test_the_memory_is_that_of_the_committed_tokens():
    """After a prefill it is what reading the committed prefix from nothing gives."""
    decoder, params = decoder_of(policies.left_to_right(1)), params_of(3)
    state = prefill_prompts(decoder, params, prompts_of([5, 12], 3))
    rows = jax.device_get(state.rows)
    for row in range(2):
        tokens = rows.tokens_T[row]
        length = int(np.flatnonzero(tokens == MASK)[0])
        hidden = jnp.zeros((CONFIG.features,))
        for token in tokens[:length]:
            hidden = read_token(params.draft, hidden, jnp.int32(token))
        assert rows.draft_memory.length[row] == length
        np.testing.assert_allclose(
            rows.draft_memory.hidden_F[row], hidden, rtol=1e-5, atol=1e-6
        )


def test_a_memory_follows_the_accepted_path_and_nothing_else():
    """A draft function counts its updates: one for every call of the row."""

    def update(params, memory, row):
        del params, row
        return memory + 1

    counting = nested._replace(init=lambda params, row: jnp.int32(0), update=update)
    decoder = fake_model.build(policies.static(1), 4, 4, 12, draft=counting)
    net, seen = weights(1), []
    with pytest.MonkeyPatch.context() as patch:
        from jaxdave.engine import generation

        real = generation.run_to_end

        def run_to_end(loop, params, state):
            final = loop.run(params, loop.runtime, state)
            seen.append(jax.device_get(final.rows.draft_memory))
            return real(loop, params, final)

        patch.setattr(generation, "run_to_end", run_to_end)
        result = generate(decoder, net, prompts_of([6], 1))
    # The last call's verify and the prefill each end with one update.
    assert int(seen[0]) == result.completions[0].nfe.total


def test_right_guesses_of_a_model_save_calls():
    """Guesses that are the answer itself, as sure as their parameters say."""
    decoder = fake_model.build(policies.left_to_right(1), 8, 4, 32)
    net, prompts = weights(3, fixed=2.0, context=6.0, stop=-64.0), prompts_of([9], 3)
    plain = generate(capped(decoder, 1), net, prompts).completions[0]
    answer = jnp.asarray([*plain.token_ids, *[STOP] * 64], jnp.int32)

    def guess(context):
        from jaxdave.drafting.guesses import TokenGuess

        row, size = context.row, context.open_L.shape[0]
        index_L = row.start + jnp.arange(size) - row.begin
        token_L = answer[jnp.clip(index_L, 0, answer.shape[0] - 1)]
        is_known_L = (index_L >= 0) & context.open_L
        token_L = jnp.where(is_known_L, token_L, -1)
        # Its own parameters say how sure it is.
        return TokenGuess(token_L, context.params)

    draft = with_guesses(nested, guess)._replace(takes_params=True)
    drafted = fake_model.build(policies.left_to_right(1), 8, 4, 32, draft=draft)
    params = DraftedParams(model=net, draft=jnp.float32(1e6))
    row = generate(drafted, params, prompts).completions[0]
    own = generate(decoder, net, prompts).completions[0]
    assert row.token_ids == plain.token_ids
    assert row.nfe.total < own.nfe.total


def test_parameters_that_do_not_fit_are_refused():
    decoder = decoder_of(policies.static(1))
    with pytest.raises(ValueError, match="takes parameters of its own") as error:
        generate(decoder, weights(0), [[1, 2]])
    assert "\n" not in str(error.value)
    plain = fake_model.build(policies.static(1), 2, 4, 8)
    with pytest.raises(ValueError, match="takes no parameters"):
        generate(plain, params_of(0), [[1, 2]])
    with pytest.raises(ValueError, match="memory or parameters"):
        draft_model(CONFIG, draft_model(CONFIG))
    assert draft_params(weights(0)) is None


@pytest.mark.parametrize("draft", [3, DraftFn(3), nested._replace(update=None)])  # type: ignore[arg-type]
def test_what_is_no_draft_function_is_refused_when_built(draft):
    with pytest.raises(ValueError, match=r"no draft function|is no function") as error:
        fake_model.build(policies.static(1), 2, 4, 8, draft=draft)
    assert "\n" not in str(error.value)
