"""The loop of a chat: lines in, answers and one line of figures out."""

import contextlib
import dataclasses
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from jaxdave.cli.chat import commands, history, settings
from jaxdave.cli.chat.answering import Answer, Worker, warm_up
from jaxdave.cli.chat.conversation import Conversation
from jaxdave.cli.chat.line_input import LineInput
from jaxdave.cli.chat.live_view import LiveView
from jaxdave.cli.chat.plain_view import PlainView
from jaxdave.cli.token_view import printable
from jaxdave.runtime import interrupts

if TYPE_CHECKING:
    from jaxdave.engine.results import Completion
    from jaxdave.engine.sampler import Sampler
    from jaxdave.io.checkpoint import Model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Terminal:
    """What a session may do with its streams.

    Attributes:
        is_interactive: A person types: prompts are shown, Ctrl-C stops an answer, and
            programs are compiled while the next line is typed.
        is_live: Answers are drawn while they are decoded.
    """

    is_interactive: bool
    is_live: bool


class Stopped(Exception):
    """Ctrl-C came during an answer."""


class _Ended(Exception):
    """The user wants to leave."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to decode an answer, and what came of it.

    Attributes:
        name: Its method.
        completion: The answer.
        seconds: It took, without compilation.
    """

    name: str
    completion: "Completion"
    seconds: float

    def __str__(self) -> str:
        one = self.completion
        cut = ", cut at max-new-tokens" if one.finish_reason == "length" else ""
        return (
            f"{_count(one.nfe.total, 'call')}, {_count(one.valid_tokens, 'token')}, "
            f"{one.tokens_per_call:.2f} tokens/call, {self.seconds:.2f} s{cut}"
        )


