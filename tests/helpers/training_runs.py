"""Small supervised runs: samples, settings, and the metrics that they leave."""

import json
from pathlib import Path

from jaxdave.demo_tasks.mixture import training_problem

SETTINGS = """\
[model]
start = "{start}"
{model}
[data]
files = ["{folder}/train.jsonl"]
length = 128
{data}
[objective]
name = "{objective}"

[optimiser]
learning_rate = 1e-3

[train]
steps = 3
batch_size = 4
save_every = 2
{train}
{more}
"""


def write_samples(path: Path, count: int = 8, seed: int = 7) -> None:
    problems = [training_problem(seed, index) for index in range(count)]
    path.write_text(
        "".join(
            json.dumps({"prompt": p.prompt, "response": p.answer}) + "\n"
            for p in problems
        )
    )


def settings(folder: Path, **parts: str) -> Path:
    defaults = {"start": "sdar-1m", "objective": "sdar"}
    blanks = dict.fromkeys(("model", "data", "train", "more"), "")
    path = folder / "train.toml"
    values = blanks | defaults | {"folder": folder} | parts
    path.write_text(SETTINGS.format(**values))
    return path


def metrics_of(folder: Path) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k != "seconds"} for x in lines]
