"""A conversation: what was said and how answers are decoded, as one frozen record."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

from jaxdave.cli.chat import settings
from jaxdave.engine.decode_config import DecodeConfig

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn:
    """What the user has said, and the answer.

    Attributes:
        user: The user's text.
        assistant: The model's.
    """

    user: str
    assistant: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversation:
    """The state of a chat. Every change makes a new one.

    Attributes:
        system: The system prompt, or None.
        turns: What was said, oldest first.
        config: What decides the next decode.

    Example:
        >>> chat = Conversation(system="Be brief.").say("Hello", "Hi")
        >>> [message["role"] for message in chat.asked("How are you?")]
        ['system', 'user', 'assistant', 'user']
        >>> chat.undo().turns
        ()
    """

    system: str | None = None
    turns: tuple[Turn, ...] = ()
    config: DecodeConfig = DecodeConfig()

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation as messages with "role" and "content"."""
        messages = [] if self.system is None else [_message(SYSTEM, self.system)]
        for turn in self.turns:
            messages.append(_message(USER, turn.user))
            messages.append(_message(ASSISTANT, turn.assistant))
        return messages

    def asked(self, text: str) -> list[dict[str, str]]:
        """The messages that the model answers next.

        Args:
            text: What the user says now.

        Returns:
            All messages and this one.
        """
        return [*self.messages, _message(USER, text)]

    def say(self, user: str, assistant: str) -> Self:
        """Add a turn.

        Args:
            user: The user's text.
            assistant: The answer.

        Returns:
            The longer conversation.
        """
        turn = Turn(user=user, assistant=assistant)
        return dataclasses.replace(self, turns=(*self.turns, turn))

    def undo(self) -> Self:
        """Drop the last turn.

        Returns:
            The shorter conversation.

        Raises:
            ValueError: There is none.
        """
        if not self.turns:
            raise ValueError("there is no turn to undo; say something first")
        return dataclasses.replace(self, turns=self.turns[:-1])

    def reset(self) -> Self:
        """Drop all turns; the system prompt and the settings stay.

        Returns:
            The conversation before its first turn.
        """
        return dataclasses.replace(self, turns=())

    def set(self, name: str, word: str) -> Self:
        """Change a setting of the decode.

        Args:
            name: An option's name on the command line, such as "draft-steps".
            word: Its value, or "default".

        Returns:
            The conversation with that setting.

        Raises:
            ValueError: There is no such setting, or it does not take this value.
        """
        config = settings.changed(self.config, name, word)
        return dataclasses.replace(self, config=config)

    def with_messages(self, messages: Sequence[Mapping[str, Any]]) -> Self:
        """Take what was said from messages.

        Args:
            messages: As the property of this name; a system prompt of this
                conversation goes before theirs.

        Returns:
            The conversation.

        Raises:
            ValueError: They are no conversation: perhaps a system prompt, then turns
                of user and assistant by turns, whole ones.
        """
        own_system = self.system
        messages = list(messages)
        contents = [_content(number, one) for number, one in enumerate(messages, 1)]
        roles = [message["role"] for message in messages]
        if roles[:1] == [SYSTEM]:
            own_system = own_system if own_system is not None else contents[0]
            roles, contents = roles[1:], contents[1:]
        expected = [(USER, ASSISTANT)[place % 2] for place in range(len(roles))]
        if roles != expected or len(roles) % 2:
            raise ValueError(
                "messages must be of user and assistant by turns, after at most one "
                f"of system; their roles are {', '.join(roles)[:60]}"
            )
        turns = tuple(
            Turn(user=user, assistant=assistant)
            for user, assistant in zip(contents[::2], contents[1::2], strict=True)
        )
        return dataclasses.replace(self, system=own_system, turns=turns)


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _content(number: int, message: Any) -> str:
    """The text of a message, which must have one."""
    is_message = isinstance(message, Mapping) and all(
        isinstance(message.get(key), str) for key in ("role", "content")
    )
    if not is_message:
        raise ValueError(
            f'message {number} must read {{"role": TEXT, "content": TEXT}} and is '
            f"{str(message)[:40]}"
        )
    return message["content"]
