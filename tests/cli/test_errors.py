"""The command line with bad input: exit code 2 and one line that says what to do."""

import shutil

import pytest
from helpers import checkpoint_folders

from jaxdave.cli import main


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("cli") / "tiny"
    checkpoint_folders.make(path)
    return str(path)


@pytest.fixture
def fails(capsys, monkeypatch):
    """Run a command line that must fail as bad input does; gives its one line."""

    monkeypatch.setenv("JAXDAVE_NO_CACHE", "1")

    def call(*args: object) -> str:
        with pytest.raises(SystemExit) as caught:
            main.main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        assert (caught.value.code, out) == (2, "")
        assert err.count("\n") == 1 and "Traceback" not in err
        return err

    return call


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "no prompt was given"),
        (("",), "is empty"),
        (("x", "--method", "fast"), "method 'fast' is unknown"),
        (("x", "--draft-steps", 0), "draft_steps=0 must be"),
        (("x", "--draft-steps", 33), "draft_steps=33 must be"),
        (("x", "--draft-steps", "two"), "draft_steps='two' must be"),
        (("x", "--block-length", 3), "block_length=3 must divide 64"),
        (("x", "--temperature", -1), "temperature=-1.0 must be"),
        (("x", "--temperature", "nan"), "temperature=nan must be"),
        (("x", "--top-k", -1), "top_k=-1 must be"),
        (("x", "--top-p", 0), "top_p=0.0 must be"),
        (("x", "--max-new-tokens", 0), "max_new_tokens=0 must be"),
        (("x", "--max-new-tokens", 511), "the prompt has"),
        (("word " * 600,), "the prompt has"),
        (("x", "--threshold", 2, "--method", "threshold"), "threshold=2.0 must be"),
        (("x", "--threshold", 0.9, "--method", "static"), "no meaning"),
        (("x", "--threshold", 0.9, "--tokens-per-step", 2), "no meaning"),
        (("x", "--tokens-per-step", 0), "tokens_per_step=0 must be"),
        (("x", "--dtype", "int8"), "dtype 'int8' is unknown"),
        (("x", "--numerics", "loose"), "numerics='loose' is unknown"),
        (("x", "--batch-size", 0), "batch_size=0 must be"),
        (("x", "--mesh", "4"), "mesh='4' must name some of the axes"),
        (("x", "--mesh", "model=4096"), "needs 4096 devices, and there are"),
        (("x", "--seed", -1), "seed=-1 must be"),
        (("x", "--colour", "red"), "No such option"),
        (("<|MASK|>",), "mask token"),
    ],
)
def test_bad_options(fails, model, args, words):
    assert words in fails("generate", *args, "--model", model)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"prompt": "a"}\n{"prompt": ', "p.jsonl, line 2: broken JSON"),
        ('{"prompt": "a"}\n\n{"prompt": ""}', "p.jsonl, line 3: prompt '' is empty"),
        ("[]", "line 1: '[]' must be an object with exactly one of"),
        ('{"text": "a"}', "exactly one of"),
        ('{"prompt": "a", "prompt_ids": [1]}', "exactly one of"),
        ('{"prompt": 3}', "line 1: prompt=3 must be a text"),
        ('{"messages": "hi"}', "line 1: messages must be a list"),
        ('{"messages": []}', "line 1: messages are empty"),
        ('{"prompt_ids": []}', "line 1: prompt_ids is empty"),
        ('{"prompt_ids": [1, 776]}', "prompt_ids holds '776', but must be token ids"),
        ('{"prompt_ids": [1, 775]}', "without the mask id 775"),
        ('{"prompt_ids": [true, 1.5]}', "must be token ids"),
        ("", "holds no prompt"),
        (b"\xff\xfe", "cannot be read (not UTF-8)"),
    ],
)
def test_bad_prompt_files(fails, model, tmp_path, content, words):
    file = tmp_path / "p.jsonl"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert words in fails("generate", "--prompts", file, "--model", model)


def test_prompt_file_and_prompt_exclude_each_other(fails, tmp_path):
    missing = tmp_path / "none.jsonl"
    assert "leave one of them out" in fails("generate", "x", "--prompts", missing)
    assert "No such file" in fails("generate", "--prompts", missing)


def test_bad_models(fails, model, tmp_path):
    assert "model 'nope' is unknown" in fails("generate", "x", "--model", "nope")
    folder = tmp_path / "broken"
    shutil.copytree(model, folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert "truncated" in fails("generate", "x", "--model", folder)
    path.unlink()
    assert "missing file" in fails("generate", "x", "--model", folder)
    assert "config.json: missing" in fails("demo", "--model", tmp_path)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("dance",), "No such command 'dance'"),
        (("train",), "Missing option '--out'"),
        (("train", "--out", "o", "--recipe", "cake"), "recipe 'cake' is unknown"),
        (("train", "--out", "o", "--steps", 0), "steps=0 must be"),
        (("demo", "--problems", 0), "problems=0 must be"),
        (("demo", "--draft-steps", 0), "draft_steps=0 must be"),
        (("demo", "--draft-steps", "x"), "draft_steps='x' must be"),
        (("demo", "--speed", 0), "speed=0.0 must be"),
        (("demo", "--speed", "nan"), "speed=nan must be"),
        (("demo", "--html", "."), "html=. is a folder; name a file in it"),
        (("demo", "--html", "no/p.html"), "in no folder; make no first"),
        (("demo", "--html", "/dev/full"), "no regular file"),
        (("demo", "--html", "x" * 300), "cannot be written (File name too long)"),
    ],
)
def test_bad_commands(fails, args, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in fails(*args)
    assert not list(tmp_path.iterdir())


def test_an_interrupt_is_one_line(capsys, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxdave.policies.registry.listing", interrupt)
    with pytest.raises(SystemExit) as caught:
        main.main(["policies"])
    assert caught.value.code == 130
    assert capsys.readouterr() == ("", "jaxdave: interrupted\n")


def test_no_standard_output(monkeypatch, capsys):
    """As a shell has it after `>&-`."""
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as caught:
        patch.setattr("sys.stdout", None)
        main.main(["policies"])
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert "standard output is closed" in err and err.count("\n") == 1
