"""`jaxdave-lm-eval`: the command line of lm-evaluation-harness, with `jaxdave`."""

import sys
from typing import NoReturn

from jaxdave.cli.console import run
from jaxdave.cli.options import enable_jax_cache


def main() -> NoReturn:
    """Run the harness on this process's arguments and exit with its code."""
    sys.exit(run("jaxdave-lm-eval", _evaluate))


def _evaluate() -> None:
    try:
        from lm_eval.__main__ import cli_evaluate  # pyright: ignore
    except ImportError as error:
        raise ValueError(
            f"lm-eval cannot be imported ({error}); pip install 'jaxdave[eval]'"
        ) from error
    import jaxdave.integrations.lm_eval.model  # noqa: F401  registers the model

    enable_jax_cache(False)
    cli_evaluate()
