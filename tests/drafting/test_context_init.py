# pyright: reportArgumentType=false
"""Context-aware initialisation: an answer written beforehand saves calls, not words."""

import pickle
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import fake_model
from helpers.fake_model import MASK, ROWS, capped, prompts_of, texts, weights

from jaxdave import policies
from jaxdave.core.draft_api import DraftedParams
from jaxdave.drafting.context_init import (
    GreedyText,
    Proposal,
    context_init,
    inject,
)
from jaxdave.drafting.draft_model import (
    DraftModelConfig,
    draft_model,
    init_draft_params,
    next_logits,
    read_token,
)
from jaxdave.engine.generation import generate

CONFIG = DraftModelConfig(vocab_rows=ROWS, mask_id=MASK, features=8)


def told(answer, row):
    """A proposal that is the parameters themselves, laid from the first position on."""
    index_T = jnp.arange(row.tokens_T.shape[0]) - row.begin
    is_inside_T = (index_T >= 0) & (index_T < answer.shape[0])
    token_T = answer[jnp.clip(index_T, 0, answer.shape[0] - 1)]
    certain_T = jnp.ones(index_T.shape)
    return Proposal(jnp.where(is_inside_T, token_T, -1), certain_T)


@pytest.mark.parametrize(
    ("policy", "temperature"),
    [
        (policies.cad(0.3), 0.0),
        (policies.left_to_right(1), 1.0),
    ],
)
def test_any_auxiliary_model_keeps_the_text(policy, temperature):
    draft = context_init(GreedyText(CONFIG), rate=0.7, seed=1)
    decoder = fake_model.build(policy, 5, 4, 20, draft=draft, temperature=temperature)
    for salt in range(3):
        params = DraftedParams(
            model=weights(salt), draft=init_draft_params(CONFIG, salt)
        )
        prompts = prompts_of([5, 9, 30], salt)
        plain, tokens = fake_model.decode(capped(decoder, 1), params, prompts)
        drafted, others = fake_model.decode(decoder, params, prompts)
        assert texts(drafted) == texts(plain)
        np.testing.assert_array_equal(others, tokens)
        for a, b in zip(drafted.completions, plain.completions, strict=True):
            assert a.nfe.total <= b.nfe.total


def test_a_right_answer_saves_calls_and_a_wrong_one_is_soon_distrusted():
    own = fake_model.build(policies.left_to_right(1), 6, 4, 20)
    net, prompts = weights(3, fixed=2.0, context=6.0, stop=-64.0), prompts_of([9], 3)
    plain = generate(own, net, prompts).completions[0]
    answer = np.array(plain.token_ids, np.int32)
    decoder = fake_model.build(
        policies.left_to_right(1), 6, 4, 20, draft=context_init(told)
    )

    def calls(tokens):
        params = DraftedParams(model=net, draft=jnp.asarray(tokens, jnp.int32))
        row = generate(decoder, params, prompts).completions[0]
        assert row.token_ids == plain.token_ids
        return row.nfe.total

    assert calls(answer) < plain.nfe.total
    assert calls(answer) < calls((answer + 1) % MASK)


def test_the_greedy_text_reads_the_prompt_and_then_itself():
    params = init_draft_params(CONFIG, 2)
    prompt = [3, 1, 4]
    row = types.SimpleNamespace(
        tokens_T=jnp.array([*prompt, *[MASK] * 4]), begin=jnp.int32(len(prompt))
    )
    proposal = jax.jit(lambda p: GreedyText(CONFIG)(p, row))(params)
    hidden, written, sure = jnp.zeros((CONFIG.features,)), [], []
    for token in prompt:
        hidden = read_token(params, hidden, jnp.int32(token))
    for _ in range(4):
        p = np.array(jax.nn.softmax(next_logits(params, hidden)))
        p[MASK] = 0
        written.append(int(p.argmax()))
        sure.append(p.max())
        hidden = read_token(params, hidden, jnp.int32(written[-1]))
    assert proposal.token_T.tolist() == [-1, -1, -1, *written]
    np.testing.assert_allclose(proposal.probability_T[3:], sure, rtol=1e-5)


def test_tokens_are_injected_at_the_rate_and_where_they_are_sure():
    token_T = jnp.arange(4000, dtype=jnp.int32)
    proposal = Proposal(token_T, jnp.where(token_T % 2 == 0, 0.9, 0.4))
    key = jax.random.PRNGKey(0)
    kept = np.asarray(inject(proposal, key, rate=0.3, min_probability=0.5).token_T)
    assert set(kept) <= {-1, *range(0, 4000, 2)}
    assert abs(np.mean(kept[::2] >= 0) - 0.3) < 0.05
    whole = inject(proposal, key, rate=1.0, min_probability=0.0)
    np.testing.assert_array_equal(whole.token_T, token_T)
    assert not (inject(proposal, key, rate=0.0, min_probability=0.0).token_T >= 0).any()


def test_bad_settings_are_refused_and_the_draft_function_pickles():
    for name in ("rate", "min_probability"):
        with pytest.raises(ValueError, match=f"{name}=1.5 must be in 0..1"):
            context_init(GreedyText(CONFIG), **{name: 1.5})
    with pytest.raises(ValueError, match="memory or parameters"):
        context_init(GreedyText(CONFIG), draft_model(CONFIG))
    draft = context_init(GreedyText(CONFIG), min_probability=0.5)
    assert pickle.loads(pickle.dumps(draft)) == draft
