"""Supervised training as a user runs it: from a file of settings to a model."""

import dataclasses
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import compiling
from helpers.training_runs import metrics_of, settings, write_samples

import jaxdave
from jaxdave.io import checkpoint
from jaxdave.numerics.weight_layout import to_stacked
from jaxdave.training.supervised_run import train
from jaxdave.training.train_config import read_train_config


def run(folder: Path, out: str = "out", **parts: str) -> Path:
    if not (folder / "train.jsonl").exists():
        write_samples(folder / "train.jsonl")
    (folder / out).mkdir(exist_ok=True)
    config = read_train_config(settings(folder, **parts))
    return train(config, folder / out)


def params_of(folder: Path | str):
    return to_stacked(checkpoint.load(folder, dtype="float32").params)


@pytest.mark.parametrize(
    "start, objective",
    [("sdar-1m", "sdar"), ("llada-1m", "llada-sft"), ("dream-1m", "dream")],
)
def test_a_model_fine_tunes_exports_and_decodes(tmp_path, start, objective):
    model = 'dtype = "float32"'
    folder = run(tmp_path, start=start, objective=objective, model=model)
    before, after = params_of(start), params_of(folder)
    moved = jax.tree.map(lambda a, b: float(np.max(np.abs(a - b))), before, after)
    assert all(0 < value < 0.1 for value in jax.tree.leaves(moved))
    model = jaxdave.load(folder)
    start_config = jaxdave.load(start).config
    assert dataclasses.replace(model.config, name=start) == start_config
    sampler = jaxdave.Sampler(model, jaxdave.DecodeConfig(draft_steps=4))
    assert sampler("What is 2 + 3?").token_ids


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_are_trained_and_merged(tmp_path, dtype):
    """Only adapted kernels change, and the adapters stand beside the model."""
    parts = {
        "more": '[lora]\nrank = 2\ntargets = ["q", "down"]',
        "model": 'dtype = "float32"',
        "train": f'dtype = "{dtype}"',
    }
    folder = run(tmp_path, **parts)
    before, after = params_of("sdar-1m"), params_of(folder)
    changed = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, (a, b) in jax.tree_util.tree_leaves_with_path(
            jax.tree.map(lambda a, b: (np.asarray(a), np.asarray(b)), before, after),
            is_leaf=lambda leaf: isinstance(leaf, tuple),
        )
        if np.any(a != b)
    }
    assert changed == {"blocks/attn/q/kernel", "blocks/mlp/down/kernel"}
    assert (tmp_path / "out" / "adapters" / "adapter_model.safetensors").exists()


def test_what_comes_out_is_the_average_where_there_is_one(tmp_path):
    plain = params_of(run(tmp_path, "plain", model='dtype = "float32"'))
    far = params_of(
        run(tmp_path, "far", model='dtype = "float32"', train="ema_decay = 0.999")
    )
    start = params_of("sdar-1m")
    distance = lambda tree: sum(  # noqa: E731
        float(np.sum((np.asarray(a) - np.asarray(b)) ** 2))
        for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(start), strict=True)
    )
    assert 0 < distance(far) < 1e-4 * distance(plain)


def test_held_out_samples_are_reported_and_not_trained(tmp_path):
    write_samples(tmp_path / "held.jsonl", 3, seed=9)
    data = f'validation = ["{tmp_path}/held.jsonl"]'
    run(tmp_path, "with", data=data)
    run(tmp_path, "without")
    records = metrics_of(tmp_path / "with")
    assert [r["step"] for r in records if "validation_loss" in r] == [2, 3]
    for record in records:
        record.pop("validation_loss", None)
    assert records == metrics_of(tmp_path / "without")


CUT = """
import os, signal, sys
from pathlib import Path
from jaxdave.training import supervised_run
from jaxdave.training.data import data_stream
from jaxdave.training.train_config import read_train_config

read_next = data_stream.BatchStream.__next__
count = 0

def read_or_die(self):
    global count
    count += 1
    if count == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return read_next(self)

data_stream.BatchStream.__next__ = read_or_die
config = read_train_config(Path(sys.argv[1]))
supervised_run.train(config, Path(sys.argv[2]))
"""


