"""What decodes on meshes: streams, compaction, programs on disk, and measurements."""

from helpers.mesh_process import run_on_mesh

MODELS = """
import jaxdave

alone = jaxdave.load("sdar-1m")
split = jaxdave.load("sdar-1m", mesh="data=2,model=2")
assert split.params["head"].sharding.shard_shape((832, 128)) == (416, 128)
codec, config = alone.codec, alone.config
"""

DECODES = """
import pickle
from jaxdave.engine import compaction
from jaxdave.engine.streaming import snapshots
from jaxdave.runtime import program_cache

names = ("Mia has 3 pens. She buys 4 more pens. How many pens does Mia have now?",
         "How many?", "Tom has 2 cups. How many cups does Tom have?")
prompts = [codec.encode_prompt(name) for name in names]
decoder = jaxdave.freedave(config, draft_steps=4, max_new_tokens=16)
result = jaxdave.generate(decoder, alone.params, prompts)
expected = [one.token_ids for one in result.completions]

# Rows leave a batch whose loop is too large for them: [2 groups, 2 rows] -> [2, 1].
compaction.MIN_WAIT_COMPILE = 0.0
moved = []
real = compaction._compile_smaller
def compile_smaller(*args):
    moved.append(args[3])
    return real(*args)
compaction._compile_smaller = compile_smaller
compaction.idle_account = lambda loop: compaction.IdleAccount(idle_seconds=1.0)
result = jaxdave.generate(decoder, split.params, prompts)
assert [c.token_ids for c in result.completions] == expected
assert moved == [1], moved

# Token by token, and as a model of one device again.
updates = list(jaxdave.stream(decoder, split.params, prompts))
for row, ids in enumerate(expected):
    streamed = [t for u in updates if u.row == row for t in u.token_ids]
    assert tuple(streamed) == tuple(ids), row
*_, last = snapshots(decoder, split.params, prompts)
assert last.tokens_BT.shape[0] == last.done_B.shape[0] == 3
copy = pickle.loads(pickle.dumps(split))
one = jaxdave.generate(decoder, copy.params, prompts[:1]).completions[0]
assert one.token_ids == expected[0]

# Programs are kept on disk: another decoder of the same parts compiles nothing.
names = program_cache.used_names()
assert len(names) >= 2, names
"""

FROM_DISK = """
import jaxdave
from jaxdave.engine import generation
from jaxdave.runtime import compilation

def refuse(*args):
    raise AssertionError("a program was compiled")

split = jaxdave.load("sdar-1m", mesh="data=2,model=2")
decoder = jaxdave.freedave(split.config, draft_steps=4, max_new_tokens=16)
prompts = [split.codec.encode_prompt(text) for text in (
    "Mia has 3 pens. She buys 4 more pens. How many pens does Mia have now?",
    "How many?", "Tom has 2 cups. How many cups does Tom have?")]
compilation._compile = refuse
result = jaxdave.generate(decoder, split.params, prompts)
assert len(result.completions) == 3 and result.completions[0].token_ids
"""

MEASURES = """
from jaxdave.engine.bitwise_check import slot_probe
from jaxdave.engine.calibration import calibrate
from jaxdave.eval.likelihood import masks
from jaxdave.eval.likelihood.batching import Question, log_likelihoods
from jaxdave.eval.likelihood.score import make_scorer

exact = jaxdave.freedave(config, draft_steps=4, max_new_tokens=8, numerics="exact")
assert slot_probe(exact.spec, split.params).holds

scorer = make_scorer(config)
pairs = ((5, 6, 7), (8, 9, 10)), ((), (4, 5)), ((3,), (1,))
questions = [Question(*pair) for pair in pairs]
values = [dict(log_likelihoods(scorer, model.params, questions, masks.one_pass))
          for model in (alone, split)]
first, second = (sorted(found.items()) for found in values)
np.testing.assert_allclose(first, second, rtol=1e-4)

small = jaxdave.freedave(config, draft_steps=1, max_new_tokens=8)
prompts = [alone.codec.encode_prompt(text) for text in ("How many pens?", "Why?")]
tables = [calibrate(small, model.params, [prompts], lambda count: None)
          for model in (alone, split)]
assert tables[0] == tables[1]
"""


LAYERS_APART = """
import jaxdave
from jaxdave.io.sharding import from_mesh
from jaxdave.numerics.layer_stack import PerLayer
from jaxdave.numerics.weight_layout import to_stacked, unstack_layers
from jaxdave.runtime.machine import H100, this_machine

for quantize in (None, "int8"):
    split = jaxdave.load("sdar-1m", mesh="data=2,model=4", quantize=quantize)
    apart = unstack_layers(split.params, H100)
    down = apart["blocks"]["mlp"]["down"]["kernel"]
    assert isinstance(down, PerLayer) and len(down.layers) == split.config.num_layers
    values = down.layers[0] if quantize is None else down.layers[0].values
    assert values.sharding.spec[0] == "model"
    both = [jax.tree.leaves(from_mesh(to_stacked(params), split.config))
            for params in (apart, split.params)]
    for a, b in zip(*both, strict=True):
        np.testing.assert_array_equal(a, b)
    assert unstack_layers(split.params, this_machine()) is split.params
    decoder = jaxdave.freedave(split.config, draft_steps=4, max_new_tokens=16)
    prompts = [split.codec.encode_prompt("Mia has 3 pens. How many pens has Mia?")] * 2
    results = [jaxdave.generate(decoder, p, prompts) for p in (apart, split.params)]
    first, second = ([row.token_ids for row in one.completions] for one in results)
    assert first == second
"""


def test_layers_of_their_own():
    """As on a mesh of GPUs; here the layers' products are the same."""
    run_on_mesh(LAYERS_APART)


def test_everything_else(tmp_path):
    """Streams, compaction, pickling and programs on disk, on groups of devices; the
    slot probe, likelihoods and calibration see the same model."""
    folder = str(tmp_path)
    variables = {"XDG_CACHE_HOME": folder, "JAXDAVE_NO_CACHE": ""}
    run_on_mesh(MODELS + MEASURES + DECODES, **variables)
    run_on_mesh(FROM_DISK, **variables)
