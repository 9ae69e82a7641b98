"""`jaxdave eval` with bad input: one line, exit code 2, and nothing left behind."""

import os

import pytest
from helpers import checkpoint_folders

from jaxdave.eval.benchmarks import demo
from jaxdave.eval.run import cells, eval_config
from jaxdave.eval.run.methods import METHODS
from jaxdave.eval.types import Prompt
from jaxdave.grading.types import Item
from jaxdave.io import checkpoint
from jaxdave.runtime.locks import output_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("eval") / "tiny"
    checkpoint_folders.make(path)
    return str(path)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--tasks", "gsm9k"), "task 'gsm9k' is unknown; use one of gsm8k"),
        (("--tasks", "demo-math,"), "task '' is unknown"),
        (("--methods", "magic"), "method 'magic' is unknown; use static"),
        (("--preset", "paper-1999"), "preset 'paper-1999' is unknown; use one of"),
        (("--limit", 0), "limit=0 must be at least 1"),
        (("--batch-size", 0), "batch_size=0 must be"),
        (("--draft-steps", "two"), "draft_steps='two' must be"),
        (("--draft-steps", 0), "draft_steps=0 must be"),
        (("--draft-steps", 33), "draft_steps=33 must be"),
        (("--policy", "magic"), "policy 'magic' is unknown"),
        (("--threshold", 2), "threshold=2.0 must be"),
        (("--data-dir", "none"), "data_dir=none is no folder"),
        (("--tasks", "gsm8k", "--data-dir", "."), "gsm8k_test.jsonl: cannot be read"),
        (("--limit", "abc"), "Invalid value for '--limit'"),
        (("--preset", "sdar", "--as-published"), "has no published form"),
        (("--sweep", "threshold"), "sweep='threshold' is unknown"),
        (("--sweep", "draft_steps", "--methods", "static"), "add freedave"),
        (("--trajectory", "x", "--methods", "freedave"), "add both"),
        (("--trajectory", "x"), "'x' is no item of this run; one is 'demo-math-0'"),
        (("--max-new-tokens", 500), "demo-math, item demo-math-0: the prompt has"),
        (("--model", "nope"), "model 'nope' is unknown"),
        (("--dtype", "int8"), "dtype 'int8' is unknown"),
        (("--numerics", "loose"), "numerics='loose' is unknown"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(run, model, tmp_path, args, words):
    out = tmp_path / "out"
    command_line = ("eval", "--model", model, "--out", out, *args)
    code, printed, err = run(*command_line)
    assert (code, printed) == (2, "") and words in err
    assert err.count("\n") == 1 and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_figures_need_a_folder_and_a_folder_is_no_file(run, tmp_path):
    file = tmp_path / "out"
    file.write_text("mine")
    code, _, err = run("eval", "--out", file)
    assert code == 2 and "is a file and must be a folder" in err
    assert file.read_text() == "mine"
    code, _, err = run("eval", "--sweep", "draft_steps")
    assert code == 2 and "--out FOLDER" in err


def test_a_folder_that_cannot_be_written_is_said_before_decoding(
    run, model, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        "jaxdave.eval.command._run_cells", lambda *_: pytest.fail("decodes")
    )
    file, options = tmp_path / "file", ("eval", "--model", model, "--limit", 1, "--out")
    file.write_text("mine")
    for out, reason in ((file / "out", "Not a directory"), (tmp_path, "read-only")):
        code, printed, err = run(*options, out)
        assert (code, printed, err.count("\n")) == (2, "", 1)
        assert f"out={out} cannot be written to" in err and reason in err
        # Root may write anywhere, so the second folder only claims to be read-only.
        monkeypatch.setattr("os.access", lambda path, mode: not mode & os.W_OK)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_two_runs_do_not_write_to_one_folder(run, model, tmp_path):
    args = ("eval", "--model", model, "--limit", 1, "--out", tmp_path)
    with output_folder(tmp_path):
        code, _, err = run(*args)
        assert code == 2 and err.count("\n") == 1
        assert f"out={tmp_path} is being written to by another run" in err
    assert not list(tmp_path.iterdir())
    with output_folder(tmp_path):
        pass  # the lock of a run that has ended is free


def test_a_benchmark_file_that_is_another_is_refused(run, model, tmp_path):
    (tmp_path / "gsm8k_test.jsonl").write_text('{"question": "?", "answer": "1"}\n')
    options = ("--tasks", "gsm8k", "--data-dir", tmp_path, "--out", tmp_path / "out")
    code, printed, err = run("eval", "--model", model, *options)
    assert (code, printed, err.count("\n")) == (2, "", 1)
    assert "gsm8k_test.jsonl: sha256 " in err and "fetch the published file" in err
    assert [p.name for p in tmp_path.iterdir()] == ["gsm8k_test.jsonl"]


def test_code_of_models_runs_only_if_allowed(run):
    code, out, err = run("eval", "--tasks", "demo-math,mbpp")
    assert (code, out) == (2, "") and "say --allow-code-execution" in err
    config = eval_config.EvalConfig(tasks=("mbpp",), allow_code_execution=True)
    eval_config.check(config)


def test_a_policy_is_statics_and_freedaves():
    asked = eval_config.EvalConfig(
        overrides={"policy": "entropy:steps=16"}, methods=(*METHODS,)
    )
    given = eval_config.decode_config(asked, {"tokens_per_step": 2})
    chosen = [method.choose(given, 0.9) for method in eval_config.methods_of(asked)]
    assert [s.policy for s in chosen] == [given.policy, None, given.policy, None]
    assert [s.threshold for s in chosen] == [None, 0.9, None, 0.9]
    eval_config.check(asked)
    titles = [m.title(s) for m, s in zip(METHODS.values(), chosen, strict=True)]
    assert titles[0] == "entropy:steps=16"
    assert titles[2] == "FreeDave d=auto over entropy:steps=16"


def test_prompts_are_a_conversation_or_a_text_with_markup(model):
    codec = checkpoint.load(model).codec
    chat = [{"role": "user", "content": "hi"}]
    plain_ids = codec.encode_messages(chat)
    prefixed_ids = plain_ids + codec.encode_text("So")
    assert cells.encode_prompt(codec, Prompt(chat)) == plain_ids
    assert cells.encode_prompt(codec, Prompt(chat, "So")) == prefixed_ids
    assert cells.encode_prompt(codec, Prompt(chat, "So", 2)) == plain_ids[:2]
    assert cells.encode_prompt(codec, Prompt("hi S", "o")) == codec.encode_text("hi So")
    with pytest.raises(ValueError, match="t, item i: the prompt holds the mask token"):
        task = demo.TASKS["demo-math"]._replace(name="t")
        item = Item("i", "q", "g", {})
        cells.encode_item(codec, task, item, 0, Prompt("<|MASK|>"))
