"""Programs on disk: found under a name for all they are made of, or compiled anew."""

import functools
import logging
import os
import random
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import fake_model

from jaxdave import policies
from jaxdave.drafting import nested
from jaxdave.engine import autotune, decoders
from jaxdave.engine.generation import generate
from jaxdave.runtime import compilation, fingerprint, program_cache
from jaxdave.runtime.compilation import clear_executables
from jaxdave.runtime.files import NO_CACHE
from jaxdave.runtime.fingerprint import fingerprint as sign

SMALL = {"draft_steps": 2, "max_new_tokens": 8}
PROMPTS = [[5, 3, 8, 1]]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder of this test's own, in use."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    monkeypatch.delenv(NO_CACHE)
    clear_executables()
    autotune.MEASUREMENTS.clear()
    yield tmp_path
    clear_executables()


def decoder(policy=None, **more):
    policy = policies.static(1) if policy is None else policy
    return decoders.freedave(fake_model.TINY, policy, **{**SMALL, **more})


@functools.cache
def params():
    return fake_model.scaled(fake_model.TINY, 0)


def traces(monkeypatch) -> list[str]:
    """Names of the functions that are traced from now on."""
    names = []
    real = jax.jit

    def counting(function, **settings):
        names.append(getattr(function, "__name__", str(function)))
        return real(function, **settings)

    monkeypatch.setattr(compilation.jax, "jit", counting)
    return names


def test_a_kept_program_is_the_program(cache, monkeypatch):
    first = generate(decoder(), params(), PROMPTS)
    files = sorted((cache / "jaxdave" / program_cache.PROGRAM_FOLDER).iterdir())
    assert len(files) == 3  # the loop, the prefill, the sample of the weights
    traced = traces(monkeypatch)
    clear_executables()
    autotune.MEASUREMENTS.clear()
    again = generate(decoder(), params(), PROMPTS)
    assert again.completions == first.completions
    assert traced == []


def sample(size: int):
    """A small program that can be kept."""
    function, _ = compilation.get_executable(
        compilation.CompileRequest(
            None, "sample", autotune._first_values, ([ones(size)],)
        )
    )
    clear_executables()
    return function([ones(size)])[0].tolist()


def ones(size: int):
    return jnp.ones(size, jnp.float32)


def test_a_broken_file_is_made_anew(cache, monkeypatch):
    traced = traces(monkeypatch)
    assert sample(3) == sample(3) == [1.0] * 3 and len(traced) == 1
    (path,) = (cache / "jaxdave" / program_cache.PROGRAM_FOLDER).iterdir()
    path.write_bytes(path.read_bytes()[:-100])
    assert sample(3) == [1.0] * 3 and len(traced) == 2
    assert sample(3) == [1.0] * 3 and len(traced) == 2


def test_a_flipped_bit_is_never_executed(cache, monkeypatch):
    """Machine code with a wrong bit ends the process, or computes something else."""
    traced = traces(monkeypatch)
    assert sample(5) == [1.0] * 5
    (path,) = (cache / "jaxdave" / program_cache.PROGRAM_FOLDER).iterdir()
    rng = random.Random(0)
    for count in range(2, 14):
        content = bytearray(path.read_bytes())
        bit = rng.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        assert sample(5) == [1.0] * 5
        assert len(traced) == count, f"the program with bit {bit} flipped was loaded"


def test_a_program_of_another_key_is_made_anew(cache, monkeypatch):
    traced = traces(monkeypatch)
    assert sample(3) == [1.0] * 3
    folder = cache / "jaxdave" / program_cache.PROGRAM_FOLDER
    (three,) = folder.iterdir()
    content = three.read_bytes()
    assert sample(4) == [1.0] * 4
    (four,) = set(folder.iterdir()) - {three}
    four.write_bytes(content)
    assert sample(4) == [1.0] * 4 and len(traced) == 3


def test_nothing_is_kept_where_that_is_off_or_cannot_be(cache, monkeypatch):
    traced = traces(monkeypatch)
    monkeypatch.setenv(NO_CACHE, "1")
    assert sample(3) == sample(3) and len(traced) == 2
    monkeypatch.delenv(NO_CACHE)
    (cache / "jaxdave").write_text("a file where the folder should be")
    assert sample(3) == sample(3) and len(traced) == 4


