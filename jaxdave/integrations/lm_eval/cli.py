"""`jaxdave-lm-eval`: lm-evaluation-harness's command line, with the model `jaxdave`.

The harness finds a model only after its module was imported, which its own command does
not do; everything else is the harness's.
"""

from typing import NoReturn

from jaxdave.runtime import interrupts

NAME = "jaxdave-lm-eval"


def main() -> NoReturn:
    """Run the harness on this process's arguments and exit with its code.

    Example:
        In a shell:

            jaxdave-lm-eval run --model jaxdave --model_args model=sdar-1m --tasks gsm8k
    """
    interrupts.install_for_program(NAME)
    from jaxdave.cli.console import run

    interrupts.exit_program(run(NAME, _evaluate))


def _evaluate() -> None:
    """Register the model and run the harness's command."""
    try:
        from lm_eval.__main__ import cli_evaluate  # pyright: ignore
    except ImportError as error:
        raise ValueError(
            f"lm-eval cannot be imported ({error}); pip install 'jaxdave[eval]'"
        ) from error
    import jaxdave.integrations.lm_eval.model  # noqa: F401  registers the model
    from jaxdave.cli.options import enable_jax_cache

    enable_jax_cache(False)
    cli_evaluate()
