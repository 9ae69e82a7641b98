"""Training objectives of masked-diffusion language models, as settings.

What the published objectives have in common is in `objective_loss`: tokens are masked,
the network predicts them, and their cross entropies are weighed and divided. They
differ in what `Objective` says. By name:

    name            | sees      | ratio p      | shift | weight | divided by
    ----------------|-----------|--------------|-------|--------|---------------------
    `llada-pretrain`| x_t       | U(eps, 1)    | no    | 1 / p  | tokens of the batch
    `llada-sft`     | x_t       | U(eps, 1)    | no    | 1 / p  | each answer's length
    `mdlm`          | x_t       | U(eps, 1), a | no    | 1 / p  | answer tokens
    `dream`         | x_t       | U(eps, 1)    | yes   | CART   | answer tokens
    `bd3lm`         | [x_t ;x_0]| block's, a   | no    | 1 / p  | answer tokens
    `sdar`          | [x_t ;x_0]| U(eps, 1), f | no    | 1 / p  | answer tokens
    `a2d`           | [x_t ;x_0]| U(eps, 1)    | maybe | 1 / p  | answer tokens
    `fast-dllm-v2`  | [x_t ;x_0]| block's, c   | yes   | 1      | trained tokens
    `llada2`        | [x_t ;x_0]| U(.3, .8)    | no    | 1      | trained tokens
    `llada2-editing`| [x_t ;x_0]| U(.3, .8)    | no    | 1      | trained tokens
    `dllm-rl-full`  | x_t       | U(.1, .9)    | maybe | 1      | trained tokens
    `dllm-rl-block` | [x_0 ;x_t]| token's      | no    | 1      | answer columns

a: antithetic; c: with complementary masks; f: at least one mask forced. DiffuCoder's
coupled views and dLLM-RL's trajectories are in `answer_views`.

Source: LLaDA GUIDELINES.md; kuleshov-group/mdlm and bd3lms; dllm
core/trainers/{mdlm,bd3lm}.py and pipelines/dream/trainer.py; SDAR
training/llama_factory_sdar; Fast-dLLM v2 modeling.py; dFactory
tasks/train_llada2_bd.py; dLLM-RL train/sft_{dream,llada,sdar}.py.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

import jax

from jaxdave.core.config import ModelConfig, check_no_causal_context
from jaxdave.training.objective.editing import Editing
from jaxdave.training.objective.masking import Masking

_CHOICES = {
    "layout": ("in_place", "noisy_first", "clean_first"),
    "weight": ("one", "inverse_ratio", "cart"),
    "normalise": ("tokens", "answers", "answer_tokens", "answer_columns", "trained"),
}


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """A training objective.

    Attributes:
        masking: How tokens are masked.
        layout: What the network sees: "in_place": the masked text; "noisy_first": the
            masked text, then the clean one; "clean_first": the clean text, then the
            masked answer (`attention_masks`).
        block_length: Tokens of a block; None: attention is full.
        answer_start: The column at which all answers begin and from which blocks are
            counted, where the layout is "clean_first"; otherwise None.
        shift: The output at i - 1 predicts token i. A sample's first token is then
            never masked, as no output predicts it.
        weight: Of a masked token: "one"; "inverse_ratio": 1 / p, of the likelihood
            bound; "cart": more where more text is near (`objective_loss.cart_weights`).
        cart_p: Parameter of the geometric distribution of "cart".
        normalise: What weighted cross entropies are divided by: "tokens": all tokens
            that are not padding; "answer_tokens": those of answers that may be masked;
            "trained": those that have a weight; "answers": each sample by the number of
            its tokens that may be masked, then the mean over samples; "answer_columns":
            each sample by the columns for answers, then the mean over samples.
        editing: How visible tokens are replaced and trained; None: they are not.

    Raises:
        ValueError: Settings do not go together.

    Example:
        >>> objective = OBJECTIVES["sdar"](block_length=4)
        >>> objective.weight, objective.shift
        ('inverse_ratio', False)
    """

    masking: Masking = Masking()
    layout: Literal["in_place", "noisy_first", "clean_first"] = "in_place"
    block_length: int | None = None
    answer_start: int | None = None
    shift: bool = False
    weight: Literal["one", "inverse_ratio", "cart"] = "inverse_ratio"
    cart_p: float = 0.3
    normalise: Literal[
        "tokens", "answers", "answer_tokens", "answer_columns", "trained"
    ] = "answer_tokens"
    editing: Editing | None = None

    def __post_init__(self) -> None:
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices:
                raise ValueError(
                    f"{field}={getattr(self, field)!r} must be one of "
                    f"{', '.join(map(repr, choices))}"
                )
        if not 0 < self.cart_p <= 1:
            raise ValueError(f"cart_p={self.cart_p} must be in (0, 1]; use e.g. 0.3")
        if self.block_length is not None and self.block_length < 1:
            raise ValueError(f"block_length={self.block_length} must be at least 1")
        if self.block_length is None and (
            self.layout != "in_place" or self.masking.per == "block"
        ):
            raise ValueError(
                f"layout={self.layout!r} with masking per={self.masking.per!r} needs "
                "blocks; give block_length"
            )
        is_anchored = self.answer_start is not None
        if is_anchored != (self.layout == "clean_first"):
            raise ValueError(
                f"answer_start={self.answer_start} with layout={self.layout!r}: give "
                "the column of the answers with 'clean_first', and only there"
            )
        if self.answer_start is not None and self.answer_start < 1:
            raise ValueError(f"answer_start={self.answer_start} must be at least 1")
        if self.layout == "clean_first" and self.shift:
            raise ValueError(
                "layout='clean_first' has no masked copy of the prompt to read a "
                "shifted first token from; use 'noisy_first'"
            )
        if self.layout != "in_place" and self.weight == "cart":
            raise ValueError(
                f"weight='cart' is for one text, not layout={self.layout!r}; use "
                "'in_place'"
            )
        if self.normalise == "answer_columns" and self.layout != "clean_first":
            raise ValueError(
                "normalise='answer_columns' needs answers in columns of their own; use "
                "layout='clean_first', or 'answers'"
            )


def check_model(objective: Objective, config: ModelConfig) -> None:
    """Check that a model decodes as an objective trains it.

    Args:
        objective: The objective.
        config: The model.

    Raises:
        ValueError: Their shifts, their attention or their blocks differ.
    """
    check_no_causal_context(config, "training")
    shifts = config.logits_shift != "none"
    if objective.shift != shifts:
        raise ValueError(
            f"shift={objective.shift} but {config.name} has logits_shift="
            f"{config.logits_shift!r}; take an objective with shift={shifts}"
        )
    is_causal = config.attention == "block_causal"
    block_length = config.block_length if is_causal else None
    if objective.block_length != block_length:
        raise ValueError(
            f"block_length={objective.block_length} but {config.name} has "
            f"{config.attention} attention, block_length={block_length}; take the "
            "model's"
        )


def llada_pretrain() -> Objective:
    """LLaDA's pretraining: the likelihood bound, divided by B L."""
    return Objective(normalise="tokens")


