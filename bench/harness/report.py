"""The report of a benchmark script: header, tables, asserted claims, JSON."""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxdave.io import hub
from jaxdave.runtime.files import replace_file

PACKAGES = ("jax", "jaxlib", "flax", "numpy")
"""Packages whose versions a report names."""


class Claim(NamedTuple):
    """A statement that a script asserts about its own results.

    Attributes:
        sentence: the statement, as it is printed.
        holds: True if the results bear it out.
    """

    sentence: str
    holds: bool


@dataclasses.dataclass(frozen=True)
class Report:
    """The results of one run of a script, as they are printed and written to `--out`.

    Attributes:
        machine: command, device, versions, load and date of the run.
        tables: rows of every table, by its title.
        claims: statements that must hold for the script to succeed.
    """

    machine: dict[str, Any]
    tables: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)
    claims: list[Claim] = dataclasses.field(default_factory=list)

    def add_table(self, title: str, rows: Sequence[dict[str, Any]]) -> None:
        """Add a table and print it as Markdown.

        Args:
            title: its title; a later table of the same title replaces the earlier one.
            rows: its rows. The keys of the first are the columns; no row may lack one.
        """
        self.tables[title] = list(rows)
        print(f"\n{title}\n")
        if not rows:
            return
        heads = list(rows[0])
        cells = [[row[head] for head in heads] for row in rows]
        for line in (heads, ["---"] * len(heads), *cells):
            print("| " + " | ".join(_format_cell(cell) for cell in line) + " |")

    def finish(self, out: Path | None) -> None:
        """Write the report and print which claims hold.

        Args:
            out: JSON file to write; None writes none.

        Raises:
            SystemExit: with status 1, if a claim does not hold.
        """
        self.machine["load_at_end"] = load_averages()
        if out is not None:
            text = json.dumps(dataclasses.asdict(self), indent=1, default=str)
            replace_file(out, (text + "\n").encode())
        print(f"\nload at end: {self.machine['load_at_end']}")
        for claim in self.claims:
            print(f"{'holds' if claim.holds else 'FAILS'}: {claim.sentence}")
        if not all(claim.holds for claim in self.claims):
            sys.exit(1)


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """Build a parser with the options that every script has.

    Args:
        description: text of `--help`, printed as it is; scripts give their docstring.

    Returns:
        A parser that knows `--out` and `--weights`.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument(
        "--weights",
        default=hub.DEFAULT_MODEL,
        help="the demo, a checkpoint folder, or `random` for untrained demo weights",
    )
    return parser


def git_commit() -> str:
    """Look up the git commit of this tree.

    Returns:
        Its short hash, with " (changed)" where tracked files differ from it; "unknown"
        outside a repository.
    """

    def git(*arguments: str) -> str:
        process = subprocess.run(
            ("git", *arguments),
            capture_output=True,
            text=True,
            cwd=Path(__file__).parent,
            check=False,
        )
        return process.stdout.strip()

    dirty = " (changed)" if git("status", "--porcelain", "-uno") else ""
    return (git("rev-parse", "--short", "HEAD") or "unknown") + dirty


def start_report(weights: str) -> Report:
    """Print the header of a run: command, device, versions, load and date.

    Args:
        weights: what is measured, as the header names it.

    Returns:
        A report without tables.
    """
    device = jax.devices()[0]
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    machine = {
        "command": f"python -m {_module_name()} {shlex.join(sys.argv[1:])}".strip(),
        "device": f"{device.platform} ({device.device_kind}), {os.cpu_count()} cores, "
        + (platform.processor() or platform.machine()),
        "versions": {"python": platform.python_version(), **versions},
        "weights": weights,
        "load": load_averages(),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }
    for name, value in machine.items():
        print(f"{name}: {value}")
    sys.stdout.flush()
    return Report(machine)


def load_averages() -> str:
    """Read the load averages of this machine.

    Returns:
        The averages over 1, 5 and 15 minutes, separated by spaces.
    """
    return " ".join(f"{value:.2f}" for value in os.getloadavg())


def _format_cell(cell: Any) -> str:
    """Three significant digits for numbers below 1000, none after the point above."""
    if not isinstance(cell, float):
        return str(cell)
    return f"{cell:.3g}" if abs(cell) < 1000 else f"{cell:.0f}"


def _module_name() -> str:
    """The name after `python -m` of the running script."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name.removesuffix(".__main__") if spec else sys.argv[0]
