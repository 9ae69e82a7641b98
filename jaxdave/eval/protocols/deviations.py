"""What an evaluation does beside its settings: the right way, and the paper's."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from jaxdave.core.config import ModelConfig
    from jaxdave.core.policy_api import Policy
    from jaxdave.engine.decode_config import DecodeConfig
    from jaxdave.engine.results import Completion
    from jaxdave.io.tokenizer import Codec


class Output(NamedTuple):
    """What of a decode is graded, and how many tokens of it count as output."""

    text: str
    tokens: int


def answer(codec: "Codec", prompt: Sequence[int], row: "Completion") -> Output:
    """The answer up to its end, without the prompt."""
    del prompt
    return Output(codec.decode(row.token_ids), row.valid_tokens)


def with_prompt(codec: "Codec", prompt: Sequence[int], row: "Completion") -> Output:
    """The whole canvas, whose end, pad and mask ids alone are left out.

    Source: FreeDave's evaluation of TraDo (2025). Deviation: it counts the ids of that
    text encoded anew.
    """
    silent = {codec.mask_id, codec.pad_id, *codec.stop_ids}
    ids = [i for i in (*prompt, *row.token_ids) if i not in silent]
    return Output(codec.decode(ids), len(ids))


def as_it_is(_: "DecodeConfig", policy: "Policy") -> "Policy":
    """The policy, which sees what the model says."""
    return policy


def filtered_first(settings: "DecodeConfig", policy: "Policy") -> "Policy":
    """The policy, whose confidence is read behind the top-k filter: 1.0 under top-k 1.

    Source: FreeDave's and dLLM-RL's samplers (2025).
    """
    from jaxdave import policies

    return policies.certain(policy) if settings.top_k == 1 else policy


def endless(config: "ModelConfig") -> "ModelConfig":
    """A model whose answers end nowhere but where their room does."""
    return dataclasses.replace(config, stop_ids=())


class Habits(NamedTuple):
    """What a protocol does beside its settings; the defaults are the right ones.

    rows: by `Method.base`, the settings of its rows that are not those of all others.
    policy: what the decoder gets for the policy that some settings ask for. config: the
    model as the decoder sees it. output: what of a decode is graded and counted.
    """

    rows: Mapping[str, Mapping[str, Any]] = {}
    policy: "Callable[[DecodeConfig, Policy], Policy]" = as_it_is
    config: "Callable[[ModelConfig], ModelConfig]" = lambda config: config
    output: "Callable[[Codec, Sequence[int], Completion], Output]" = answer
