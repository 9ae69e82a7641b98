"""Known deviations of published evaluations from what they describe.

A protocol is mostly prompts and decoding settings. What a published evaluation does
besides, such as counting the prompt as output, is stated here as a `ProtocolDeviations`
record, whose defaults are the correct behaviour.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from jaxdave.core.config import ModelConfig
    from jaxdave.core.policy_api import Policy
    from jaxdave.engine.decode_config import DecodeConfig
    from jaxdave.engine.results import Completion
    from jaxdave.io.tokenizer import Codec


class GradedOutput(NamedTuple):
    """The part of a decode that is graded.

    Attributes:
        text: Text that the grader reads.
        tokens: Number of tokens that count as output in tokens/NFE and tokens/s.
    """

    text: str
    tokens: int


def answer_only(
    codec: "Codec", prompt: Sequence[int], row: "Completion"
) -> GradedOutput:
    """Return the answer up to its end token, without the prompt.

    Args:
        codec: Tokenizer of the model.
        prompt: Token ids of the prompt; not used.
        row: Decoded sequence.

    Returns:
        The text of the answer and its number of tokens.
    """
    del prompt
    return GradedOutput(codec.decode(row.token_ids), row.valid_tokens)


def prompt_and_answer(
    codec: "Codec", prompt: Sequence[int], row: "Completion"
) -> GradedOutput:
    """Return the prompt and the whole answer, without stop, pad and mask ids.

    Source: FreeDave's evaluation of TraDo (2025). Deviation: it encodes the decoded
    text again and counts those ids; here the ids themselves are counted.

    Args:
        codec: Tokenizer of the model.
        prompt: Token ids of the prompt.
        row: Decoded sequence.

    Returns:
        The text of both and their number of tokens.
    """
    removed = {codec.mask_id, codec.pad_id, *codec.stop_ids}
    ids = [i for i in (*prompt, *row.token_ids) if i not in removed]
    return GradedOutput(codec.decode(ids), len(ids))


def unchanged_policy(config: "DecodeConfig", policy: "Policy") -> "Policy":
    """Return the policy as it is: confidence is that of the unfiltered distribution.

    Args:
        config: Settings of the decode; not used.
        policy: Policy that the settings ask for.

    Returns:
        `policy`.
    """
    del config
    return policy


def confidence_after_top_k(config: "DecodeConfig", policy: "Policy") -> "Policy":
    """Return a policy whose confidence is read after the top-k filter.

    Under top-k 1 the filtered distribution is a point mass, so that confidence is 1.0
    everywhere and the order of decoding is a tie.

    Source: FreeDave's and dLLM-RL's samplers (2025).

    Args:
        config: Settings of the decode.
        policy: Policy that the settings ask for.

    Returns:
        `policies.certain(policy)` under top-k 1, else `policy`.
    """
    from jaxdave import policies

    return policies.certain(policy) if config.top_k == 1 else policy


def unchanged_model(config: "ModelConfig") -> "ModelConfig":
    """Return the model configuration as it is.

    Args:
        config: Configuration of the model.

    Returns:
        `config`.
    """
    return config


def without_stop_ids(config: "ModelConfig") -> "ModelConfig":
    """Return a model whose answers end only after `max_new_tokens`.

    Args:
        config: Configuration of the model.

    Returns:
        A copy of `config` without stop ids.
    """
    return dataclasses.replace(config, stop_ids=())


class ProtocolDeviations(NamedTuple):
    """Behaviour of a protocol besides its settings; the defaults are the correct one.

    Attributes:
        method_settings: By `Method.base`, the settings in which its rows of the table
            differ from all others.
        wrap_policy: Function (decode settings, policy) -> policy that is decoded with.
        adapt_model: Function (model configuration) -> configuration that the decoder is
            built from.
        extract_output: Function (codec, prompt ids, decoded row) -> what is graded and
            counted.
    """

    method_settings: Mapping[str, Mapping[str, Any]] = {}
    wrap_policy: "Callable[[DecodeConfig, Policy], Policy]" = unchanged_policy
    adapt_model: "Callable[[ModelConfig], ModelConfig]" = unchanged_model
    extract_output: "Callable[[Codec, Sequence[int], Completion], GradedOutput]" = (
        answer_only
    )


PAPER, THINKING, DLLM_RL = "paper-2025", "paper-2025-thinking", "dllm-rl"


PUBLISHED_NAMES = (PAPER, THINKING, DLLM_RL)


def check_published(name: str, as_published: bool) -> None:
    """Check that a protocol has the form that is asked for.

    Args:
        name: One of `NAMES`.
        as_published: True if the published form is asked for.

    Raises:
        ValueError: There is no published form beside the corrected one.
    """
    if as_published and name not in PUBLISHED_NAMES:
        raise ValueError(
            f"preset {name!r} has no published form of its own; leave --as-published "
            f"out, or use one of {', '.join(PUBLISHED_NAMES)}"
        )