def llada_sft() -> Objective:
    """LLaDA's fine-tuning; the end tokens behind an answer are part of it."""
    return Objective(normalise="answers")


def mdlm() -> Objective:
    """MDLM: the likelihood bound, of low variance."""
    return Objective(masking=Masking(antithetic=True))


def dream(cart_p: float = 0.3) -> Objective:
    """Dream, with its context-adaptive weights.

    Args:
        cart_p: dllm's default is 0.3; the file of settings that Dream's authors ship
            has 0.1, their function's default is 0.8.
    """
    return Objective(shift=True, weight="cart", cart_p=cart_p)


def bd3lm(
    block_length: int = 4, low: float = 1e-3, high: float = 1.0, keep_first: bool = True
) -> Objective:
    """BD3-LM: a mask ratio for each block; (low, high) is its clipped range.

    Within a narrower range than (0, 1] it has less variance, but is no bound.

    Args:
        block_length: Tokens of a block.
        low: The lowest mask ratio, its sampling_eps_min.
        high: The highest, its sampling_eps_max.
        keep_first: Its ignore_bos.
    """
    masking = Masking(
        low=low, high=high, per="block", antithetic=True, keep_first=keep_first
    )
    return Objective(masking=masking, layout="noisy_first", block_length=block_length)


def sdar(block_length: int = 4) -> Objective:
    """SDAR's fine-tuning: one mask ratio for each packed sample.

    Its code draws again, up to ten times, where nothing is masked; here one token is
    masked then.

    Args:
        block_length: Tokens of a block.
    """
    masking = Masking(at_least_one=True)
    return Objective(masking=masking, layout="noisy_first", block_length=block_length)


