"""The command line in process: what it prints and writes."""

import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import checkpoint_folders
from tokenizers import Tokenizer

from jaxdave.cli import demo
from jaxdave.cli import train as train_command
from jaxdave.engine.results import Nfe
from jaxdave.engine.streaming import StreamUpdate
from jaxdave.io import checkpoint
from jaxdave.io.tokenizer import load_codec

FIELDS = (
    "text token_ids finish_reason valid_tokens nfe reference_nfe seconds "
    "compile_seconds tokens_per_nfe tokens_per_second method draft_steps seed model"
).split()
NFE = ["prefill", "verify", "commit", "refresh", "recheck", "total"]
PROMPT = "Tom has 3 cards."
SHORT = ("--max-new-tokens", 8)
NEEDS_WEIGHTS = pytest.mark.skipif(
    not (checkpoint_folders.TOKENIZER / "model.safetensors").exists(),
    reason="the demo is not trained yet",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("cli") / "tiny"
    checkpoint_folders.make(path)
    return str(path)


def json_lines(out: str) -> list[dict]:
    return [json.loads(line) for line in out.splitlines()]


def test_json_has_every_field(run, model):
    code, out, err = run("generate", PROMPT, "--model", model, "--json", *SHORT)
    assert (code, err) == (0, "")
    (answer,) = json_lines(out)
    assert set(FIELDS) <= set(answer)
    assert list(answer["nfe"]) == NFE
    assert answer["nfe"]["total"] == sum(answer["nfe"][kind] for kind in NFE[:-1])
    assert answer["valid_tokens"] == len(answer["token_ids"]) <= 8
    assert answer["tokens_per_nfe"] == answer["valid_tokens"] / answer["nfe"]["total"]
    assert (answer["method"], answer["draft_steps"]) == ("freedave", "auto")
    assert (answer["seed"], answer["model"]) == (0, "tiny")
    assert answer["seconds"] > 0 and answer["compile_seconds"] >= 0


def test_methods_agree_as_json_and_as_text(run, model):
    options = ("--model", model, *SHORT)
    _, out, _ = run("generate", PROMPT, *options, "--method", "static", "--json")
    (static,) = json_lines(out)
    options = (*options, "--draft-steps", 4)  # "auto" may choose another each time
    _, out, _ = run("generate", PROMPT, *options, "--json")
    (fast,) = json_lines(out)
    assert static["token_ids"] == fast["token_ids"]
    assert static["draft_steps"] == 1
    assert fast["nfe"]["total"] <= static["nfe"]["total"]
    code, out, err = run("generate", PROMPT, *options)
    assert (code, out) == (0, fast["text"] + "\n")
    assert f"{fast['nfe']['total']} calls, {fast['valid_tokens']} tokens" in err


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_weights(run, model, dtype):
    options = ("--model", model, *SHORT, "--json", "--dtype", dtype)
    code, out, _ = run("generate", PROMPT, *options)
    assert code == 0 and json_lines(out)[0]["dtype"] == dtype


def test_threshold_and_its_freedave_agree(run, model):
    options = ("--model", model, *SHORT, "--threshold", 0.01, "--json")
    _, plain, _ = run("generate", PROMPT, *options, "--method", "threshold")
    _, fast, _ = run("generate", PROMPT, *options)
    assert json_lines(plain)[0]["token_ids"] == json_lines(fast)[0]["token_ids"]


def test_file_of_prompts(run, model, tmp_path):
    file = tmp_path / "p.jsonl"
    chat = [{"role": "user", "content": PROMPT}]
    ids = checkpoint.load(model).codec.encode_prompt(PROMPT)
    lines = [{"prompt": PROMPT}, None, {"messages": chat}, {"prompt_ids": ids}]
    file.write_text("\n".join(json.dumps(x) if x else "" for x in lines))
    options = ("--prompts", file, "--model", model, *SHORT)
    code, out, _ = run("generate", *options, "--json", "--batch-size", 2)
    assert code == 0
    answers = json_lines(out)
    assert [a["index"] for a in answers] == [0, 2, 3]
    assert [a["batch_rows"] for a in answers] == [2, 2, 1]
    assert len({a["text"] for a in answers}) == 1
    code, out, err = run("generate", *options)
    assert code == 0 and out.startswith("[0] ") and "\n[3] " in out
    assert err.count("\n") == 1


def test_noise_goes_by_line_and_seed(run, model, tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text(f'{{"prompt": "{PROMPT}"}}\n' * 2)
    options = ("--prompts", file, "--model", model, *SHORT, "--temperature", 0.7)
    found = {}
    for size, seed in itertools.product((1, 2), (0, 1)):
        rows = ("--batch-size", size, "--seed", seed, "--draft-steps", 2)
        out = run("generate", *options, "--json", *rows)
        found[size, seed] = [a["token_ids"] for a in json_lines(out[1])]
    assert found[1, 0] == found[2, 0] and found[1, 1] == found[2, 1]
    assert found[1, 0][0] != found[1, 0][1] and found[1, 0] != found[1, 1]


def test_terminal_sees_text_while_it_is_made(run, model, monkeypatch):
    _, whole, _ = run("generate", PROMPT, "--model", model, *SHORT)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    code, out, err = run("generate", PROMPT, "--model", model, *SHORT)
    assert (code, out) == (0, whole)
    assert "8 tokens" in err


class _Updates(Iterator):
    """A stream of given updates, with the numbers of a decode of one call each."""

    def __init__(self, updates):
        self._updates = list(updates)
        self._rest = iter(self._updates)

    def __next__(self):
        return next(self._rest)

    def completion(self, row):
        assert row == 0
        return SimpleNamespace(nfe=Nfe(prefill=1, verify=len(self._updates)))


def test_half_characters_wait_for_their_end(run, model, monkeypatch):
    ids = load_codec(checkpoint_folders.TOKENIZER).encode_prompt("é")[3:]
    updates = [StreamUpdate(0, (i,), (id_,), i) for i, id_ in enumerate(ids)]
    monkeypatch.setattr(
        "jaxdave.engine.streaming.stream", lambda *_, **__: _Updates(updates)
    )
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    _, out, _ = run("generate", PROMPT, "--model", model)
    assert "é" in out and "\ufffd" not in out


def test_demo_compares_static_and_freedave(run, model, monkeypatch):
    monkeypatch.setattr(demo, "MAX_NEW_TOKENS", 8)
    code, out, err = run("demo", "--model", model, "--problems", 2)
    assert (code, err) == (0, "")
    assert "texts equal to static's │      - │   2 of 2" in out
    assert "answers right           │ 0 of 2 │   0 of 2" in out
    assert "\x1b" not in out and "░" not in out


def test_demo_writes_a_page(run, model, monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "MAX_NEW_TOKENS", 8)
    page, link = tmp_path / "page.html", tmp_path / "link.html"
    page.write_text("old")
    link.symlink_to(page)
    options = ("--problems", 1, "--draft-steps", 2, "--html", link)
    code, out, err = run("demo", "--model", model, *options)
    assert (code, err) == (0, "") and out.endswith(f"wrote {page}\n")
    assert link.is_symlink() and page.read_text().startswith("<!DOCTYPE html>")
    assert set(tmp_path.iterdir()) == {page, link}


def test_train_writes_a_checkpoint_that_loads(run, tmp_path, monkeypatch):
    seen = {}

    def train(recipe, tokenizer, folder):
        seen.update(recipe=recipe, folder=folder)
        return SimpleNamespace(params=params)

    def build_tokenizer(folder):
        folder.mkdir(parents=True)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(checkpoint_folders.TOKENIZER / name, folder / name)
        return Tokenizer.from_file(str(folder / "tokenizer.json"))

    config = train_command.select_recipe("demo", None).config
    params = checkpoint_folders.random(config)
    monkeypatch.setattr("jaxdave.training.demo.recipe_run.train", train)
    monkeypatch.setattr(
        "jaxdave.training.demo.tokenizer.build_tokenizer", build_tokenizer
    )
    code, out, _ = run("train", "--recipe", "demo", "--out", tmp_path, "--steps", 7)
    assert code == 0 and str(tmp_path / "model") in out
    recipe = seen["recipe"]
    assert (recipe.steps, recipe.warmup_steps, recipe.decay_steps) == (7, 3, 4)
    found = checkpoint.load(tmp_path / "model", dtype="bfloat16")
    assert found.config.stop_ids == config.stop_ids


def test_long_runs_keep_the_phases_of_the_recipe():
    usual = train_command.select_recipe("demo", None)
    longer = train_command.select_recipe("demo", usual.steps * 2)
    assert (longer.warmup_steps, longer.decay_steps) == (
        usual.warmup_steps,
        usual.decay_steps,
    )


def test_help_and_version(run):
    for args in ((), ("--help",)):
        code, out, err = run(*args)
        assert (code, err) == (0, "") and "generate" in out
    code, out, _ = run("--version")
    assert code == 0 and out.startswith("jaxdave ")


def test_compiled_programs_are_kept_unless_told_otherwise(tmp_path, monkeypatch):
    script = (
        "import jax\nfrom jaxdave.cli import options\noptions.enable_jax_cache({off})\n"
        "print(jax.config.jax_compilation_cache_dir)"
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)

    def found(off: bool) -> str:
        command = [sys.executable, "-c", script.format(off=off)]
        return subprocess.check_output(command, text=True).strip()

    assert found(False) == found(True) == "None"
    monkeypatch.delenv("JAXDAVE_NO_CACHE")
    assert found(True) == "None"
    if sys.platform == "linux":
        assert Path(found(False)).is_relative_to(tmp_path)


def test_help_needs_no_jax():
    """Else `jaxdave --help` takes seconds."""
    script = "import sys, jaxdave.cli.main; print('jax' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", script]) == b"False\n"


@NEEDS_WEIGHTS
def test_packaged_demo_answers_right(run):
    prompt = "Nora has 10 cards. Omar gives Nora 6 cards. How many cards are there now?"
    options = ("--json", "--max-new-tokens", 64, "--draft-steps", 8)
    code, out, _ = run("generate", prompt, *options)
    (answer,) = json_lines(out)
    assert code == 0 and answer["finish_reason"] == "stop"
    assert answer["text"].endswith("#### 16") and answer["model"] == "sdar-1m"
    assert answer["tokens_per_nfe"] > 1.5


@NEEDS_WEIGHTS
def test_packaged_demo_compares(run):
    code, out, _ = run("demo", "--problems", 2)
    assert code == 0 and "FreeDave wrote the same texts as static" in out
    assert "answers right           │ 2 of 2 │   2 of 2" in out
