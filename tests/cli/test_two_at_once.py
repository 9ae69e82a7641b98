"""Two of the same command on one folder: one does all of the work, the other none."""

import os
import subprocess
import sys

import pytest
from helpers import checkpoint_folders, conversion_sources
from jaxdave_convert import conversion

from jaxdave.cli import main
from jaxdave.eval.run import plan


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("two") / "tiny"
    checkpoint_folders.make(path)
    return str(path)


def second_code(args) -> int:
    with pytest.raises(SystemExit) as caught:
        main.main([str(arg) for arg in args])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def begin_second(args, codes):
    """What the first command does when it looks: begin the same command again."""

    def look(*_):
        if codes:  # the second one looks as well
            codes.append("looks")
        else:
            codes.append("first")
            codes.append(second_code(args))
        raise ValueError("that was enough")

    return look


def test_of_two_evaluations_one_looks(model, tmp_path, monkeypatch, capsys):
    """The second begins while the first plans, and there is no folder yet."""
    out, codes = tmp_path / "out", []
    args = ("eval", "--model", model, "--limit", 1, "--out", out)
    monkeypatch.setattr(plan, "cells", begin_second(args, codes))
    assert second_code(args) == 2
    assert codes == ["first", 2]
    assert f"out={out} is being written to by another run" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_of_two_trainings_one_looks(tmp_path, monkeypatch, capsys):
    out, codes = tmp_path / "out", []
    args = ("train", "--out", out, "--steps", 2, "--no-compile-cache")
    look = begin_second(args, codes)
    monkeypatch.setattr("jaxdave.training.demo.tokenizer.build_tokenizer", look)
    assert second_code(args) == 2
    assert codes == ["first", 2]
    assert f"out={out} is being written to by another run" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_conversion_that_came_first_is_not_replaced(
    source, tmp_path, monkeypatch, capsys
):
    """It ends while the second one has looked and not begun."""
    ours, planned = tmp_path / "ours", conversion.plan_conversion

    def plan_slowly(src, options):
        monkeypatch.setattr(conversion, "plan_conversion", planned)
        result = planned(src, options)
        assert conversion_sources.run(source, ours) == 0
        (ours / "README.md").write_text("the first one's")
        return result

    monkeypatch.setattr(conversion, "plan_conversion", plan_slowly)
    assert conversion_sources.run(source, ours) == 2
    assert "replace it with --overwrite" in capsys.readouterr().err
    assert (ours / "README.md").read_text() == "the first one's"
    assert conversion_sources.names_in(tmp_path) == ["ours", "source"]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="commands of POSIX")
def test_two_processes_at_once(model, source, tmp_path):
    """Real ones. The second may also come when the first has ended, and finds it."""
    program = "from jaxdave.cli.main import main; main()"
    converter = "from jaxdave_convert.cli import main; main()"
    room = ("--limit", "3", "--max-new-tokens", "16", "--methods", "static")
    words = {
        "eval": (program, "eval", "--model", model, *room, "--tasks", "demo-math"),
        "train": (program, "train", "--steps", "1"),
        "convert": (converter, str(source)),
    }
    path = os.pathsep.join(path for path in sys.path if path)
    for name, (script, *arguments) in words.items():
        out = tmp_path / name / "out"
        arguments += [str(out)] if name == "convert" else ["--out", str(out)]
        both = [
            subprocess.Popen(
                [sys.executable, "-c", script, *arguments],
                env={**os.environ, "PYTHONPATH": path},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(2)
        ]
        errors = [process.communicate()[1] for process in both]
        codes = sorted(process.returncode for process in both)
        assert codes[0] == 0 and codes[1] in (0, 2), errors
        assert not any("Traceback" in text for text in errors)
        if codes[1]:
            pairs = zip(errors, both, strict=True)
            (refusal,) = (error for error, process in pairs if process.returncode)
            assert refusal.splitlines()[-1].count("another") or "exists" in refusal
        for file in out.glob("*.jsonl"):
            lines = file.read_text().splitlines()
            assert len(lines) == 4, f"{file} holds {len(lines)} lines"
