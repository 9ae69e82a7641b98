"""How a model is split: laws of the parts, of their shapes and of what is said."""

import dataclasses
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdave.core.param_paths import leaves_by_path
from jaxdave.core.shards import (
    local_config,
    mesh_kv_heads,
    model_shards,
    replicated_parts,
    splits_attention,
)
from jaxdave.io.device_memory import check_fits, weight_bytes
from jaxdave.io.sharding import mesh_structs, part_shapes, shardings
from jaxdave.models.param_shapes import param_shapes
from jaxdave.models.presets import preset
from jaxdave.numerics.quantization import quantize_params
from jaxdave.runtime.mesh_shape import MeshShape, parse_mesh
from jaxdave.runtime.meshes import make_mesh
from jaxdave.sampling.noise import gumbel, gumbel_of_ids

SMALL = preset("sdar-1m", num_layers=1)


@hypothesis.given(
    kv_heads=st.sampled_from([1, 2, 3, 4, 8]),
    group=st.sampled_from([1, 2, 3, 4, 8]),
    count=st.integers(2, 16),
)
def test_every_query_head_finds_its_keys(kv_heads, group, count):
    """Of the heads that a device has, each query head reads its own keys' copy."""
    heads = kv_heads * group
    config = dataclasses.replace(SMALL, heads=heads, kv_heads=kv_heads)
    if not splits_attention(config, count):
        assert heads % count
        assert "attention is replicated" in replicated_parts(config, count)
        return
    total = mesh_kv_heads(config, count)
    # Copies lie side by side, as `io.sharding` makes them.
    kept = np.repeat(np.arange(kv_heads), total // kv_heads)
    own = local_config(config, count)
    assert own.heads * count == heads and own.kv_heads * count == total
    for head in range(heads):
        device, local = divmod(head, own.heads)
        local_kv = local // (own.heads // own.kv_heads)
        assert kept[device * own.kv_heads + local_kv] == head // group
    # No copies where the model's own heads divide.
    if kv_heads % count == 0:
        assert total == kv_heads


@hypothesis.given(rows=st.integers(1, 300), count=st.integers(1, 16))
def test_every_id_has_one_device(rows, count):
    """Devices have equally many rows, and together at least one for each id."""
    shards = model_shards(SMALL, count, "model")
    size = shards.vocab_rows(rows)
    assert size * count >= rows > size * count - count


@pytest.mark.parametrize("rows", [100, 8192, 20_000])
def test_noise_of_a_part_is_that_of_the_whole(rows):
    """Wherever a device's ids begin, their noise is what one device draws."""
    key_R = jnp.stack([jax.random.PRNGKey(1), jax.random.PRNGKey(2)])
    chunk = min(rows, 8192)
    parts = [gumbel(key_R, jnp.int32(i), chunk) for i in range(-(-rows // chunk))]
    whole = np.concatenate(parts, axis=1)[:, :rows]
    for first, size in ((0, rows // 3), (rows // 3, rows // 2), (rows - 7, 7)):
        part = gumbel_of_ids(key_R, jnp.int32(first), size, rows)
        np.testing.assert_array_equal(part, whole[:, first : first + size])


@pytest.mark.parametrize("quantize", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 8])
def test_parts_are_of_equal_shape(count, quantize):
    """What is split divides, and a device's part is what the shardings say."""
    config = dataclasses.replace(SMALL, vocab_rows=833, heads=8, kv_heads=2)
    shapes = param_shapes(config)
    if quantize:
        shapes = jax.eval_shape(quantize_params, shapes)
    auto = (jax.sharding.AxisType.Auto,)
    mesh: Any = jax.sharding.AbstractMesh((count,), ("model",), axis_types=auto)
    parts = leaves_by_path(part_shapes(shapes, config, count))
    wholes = leaves_by_path(mesh_structs(shapes, config, mesh))
    assert parts.keys() == wholes.keys()
    for path, whole in wholes.items():
        assert parts[path].shape == whole.sharding.shard_shape(whole.shape), path


def test_what_does_not_divide_is_said():
    """One line names what is replicated or kept as copies, and nothing else."""
    assert replicated_parts(SMALL, 1) == replicated_parts(SMALL, 2) == ""
    assert replicated_parts(SMALL, 4) == "2 key/value heads are kept as 4 with copies"
    odd = replicated_parts(dataclasses.replace(SMALL, inter=385), 3)
    assert "3 devices do not divide its 4 heads" in odd
    assert "3 devices do not divide their 385 features" in odd


@pytest.mark.parametrize(
    "text", ["", "model", "model=0", "x=2", "model=2,model=2", "data=-1", "data=a"]
)
def test_no_mesh(text):
    """What is no mesh is refused in one line that shows one."""
    with pytest.raises(ValueError, match="such as data=2,model=4") as error:
        parse_mesh(text)
    assert "\n" not in str(error.value)


@hypothesis.given(data=st.integers(1, 64), model=st.integers(1, 64))
def test_mesh_text_round_trip(data, model):
    """A shape is read back from its text, whatever parts the axes."""
    shape = MeshShape(data=data, model=model)
    assert parse_mesh(str(shape)) == shape
    assert parse_mesh(f"model={model} ; data={data}") == shape


def test_too_few_devices():
    """A mesh of more devices than there are says how many there are."""
    with pytest.raises(ValueError, match="needs 4096 devices, and there are"):
        make_mesh(MeshShape(data=64, model=64))


def test_mesh_without_axes():
    """A mesh on which nothing would be split is refused."""
    mesh = jax.make_mesh((1,), ("x",))
    with pytest.raises(ValueError, match="must include 'model'"):
        shardings(param_shapes(SMALL), SMALL, mesh)


def test_model_too_large_for_a_device():
    """The error says by how much, and what would fit."""
    config = preset("sdar-4b")
    whole = weight_bytes(config, "bfloat16", None, 1)
    assert weight_bytes(config, "bfloat16", None, 4) < whole / 4 * 1.001
    check_fits(config, "bfloat16", None, 1, whole)
    with pytest.raises(ValueError) as error:
        check_fits(config, "bfloat16", None, 1, whole - 10**9)
    message = str(error.value)
    assert "1.0 GB too much" in message and "\n" not in message
    assert "quantize='int8'" in message and "mesh='model=2'" in message
    with pytest.raises(ValueError, match="use a smaller model"):
        check_fits(config, "bfloat16", None, 1, 1000)
