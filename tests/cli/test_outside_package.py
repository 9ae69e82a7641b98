"""A policy and a draft function of an installed package, with no change to jaxdave.

The package is laid out as `pip install --target` leaves it, which needs no network and
no build backend; every use is a process of its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import compiling

from jaxdave.runtime.files import NO_CACHE
from jaxdave.runtime.program_cache import PROGRAM_FOLDER

MODULE = '''
"""What a user of jaxdave writes."""

from jaxdave.drafting.nested import propose_nested
from jaxdave.policies.intervals import interval_policy, select_top


def two_best(count: int = 2):
    """The most confident tokens, a few a step."""

    def rule(view, values):
        return select_top(view, count, values.score)

    return interval_policy(f"two_best({count})", rule)


def short(context, first, num_drafts):
    """Nested drafts."""
    return propose_nested(context, first, num_drafts)
'''
ENTRY_POINTS = """
[jaxdave.policies]
two_best = outside_rules:two_best

[jaxdave.drafts]
short = outside_rules:short
"""
SAMPLER = """
import json, jaxdave, outside_rules
model = jaxdave.load("sdar-1m")
for policy in ("two_best:count=3", outside_rules.two_best(3)):
    config = jaxdave.DecodeConfig(
        policy=policy, draft="short", draft_steps=4, max_new_tokens=16, numerics="exact"
    )
    sampler = jaxdave.Sampler(model, config)
    answer = sampler("Tom has 2 pens.")
    assert sampler.undrafted()("Tom has 2 pens.") == answer
    print(json.dumps(answer.token_ids))
"""
GENERATE = (
    *("generate", "Tom has 2 pens.", "--policy", "two_best:count=3", "--draft"),
    *("short", "--draft-steps", "4", "--max-new-tokens", "16", "--numerics", "exact"),
    "--json",
)


@pytest.fixture
def python(tmp_path):
    """Run Python where the package is installed, with a cache of its own."""
    site = tmp_path / "site"
    info = site / "outside_rules-0.1.dist-info"
    info.mkdir(parents=True)
    (site / "outside_rules.py").write_text(MODULE)
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: outside-rules\nVersion: 0.1\n"
    )
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    environment = {key: value for key, value in os.environ.items() if key != NO_CACHE}
    environment |= {
        "PYTHONPATH": os.pathsep.join([str(site), *filter(None, sys.path)]),
        "XDG_CACHE_HOME": str(tmp_path),
        "LOCALAPPDATA": str(tmp_path),
        **compiling.VARIABLES,
    }

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "are not kept on disk" not in done.stderr
        return done.stdout

    return run


def kept_programs(cache: Path) -> dict[str, int]:
    """The files of compiled programs; a program that is compiled anew is another."""
    folder = cache / "jaxdave" / PROGRAM_FOLDER
    return {path.name: path.stat().st_ino for path in folder.iterdir()}


def test_a_package_adds_a_policy_and_a_draft_function(python, tmp_path):
    command = ("-m", "jaxdave.cli.main")
    assert "two_best" in python(*command, "policies")
    assert "short" in python(*command, "drafts")
    answer = json.loads(python(*command, *GENERATE))
    kept = kept_programs(tmp_path)
    assert kept
    # By name and as an object it is the program that the first process has left.
    lines = python("-c", SAMPLER).splitlines()
    assert [json.loads(line) for line in lines] == [answer["token_ids"]] * 2
    assert kept_programs(tmp_path) == kept
