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
