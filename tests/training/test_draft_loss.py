"""The loss of a draft model, against the same numbers token by token."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdave.drafting.draft_model import (
    DraftModelConfig,
    init_draft_params,
    next_logits,
    read_token,
)
from jaxdave.training.draft_loss import Texts, draft_loss, pad_texts

CONFIG = DraftModelConfig(vocab_rows=12, mask_id=11, features=4)
PROMPTS, ANSWERS = [[1, 2, 3], [4]], [[5, 6], [7, 8, 9]]


def test_texts_are_padded_and_their_answers_marked():
    tokens_BT, is_answer_BT = pad_texts(PROMPTS, ANSWERS)
    assert tokens_BT.tolist() == [[1, 2, 3, 5, 6], [4, 7, 8, 9, 0]]
    assert is_answer_BT.astype(int).tolist() == [[0, 0, 0, 1, 1], [0, 1, 1, 1, 0]]
    some = pad_texts(PROMPTS, ANSWERS).take(np.array([1, 1]))
    assert some.tokens_BT.tolist() == [[4, 7, 8, 9, 0]] * 2


def test_the_loss_is_that_of_reading_token_by_token():
    params = init_draft_params(CONFIG, 0)
    nats = []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        hidden, text = jnp.zeros((4,)), [*prompt, *answer]
        for place, token in enumerate(text[:-1]):
            hidden = read_token(params, hidden, jnp.int32(token))
            if place + 1 >= len(prompt):
                log_p = jax.nn.log_softmax(next_logits(params, hidden))
                nats.append(-float(log_p[text[place + 1]]))
    loss = draft_loss(params, pad_texts(PROMPTS, ANSWERS))
    np.testing.assert_allclose(loss, np.mean(nats), rtol=1e-5)


def test_nothing_to_guess_is_no_loss():
    params = init_draft_params(CONFIG, 0)
    texts = Texts(np.ones((2, 3), np.int32), np.zeros((2, 3), bool))
    assert float(draft_loss(params, texts)) == 0.0
