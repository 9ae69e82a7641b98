"""Converted weights on a mesh: each device holds its part, the logits agree."""

import dataclasses

from helpers import checkpoint_folders, conversion_sources
from helpers.mesh_process import run_on_mesh
from jaxdave_convert.conversion import convert

MESH = """
import sys, jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, PartitionSpec as P
import jaxdave
from jaxdave.core.param_paths import leaves_by_path
from jaxdave.io.sharding import from_mesh
from jaxdave.models.forward import forward
from jaxdave.numerics.weight_layout import to_stacked
auto = (AxisType.Auto,) * 2
for folder in sys.argv[1:]:
    alone = jaxdave.load(folder)
    tokens = jnp.arange(32, dtype=jnp.int32)[None] * 20
    logits_of = jax.jit(forward(alone.config))
    whole_logits = logits_of(alone.params, tokens)
    small = jaxdave.load(folder, quantize="int8")
    int8_logits = logits_of(small.params, tokens)
    # The second mesh is as `jax.make_mesh` makes it by default, of Explicit axes.
    for shape, types in (((1, 8), auto), ((2, 4), None)):
        mesh = jax.make_mesh(shape, ("data", "model"), axis_types=types)
        split = jaxdave.load(folder, mesh=mesh)
        params = leaves_by_path(split.params)
        back = leaves_by_path(from_mesh(split.params, split.config))
        for name, leaf in leaves_by_path(to_stacked(alone.params)).items():
            np.testing.assert_array_equal(np.asarray(leaf), np.asarray(back[name]))
            assert len(params[name].sharding.device_set) == 8, name
        parts = shape[1]
        def part(name):
            return params[name].addressable_shards[0].data.shape
        assert part("blocks/attn/q/kernel") == (2, 16, 64 // parts)
        assert part("blocks/attn/o/kernel") == (2, 64 // parts, 16)
        assert part("blocks/mlp/down/kernel") == (2, 24 // parts, 16)
        assert part("embedding") == (784 // parts, 16)
        assert part("head") == (784 // parts, 16)
        assert part("norm/scale") == (16,)
        # Two heads of keys: each device has a copy of the one that its queries read.
        assert part("blocks/attn/k/kernel") == (2, 16, 8)
        logits = logits_of(split.params, tokens)
        assert np.abs(np.asarray(whole_logits) - np.asarray(logits)).max() < 1e-4
        rounded = jaxdave.load(folder, mesh=mesh, quantize="int8")
        params = leaves_by_path(rounded.params)
        for name in ("blocks/attn/q/kernel", "blocks/mlp/up/kernel", "embedding"):
            assert params[name + "/values"].dtype == jnp.int8
            before = leaves_by_path(split.params)[name].addressable_shards[0].data.shape
            assert part(name + "/values") == before
        assert part("blocks/attn/q/kernel/scale") == (2, 64 // parts)
        assert part("blocks/attn/k/kernel/scale") == (2, 8)
        # Channels that are cut across: every device needs all scales.
        assert part("blocks/attn/o/kernel/scale") == (2, 16)
        assert part("blocks/mlp/down/kernel/scale") == (2, 16)
        assert part("embedding/scale") == (784 // parts,)
        assert part("head/scale") == (784 // parts,)
        logits = logits_of(rounded.params, tokens)
        assert np.abs(np.asarray(int8_logits) - np.asarray(logits)).max() < 1e-4
        decoder = jaxdave.freedave(alone.config, draft_steps=4, max_new_tokens=8)
        said = [
            jaxdave.generate(decoder, model.params, [[5, 3, 8, 1]]).completions[0]
            for model in (alone, split)
        ]
        assert said[0].token_ids == said[1].token_ids
try:
    jaxdave.load(folder, mesh=jax.make_mesh((8,), ("x",), axis_types=auto[:1]))
except ValueError as error:
    assert "must include 'model'" in str(error)
else:
    raise AssertionError
"""


def test_loading_onto_a_mesh(tmp_path):
    """On 8 virtual devices: each holds its part, and the logits are the same."""
    config = dataclasses.replace(checkpoint_folders.CONFIG, heads=8)
    source = conversion_sources.make(tmp_path, config)
    convert(source, tmp_path / "ours")
    run_on_mesh(MESH, str(source), str(tmp_path / "ours"))
