"""Samples to train on, from files of JSON lines: a prompt's tokens and its answer's.

A line is an object of one of these forms:

    {"prompt": TEXT or MESSAGES, "response": TEXT}
    {"messages": [{"role": ROLE, "content": TEXT}, ...]}

Every turn of the assistant is an answer, and a sample of its own: its prompt is what
`jaxdave generate` feeds the model for the messages before it, made by the same
functions. A conversation with n answers is therefore n samples, not one sample with n
answers in it. One sample would be cheaper, but would train what no decoder sees:

- under full attention an answer would see the turns that come after it;
- under block-causal attention so would its last block, where a decoder has masks;
- a chat template may render an answer in the past otherwise than a new one (Qwen3
  leaves its reasoning out), so that later answers would have another prompt.

Source: LLaDA, arXiv 2502.09992, appendix B.1, takes a conversation apart the same way,
and draws one of its pairs; here each is a sample.
"""

import bisect
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxdave.io.chat_template import Messages
from jaxdave.io.tokenizer import Codec, check_characters
from jaxdave.runtime.files import parse_json
from jaxdave.runtime.messages import one_line
from jaxdave.training.data.line_index import LineFile, open_lines
from jaxdave.training.data.token_batch import TokenSample

ROLES = ("system", "developer", "user", "assistant", "tool")
"""Roles of messages."""
_ASSISTANT = "assistant"
_KEYS = ("prompt", "response", "messages")
_PROBE = "ANSWER"


