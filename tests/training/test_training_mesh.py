"""Training on a mesh: the losses and parameters of one device, to rounding."""

import ast

import numpy as np
import pytest
from helpers.mesh_process import run_on_mesh

from jaxdave.training.training_mesh import TrainingMesh

TRAIN = """
import sys
import optax
from pathlib import Path
from jaxdave.models import transformer
from jaxdave.models.presets import preset
from jaxdave.runtime.mesh_shape import parse_mesh
from jaxdave.runtime.meshes import make_mesh
from jaxdave.training.objective.objective_loss import make_objective_loss
from jaxdave.training.objective.objectives import OBJECTIVES
from jaxdave.training.optimisers import OptimiserConfig, make_optimiser
from jaxdave.training.supervised import StepBatches, SupervisedSteps
from jaxdave.training.data.token_batch import pack_samples
from jaxdave.training.trainer import LoopConfig, fit
from jaxdave.training.training_mesh import TrainingMesh
from jaxdave.training.update import UpdateConfig, init_state

# 3 rows of the vocabulary are left over among 4 devices, and key heads have copies.
config = preset("sdar-1m", num_layers=2)

def make(step):
    rng = np.random.default_rng(step)
    draw = lambda count: rng.integers(10, 300, count).tolist()
    rows = [[(draw(3), draw(9)), (draw(2), draw(2))] for _ in range(8)]
    return pack_samples(rows, length=16, pad_id=0)

def train(folder, shape, steps, name="adamw", accumulate=1):
    loss = make_objective_loss(config, OBJECTIVES["sdar"](block_length=4))
    settings = OptimiserConfig(name=name, learning_rate=1e-2, decay="none")
    optimiser = make_optimiser(settings, 10)
    mesh = TrainingMesh()
    if shape:
        mesh = TrainingMesh(make_mesh(parse_mesh(shape)), config)
    update = UpdateConfig(ema_decay=0.9, accumulate=accumulate)
    run = SupervisedSteps(loss, optimiser, update, StepBatches(make), mesh=mesh)
    state = init_state(transformer.init(config, 0), optimiser, 0, ema=True)
    state = mesh.put_state(state)
    loop = LoopConfig(steps=steps, save_every=2)
    return fit(run, state, Path(folder), loop)

def losses(folder):
    import json
    lines = open(f"{folder}/metrics.jsonl").read().splitlines()
    return np.array([json.loads(line)["loss"] for line in lines])
"""


def test_losses_and_parameters_are_those_of_one_device(tmp_path):
    code = """
one = train(sys.argv[1] + "/one", None, 4)
for shape in ("data=8", "data=2,model=4", "model=8"):
    folder = sys.argv[1] + "/" + shape
    many = train(folder, shape, 4)
    np.testing.assert_allclose(losses(folder), losses(sys.argv[1] + "/one"), rtol=1e-4)
    # Adam divides by the size of a gradient: where that is tiny, rounding shows.
    close = jax.tree.map(
        lambda a, b: np.mean(np.abs(np.asarray(a) - np.asarray(b)) < 1e-4), one.ema,
        many.ema)
    assert min(jax.tree.leaves(close)) > 0.999, close
    shards = {s.data.shape for s in many.opt[1][0].mu["embedding"].addressable_shards}
    print("@" + shape, (one.params["embedding"].shape, shards))
"""
    out = run_on_mesh(TRAIN + code, str(tmp_path))
    lines = [part.splitlines()[0].split(" ", 1) for part in out.split("@")[1:]]
    shapes = {name: ast.literal_eval(value) for name, value in lines}
    # The optimiser's state is split as the parameters are.
    whole = shapes["data=8"][0]
    assert shapes["data=8"][1] == {whole}
    for name, parts in (("data=2,model=4", 4), ("model=8", 8)):
        (part,) = shapes[name][1]
        assert np.prod(whole) == parts * np.prod(part)


def test_a_run_goes_on_with_another_mesh(tmp_path):
    """Checkpoints have the shapes of one device."""
    code = """
folder = sys.argv[1]
whole = train(folder + "/whole", None, 4, "muon", 2)
train(folder + "/cut", "data=2,model=4", 2, "muon", 2)
train(folder + "/cut", "data=4,model=2", 4, "muon", 2)
np.testing.assert_allclose(
    losses(folder + "/cut"), losses(folder + "/whole"), rtol=1e-4)
"""
    run_on_mesh(TRAIN + code, str(tmp_path))


def test_rows_must_be_dealt_out():
    with pytest.raises(ValueError, match="batch_size=6 must be a multiple .* use 8"):
        TrainingMesh().check_batch(6, accumulate=4)
    TrainingMesh().check_batch(8, accumulate=4)


def test_without_a_mesh_arrays_stay_as_they_are():
    array = np.ones(3)
    assert TrainingMesh().put_batch(array) is array