def a2d(block_length: int = 32, shift: bool = False) -> Objective:
    """dllm's block diffusion, also for models that were autoregressive.

    Args:
        block_length: Tokens of a block.
        shift: Its right_shift.
    """
    return Objective(layout="noisy_first", block_length=block_length, shift=shift)


def fast_dllm_v2(block_length: int = 32) -> Objective:
    """Fast-dLLM v2: every token of an answer is trained, in one of two views.

    A block's first token is predicted from the last position of the masked block
    before, not of the clean one that a decoder has.

    Args:
        block_length: Tokens of a block.
    """
    return Objective(
        masking=Masking(per="block", complementary=True),
        layout="noisy_first",
        block_length=block_length,
        shift=True,
        weight="one",
        normalise="trained",
    )


def llada2(block_length: int = 32) -> Objective:
    """LLaDA2's fine-tuning (dFactory); the padding behind an answer is part of it.

    Args:
        block_length: Tokens of a block.
    """
    return Objective(
        masking=Masking(low=0.3, high=0.8),
        layout="noisy_first",
        block_length=block_length,
        weight="one",
        normalise="trained",
    )


def llada2_editing(block_length: int = 32, editing: Editing | None = None) -> Objective:
    """LLaDA2's fine-tuning with wrong tokens to correct (`editing`: our numbers).

    Args:
        block_length: Tokens of a block.
        editing: How tokens are replaced; None: the defaults.
    """
    return dataclasses.replace(llada2(block_length), editing=editing or Editing())


def dllm_rl_full(shift: bool) -> Objective:
    """dLLM-RL's fine-tuning of full attention, its method random_masking.

    Args:
        shift: True for Dream, False for LLaDA.
    """
    return Objective(
        masking=Masking(low=0.1, high=0.9),
        shift=shift,
        weight="one",
        normalise="trained",
    )


def dllm_rl_block(block_length: int = 4, answer_start: int = 784) -> Objective:
    """dLLM-RL's fine-tuning of SDAR and TraDo: a mask ratio for each token.

    Args:
        block_length: Tokens of a block.
        answer_start: Columns of the prompts (`token_batch.align_answers`).
    """
    return Objective(
        masking=Masking(low=0.1, high=0.9, per="token"),
        layout="clean_first",
        block_length=block_length,
        answer_start=answer_start,
        weight="one",
        normalise="answer_columns",
    )


OBJECTIVES: Mapping[str, Callable[..., Objective]] = {
    "llada-pretrain": llada_pretrain,
    "llada-sft": llada_sft,
    "mdlm": mdlm,
    "dream": dream,
    "bd3lm": bd3lm,
    "sdar": sdar,
    "a2d": a2d,
    "fast-dllm-v2": fast_dllm_v2,
    "llada2": llada2,
    "llada2-editing": llada2_editing,
    "dllm-rl-full": dllm_rl_full,
    "dllm-rl-block": dllm_rl_block,
}
"""Makers of the published objectives, by name."""
