"""`jaxdave train --config` as a process: interrupts, full disks, two processes."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.real_processes import PATIENCE, QUICK_COMPILES, together
from helpers.training_runs import metrics_of, settings, write_samples

TRAIN = [sys.executable, "-m", "jaxdave", "train"]


def environment() -> dict[str, str]:
    path = os.pathsep.join(one for one in sys.path if one)
    return {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", **QUICK_COMPILES}


def prepare(folder: Path, steps: int, **parts: str) -> Path:
    write_samples(folder / "train.jsonl", 16)
    path = settings(folder, **parts)
    path.write_text(path.read_text().replace("steps = 3", f"steps = {steps}"))
    return path


def wait_for_checkpoint(folder: Path) -> None:
    """Wait until the first checkpoint is whole."""
    end = time.monotonic() + PATIENCE
    while not any(path.name.isdigit() for path in folder.glob("checkpoints/*")):
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_an_interrupted_run_goes_on(tmp_path):
    config = prepare(tmp_path, 400)
    out = tmp_path / "out"
    process = subprocess.Popen(
        [*TRAIN, "--config", config, "--out", out],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell in the background has its children ignore the signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    wait_for_checkpoint(out)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130 and err.splitlines()[-1] == "jaxdave: interrupted"
    steps = len(metrics_of(out)) + 2
    again = subprocess.run(
        [*TRAIN, "--config", config, "--out", out, "--steps", str(steps)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert again.returncode == 0, again.stderr
    assert [record["step"] for record in metrics_of(out)] == list(range(1, steps + 1))
    assert (out / "model" / "model.safetensors").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
def test_where_files_cannot_grow_it_ends_in_one_line(tmp_path):
    """A limit on the size of files stands for a disk that is full."""
    config = prepare(tmp_path, 8)
    # JAX would warn of its own cache, which cannot grow either.
    command = [*TRAIN, "--config", config, "--out", tmp_path / "out"]
    command.append("--no-compile-cache")
    limit = 200_000  # bytes: metrics fit, checkpoints do not

    def restrict() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(
        command,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        preexec_fn=restrict,
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert "a checkpoint could not be written" in line and "nothing is saved" in line
    assert "Traceback" not in done.stderr
    again = subprocess.run(
        command,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(
    "mesh, adapters", [("data=4,model=2", "[lora]\nrank = 2"), ("model=8", "")]
)
def test_two_processes_train_one_model(tmp_path, mesh, adapters):
    """Rows over the devices of both, or the model: the losses of one process."""
    # Of a trained model losses are so small that rounding shows.
    parts = {"start": "scratch", "model": 'preset = "sdar-1m"', "more": adapters}
    config = prepare(tmp_path, 3, **parts)
    words = ("train", "--config", config, "--out")
    alone = together(tmp_path, (*words, tmp_path / "one"))
    assert alone[0][0] == 0, alone
    text = config.read_text()
    config.write_text(text.replace("[train]", f'[train]\nmesh = "{mesh}"'))
    ends = together(tmp_path, (*words, tmp_path / "two"), (*words, tmp_path / "two"))
    assert [code for code, *_ in ends] == [0, 0], ends
    assert ends[0][1].startswith("wrote ") and ends[1][1] == ""
    np.testing.assert_allclose(
        [record["loss"] for record in metrics_of(tmp_path / "two")],
        [record["loss"] for record in metrics_of(tmp_path / "one")],
        rtol=1e-4,
    )
    assert (tmp_path / "two" / "model" / "model.safetensors").exists()
