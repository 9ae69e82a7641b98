"""Conversations in files: private, replaced as a whole, and nothing else is."""

import json

import pytest

from jaxdave.cli.chat import history
from jaxdave.cli.chat.conversation import Conversation

CHAT = Conversation(system="Kurz.").say("Grüße", "Ja\u2028 oder nein")


def test_there_and_back(tmp_path):
    path = tmp_path / "chat.json"
    assert history.read(path, CHAT) == CHAT  # no file yet
    history.write(path, CHAT)
    assert history.read(path, Conversation()) == CHAT
    assert json.loads(path.read_text(encoding="utf-8")) == CHAT.messages
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    history.write(path, CHAT.undo())
    assert path.stat().st_mode & 0o777 == 0o640
    assert history.read(path, Conversation()) == CHAT.undo()
    assert [one.name for one in tmp_path.iterdir()] == ["chat.json"]


def test_a_link_stays_one(tmp_path):
    path, link = tmp_path / "chat.json", tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(ValueError, match="is no conversation"):
        history.read(link, CHAT)  # its file was lost
    history.write(path, CHAT)
    history.write(link, CHAT.undo())
    assert link.is_symlink() and history.read(path, CHAT.undo()) == CHAT.undo()


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"{}", b'[{"role": "user"}]', b'"x"', b"\xff\xfe", b"[" * 9999],
)
def test_what_is_no_conversation_is_left_alone(tmp_path, content):
    path = tmp_path / "chat.json"
    path.write_bytes(content)
    for action in (history.read, history.write):
        with pytest.raises(ValueError) as caught:
            action(path, CHAT)
        assert "is no conversation" in str(caught.value)
    assert path.read_bytes() == content
    assert [one.name for one in tmp_path.iterdir()] == ["chat.json"]


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match="is no conversation"):
        history.write(tmp_path, CHAT)
    with pytest.raises(ValueError, match="cannot be written"):
        history.write(tmp_path / "none" / "chat.json", CHAT)
    with pytest.raises(ValueError, match="cannot be written"):
        with history.held(tmp_path / "none" / "chat.json"):
            pass
    assert not list(tmp_path.iterdir())


def test_one_chat_at_a_time(tmp_path):
    path = tmp_path / "chat.json"
    with history.held(path):
        with pytest.raises(ValueError, match="in use by another chat"):
            with history.held(path):
                pass
    with history.held(path), history.held(None):
        pass
    assert not list(tmp_path.iterdir())
