"""Programs compiled with less care, for tests that do not depend on numerics."""

import contextlib

import jax
import pytest
from jax._src import compiler

from jaxdave.runtime import compilation

OPTIONS = {
    # The platform's own level would win over `jax_disable_most_optimizations`.
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
    # One thread does with less work what several do sooner.
    "xla_cpu_parallel_codegen_split_count": 1,
}
VARIABLES = {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_parallel_codegen_split_count=1",
}
"""Environment of a process of its own that compiles to the same bits as `quickly`, but
for the programs that decode: the platform's own level goes before these."""


@contextlib.contextmanager
def quickly():
    """Compile in a fourth of the time, for programs that may be slow."""
    before = jax.config.values["jax_disable_most_optimizations"]
    with pytest.MonkeyPatch.context() as patch:
        if jax.default_backend() == "cpu":
            patch.setattr(compilation, "EXTRA_OPTIONS", OPTIONS)
            # What is compiled without options of its own: JAX's settings lack a way.
            patch.setattr(compiler, "get_compile_options", _quick_options)
        jax.config.update("jax_disable_most_optimizations", True)
        try:
            yield
        finally:
            jax.config.update("jax_disable_most_optimizations", before)


_get_compile_options = compiler.get_compile_options


def _quick_options(*args, env_options_overrides=None, **settings):
    """JAX's compile options, with `OPTIONS` where the program has no options."""
    options = env_options_overrides or OPTIONS
    return _get_compile_options(*args, env_options_overrides=options, **settings)


def answer_quickly(sampler, prompt: str) -> tuple[tuple[int, ...], int]:
    """For a spawned process: ids of an answer, and how many functions were traced."""
    # As conftest.py has it: settings are part of a program's name.
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    traced, real = [], jax.jit

    def counting(function, **settings):
        traced.append(function)
        return real(function, **settings)

    with quickly(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(compilation.jax, "jit", counting)
        return sampler(prompt).token_ids, len(traced)
