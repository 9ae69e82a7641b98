"""`jaxdave-lm-eval`: lm-evaluation-harness's command line, with the model `jaxdave`.

The harness finds a model only after its module was imported, which its own command does
not do; everything else is the harness's.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

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
    from lm_eval.loggers import EvaluationTracker  # pyright: ignore

    import jaxdave.integrations.lm_eval.model  # noqa: F401  registers the model
    from jaxdave.cli.options import enable_jax_cache

    enable_jax_cache(False)
    with _stats_beside_results(EvaluationTracker):
        cli_evaluate()


@contextlib.contextmanager
def _stats_beside_results(tracker_class: Any) -> Iterator[None]:
    """Let what writes the results write what their texts have taken beside them.

    The harness tells nobody where its results go, so its method is wrapped.
    """
    from jaxdave.integrations.lm_eval.model import JaxDave
    from jaxdave.integrations.lm_eval.stats import write_lines

    save = tracker_class.save_results_aggregated

    def save_both(tracker: Any, results: Any, samples: Any = None) -> Any:
        saved = save(tracker, results, samples)
        path = _stats_path(tracker)
        if JaxDave.last_stats and path is not None:
            write_lines(path, JaxDave.last_stats)
        return saved

    tracker_class.save_results_aggregated = save_both
    try:
        yield
    finally:
        tracker_class.save_results_aggregated = save


def _stats_path(tracker: Any) -> Path | None:
    """A file beside the results that a tracker has just written."""
    date = getattr(tracker, "date_id", None)
    if not tracker.output_path or not date:
        return None
    path = Path(tracker.output_path)
    if path.suffix == ".json":
        return path.with_name(f"{path.stem}_stats_{date}.jsonl")
    name = str(tracker.general_config_tracker.model_name_sanitized)
    return path / name / f"stats_{date}.jsonl"
