"""The short examples, run as scripts are, on the demo model."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples"
PROMPT = "Mia has 3 pens. She buys 4 more pens. How many pens does Mia have now?"


@pytest.fixture
def run_example(monkeypatch, capsys):
    """Run an example's main with arguments; gives what it prints."""

    def run(name: str, *args: object) -> str:
        path = FOLDER / f"{name}.py"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, args)])
        module.main()
        return capsys.readouterr().out

    return run


def test_batch_files(run_example, tmp_path):
    source, target = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    source.write_text(f"{json.dumps({'prompt': PROMPT})}\n\n", encoding="utf-8")
    assert run_example("batch_files", source, target).startswith("1 answers")
    (row,) = map(json.loads, target.read_text(encoding="utf-8").splitlines())
    assert row["prompt"] == PROMPT and row["text"] == "3+4=7\n#### 7"


def test_streaming(run_example):
    out = run_example("streaming", PROMPT)
    assert out.startswith("3+4=7\n#### 7\n(")
    lines = out.splitlines()
    assert "_" in lines[4] and "7" in lines[-1]


def test_evaluate_own_task(run_example):
    out = run_example("evaluate_own_task")
    assert "4 of 4 texts equal" in out
