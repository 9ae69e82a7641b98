"""Decoding on meshes of virtual devices: the same texts, whatever the mesh."""

from helpers.mesh_process import run_on_mesh

SAME_TEXTS = """
import dataclasses, pickle, sys
import jaxdave
from jaxdave.core.param_paths import leaves_by_path
from jaxdave.io.sharding import from_mesh, put_on_mesh
from jaxdave.models import transformer
from jaxdave.models.presets import preset

kind, numerics, temperature = sys.argv[1:4]
shape = tuple(map(int, sys.argv[4:]))
changes = dict(num_layers=2, hidden=32, inter=96, vocab_rows=101, vocab_size=99)
changes |= dict(mask_id=98, pad_id=97, stop_ids=(96,), head_dim=8, rotary_dim=8)
# Six query heads that share two of keys: copies over 2 and 6, replicated over 4.
changes |= dict(heads=6, kv_heads=2, qkv_bias=True, o_bias=True)
if kind == "full":
    changes |= dict(attention="full", logits_shift="full", tie_embeddings=True)
config = preset("sdar-1m", **changes)
params = transformer.init(config, seed=3)
params = jax.tree.map(lambda a: a * 6 + 0.01 if a.ndim > 1 else a, params)
host = jax.tree.map(np.asarray, params)
rng = np.random.default_rng(0)
prompts = [rng.integers(0, 90, n).tolist() for n in (5, 9, 3)]
settings = dict(max_new_tokens=8, temperature=float(temperature), draft_steps=4)
decoder = jaxdave.freedave(config, numerics=numerics, **settings)

def texts(decoder, params):
    completions = jaxdave.generate(decoder, params, prompts, seed=5).completions
    return [one.token_ids for one in completions]

# As `jax.make_mesh` makes it by default, of Explicit axes.
size = shape[0] * shape[1]
mesh = jax.make_mesh(shape, ("data", "model"), devices=jax.devices()[:size])
split = put_on_mesh(host, config, mesh)
back = leaves_by_path(from_mesh(split, config))
for name, leaf in leaves_by_path(host).items():
    np.testing.assert_array_equal(leaf, np.asarray(back[name]), err_msg=name)
drafted = texts(decoder, split)
if numerics == "guarded":
    assert drafted == texts(decoder, params)
    # Without drafts it is another program.
    decoder = jaxdave.freedave(config, **settings | {"draft_steps": 1})
assert drafted == texts(decoder.undrafted(), split)
"""


def test_block_causal():
    """Rows and ids that do not divide change nothing, at a temperature as well."""
    run_on_mesh(SAME_TEXTS, "block", "guarded", "0.7", "2", "2")


def test_full_attention():
    """Under full attention, with shifted logits, a tied head and whole attention."""
    run_on_mesh(SAME_TEXTS, "full", "guarded", "0", "1", "4")


def test_exact():
    """Under exact numerics drafts change nothing, with copies of keys as well."""
    run_on_mesh(SAME_TEXTS, "block", "exact", "0", "1", "6")
