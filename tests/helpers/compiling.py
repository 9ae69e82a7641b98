"""Programs compiled with less care, for tests that do not depend on numerics."""

import contextlib

import jax
import pytest

from jaxdave.runtime import compilation

OPTIONS = {
    "xla_cpu_use_fusion_emitters": False,
    # One thread does with less work what several do sooner.
    "xla_cpu_parallel_codegen_split_count": 1,
}


@contextlib.contextmanager
def quickly():
    """Compile in a third of the time, for programs that may be slow."""
    before = jax.config.values["jax_disable_most_optimizations"]
    with pytest.MonkeyPatch.context() as patch:
        if jax.default_backend() == "cpu":
            patch.setattr(compilation, "EXTRA_OPTIONS", OPTIONS)
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", before)


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
