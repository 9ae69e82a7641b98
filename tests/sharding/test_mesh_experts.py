"""Mixtures of experts on meshes of virtual devices: the texts of one device."""

import pytest
from helpers.mesh_process import run_on_mesh

SAME_TEXTS = """
import dataclasses, sys
import jaxdave
from jaxdave.core.experts_config import ExpertsConfig
from jaxdave.core.param_paths import leaves_by_path
from jaxdave.io.sharding import from_mesh, put_on_mesh
from jaxdave.models import transformer
from jaxdave.models.presets import preset
from jaxdave.numerics.quantization import quantize_params

numerics, temperature, quantize = sys.argv[1:4]
shape = tuple(map(int, sys.argv[4:]))
experts = ExpertsConfig(
    count=8, per_token=3, inter=12, shared_inter=12, score="sigmoid", bias="choice",
    groups=4, kept_groups=2, renormalize=True, scale=2.5, dense_layers=1,
)
changes = dict(num_layers=3, hidden=32, inter=48, vocab_rows=101, vocab_size=99)
changes |= dict(mask_id=98, pad_id=97, stop_ids=(96,), head_dim=8, rotary_dim=8)
config = preset("sdar-1m", family="llada2", experts=experts, **changes)
params = transformer.init(config, seed=3)
params = jax.tree.map(lambda a: a * 6 + 0.01 if a.ndim > 1 else a, params)
if quantize != "none":
    params = quantize_params(params, quantize)
host = jax.tree.map(np.asarray, params)
rng = np.random.default_rng(0)
prompts = [rng.integers(0, 90, n).tolist() for n in (5, 9, 3)]
settings = dict(max_new_tokens=8, temperature=float(temperature), draft_steps=4)
decoder = jaxdave.freedave(config, numerics=numerics, **settings)

def texts(decoder, params):
    completions = jaxdave.generate(decoder, params, prompts, seed=5).completions
    return [one.token_ids for one in completions]

size = shape[0] * shape[1] * shape[2]
names = ("data", "model", "expert")
mesh = jax.make_mesh(shape, names, devices=jax.devices()[:size])
split = put_on_mesh(host, config, mesh)
up = jax.tree.leaves(split["blocks"]["mlp"]["experts"]["up"]["kernel"])[0]
assert up.sharding.shard_shape(up.shape)[1] == 8 // shape[2]
back = leaves_by_path(from_mesh(split, config))
for name, leaf in leaves_by_path(host).items():
    np.testing.assert_array_equal(leaf, np.asarray(back[name]), err_msg=name)
drafted = texts(decoder, split)
assert drafted == texts(decoder.undrafted(), split)
if shape[1] == 1:
    assert drafted == texts(decoder, params)
"""


def test_experts_of_their_own():
    """Two devices with half of the experts each, and two groups of rows."""
    run_on_mesh(SAME_TEXTS, "exact", "0.7", "none", "2", "1", "2")


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        ("exact", "0", "none", "1", "1", "4"),
        ("exact", "0", "int8", "1", "1", "2"),
        ("exact", "0.7", "none", "1", "2", "2"),
        ("fast", "0", "none", "1", "1", "2"),
    ],
    ids=" ".join,
)
def test_other_meshes(case):
    """Four parts, 8 bits, beside a split of all else, and without exact numerics."""
    run_on_mesh(SAME_TEXTS, *case)
