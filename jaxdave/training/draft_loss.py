"""The loss of a draft model: how well it tells the next token of a model's own texts.

A draft model is right where the large model commits the token that it guessed, so the
texts are those that the large model has decoded (distillation to hard tokens), read
with teacher forcing.

Axes: B texts, T positions, F features, G inputs of the gates (3 F), V
rows of the vocabulary.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdave.drafting.draft_model import next_logits, read_input, token_input


class Texts(NamedTuple):
    """Texts that a draft model learns from, padded to one length.

    Attributes:
        tokens_BT: Prompts, each with its answer and end token, padded with any id,
            int32 [B, T].
        is_answer_BT: True at the tokens that the draft model has to guess, bool [B, T].
            The first position of a text has nothing before it and never counts.
    """

    tokens_BT: Any
    is_answer_BT: Any

    def take(self, index_B: np.ndarray) -> "Texts":
        """Some of the texts, int [B]."""
        return Texts(self.tokens_BT[index_B], self.is_answer_BT[index_B])


def pad_texts(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> Texts:
    """Pad prompts and their answers to one length.

    Args:
        prompts: Token ids.
        answers: Token ids of the answer to each prompt, with the end token if the draft
            model is to guess that too.

    Returns:
        The texts, as host arrays.
    """
    rows = list(zip(prompts, answers, strict=True))
    length = max(len(prompt) + len(answer) for prompt, answer in rows)
    tokens_BT = np.zeros((len(rows), length), np.int32)
    is_answer_BT = np.zeros((len(rows), length), bool)
    for row, (prompt, answer) in enumerate(rows):
        total = len(prompt) + len(answer)
        tokens_BT[row, :total] = [*prompt, *answer]
        is_answer_BT[row, len(prompt) : total] = True
    return Texts(tokens_BT, is_answer_BT)


def draft_loss(params: dict[str, jax.Array], texts: Texts) -> jax.Array:
    """Mean cross entropy of the next token, over the tokens of the answers.

    Args:
        params: Parameters of a draft model (`draft_model.init_draft_params`).
        texts: The texts, B of them.

    Returns:
        Nats per token, float32; 0 if nothing counts.

    Example:
        >>> from jaxdave.drafting.draft_model import DraftModelConfig
        >>> from jaxdave.drafting.draft_model import init_draft_params
        >>> params = init_draft_params(DraftModelConfig(12, 11, 4), seed=0)
        >>> texts = pad_texts([[1, 2]], [[3, 4]])
        >>> loss, grads = jax.value_and_grad(draft_loss)(params, texts)
        >>> bool(loss > 0)
        True
    """
    tokens_TB = texts.tokens_BT.T
    weight_TB = texts.is_answer_BT.T[1:].astype(jnp.float32)

    def read(hidden_BF, input_BG):
        hidden_BF = read_input(params, hidden_BF, input_BG)
        return hidden_BF, hidden_BF

    empty_BF = jnp.zeros((tokens_TB.shape[1], params["hidden"].shape[0]))
    # All inputs in one product, as they do not depend on what was read before.
    input_TBG = token_input(params, tokens_TB[:-1])
    _, hidden_TBF = jax.lax.scan(read, empty_BF, input_TBG)
    logits_TBV = next_logits(params, hidden_TBF)
    nats_TB = optax.softmax_cross_entropy_with_integer_labels(logits_TBV, tokens_TB[1:])
    return jnp.sum(nats_TB * weight_TB) / jnp.maximum(jnp.sum(weight_TB), 1.0)