def test_what_comes_out_of_the_cache_of_jax_is_not_kept(tmp_path):
    """It lacks code, and would fail when it is run."""
    script = (
        "import jax, jax.numpy as jnp\n"
        "from jaxdave.runtime.compilation import CompileRequest, get_executable\n"
        "from jaxdave.models.rope import rope_table\n"
        "from jaxdave.drafting.text_drafts import user_text\n"
        "from jaxdave.engine.autotune import _first_values\n"
        "args = ([jnp.ones((40, 40))],)\n"
        "request = CompileRequest(None, 'sample', _first_values, args)\n"
        "f, _ = get_executable(request)\n"
        "print(float(f([jnp.ones((40, 40))])[0][3]))\n"
    )
    env = {k: v for k, v in os.environ.items() if k != NO_CACHE} | {
        "XDG_CACHE_HOME": str(tmp_path / "ours"),
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "theirs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    folder = tmp_path / "ours" / "jaxdave" / program_cache.PROGRAM_FOLDER
    counts = []
    for _ in range(3):
        run = [sys.executable, "-c", script]
        out = subprocess.run(run, env=env, check=True, capture_output=True, text=True)
        assert out.stdout.strip() == "1.0"
        counts.append(len(list(folder.glob("*"))) if folder.exists() else 0)
        for path in folder.glob("*"):
            path.unlink()
    assert counts == [1, 0, 0]


def test_only_what_is_on_the_first_of_many_devices_is_kept(tmp_path):
    """And comes back to it."""
    script = (
        "import jax, jax.numpy as jnp\n"
        "from jaxdave.runtime.compilation import CompileRequest, clear_executables\n"
        "from jaxdave.runtime.compilation import get_executable\n"
        "from jaxdave.engine.autotune import _first_values\n"
        "for device in (*jax.devices(), *jax.devices()):\n"
        "    clear_executables()\n"
        "    x = jax.device_put(jnp.ones(4), device)\n"
        "    request = CompileRequest(None, 'sample', _first_values, ([x],))\n"
        "    f, _ = get_executable(request)\n"
        "    (sample,) = f([x])\n"
        "    assert sample.devices() == {device}, (sample, device)\n"
    )
    env = {k: v for k, v in os.environ.items() if k != NO_CACHE} | {
        "XDG_CACHE_HOME": str(tmp_path),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    subprocess.run([sys.executable, "-c", script], env=env, check=True)
    assert (
        len(list((tmp_path / "jaxdave" / program_cache.PROGRAM_FOLDER).iterdir())) == 1
    )


def test_old_files_make_room(cache, monkeypatch):
    monkeypatch.setattr(program_cache, "MAX_FILES", 2)
    folder = cache / "jaxdave" / program_cache.PROGRAM_FOLDER
    for size in range(3, 7):
        sample(size)
        for path in folder.iterdir():  # as if all of it had happened earlier
            os.utime(path, ns=(path.stat().st_mtime_ns - 10**9,) * 2)
    assert len(list(folder.iterdir())) == 2


def test_what_differs_in_any_part_has_another_name():
    decoders_by_name = {
        "plain": decoder(),
        "d": decoder(draft_steps=3),
        "two": decoder(policies.static(2)),
        "bold": decoder(policies.threshold(0.5)),
        "bolder": decoder(policies.threshold(0.25)),
        "warm": decoder(temperature=0.5),
        "warmer": decoder(temperature=0.7),
        "exact": decoder(numerics="exact"),
        "block": decoder(block_length=2),
        "never": decoder(suppressed_ids=(7,)),
        "left out": decoder(confidence_eos_eot_inf=True),
        "last": decoder(stop_last=True),
        "copy": decoder(draft=lambda *a: nested.propose_nested(*a)),
    }
    names = {key: sign(d.spec) for key, d in decoders_by_name.items()}
    assert None not in names.values()
    assert len(set(names.values())) == len(names)
    assert sign(decoder().spec) == names["plain"]


def test_every_policy_of_the_package_has_a_name():
    names = {policies.parse(e.name): e.name for e in policies.listing() if e.lossless}
    signed = {sign(policy) for policy in names}
    assert None not in signed and len(signed) == len(names)


def test_a_name_is_that_of_the_functions_and_of_what_they_hold():
    one, two = policies.threshold(0.5), policies.threshold(0.25)
    assert sign(one.step) != sign(two.step)
    assert sign(policies.threshold(0.5).step) == sign(one.step)
    halves = [functools.partial(jnp.where, x) for x in (True, False)]
    signed = {sign(half) for half in halves}
    assert None not in signed and len(signed) == 2
    assert sign(np.arange(3)) != sign(np.arange(3.0)) != sign(np.arange(4.0))
    assert sign({"a": 1}) != sign({"b": 1}) != sign(("b", 1))
    assert sign((1, (2,))) != sign(((1, 2),)) and sign(1) != sign(1.0) != sign("1.0")
    assert sign(object()) is None
    assert sign(lambda: 1) == sign(lambda: 1) != sign(lambda: 2)
    # Closures of other packages hold what they were made with, jitted or not.
    normal = jax.nn.initializers.normal
    assert sign(normal(0.02)) == sign(normal(0.02))
    assert sign(normal(0.02)) != sign(normal(0.01)) or sign(normal(0.02)) is None
    jitted = [jax.jit(policies.threshold(x).step) for x in (0.5, 0.25, 0.5)]
    assert sign(jitted[0]) != sign(jitted[1]) and sign(jitted[0]) == sign(jitted[2])


def test_a_name_depends_on_settings_and_sources(monkeypatch):
    name = sign(1)
    with jax.default_matmul_precision("highest"):
        assert sign(1) != name
    assert sign(1) == name
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    assert sign(1) != name
    monkeypatch.undo()
    monkeypatch.setattr(fingerprint, "_source_digest", lambda: b"other files")
    assert sign(1) != name


def test_another_process_gives_the_same_name():
    script = (
        "from jaxdave import policies, preset\n"
        "from jaxdave.engine import decoders\n"
        "from jaxdave.runtime.fingerprint import fingerprint\n"
        "d = decoders.freedave(preset('dream-7b'), policies.parse('entropy'))\n"
        "print(fingerprint(d.spec))\n"
    )
    names = {
        subprocess.check_output(
            [sys.executable, "-c", script],
            text=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        for seed in ("1", "2")
    }
    assert len(names) == 1 and names != {"None\n"}


MY_RULE = """
import jax.numpy as jnp
from typing import Any, NamedTuple
from jaxdave.core.policy_api import Policy

TOKENS = 2

class Memory(NamedTuple):
    steps: Any

def chosen(view):
    return view.open_W & (jnp.cumsum(view.open_W, dtype=jnp.int32) <= TOKENS)

def step(view, memory):
    tokens_W = jnp.where(chosen(view), view.pred.token, view.tokens_W)
    return tokens_W, Memory(memory.steps + 1)

def init(size, width):
    return Memory(jnp.int32(0))

policy = Policy("mine", step, init)
"""
DECODE_MY_RULE = """
import jax, my_rule
from helpers import compiling, fake_model
from jaxdave.engine import decoders
from jaxdave.engine.generation import generate

params = fake_model.tiny_params(0)
traces, jit = [], jax.jit
jax.jit = lambda *args, **settings: traces.append(args) or jit(*args, **settings)
decoder = decoders.freedave(
    fake_model.TINY, my_rule.policy, draft_steps=1, max_new_tokens=4
)
with compiling.quickly():
    result = generate(decoder, params, [[5, 3, 8, 1]])
print(len(traces), result.completions[0].token_ids)
"""


def test_a_policy_of_another_module_is_found_by_the_next_process(tmp_path):
    env = {k: v for k, v in os.environ.items() if k != NO_CACHE} | {
        "XDG_CACHE_HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]),
    }
    outputs = []
    for text in (MY_RULE, MY_RULE, MY_RULE.replace("TOKENS = 2", "TOKENS = 1")):
        (tmp_path / "my_rule.py").write_text(text)
        run = subprocess.run(
            [sys.executable, "-c", DECODE_MY_RULE],
            env={**env, "PYTHONHASHSEED": str(len(outputs))},
            check=True,
            capture_output=True,
            text=True,
        )
        assert "not kept" not in run.stderr
        traces, _, tokens = run.stdout.partition(" ")
        outputs.append((int(traces), tokens))
    assert outputs[1] == (0, outputs[0][1])
    # A constant that the rule reads is edited: the old program must not be found.
    assert outputs[0][0] == outputs[2][0] > 0


def test_a_policy_that_cannot_be_named_still_decodes(cache, monkeypatch, caplog):
    monkeypatch.setattr(fingerprint, "_REASONS", set())
    caplog.set_level(logging.WARNING, logger="jaxdave")
    counter, rule = object(), policies.static(1)

    def step(view, memory):
        assert counter is not None
        return rule.step(view, memory)

    mine = decoder(rule._replace(name="mine", step=step), draft_steps=1)
    plain = decoder(rule, draft_steps=1)
    rows = [
        generate(d, params(), PROMPTS).completions[0].token_ids for d in (mine, plain)
    ]
    assert rows[0] == rows[1]
    (line,) = [r.getMessage() for r in caplog.records if r.name == "jaxdave"]
    assert "not kept on disk" in line and "builtins.object" in line
    assert f"{__name__}.test_a_policy_that_cannot_be_named" in line


def test_a_memory_that_cannot_be_pickled_is_not_kept(cache, monkeypatch, caplog):
    """Its class is of a function's body, so that no other process can import it."""
    monkeypatch.setattr(fingerprint, "_REASONS", set())
    caplog.set_level(logging.WARNING, logger="jaxdave")

    class Memory(NamedTuple):
        steps: Any

    rule = policies.static(1)

    def step(view, memory):
        return rule.step(view, ())[0], Memory(memory.steps + 1)

    mine = policies.static(1)._replace(
        name="mine", step=step, init=lambda size, width: Memory(jnp.int32(0)),
        is_certain=None,
    )  # fmt: skip
    result = generate(decoder(mine, draft_steps=1), params(), PROMPTS)
    assert len(result.completions[0].token_ids) > 0
    (line,) = [r.getMessage() for r in caplog.records if r.name == "jaxdave"]
    assert "Memory" in line and "at the top of a module" in line


def test_what_runs_on_other_devices_is_said_when_debugging(cache, caplog, monkeypatch):
    monkeypatch.setattr(program_cache, "is_on_first_device", lambda args: False)
    caplog.set_level(logging.DEBUG, logger="jaxdave")
    assert sample(3) == [1.0] * 3
    (record,) = caplog.records
    assert record.levelno == logging.DEBUG and "several devices" in record.getMessage()
