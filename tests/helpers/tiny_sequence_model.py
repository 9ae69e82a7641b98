"""A network of one layer over a training sequence, small enough for differences."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdave.training.objective.attention_masks import visibility

VOCAB, WIDTH, POSITIONS = 17, 4, 12


def tiny_params(rng: np.random.Generator):
    shapes = {
        "embedding": (VOCAB, WIDTH),
        "position": (POSITIONS, WIDTH),
        "query": (WIDTH, WIDTH),
        "key": (WIDTH, WIDTH),
        "value": (WIDTH, WIDTH),
        "head": (WIDTH, VOCAB),
    }
    return {name: jnp.asarray(rng.normal(size=s)) for name, s in shapes.items()}


def tiny_logits(params, tokens_BQ, layout, source_BC):
    x = params["embedding"][tokens_BQ] + params["position"][layout.position_BQ]
    q, k, v = (x @ params[name] for name in ("query", "key", "value"))
    scores = jnp.where(visibility(layout), q @ jnp.swapaxes(k, 1, 2), -1e9)
    x = jnp.tanh(x + jax.nn.softmax(scores) @ v)
    return jnp.take_along_axis(x @ params["head"], source_BC[..., None], axis=1)