class Samples(Protocol):
    """A sequence of samples that need not be in memory.

    Attributes:
        digests: What errors call each part that it is made of, and the part's digest:
            with equal digests samples are equal.
    """

    @property
    def digests(self) -> Sequence[tuple[str, str]]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> TokenSample: ...

    def where(self, index: int) -> str:
        """What errors about a sample begin with."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn:
    """An answer and what is before it.

    Attributes:
        prompt: A text of the user, or messages.
        answer: What the assistant says.
        template_args: What the chat template reads beside the messages.
    """

    prompt: str | Messages
    answer: str
    template_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def parse_turns(line: bytes | str, *, chat_template: bool = True) -> tuple[Turn, ...]:
    """The answers of a JSON line.

    Other keys of the object, such as an id, are left alone; "template_args" are what
    the chat template reads beside the messages, as in prompts of `jaxdave generate`.

    Args:
        line: The line.
        chat_template: Whether prompts are rendered by a chat template.

    Returns:
        A turn for each answer.

    Raises:
        ValueError: The line is no JSON, has another form or an empty answer.

    Example:
        >>> [turn] = parse_turns('{"prompt": "Hello", "response": "Good day"}')
        >>> turn.prompt, turn.answer
        ('Hello', 'Good day')
    """
    value = _parse_object(line)
    keys = [key for key in _KEYS if key in value]
    args = value.get("template_args", {})
    if not isinstance(args, dict):
        raise ValueError(f"template_args={_short(args)} must be an object")
    if keys == ["messages"]:
        return _turns_of_messages(value["messages"], args, chat_template)
    if keys != ["prompt", "response"]:
        raise ValueError(
            f'has the keys {_short(list(value))}; it must have "prompt" and '
            '"response", or "messages" alone'
        )
    prompt, answer = value["prompt"], value["response"]
    if not isinstance(prompt, str):
        if not chat_template:
            raise ValueError(
                f"prompt={_short(prompt)} must be a text where chat_template is off"
            )
        _check_messages("prompt", prompt)
    elif chat_template and not prompt.strip():
        raise ValueError(f"prompt={prompt!r} is empty; write at least one word")
    _check_text("prompt", prompt if isinstance(prompt, str) else "")
    _check_answer("response", answer)
    return (Turn(prompt=prompt, answer=answer, template_args=args),)


def encode_turn(
    codec: Codec, turn: Turn, *, end: int, chat_template: bool = True
) -> TokenSample:
    """Encode an answer and what is before it.

    Args:
        codec: The model's tokenizer.
        turn: The answer.
        end: The id behind the answer, from `end_id`.
        chat_template: The prompt is rendered by the chat template, as a decoder renders
            it; otherwise it is the raw text.

    Returns:
        Token ids of the prompt, those that a decoder is given, and of the answer with
        the id that ends it.

    Raises:
        ValueError: The chat template refuses the messages, a text holds the mask token,
            or the answer holds a token that would end it early.

    Example:
        >>> from jaxdave.io.hub import find_model
        >>> from jaxdave.io.tokenizer import load_codec
        >>> codec = load_codec(find_model("sdar-1m")[1])
        >>> turn = Turn(prompt="How many pens?", answer="3")
        >>> prompt, answer = encode_turn(codec, turn, end=end_id(codec))
        >>> prompt == codec.encode_prompt("How many pens?"), len(answer)
        (True, 2)
    """
    if not chat_template:
        if not isinstance(turn.prompt, str):
            raise ValueError("messages need the chat template; leave chat_template on")
        prompt_ids = codec.encode_text(turn.prompt)
    else:
        codec = codec.with_template_args(**turn.template_args)
        if isinstance(turn.prompt, str):
            prompt_ids = codec.encode_prompt(turn.prompt)
        else:
            prompt_ids = codec.encode_messages(turn.prompt)
    return prompt_ids, [*_answer_ids(codec, turn.answer), end]


def end_id(codec: Codec, *, chat_template: bool = True) -> int:
    """The id that ends an answer.

    Args:
        codec: The model's tokenizer.
        chat_template: Whether prompts are rendered by its chat template.

    Returns:
        The id that the chat template puts behind what an assistant says, if a decoder
        stops there; otherwise the first of the ids where it stops.

    Example:
        >>> from jaxdave.io.hub import find_model
        >>> from jaxdave.io.tokenizer import load_codec
        >>> codec = load_codec(find_model("sdar-1m")[1])
        >>> [end_id(codec)] == codec.encode_text("<|im_end|>")
        True
    """
    if not chat_template:
        return codec.stop_ids[0]
    messages = [
        {"role": "user", "content": "QUESTION"},
        {"role": _ASSISTANT, "content": _PROBE},
    ]
    try:
        closed = codec.with_template_args(add_generation_prompt=False)
        _, found, rest = closed.render(messages).rpartition(_PROBE)
    except ValueError:  # a template that has no such conversations
        return codec.stop_ids[0]
    ids = codec.encode_text(rest.lstrip()) if found else []
    return ids[0] if ids and ids[0] in codec.stop_ids else codec.stop_ids[0]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SampleFiles:
    """Samples of files of JSON lines, read and encoded when they are asked for.

    Attributes:
        files: The files, one behind the other.
        codec: The model's tokenizer.
        chat_template: Whether prompts are rendered by its chat template.
    """

    files: tuple[LineFile, ...]
    codec: Codec
    chat_template: bool
    _end_id: int
    _end_F: Sequence[int]
    """Samples up to the end of each file."""
    _end_of_line_N: Sequence[np.ndarray]
    """For each file, samples up to the end of each of its lines."""

    @property
    def digests(self) -> Sequence[tuple[str, str]]:
        """Path and digest of each file."""
        return [(str(file.path), file.digest) for file in self.files]

    def __len__(self) -> int:
        return self._end_F[-1]

    def __getitem__(self, index: int, /) -> TokenSample:
        """Encode a sample.

        Args:
            index: The sample, from 0: by files, lines and turns.

        Returns:
            Token ids of its prompt and of its answer.

        Raises:
            ValueError: The line was changed since the files were opened, or cannot be
                encoded; names file and line.
        """
        file, line, turn = self._locate(index)
        content = file.read(line)
        try:
            turns = parse_turns(content, chat_template=self.chat_template)
            return encode_turn(
                self.codec,
                turns[turn],
                end=self._end_id,
                chat_template=self.chat_template,
            )
        except ValueError as error:
            raise ValueError(f"{file.where(line)}{error}") from error

    def where(self, index: int) -> str:
        """What errors about a sample begin with: its file and line.

        Args:
            index: The sample, from 0.

        Returns:
            The beginning of a message.
        """
        file, line, _ = self._locate(index)
        return file.where(line)

    def _locate(self, index: int) -> tuple[LineFile, int, int]:
        """The file, the line and the turn of a sample."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        part = bisect.bisect_right(self._end_F, index)
        index -= self._end_F[part - 1] if part else 0
        end_N = self._end_of_line_N[part]
        line = int(np.searchsorted(end_N, index, side="right"))
        return self.files[part], line, index - int(end_N[line - 1] if line else 0)


