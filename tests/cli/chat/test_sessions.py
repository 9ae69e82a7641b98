"""Whole chats in a pipe: scripts of lines in, plain text out."""

import io
import json
import shutil

import pytest
from helpers import checkpoint_folders

from jaxdave.cli.chat import session
from jaxdave.cli.chat.answering import Answer
from jaxdave.cli.chat.conversation import Conversation
from jaxdave.engine.decode_config import DecodeConfig
from jaxdave.engine.sampler import Sampler
from jaxdave.io import checkpoint
from jaxdave.runtime import compilation

ASK = "Tom has 3 cards."
MODEL_OPTIONS = ("--max-new-tokens", 8, "--draft-steps", 4)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("chat") / "tiny"
    checkpoint_folders.make(path)
    return str(path)


@pytest.fixture
def chat(run, model, monkeypatch):
    """Run a script of lines; gives (exit code, stdout, stderr)."""

    def call(script: str | bytes, *options: object, folder: str = model):
        lines = script if isinstance(script, bytes) else script.encode()
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines)))
        return run("chat", "--model", folder, *MODEL_OPTIONS, *options)

    return call


@pytest.fixture
def sampler(model):
    config = DecodeConfig(max_new_tokens=8, draft_steps=4)
    return Sampler(checkpoint.load(model), config)


def answers(sampler, *texts: str, system: str | None = None) -> list[str]:
    """What a model says to texts one after another."""
    chat = Conversation(system=system)
    for text in texts:
        chat = chat.say(text, sampler(chat.asked(text)).text)
    return [turn.assistant for turn in chat.turns]


def test_a_script(chat, sampler, tmp_path):
    file, copy = tmp_path / "chat.json", tmp_path / "copy.json"
    script = f"{ASK}\n\nWhy?\r\n/history\n/save {copy}\n/undo\n /undo\n/quit\nmore\n"
    options = ("--history", file, "--system", "Kurz.")
    code, out, err = chat(script, *options)
    first, second = answers(sampler, ASK, "Why?", system="Kurz.")
    (_, third) = answers(sampler, ASK, "/undo", system="Kurz.")
    assert code == 0
    shown = f"system: Kurz.\nuser: {ASK}\nassistant: {first}\nuser: Why?\n"
    shown += f"assistant: {second}\n"
    assert out == f"{first}\n{second}\n{shown}{third}\n"
    assert "\x1b" not in out + err and ">" not in err
    figures = [line for line in err.splitlines() if "tokens/call" in line]
    assert len(figures) == 3 and "1 turn left" in err
    # The file goes on where the chat ended.
    kept = json.loads(file.read_text())
    assert [one["content"] for one in kept][1:] == [ASK, first, "/undo", third]
    assert len(json.loads(copy.read_text())) == 5
    code, out, _ = chat("/history\n/reset\n/history\n", "--history", file)
    assert code == 0
    assert out.splitlines()[0] == out.splitlines()[-1] == "system: Kurz."
    assert json.loads(file.read_text()) == kept[:1]


def test_a_growing_conversation_reuses_its_programs(chat, monkeypatch):
    compiled = []
    real = compilation._load_or_compile

    def counting(request, entry):
        compiled.append(request.name)
        return real(request, entry)

    monkeypatch.setattr(compilation, "_load_or_compile", counting)
    compilation.clear_executables()
    # The system prompt alone takes more than 128 positions; all fits into 256.
    script = f"{ASK} He buys one.\n" * 3
    code, _, err = chat(script, "--system", "one " * 40)
    assert code == 0 and err.count("tokens/call") == 3
    prefills = [name for name in compiled if name.startswith("prefill")]
    assert prefills == ["prefill 256"] and compiled.count("run") == 1


def test_lines_that_are_refused_change_nothing(chat, sampler):
    lines = (
        "/und",
        "/undo",
        "/set top-k x",
        "/set cache dual",
        "/save /none/at/all.json",
        "a <|MASK|> b",
        "word " * 600,
    )
    script = "\n".join(lines).encode() + b"\nab\xff\n" + ASK.encode()
    code, out, err = chat(script)
    assert code == 2 and out == answers(sampler, ASK)[0] + "\n"
    refused = err.splitlines()
    assert [line.split(": ")[1] for line in refused[:8]] == [
        f"line {number}" for number in range(1, 9)
    ]
    for line, says in zip(
        refused,
        (
            "did you mean /undo?",
            "no turn to undo",
            "must be a whole number",
            "cache='dual' is for full-attention models",
            "cannot be written",
            "mask token",
            "/set max-new-tokens asks for a shorter answer",
            "not UTF-8",
            "tokens/call",
        ),
        strict=True,
    ):
        assert says in line


