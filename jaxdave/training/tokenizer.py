"""The demo's tokenizer: byte-level BPE with one token for every number 0..99."""

import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from jaxdave.demo_tasks.mixture import training_problem
from jaxdave.runtime.files import replace_file

END, START, TURN_END, MASK = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|MASK|>"
SPECIALS = (END, START, TURN_END, MASK)
NUMBERS = 100
MIN_FREQUENCY = 20
# Far above any pair of the text: a number is a token before anything else is.
NUMBER_REPEATS = 2000
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
    """Train on the first problems of a stream and write the files of a checkpoint.

    folder: gets tokenizer.json, tokenizer_config.json and special_tokens_map.json, the
        same bytes for the same arguments. vocab_size: the most tokens wanted; training
        stops earlier when no pair is frequent enough. The special tokens come last:
        end of text (also padding), turn start, turn end, mask.
    Raises ValueError when `vocab_size` has no room for every number below 100.
    """
    tokenizer = _trained(vocab_size, seed, problems)
    missing = [n for n in range(NUMBERS) if tokenizer.token_to_id(str(n)) is None]
    if missing:
        raise ValueError(
            f"vocab_size={vocab_size} has no room for the number {missing[0]}; "
            "every number 0..99 must be one token, so ask for a larger vocabulary"
        )
    tokenizer.add_special_tokens(list(SPECIALS))
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "tokenizer.json", tokenizer.to_str().encode())
    named = {"eos_token": END, "pad_token": END, "mask_token": MASK}
    _write_json(folder / "special_tokens_map.json", named)
    _write_json(folder / "tokenizer_config.json", _config(named))
    return tokenizer


def _trained(vocab_size: int, seed: int, problems: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore
        [
            pre_tokenizers.Split(Regex(r"\d{1,2}"), "isolated"),
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIALS),
        min_frequency=MIN_FREQUENCY,
        # All 256 bytes, so that any text at all can be spelt.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(seed, problems), trainer)
    return tokenizer


def _corpus(seed: int, problems: int) -> Iterator[str]:
    """The text between the special tokens of the rendered chats, then the numbers."""
    for index in range(problems):
        problem = training_problem(seed, index)
        yield f"user\n{problem.prompt}"
        yield f"\nassistant\n{problem.answer}"
    # A system turn is never trained on, but it should not be spelt in bytes either.
    yield "system\n" * MIN_FREQUENCY
    for number in range(NUMBERS):
        yield f"{number}\n" * NUMBER_REPEATS


def _config(named: dict[str, str]) -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **named,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def _write_json(path: Path, value: dict) -> None:
    replace_file(path, (json.dumps(value, indent=1) + "\n").encode())
