"""The training loop: checkpoints, metrics, and what goes wrong with them."""

import json
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdave.training import run_files
from jaxdave.training.objective.objective_loss import LossSums
from jaxdave.training.run_files import CheckpointFiles, MetricsFile
from jaxdave.training.supervised import StepBatches, SupervisedSteps
from jaxdave.training.trainer import LoopConfig, fit
from jaxdave.training.update import UpdateConfig, init_state

pytestmark = pytest.mark.usefixtures("loose_promotion")

OPTIMISER = optax.adam(0.1)


def noisy(params, batch, key):
    """A loss whose gradient depends on parameters, batch and noise."""
    error = params["w"] - batch + jax.random.normal(key, batch.shape)
    return LossSums(jnp.sum(error**2), jnp.float32(batch.size))


def make_steps(loss=noisy, make=None, **options):
    batches = StepBatches(make or (lambda step: np.full(4, step, np.float32)))
    return SupervisedSteps(loss, OPTIMISER, UpdateConfig(), batches, **options)


def first_state(size: int = 4):
    return init_state({"w": jnp.zeros(size)}, OPTIMISER, 0, ema=False)


def run(folder: Path, steps: int, *, of=None, size=4, **options):
    loop = LoopConfig(**{"save_every": 2, "log_every": 1, "steps": steps} | options)
    return fit(of or make_steps(), first_state(size), folder, loop)


def metrics_of(folder: Path) -> list[dict]:
    lines = (folder / run_files.METRICS).read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k != "seconds"} for x in lines]


@pytest.mark.parametrize("cut", [1, 4, 7])
def test_a_run_in_two_parts_is_the_run_in_one(tmp_path, cut):
    """Cut between checkpoints too: what came after the last one is done again."""
    whole = run(tmp_path / "whole", 8)

    class Cut(Exception):
        pass

    def make(step):
        if step == cut:
            raise Cut
        return np.full(4, step, np.float32)

    with pytest.raises(Cut):
        run(tmp_path / "cut", 8, of=make_steps(make=make))
    resumed = run(tmp_path / "cut", 8)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    assert metrics_of(tmp_path / "cut") == metrics_of(tmp_path / "whole")
    assert [r["step"] for r in metrics_of(tmp_path / "cut")] == list(range(1, 9))


def test_a_checkpoint_is_of_its_step_though_training_goes_on(tmp_path):
    """It is written while later steps reuse the buffers that it was copied from."""
    size = 300_000
    make = lambda step: np.full(size, step, np.float32)  # noqa: E731
    steps = make_steps(make=make)
    run(tmp_path / "long", 9, of=steps, size=size, save_every=4, keep=3)
    for step in (4, 8):
        short = run(tmp_path / f"{step}", step, of=make_steps(make=make), size=size)
        files = CheckpointFiles(tmp_path / "long", keep=3)
        restored = files.manager.restore(step)["state"]
        np.testing.assert_array_equal(restored["params"]["w"], short.params["w"])
        files.close()


def test_the_latest_checkpoints_stay(tmp_path):
    run(tmp_path, 8, keep=2)
    names = {path.name for path in (tmp_path / run_files.CHECKPOINTS).iterdir()}
    assert names == {"6", "8"}


def test_a_longer_run_goes_on_from_a_shorter_one(tmp_path):
    run(tmp_path / "grown", 4)
    grown = run(tmp_path / "grown", 6)
    whole = run(tmp_path / "whole", 6)
    jax.tree.map(np.testing.assert_array_equal, grown, whole)


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_what_was_saved(tmp_path):
    def make(step):
        return np.full(4, np.nan if step == 4 else step, np.float32)

    with pytest.raises(ValueError, match=r"loss of step 5 is nan; .*step 4 is saved"):
        run(tmp_path, 8, of=make_steps(make=make))
    # With the data mended it goes on from there.
    whole = run(tmp_path / "whole", 8)
    resumed = run(tmp_path, 8)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)


def test_a_gradient_that_is_not_finite_ends_the_run_too(tmp_path):
    """Its update is left out: going on would report losses, and learn nothing."""

    def at_a_corner(params, batch, key):
        del key
        # The root at 0 has an infinite slope, and a value.
        return LossSums(jnp.sum(jnp.sqrt(params["w"] * batch)), jnp.float32(1))

    with pytest.raises(ValueError, match=r"the grad_norm of step 1 is (nan|inf)"):
        run(tmp_path, 4, of=make_steps(loss=at_a_corner))


