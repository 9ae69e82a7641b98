"""A conversation as a value: turns and settings, and what they refuse."""

import dataclasses

import pytest

from jaxdave.cli.chat import commands, settings
from jaxdave.cli.chat.conversation import Conversation
from jaxdave.engine.config_record import options
from jaxdave.engine.decode_config import DecodeConfig

TWO = Conversation(system="Be brief.").say("Hello", "Hi").say("How?", "So.")


def test_turns_come_and_go():
    roles = [message["role"] for message in TWO.asked("More?")]
    assert roles == ["system", *["user", "assistant"] * 2, "user"]
    assert TWO.undo().asked("x")[1:] == [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "x"},
    ]
    assert TWO.reset() == Conversation(system="Be brief.")
    assert TWO.undo().undo() == TWO.reset()
    with pytest.raises(ValueError, match="no turn to undo"):
        TWO.reset().undo()


def test_messages_there_and_back():
    assert Conversation().with_messages(TWO.messages) == TWO
    own = Conversation(system="Another.").with_messages(TWO.messages)
    assert own == dataclasses.replace(TWO, system="Another.")
    assert Conversation().with_messages([]) == Conversation()


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        (TWO.messages[:2], "by turns"),
        (TWO.messages[2:], "by turns"),
        ([*TWO.messages, TWO.messages[0]], "by turns"),
        ([{"role": "user"}], "message 1 must read"),
        (["Hello"], "message 1 must read"),
        ([{"role": "user", "content": ["Hello"]}], "message 1 must read"),
    ],
)
def test_what_is_no_conversation(messages, says):
    with pytest.raises(ValueError, match=says):
        Conversation().with_messages(messages)


@pytest.mark.parametrize(
    ("name", "word", "value"),
    [
        ("draft-steps", "4", 4),
        ("draft_steps", "auto", "auto"),
        ("--top-k", "3", 3),
        ("temperature", "0.5", 0.5),
        ("max-new-tokens", "32", 32),
        ("numerics", "exact", "exact"),
        ("policy", "entropy:steps=16", "entropy:steps=16"),
        ("cache", "none", "none"),
        ("no-stop", "on", True),
    ],
)
def test_settings_are_those_of_the_command_line(name, word, value):
    field = name.removeprefix("--").replace("-", "_")
    changed = TWO.set(name, word)
    assert getattr(changed.config, field) == value
    assert changed.turns == TWO.turns
    assert changed.set(name, settings.DEFAULT) == TWO
    # What is listed can be set.
    assert TWO.set(name, settings.described(changed.config, name).value) == changed


def test_every_option_is_a_setting():
    config = DecodeConfig()
    names = [one.name.replace("-", "_") for one in settings.listing(config)]
    assert names == [option.name for option in options(DecodeConfig)]
    for one in settings.listing(config):
        assert settings.changed(config, one.name, settings.DEFAULT) == config


@pytest.mark.parametrize(
    ("name", "word", "says"),
    [
        ("draft-stps", "4", "did you mean draft-steps?"),
        ("colour", "red", "/set lists them"),
        ("top-k", "x", "top-k='x' must be a whole number"),
        ("top-k", "-1", "top_k=-1 must be"),
        ("temperature", "hot", "temperature='hot' must be a number"),
        ("temperature", "nan", "temperature=nan must be"),
        ("no-stop", "perhaps", "must be on or off"),
        ("draft-steps", "0", "draft_steps=0 must be"),
        ("suppressed-ids", "3", "there is no setting"),
    ],
)
def test_bad_settings(name, word, says):
    with pytest.raises(ValueError) as caught:
        TWO.set(name, word)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("line", "name", "words"),
    [
        ("/undo", "undo", ()),
        ("/set", "set", ()),
        ("/set top-k  5", "set", ("top-k", "5")),
        ("/save a b.json ", "save", ("a b.json",)),
    ],
)
def test_commands(line, name, words):
    assert commands.parse(line) == commands.Call(name, words)


def test_what_is_no_command():
    assert commands.parse("hello /undo") is None
    assert commands.parse(" /undo") is None
    for line, says in (
        ("/und", "did you mean /undo?"),
        ("/", "there is no command /"),
        ("/xyz", "/help lists them"),
        ("/undo 2", "/undo is written /undo"),
        ("/save", "/save is written /save FILE"),
    ):
        with pytest.raises(ValueError) as caught:
            commands.parse(line)
        assert says in str(caught.value)


def test_help_fits_a_terminal():
    for name in commands.COMMANDS:
        assert f"\n/{name}" in f"\n{commands.help_text()}"
    assert all(len(line) <= 80 for line in commands.help_text().splitlines())