def test_settings_are_used_and_listed(chat):
    script = "/set max-new-tokens 4\n/set\n/set top-k\n" + ASK
    code, out, err = chat(script)
    assert code == 0 and "4 tokens" in err
    listed = dict(line.split()[:2] for line in out.splitlines()[:-2])
    assert listed["max-new-tokens"] == "4" and listed["draft-steps"] == "4"
    assert listed["policy"] == "default" and listed["lossy"] == "off"
    assert "top-k 0  (0 is off; the model's, or 0)\n" in out


def test_no_room_left_loses_nothing(chat, tmp_path):
    file = tmp_path / "chat.json"
    # What was said takes most of the model's 512 positions.
    said = Conversation().say("one " * 220, "yes").messages
    file.write_text(json.dumps(said))
    code, out, err = chat("two " * 120, "--history", file)
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert "/undo drops the last turn, /reset all of them" in err
    assert json.loads(file.read_text()) == said


def test_static_beside_freedave(chat, sampler, monkeypatch):
    script = f"{ASK}\n/history"
    code, out, err = chat(script, "--compare")
    static, freedave, verdict = err.splitlines()
    (text,) = answers(sampler, ASK)
    shown = f"{text}\nuser: {ASK}\nassistant: {text}\n"
    assert (code, out) == (0, shown)
    assert static.startswith("static: ") and freedave.startswith("freedave: ")
    assert verdict.startswith("the same text, ") and "times fewer calls" in verdict

    class Liar(Answer):
        def run(self):
            if self.sampler.config.method == "freedave":
                self.prompt = "Something else"
            super().run()

    # If they ever differed, it would be said.
    monkeypatch.setattr(session, "Answer", Liar)
    code, out, err = chat(script, "--compare")
    assert code == 0 and "THE TEXTS DIFFER" in err
    (other,) = answers(sampler, "Something else")
    assert out == shown.replace("\n", f"\nfreedave: {other}\n", 1) and other != text


def test_thresholds_are_compared_with_thresholds():
    for config in (
        DecodeConfig(method="threshold"),
        DecodeConfig(threshold=0.7),
        DecodeConfig(policy="entropy:steps=4"),
    ):
        plain, drafted = config.undrafted(), config.drafted()
        assert drafted.method == "freedave" != plain.method
        assert drafted.make_policy() == plain.make_policy()


def change(folder, **settings) -> str:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return str(folder)


def test_models_that_cannot_chat(chat, model, tmp_path):
    folder = tmp_path / "none"
    shutil.copytree(model, folder)
    change(folder, chat_template=None)
    code, out, err = chat(ASK, folder=str(folder))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "no chat template" in err
    template = "{{ raise_exception('no system') if messages[0].role == 'system' }}"
    change(folder, chat_template=template + "{{ messages[-1].content }}")
    code, out, err = chat(ASK, "--system", "Kurz.", folder=str(folder))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "no system" in err
    code, out, _ = chat("", folder=str(folder))
    assert (code, out) == (0, "")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--system", " "), "is empty"),
        (("--live",), "draws in a terminal, and this is none"),
        (("--cache", "dual"), "is for full-attention models"),
        (("--history", "/none/at/all.json"), "cannot be written"),
        (("--template-arg", "x"), "must read NAME=VALUE"),
        (("--model", "no-such-model"), "no-such-model"),
    ],
)
def test_bad_options(chat, options, says):
    code, out, err = chat(ASK, *options)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err and "Traceback" not in err


def test_a_history_that_is_none_is_left_alone(chat, tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("my notes")
    code, out, err = chat(ASK, "--history", file)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "is no conversation" in err and file.read_text() == "my notes"
    assert [one.name for one in tmp_path.iterdir()] == ["notes.txt"]


def test_no_standard_input(run, model, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    code, out, err = run("chat", "--model", model)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "standard input is closed" in err
