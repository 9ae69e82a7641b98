"""`jaxdave chat`: what it needs is checked, and then lines are answered."""

import dataclasses
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console

from jaxdave.cli.chat import history
from jaxdave.cli.chat.conversation import Conversation
from jaxdave.cli.chat.line_input import PipeInput, TerminalInput
from jaxdave.cli.chat.session import Session, Terminal
from jaxdave.engine.decode_config import DecodeConfig, LoadConfig
from jaxdave.runtime import interrupts

if TYPE_CHECKING:
    from jaxdave.io.checkpoint import Model


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """What decides a chat beside the model and the decode.

    Attributes:
        system: The system prompt; None: the history's, or none.
        history: File of the conversation; None: it is kept nowhere.
        is_live: Answers are drawn while they are decoded; None: on a terminal.
        is_compared: Every turn is decoded without drafts and with them.
        template_args: What the chat template reads beside the messages.
    """

    system: str | None = None
    history: Path | None = None
    is_live: bool | None = None
    is_compared: bool = False
    template_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def run(load: LoadConfig, config: DecodeConfig, options: ChatOptions) -> int:
    """Chat until the lines end.

    Args:
        load: The model.
        config: How answers are decoded, until `/set` changes it.
        options: The rest.

    Returns:
        The exit code: 2 if a line of a script was refused.

    Raises:
        ValueError: The model, an option or the history is bad, the model cannot chat,
            or there is no standard input.
    """
    terminal = _terminal(options.is_live)
    conversation = Conversation(system=options.system, config=config)
    if options.system is not None and not options.system.strip():
        raise ValueError(f"system={options.system!r} is empty; leave it out")
    with history.held(options.history):
        # Read before the model is: what is wrong with it is said at once.
        if options.history is not None:
            conversation = history.read(options.history, conversation)
        model = _load(load, config, options, terminal)
        # Without a template, or with one that takes no system prompt, nothing can be
        # said at all.
        model.codec.render(conversation.asked("Hello"))
        session = Session(
            model,
            conversation,
            terminal,
            is_compared=options.is_compared,
            history_file=options.history,
        )
        if terminal.is_interactive:
            _greet(model, conversation)
        # In the end nobody waits for what is compiled for the next answer.
        interrupts.leave_threads()
        session.run(TerminalInput() if terminal.is_interactive else PipeInput())
    return 2 if session.has_refused and not terminal.is_interactive else 0


def _terminal(is_live: bool | None) -> Terminal:
    """What can be done with the streams of this process."""
    if sys.stdin is None or sys.stdin.closed:
        raise ValueError(
            "standard input is closed, and a chat reads its lines there; run it in a "
            "terminal, or give it a pipe or a file"
        )
    is_interactive = all(map(_is_terminal, (sys.stdin, sys.stdout)))
    can_draw = is_interactive and os.environ.get("TERM") not in ("dumb", "unknown")
    if is_live and not can_draw:
        raise ValueError("--live draws in a terminal, and this is none; leave it out")
    return Terminal(
        is_interactive=is_interactive,
        is_live=can_draw if is_live is None else is_live,
    )


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def _load(
    load: LoadConfig, config: DecodeConfig, options: ChatOptions, terminal: Terminal
) -> "Model":
    notes = Console(stderr=True, quiet=not terminal.is_live)
    with notes.status(f"loading {load.model or 'the demo model'}"):
        from jaxdave.io import checkpoint

        model = checkpoint.load(
            load.model,
            dtype=load.dtype,
            block_length=config.block_length,
            quantize=load.quantize,
            mesh=load.mesh,
        )
    return model.with_template_args(**options.template_args)


def _greet(model: "Model", conversation: Conversation) -> None:
    count = len(conversation.turns)
    before = f", turns so far: {count}" if count else ""
    Console(stderr=True, highlight=False).print(
        f"{model.name}{before}; /help lists the commands", style="dim", markup=False
    )
