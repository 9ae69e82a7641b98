"""Answer a file of prompts and write a file of answers, in Python.

    python examples/batch_files.py prompts.jsonl answers.jsonl

Each line of the input is `{"prompt": "..."}`; each line of the output holds the prompt,
the text and what it took. The output appears when it is complete. On the command line
`jaxdave generate --prompts FILE --json` does the same.
"""

import argparse
import json
from pathlib import Path

import jaxdave
from jaxdave.runtime.files import replace_file


def answer_file(
    sampler: jaxdave.Sampler, source: Path, target: Path, batch_size: int
) -> int:
    """Answer every prompt of a file; returns how many there were."""
    lines = source.read_text(encoding="utf-8").splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines if line.strip()]
    answers = []
    for first in range(0, len(prompts), batch_size):
        # Texts do not depend on which prompts are decoded together.
        answers += sampler.batch(prompts[first : first + batch_size])
    rows = [
        {"prompt": prompt, **answer.to_dict()}
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    replace_file(target, text.encode("utf-8"))
    return len(rows)


def main() -> None:
    """Read the arguments and answer the file."""
    parser = argparse.ArgumentParser(description="Answer a file of prompts.")
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--model", default="sdar-1m")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    args = parser.parse_args()
    config = jaxdave.DecodeConfig(max_new_tokens=args.max_new_tokens)
    sampler = jaxdave.Sampler(jaxdave.load(args.model), config)
    count = answer_file(sampler, args.source, args.target, args.batch_size)
    print(f"{count} answers in {args.target}")


if __name__ == "__main__":
    main()
