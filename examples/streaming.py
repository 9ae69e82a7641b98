"""Print an answer as its tokens become final, then its block states call by call.

    python examples/streaming.py "Mia has 3 pens. How many pens does Mia have now?"

`Sampler.stream` yields text that no later step can change; `jaxdave.snapshots` shows
everything after each network call, masks included.
"""

import argparse

import jaxdave


def print_stream(sampler: jaxdave.Sampler, prompt: str) -> None:
    """Print pieces of text as they come, and what they took."""
    stream = sampler.stream(prompt)
    for piece in stream:
        print(piece, end="", flush=True)
    print(f"\n({stream.calls} calls)\n")


def print_snapshots(sampler: jaxdave.Sampler, prompt: str) -> None:
    """Print the answer after every call, `_` for a masked position."""
    model, decoder = sampler.model, sampler.decoder
    ids = sampler.encode(prompt)
    for snapshot in jaxdave.snapshots(decoder, model.params, [ids]):
        answer = snapshot.tokens_BT[0, len(ids) : len(ids) + decoder.max_new_tokens]
        pieces = [
            "_" if token == model.config.mask_id else model.codec.decode([int(token)])
            for token in answer
        ]
        print(f"{snapshot.call:3}  {''.join(pieces)!r}")


def main() -> None:
    """Read the arguments and print both."""
    parser = argparse.ArgumentParser(description="Stream an answer.")
    parser.add_argument("prompt")
    parser.add_argument("--model", default="sdar-1m")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    args = parser.parse_args()
    config = jaxdave.DecodeConfig(draft_steps=8, max_new_tokens=args.max_new_tokens)
    sampler = jaxdave.Sampler(jaxdave.load(args.model), config)
    print_stream(sampler, args.prompt)
    print_snapshots(sampler, args.prompt)


if __name__ == "__main__":
    main()
