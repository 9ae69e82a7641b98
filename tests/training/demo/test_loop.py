"""The demo's recipes: a killed run resumes on the same losses, to the same weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import compiling
from helpers.checkpoint_folders import TOKENIZER
from tokenizers import Tokenizer

from jaxdave.training.demo.recipe_run import train
from jaxdave.training.demo.recipes import SDAR_1M, Recipe

# The process kills itself while it makes the batch of step 4, so after the checkpoint
# of step 2 and while step 3 is under way: batches are made one ahead.
KILLED = """
import os, signal, sys
from pathlib import Path
import test_loop
from jaxdave.training.demo import recipe_run as loop

make_batches = loop.BATCH_MAKERS["block_causal"]

def make_batches_or_die(recipe, tokenizer, step):
    if step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return make_batches(recipe, tokenizer, step)

loop.BATCH_MAKERS["block_causal"] = make_batches_or_die
loop.train(test_loop.small_recipe(), test_loop.tokenizer(), Path(sys.argv[1]))
"""
STEPS = 6


def small_recipe() -> Recipe:
    """The demo's recipe, small enough for a test, every phase of it crossed."""
    shape = {"num_layers": 1, "hidden": 16, "inter": 24, "heads": 2, "kv_heads": 1}
    fields = {**vars(SDAR_1M), **shape, "head_dim": 8, "rotary_dim": 8}
    return Recipe(
        config=type(SDAR_1M)(**fields),
        steps=STEPS,
        batch_size=32,
        warmup_steps=2,
        decay_steps=2,
        save_every=2,
    )


def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))


def finish(folder: Path):
    """Runs or resumes the recipe to its end: (parameters, metrics of its steps)."""
    state = train(small_recipe(), tokenizer(), folder)
    return state.params, read_metrics(folder)


def read_metrics(folder: Path) -> list[dict]:
    """The metrics of every step, but for the time that they took."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert all(record.pop("seconds") > 0 for record in records)
    return records


@pytest.mark.slow
def test_a_killed_run_resumes_on_the_same_curve(tmp_path):
    whole, curve = finish(tmp_path / "whole")
    # A curve that does not move would prove nothing.
    assert len({record["loss"] for record in curve}) == STEPS
    cut = tmp_path / "cut"
    process = subprocess.run(
        [sys.executable, "-c", KILLED, str(cut)],
        cwd=Path(__file__).parent,
        env={
            **os.environ,
            # The modules that are found here, `helpers` among them.
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            # Compiled as here, to the same bits.
            **compiling.VARIABLES,
        },
        capture_output=True,
    )
    assert process.returncode == -9, process.stderr.decode()[-2000:]
    assert read_metrics(cut) in (curve[:2], curve[:4])
    for folder in (cut, cut):  # the second time it is finished, and stays as it is
        resumed, again = finish(folder)
        assert again == curve
        jax.tree.map(np.testing.assert_array_equal, resumed, whole)