def open_samples(
    paths: Sequence[Path], codec: Codec, *, chat_template: bool = True
) -> SampleFiles:
    """Open files of JSON lines; the form of every line is checked.

    Texts are not encoded yet: that would take minutes where checking takes seconds.
    What only the tokenizer can tell is an error when a sample is asked for.

    Args:
        paths: The files.
        codec: The model's tokenizer.
        chat_template: Prompts are rendered by the chat template, as a decoder renders
            them; otherwise they are raw texts, and an end token is added to answers.

    Returns:
        The samples.

    Raises:
        ValueError: There is no file, one cannot be read or is empty, or a line is no
            JSON, has another form or an empty answer; names file and line.
    """
    if not paths:
        raise ValueError("no file of samples was given; name at least one")

    def check(line: bytes, where: str) -> int:
        try:
            return len(parse_turns(line, chat_template=chat_template))
        except ValueError as error:
            raise ValueError(f"{where}{error}") from error

    files = tuple(open_lines(Path(path), check) for path in paths)
    ends = [np.cumsum(file.value_N, dtype=np.int64) for file in files]
    return SampleFiles(
        files=files,
        codec=codec,
        chat_template=chat_template,
        _end_id=end_id(codec, chat_template=chat_template),
        _end_F=np.cumsum([end_N[-1] for end_N in ends]).tolist(),
        _end_of_line_N=ends,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class SampleList:
    """Samples that are in memory.

    Attributes:
        samples: Token ids of prompts and answers.

    Raises:
        ValueError: There is none, or one has no answer.
    """

    samples: Sequence[TokenSample]

    def __post_init__(self) -> None:
        if not self.samples:
            raise ValueError("there is no sample to train on; give at least 1")
        for index, (_, answer) in enumerate(self.samples):
            if not len(answer):
                raise ValueError(
                    f"{self.where(index)}an answer of 0 tokens; an answer needs at "
                    "least 1, such as the end token"
                )

    @property
    def digests(self) -> Sequence[tuple[str, str]]:
        """The digest of all samples, as one part."""
        digest = hashlib.blake2b(digest_size=16)
        for prompt, answer in self.samples:
            ids = [len(prompt), *prompt, len(answer), *answer]
            digest.update(np.array(ids, np.int64).tobytes())
        return [("the samples", digest.hexdigest())]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int, /) -> TokenSample:
        return self.samples[index]

    def where(self, index: int) -> str:
        """What errors about a sample begin with.

        Args:
            index: The sample, from 0.

        Returns:
            The beginning of a message.
        """
        return f"sample {index}: "


def _parse_object(line: bytes | str) -> dict[str, Any]:
    try:
        value = parse_json(line)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"byte {error.start + 1} of the line is not UTF-8; convert the file"
        ) from error
    except ValueError as error:
        raise ValueError(
            f"broken JSON ({one_line(error)}); write one object a line"
        ) from error
    if not isinstance(value, dict):
        raise ValueError(f"{_short(value)} must be an object; write one a line")
    return value


def _turns_of_messages(
    messages: Any, template_args: Mapping[str, Any], chat_template: bool
) -> tuple[Turn, ...]:
    """A turn for every answer in a conversation."""
    if not chat_template:
        raise ValueError(
            'has "messages", which need the chat template; leave chat_template on, or '
            'write "prompt" and "response"'
        )
    _check_messages("messages", messages)
    answers = [i for i, m in enumerate(messages) if m["role"] == _ASSISTANT]
    if not answers:
        raise ValueError(
            f"messages has no {_ASSISTANT} to learn from; add its answer, or take the "
            "line out"
        )
    if answers[0] == 0:
        raise ValueError(
            f"messages[0] is an {_ASSISTANT}'s with nothing before it; begin with a "
            "user's"
        )
    for index in answers:
        _check_answer(f"messages[{index}].content", messages[index]["content"])
    return tuple(
        Turn(
            prompt=messages[:index],
            answer=messages[index]["content"],
            template_args=template_args,
        )
        for index in answers
    )


def _check_messages(name: str, messages: Any) -> None:
    """Raise ValueError unless it is a list of messages with roles and texts."""
    if not isinstance(messages, list) or not messages:
        raise ValueError(
            f'{name}={_short(messages)} must be a list of {{"role": ROLE, "content": '
            "TEXT} objects"
        )
    for index, message in enumerate(messages):
        place = f"{name}[{index}]"
        if not isinstance(message, dict):
            raise ValueError(f"{place}={_short(message)} must be an object")
        role = message.get("role")
        if "role" not in message:
            raise ValueError(f"{place} has no role; give one of {', '.join(ROLES)}")
        if role not in ROLES:
            raise ValueError(
                f"{place} has role={_short(role)}; give one of {', '.join(ROLES)}"
            )
        if "content" not in message:
            raise ValueError(f'{place} has no content; give it a "content"')
        _check_text(f"{place}.content", message["content"])


def _check_answer(name: str, answer: Any) -> None:
    _check_text(name, answer)
    if not answer.strip():
        raise ValueError(
            f"{name}={_short(answer)} is an empty answer; write one, or take the line "
            "out"
        )


def _check_text(name: str, text: Any) -> None:
    if not isinstance(text, str):
        raise ValueError(f"{name}={_short(text)} must be a text; put it in quotes")
    check_characters(text)


def _answer_ids(codec: Codec, answer: str) -> list[int]:
    """The ids of an answer, in which nothing may end it or stand for a mask."""
    ids = codec.encode_answer(answer)[:-1]
    for token in ids:
        if token == codec.mask_id:
            raise ValueError(
                f"the answer holds the mask token (id {token}), which stands for text "
                "not written yet; take it out of the answer"
            )
        if token in codec.stop_ids:
            raise ValueError(
                f"the answer holds a token that ends answers (id {token}); take it out "
                "of the answer, as one is added"
            )
    return ids


def _short(value: Any) -> str:
    """A value as an error shows it: one line, not too long."""
    text = one_line(repr(value))
    return text if len(text) <= 60 else f"{text[:57]}..."