def test_a_killed_run_goes_on_bit_for_bit_in_mid_epoch(tmp_path):
    """Shuffled, packed and skipped samples, averages and accumulation included."""
    parts = {
        "train": "accumulate = 2\nema_decay = 0.9",
        "data": 'too_long = "skip"',
        "model": 'dtype = "float32"',
    }
    write_samples(tmp_path / "train.jsonl", 40)
    path = settings(tmp_path, **parts)
    path.write_text(path.read_text().replace("steps = 3", "steps = 5"))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    config = read_train_config(path)
    train(config, whole)
    process = subprocess.run(
        [sys.executable, "-c", CUT, str(path), str(cut)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        | compiling.VARIABLES,
        capture_output=True,
    )
    assert process.returncode == -9, process.stderr.decode()[-2000:]
    assert len(metrics_of(cut)) == 2
    train(config, cut)
    assert metrics_of(cut) == metrics_of(whole)
    jax.tree.map(
        np.testing.assert_array_equal,
        params_of(cut / "model"),
        params_of(whole / "model"),
    )


def test_a_folder_of_another_run_is_refused(tmp_path):
    run(tmp_path)
    with pytest.raises(ValueError, match="learning_rate = 0.001 in .optimiser.*0.002"):
        path = settings(tmp_path)
        path.write_text(path.read_text().replace("1e-3", "2e-3"))
        train(read_train_config(path), tmp_path / "out")
    # Longer, and saved more often, is no other run.
    path = settings(tmp_path)
    path.write_text(path.read_text().replace("steps = 3", "steps = 4"))
    train(read_train_config(path), tmp_path / "out")
    assert [r["step"] for r in metrics_of(tmp_path / "out")] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "parts, message",
    [
        ({"objective": "llada-sft"}, "block_length=None but sdar-1m"),
        ({"objective": "fast-dllm-v2"}, "shift=True but sdar-1m"),
        ({"start": "no-such-model"}, "no-such-model"),
        ({"train": 'mesh = "data=64"'}, "mesh='data=64.*needs 64 devices"),
        ({"model": 'attention = "full"'}, "sdar"),
        ({"data": "length = 100000"}, "100000 is more than the .* positions"),
    ],
)
def test_settings_that_do_not_fit_the_model(tmp_path, parts, message):
    parts = dict(parts)
    if "length" in parts.get("data", ""):
        write_samples(tmp_path / "train.jsonl")
        path = settings(tmp_path)
        path.write_text(path.read_text().replace("length = 128", parts["data"]))
        with pytest.raises(ValueError, match=message):
            train(read_train_config(path), tmp_path / "out")
        return
    with pytest.raises(ValueError, match=message) as error:
        run(tmp_path, **parts)
    assert "\n" not in str(error.value)


def test_a_bad_line_is_named_before_anything_is_trained(tmp_path):
    write_samples(tmp_path / "train.jsonl")
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"messages": [{"content": "no role"}]}\n')
    with pytest.raises(ValueError, match=r"train.jsonl, line 9: .*role"):
        run(tmp_path)
    assert not (tmp_path / "out" / "checkpoints").exists()


@pytest.mark.slow
def test_32_samples_are_learnt_by_heart(tmp_path):
    """From random parameters to every answer, word for word, by drafts too."""
    rng = random.Random(0)
    words = "red blue green seven nine apple pear river stone cloud".split()
    samples = [
        (f"What is number {i}?", " ".join(rng.choices(words, k=6))) for i in range(32)
    ]
    (tmp_path / "train.jsonl").write_text(
        "".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r in samples)
    )
    path = settings(tmp_path, start="scratch", model='preset = "sdar-1m"')
    text = path.read_text().replace("steps = 3", "steps = 400")
    text = text.replace("batch_size = 4", "batch_size = 8").replace(
        "save_every = 2", "save_every = 200"
    )
    text = text.replace("learning_rate = 1e-3", 'name = "muon"\nlearning_rate = 2e-3')
    path.write_text(text)
    (tmp_path / "out").mkdir()
    model = jaxdave.load(train(read_train_config(path), tmp_path / "out"))
    for draft_steps in (1, 8):
        config = jaxdave.DecodeConfig(draft_steps=draft_steps, max_new_tokens=32)
        sampler = jaxdave.Sampler(model, config)
        answers = sampler.batch([prompt for prompt, _ in samples])
        assert [a.text.strip() for a in answers] == [answer for _, answer in samples]
