"""The demo's tokenizer: byte-level BPE with one token for every number 0..99.

It is trained on the text of the demo tasks and written in the format of Hugging Face,
with a chat template.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from jaxdave.demo_tasks.mixture import training_problem
from jaxdave.runtime.files import replace_file

END, START, TURN_END, MASK = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|MASK|>"
SPECIAL_TOKENS = (END, START, TURN_END, MASK)
NUM_NUMBERS = 100
MIN_FREQUENCY = 20
"""Occurrences from which a pair of symbols is merged."""
NUMBER_REPEATS = 2000
"""Occurrences of each number in the training text: far more than of any other pair of
symbols, so that BPE merges the digits of every number before anything else."""
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)


def build_tokenizer(
    folder: Path, vocab_size: int = 1024, seed: int = 0, problems: int = 20000
) -> Tokenizer:
    """Train a tokenizer on the first problems of a training stream, and write it.

    The same arguments give the same bytes. The special tokens come last in the
    vocabulary: end of text (also padding), turn start, turn end, mask.

    Args:
        folder: Gets tokenizer.json, tokenizer_config.json and special_tokens_map.json.
        vocab_size: Largest number of tokens; training stops earlier when no pair of
            symbols is frequent enough.
        seed: Seed of the training stream.
        problems: Number of problems.

    Returns:
        The tokenizer.

    Raises:
        ValueError: If `vocab_size` has no room for every number below 100.
    """
    tokenizer = _train_bpe(vocab_size, seed, problems)
    missing = [n for n in range(NUM_NUMBERS) if tokenizer.token_to_id(str(n)) is None]
    if missing:
        raise ValueError(
            f"vocab_size={vocab_size} has no room for the number {missing[0]}; "
            "every number 0..99 must be one token, so ask for a larger vocabulary"
        )
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "tokenizer.json", tokenizer.to_str().encode())
    roles = {"eos_token": END, "pad_token": END, "mask_token": MASK}
    _write_json(folder / "special_tokens_map.json", roles)
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(roles))
    return tokenizer


def pad_and_mask_ids(tokenizer: Tokenizer) -> tuple[int, int]:
    """Return the ids of the padding token, which also ends texts, and of the mask.

    Args:
        tokenizer: The demo's tokenizer.

    Returns:
        (padding id, mask id).
    """
    pad_id, mask_id = tokenizer.token_to_id(END), tokenizer.token_to_id(MASK)
    assert pad_id is not None and mask_id is not None
    return pad_id, mask_id


def _train_bpe(vocab_size: int, seed: int, problems: int) -> Tokenizer:
    """The tokenizer before its special tokens are added."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore
        [
            # At most two digits a token, and line ends alone: words never span them.
            pre_tokenizers.Split(Regex(r"\d{1,2}"), "isolated"),
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        min_frequency=MIN_FREQUENCY,
        # All 256 bytes, so that any text at all can be spelt.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(seed, problems), trainer)
    return tokenizer


def _corpus(seed: int, problems: int) -> Iterator[str]:
    """Yield the text between the special tokens of the chats, then the numbers."""
    for index in range(problems):
        problem = training_problem(seed, index)
        yield f"user\n{problem.prompt}"
        yield f"\nassistant\n{problem.answer}"
    # A system turn is never trained on, but it should not be spelt in bytes either.
    yield "system\n" * MIN_FREQUENCY
    for number in range(NUM_NUMBERS):
        yield f"{number}\n" * NUMBER_REPEATS


def _tokenizer_config(roles: dict[str, str]) -> dict[str, object]:
    """The content of tokenizer_config.json; roles: special tokens by their use."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **roles,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def _write_json(path: Path, value: dict) -> None:
    replace_file(path, (json.dumps(value, indent=1) + "\n").encode())