def test_a_run_that_cannot_begin_lets_go_of_its_folder(tmp_path):
    run(tmp_path, 2)
    filters = list(logging.getLogger("absl").filters)
    with pytest.raises(ValueError, match="params/w has shape"):
        run(tmp_path, 4, size=5)
    assert logging.getLogger("absl").filters == filters


def test_a_checkpoint_of_another_shape_is_refused_in_one_line(tmp_path):
    run(tmp_path, 2)
    with pytest.raises(
        ValueError, match=r"params/w has shape \(4,\), and .*\(5,\)"
    ) as e:
        run(tmp_path, 4, size=5, of=make_steps(make=lambda s: np.zeros(5, np.float32)))
    assert "\n" not in str(e.value)


def test_a_checkpoint_without_an_average_is_refused_in_one_line(tmp_path):
    run(tmp_path, 2)
    state = init_state({"w": jnp.zeros(4)}, OPTIMISER, 0, ema=True)
    with pytest.raises(ValueError, match=r"ema/w is not in it"):
        fit(make_steps(), state, tmp_path, LoopConfig(steps=4))


def test_a_damaged_checkpoint_is_named(tmp_path):
    run(tmp_path, 2)
    (saved,) = (tmp_path / run_files.CHECKPOINTS).iterdir()
    for path in (saved / "state").rglob("*"):
        if path.is_file() and path.stat().st_size > 40:
            path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ValueError, match="checkpoints: a checkpoint could not be read"):
        run(tmp_path, 4)


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, monkeypatch):
    """The disk fills up while the second checkpoint is written."""
    whole = run(tmp_path / "whole", 8)
    save = CheckpointFiles.save

    def save_on_full_disk(self, step, state, position):
        if step > 2:
            monkeypatch.setattr(self.manager, "save", _raise_full)
        save(self, step, state, position)

    monkeypatch.setattr(CheckpointFiles, "save", save_on_full_disk)
    pattern = r"could not be written \(.*No space left.*\); step 2 is saved"
    with pytest.raises(ValueError, match=pattern):
        run(tmp_path / "full", 8)
    monkeypatch.undo()
    resumed = run(tmp_path / "full", 8)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)


def _raise_full(*_, **__):
    raise OSError(28, "No space left on device")


def test_validation_is_reported_where_it_was_asked_for(tmp_path):
    held_out = [np.full(4, 2.0, np.float32), np.full(4, 3.0, np.float32)]
    plain = lambda params, batch, key: LossSums(  # noqa: E731
        jnp.sum((params["w"] - batch) ** 2), jnp.float32(batch.size)
    )
    steps = make_steps(loss=plain, validation=held_out)
    state = run(tmp_path, 3, of=steps, save_every=3, validate_every=3)
    records = metrics_of(tmp_path)
    assert ["validation_loss" in record for record in records] == [False, False, True]
    w = np.asarray(state.params["w"])
    expected = np.mean([np.mean((w - batch) ** 2) for batch in held_out])
    np.testing.assert_allclose(records[-1]["validation_loss"], expected, rtol=1e-5)


def test_metrics_are_cut_to_the_checkpoint_and_a_cut_line_is_dropped(tmp_path):
    path = tmp_path / run_files.METRICS
    path.write_text(
        '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n{"step": 3, "lo'
    )
    MetricsFile(tmp_path, step=1)
    assert path.read_text() == '{"step": 1, "loss": 2.0}\n'


def test_a_file_of_something_else_is_not_overwritten(tmp_path):
    path = tmp_path / run_files.METRICS
    path.write_text("my notes\nabout this run\n")
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 1: b'my notes\\n' is"):
        MetricsFile(tmp_path, step=0)
    assert path.read_text() == "my notes\nabout this run\n"


def test_the_loss_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    run(tmp_path, 2)
    assert "<svg" in (tmp_path / run_files.PICTURE).read_text()


@pytest.mark.parametrize("field", ["steps", "save_every", "keep", "log_every"])
def test_bad_settings_are_named(field):
    with pytest.raises(ValueError, match=f"{field}=0 must be at least 1"):
        LoopConfig(**{"steps": 1, field: 0})
