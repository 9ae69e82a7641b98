"""A masked model of three tokens, small enough to enumerate whatever it can do.

Its logits are a table: a row of numbers for every partly masked canvas, position and
token. Nothing ties the rows to each other, so that orders disagree as much as they can.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

LENGTH, VOCAB, MASK = 3, 3, 3
SEQUENCES = np.array(list(itertools.product(range(VOCAB), repeat=LENGTH)), np.int32)
"""All 27 answers, int32 [27, 3]."""
ORDERS = tuple(itertools.permutations(range(LENGTH)))
"""All 6 step maps of one token a step."""
IS_ANSWER = jnp.ones(LENGTH, bool)
_BASE = (VOCAB + 1) ** np.arange(LENGTH, dtype=np.int32)


def table(seed: int, scale: float = 1.0) -> jax.Array:
    """Draw a model: float32 [states, 3, 3]."""
    shape = ((VOCAB + 1) ** LENGTH, LENGTH, VOCAB)
    return scale * jax.random.normal(jax.random.key(seed), shape)


def logits_of(params):
    """Make the `LogitsFn` of a table."""

    def logits(states_ST):
        return params[jnp.sum(states_ST * _BASE[None, :], axis=1)]

    return logits


def log_prob(params, state, position: int, token: int) -> float:
    """A token's log-probability in a state, by definition, float64."""
    row = np.asarray(params, np.float64)[int(np.sum(np.array(state) * _BASE)), position]
    return float(row[token] - np.log(np.sum(np.exp(row))))


def path_log_probs(params, tokens, steps) -> list[float]:
    """Each token's log-probability at its step, one by one."""
    found = []
    for place, step in enumerate(steps):
        pairs = zip(tokens, steps, strict=True)
        state = [token if before < step else MASK for token, before in pairs]
        found.append(log_prob(params, state, place, tokens[place]))
    return found


def path_log_prob(params, tokens, steps) -> float:
    """The sum of `path_log_probs`."""
    return sum(path_log_probs(params, tokens, steps))


def mean_over_orders(params, tokens) -> float:
    """The evidence lower bound, by its definition as a mean over all orders."""
    return float(np.mean([path_log_prob(params, tokens, order) for order in ORDERS]))


def subsets() -> list[tuple[bool, ...]]:
    """Every set of masked positions, the empty one included."""
    return list(itertools.product((False, True), repeat=LENGTH))
