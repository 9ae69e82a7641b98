"""`jaxdave policies`: what `--policy` takes."""

from rich.console import Console
from rich.table import Table

from jaxdave.policies.registry import listing


def run(console: Console | None = None) -> None:
    """Print every policy with its parameters and one line."""
    table = Table("policy", "parameters", "what a step commits", "lossless")
    for entry in listing():
        given = ",".join(f"{key}={value}" for key, value in entry.parameters.items())
        lossless = "yes" if entry.lossless else "NO"
        table.add_row(entry.name, given, entry.summary, lossless)
    (console or Console()).print(table)