class Session:
    """A chat with one model.

    Attributes:
        conversation: What was said so far, and how the next answer is decoded.
        has_refused: A line was refused.
    """

    def __init__(
        self,
        model: "Model",
        conversation: Conversation,
        terminal: Terminal,
        *,
        is_compared: bool = False,
        history_file: Path | None = None,
    ) -> None:
        """Start.

        Args:
            model: Answers.
            conversation: What was said before.
            terminal: What can be done with the streams.
            is_compared: Every turn is decoded without drafts and with them.
            history_file: Holds the conversation after every turn; None: none does.

        Raises:
            ValueError: The settings do not fit the model.
        """
        self.conversation = conversation
        self.has_refused = False
        self._model = model
        self._terminal = terminal
        self._is_compared = is_compared
        self._history_file = history_file
        self._out = Console(highlight=False)
        self._notes = Console(stderr=True, highlight=False)
        self._worker = Worker()
        self._samplers = self._make_samplers(conversation)

    def run(self, lines: LineInput) -> None:
        """Answer lines until there is none any more.

        Args:
            lines: Where they come from.
        """
        number = 0
        while True:
            self._warm_up()
            number += 1
            try:
                line = lines.read()
                if line is None:
                    return
                self._handle(line)
            except _Ended:
                return
            except Stopped:
                self._note("interrupted: the answer is dropped, and so is its turn")
            except ValueError as error:
                self._refuse(error, number)

    def _handle(self, line: str) -> None:
        """Do what a line asks for."""
        call = commands.parse(line.rstrip())
        if call is not None:
            self._do(call)
        elif line.strip():
            self._answer(line.strip())

    def _do(self, call: commands.Call) -> None:
        if call.name == "quit":
            raise _Ended
        if call.name == "help":
            self._say(commands.help_text())
        elif call.name == "history":
            for message in self.conversation.messages:
                self._say(f"{message['role']}: {message['content']}")
        elif call.name == "save":
            history.write(Path(call.words[0]), self.conversation)
            self._note(f"saved to {call.words[0]}")
        elif call.name == "set":
            self._set(call.words)
        else:
            changed = getattr(self.conversation, call.name)()
            self._keep(changed)
            self._note(f"{_count(len(changed.turns), 'turn')} left")

    def _set(self, words: tuple[str, ...]) -> None:
        """List settings, show one, or change one."""
        config = self._samplers[-1].config
        if not words:
            for one in settings.listing(config):
                self._say(f"{one.name:<22} {one.value}")
        elif len(words) == 1:
            one = settings.described(config, words[0])
            self._say(f"{one.name} {one.value}  ({one.help.rstrip('.')})")
        else:
            changed = self.conversation.set(*words)
            self._samplers = self._make_samplers(changed)
            self.conversation = changed
            one = settings.described(self._samplers[-1].config, words[0])
            self._note(f"{one.name} {one.value}")

    def _make_samplers(self, conversation: Conversation) -> tuple["Sampler", ...]:
        """One sampler, or the two that are compared."""
        from jaxdave.engine.sampler import Sampler

        config = conversation.config
        configs = (config,)
        if self._is_compared:
            configs = config.undrafted(), config.drafted()
        return tuple(Sampler(self._model, one) for one in configs)

    def _warm_up(self) -> None:
        """Compile what the next answer needs while its question is typed."""
        if not self._terminal.is_interactive:
            return
        for sampler in self._samplers:
            warm_up(self._worker, sampler, self.conversation.asked("A question?"))

    def _answer(self, text: str) -> None:
        """Decode an answer and add the turn; nothing is changed if that fails."""
        from jaxdave.engine.results import check_finite

        messages = self.conversation.asked(text)
        self._check_room(messages)
        arms = self._decode(messages)
        check_finite({0: arms[0].completion.finish_reason})
        # Without drafts where both are there: the text that the policy itself gives.
        answer = self._model.codec.decode(arms[0].completion.token_ids)
        self._print_figures(arms)
        if self._terminal.is_interactive:
            self._notes.print()
        self._keep(self.conversation.say(text, answer))

    def _check_room(self, messages: list[dict[str, str]]) -> None:
        """Refuse a conversation that leaves too little room for an answer."""
        new = self._samplers[0].decoder.max_new_tokens
        room = self._model.config.max_positions
        length = len(self._model.codec.encode_messages(messages))
        if length <= room - new:
            return
        remedy = "/undo drops the last turn, /reset all of them, and "
        raise ValueError(
            f"the conversation has {length} tokens with this line, and the model has "
            f"room for {room}, {new} of them for the answer; "
            f"{remedy if self.conversation.turns else ''}/set max-new-tokens asks for "
            "a shorter answer"
        )

    def _decode(self, messages: list[dict[str, str]]) -> list[Arm]:
        """Decode one answer in every way, and show it meanwhile."""
        request = len(self.conversation.turns)
        arms = []
        with self._stopping() as stopped, self._view() as view:
            for index, sampler in enumerate(self._samplers):
                answer = Answer(sampler, messages, request)
                self._worker.submit(answer.run)
                progress = None
                for progress in answer.progress():
                    if stopped.is_set():
                        answer.leave()
                        raise Stopped
                    view.show(index, progress)
                snapshot = progress and progress.snapshot
                if not (progress and snapshot and snapshot.completion):
                    raise RuntimeError("a decode has ended without a completion")
                method = sampler.config.method
                arms.append(Arm(method, snapshot.completion, progress.seconds))
        return arms

    @contextlib.contextmanager
    def _stopping(self) -> Iterator[threading.Event]:
        """Let Ctrl-C set an event; of a script it ends the process, as anywhere."""
        stopped = threading.Event()
        if not self._terminal.is_interactive:
            yield stopped
            return
        with interrupts.handled_by(lambda *_: stopped.set()):
            yield stopped

    def _view(self) -> LiveView | PlainView:
        codec = self._model.codec
        if self._terminal.is_live:
            names = [sampler.config.method for sampler in self._samplers]
            return LiveView(self._out, codec, names)
        return PlainView(codec, printable if sys.stdout.isatty() else str)

    def _print_figures(self, arms: list[Arm]) -> None:
        """Say what an answer took, and of two if their texts are one."""
        if len(arms) == 1:
            return self._note(str(arms[0]))
        for arm in arms:
            self._note(f"{arm.name}: {arm}")
        plain, drafted = arms
        fewer = plain.completion.nfe.total / drafted.completion.nfe.total
        faster = plain.seconds / max(drafted.seconds, 1e-9)
        if plain.completion.token_ids == drafted.completion.token_ids:
            return self._note(
                f"the same text, {fewer:.2f} times fewer calls, "
                f"{faster:.2f} times as fast"
            )
        if not self._terminal.is_live:
            text = self._model.codec.decode(drafted.completion.token_ids)
            self._say(f"{drafted.name}: {text}")
        self._notes.print(
            Text(
                f"THE TEXTS DIFFER; the conversation goes on with that of {plain.name}"
            ),
            soft_wrap=True,
        )

    def _keep(self, conversation: Conversation) -> None:
        """Go on with a conversation, in its file as well."""
        self.conversation = conversation
        if self._history_file is not None:
            history.write(self._history_file, conversation)

    def _say(self, text: str) -> None:
        """Print what was asked for."""
        clean = printable(text) if sys.stdout.isatty() else text
        self._out.print(Text(clean), soft_wrap=True)

    def _note(self, text: str) -> None:
        """Print what is not part of the conversation."""
        self._notes.print(Text(printable(text)), style="dim", soft_wrap=True)

    def _refuse(self, error: ValueError, number: int) -> None:
        """Say what is wrong with a line, in one line."""
        self.has_refused = True
        message = " ".join(str(error).split())
        where = "" if self._terminal.is_interactive else f"jaxdave: line {number}: "
        self._notes.print(Text(printable(where + message)), soft_wrap=True)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
