"""Command lines, good and bad, that people may write."""

import dataclasses
import json
import random
from collections.abc import Iterator
from pathlib import Path

from bench.harness.checkpoint_mutations import make_base

GOOD, BAD, EITHER = "good", "bad", "either"

ODD_WORDS: tuple[str, ...] = (
    "",
    " ",
    "x",
    "-1",
    "0",
    "1.5",
    "nan",
    "inf",
    "1e400",
    "1_0",
    "0x10",
    "+5",
    "\uff15",
    "99999999999999999999",
    "\udcff",
    "a\nb",
    "--",
    "1,2",
    "'",
    "\U0001f600",
    "None",
)
"""Values that are wrong for most options, and only odd for others."""


@dataclasses.dataclass(frozen=True)
class Line:
    """A command line.

    Attributes:
        expected: "good" (exit code 0), "bad" (2, one line, nothing written) or
            "either" of the two.
        words: The program's name, and what follows it. Lone surrogates stand for bytes
            that are no UTF-8.
        stdout: "pipe", "full" (a device without room), "closed", or "head", a reader
            that leaves after a line.
        stdin: "null" or "closed", or what is piped in.
        stderr: "pipe" or "closed".
    """

    expected: str
    words: tuple[str, ...]
    stdout: str = "pipe"
    stdin: str = "null"
    stderr: str = "pipe"

    @property
    def is_plain(self) -> bool:
        """True if it needs no process of its own."""
        return (self.stdout, self.stdin, self.stderr) == ("pipe", "null", "pipe")


def prepare(folder: Path) -> None:
    """Make the files that command lines name.

    Args:
        folder: The folder that they are run in; each gets a copy of it.
    """
    for name in ("sdar-1m", "llada"):
        make_base(name, folder / name)
    lines = ({"prompt": "Hello"}, {"prompt_ids": [1, 2]})
    (folder / "good.jsonl").write_text("\n".join(map(json.dumps, lines)))
    bad = {
        "empty": b"",
        "blank": b"\n \n",
        "latin": b'{"prompt": "\xe9"}',
        "list": b"[]",
        "broken": b'{"prompt": ',
        "both": b'{"prompt": "a", "prompt_ids": [1]}',
        "number": b'{"prompt": 3}',
        "float": b'{"prompt_ids": [1.0]}',
        "nul": b"\0",
        "far": b'{"prompt_ids": [1000000]}',
        "mask": b'{"prompt_ids": [775]}',
        "none": b'{"prompt": null}',
        "odd": b'{"prompt": "a", "temprature": 1}',
        "args": b'{"prompt": "a", "template_args": [1]}',
        "deep": b"[" * 10**5,
        "half": b'{"prompt": "\\ud800"}',
        "roles": b'{"messages": [{"role": "user"}]}',
        "second": b'{"prompt": "a"}\n{"prompt": ""}',
        "long": b'{"prompt_ids": [%s1]}' % (b"1," * 5000),
        "utf16": '{"prompt": "a"}'.encode("utf-16"),
        "draft": b'{"prompt": "a", "draft_text": 3}',
        "negative": b'{"prompt_ids": [-1]}',
        "maskword": b'{"prompt": "<|MASK|>"}',
        "nan": b'{"prompt_ids": [NaN]}',
    }
    for name, content in bad.items():
        (folder / f"bad-{name}.jsonl").write_bytes(content)
    (folder / "file").write_text("x")
    (folder / "full").mkdir()
    (folder / "full" / "thesis.txt").write_text("x")
    (folder / "loop").symlink_to("loop")
    (folder / "nowhere").symlink_to("lost")


_SMALL = ("--max-new-tokens", "8", "--draft-steps", "2")
_ROOM = {
    "generate": ("generate", "Hello", *_SMALL),
    "demo": ("demo", "--problems", "2"),
    "calibrate": ("calibrate", "--model", "sdar-1m/", "--max-new-tokens", "8"),
    "train": ("train", "--out", "out", "--steps", "1"),
    "eval": ("eval", "--limit", "1", "--max-new-tokens", "32", "--methods", "static"),
}
_OPTIONS = {
    "generate": (
        "--model",
        "--dtype",
        "--quantize",
        "--method",
        "--draft-steps",
        "--draft",
        "--tokens-per-step",
        "--threshold",
        "--policy",
        "--cache",
        "--guidance",
        "--block-length",
        "--max-new-tokens",
        "--temperature",
        "--top-k",
        "--top-p",
        "--seed",
        "--numerics",
        "--batch-size",
        "--prompts",
        "--template-arg",
    ),
    "demo": ("--model", "--quantize", "--draft-steps", "--problems"),
    "calibrate": (
        "--model",
        "--prompts",
        "--problems",
        "--cache",
        "--block-length",
        "--max-new-tokens",
        "--batch-size",
    ),
    "train": ("--out", "--recipe", "--steps"),
    "eval": (
        "--model",
        "--tasks",
        "--methods",
        "--preset",
        "--data-dir",
        "--limit",
        "--out",
        "--sweep",
        "--trajectory",
        "--batch-size",
        "--draft-steps",
        "--temperature",
    ),
}


def _drawn(rng: random.Random, count: int) -> Iterator[Line]:
    """Odd words as the values of options."""
    pairs = [(c, o, w) for c in _OPTIONS for o in _OPTIONS[c] for w in ODD_WORDS]
    for command, option, word in rng.sample(pairs, count):
        yield Line(EITHER, ("jaxdave", *_ROOM[command], option, word))


_BAD = """
generate
generate ''
generate ' '
generate '<|MASK|>'
generate a b
generate a --prompts good.jsonl
generate --prompts good.jsonl --draft-text x
generate a --threshold 0.9 --method static
generate a --threshold 0.9 --tokens-per-step 2
generate a --policy static --threshold 0.9
generate a --policy static --tokens-per-step 1
generate a --policy static:tokens_per_step=99
generate a --policy left_to_right:tokens_per_step=5
generate a --policy threshold:small_blocks=64
generate a --policy static:
generate a --policy static:x=1
generate a --policy static:tokens_per_step=1,
generate a --policy lopa
generate a --policy STATIC
generate a --tokens-per-step 99
generate a --no-stop --stop-last
generate a --cache dual
generate a --guidance 1
generate a --block-length 3
generate a --block-length 128
generate a --max-new-tokens 5000
generate a --max-new-tokens 99999999999
generate a --model llada --max-new-tokens 33
generate a --model llada --block-length 7
generate a --draft-steps 33
generate a --draft-steps 1,2
generate a --draft nosuch
generate a --draft-steps auto --numerics exact --batch-size 0
generate a --model nope
generate a --model ''
generate a --model file
generate a --model full
generate a --model loop
generate a --model nowhere
generate a --model /dev/null
generate a --model /
generate a --model a/b/c
generate a --model sdar-1m/config.json
generate a --prompt b
generate a --max-tokens 5
generate a --temprature 1
generate a --json=1
generate a -x
generate a --model
generate a --top-k 1.5
generate a --template-arg x
generate a --template-arg =1
generate a --template-arg '1a=2'
generate --prompts missing.jsonl
generate --prompts full
generate --prompts loop
generate --prompts /dev/zero
generate --prompts sdar-1m/model.safetensors
generat a
Generate a
--model x
--versio
demo --problems 0
demo --problems 99999
demo --draft-steps 0
demo --model nope
demo --model full
demo x
demo --dtype bfloat16
calibrate --model nope
calibrate --model full
calibrate --problems 0
calibrate --model sdar-1m/ --prompts missing.jsonl
calibrate --model sdar-1m/ --prompts bad-far.jsonl
calibrate --model sdar-1m/ --max-new-tokens 0
calibrate --model sdar-1m/ --block-length 3
calibrate --model sdar-1m/ --batch-size 0
calibrate --model sdar-1m/ --cache dual
calibrate --model sdar-1m/ --max-new-tokens 100000
calibrate x
policies x
policies --json
drafts x
train
train --out file --steps 1
train --out /dev/full --steps 1
train --out /proc/x --steps 1
train --out loop --steps 1
train --out file/x --steps 1
train --out out --steps 0
train --out out --steps -1
train --out out --recipe cake
train --out out x
eval --tasks x
eval --tasks ''
eval --tasks demo-math,x
eval --tasks gsm8k
eval --tasks mbpp
eval --tasks gsm8k --data-dir missing
eval --tasks gsm8k --data-dir file
eval --tasks humaneval --data-dir full --allow-code-execution
eval --methods x
eval --methods ''
eval --methods static,,freedave
eval --preset nope
eval --limit 0
eval --limit -1
eval --limit 1 --out file
eval --limit 1 --out /dev/full
eval --limit 1 --out /proc/x
eval --limit 1 --out loop
eval --limit 1 --out full --max-new-tokens 0
eval --limit 1 --sweep x
eval --limit 1 --trajectory x
eval --limit 1 --batch-size 0
eval --limit 1 --model nope
eval --limit 1 --max-new-tokens 99999
eval --limit 1 --block-length 3
eval --limit 1 --policy static:tokens_per_step=99
eval --limit 1 --temperature nan
eval x
convert sdar-1m out
"""
_BAD_CONVERT = """
missing out
sdar-1m
sdar-1m file
sdar-1m full
sdar-1m full --overwrite
sdar-1m sdar-1m
sdar-1m sdar-1m --overwrite
sdar-1m file/out
sdar-1m /dev/full
sdar-1m /dev/null --overwrite
sdar-1m /proc/out
sdar-1m loop
sdar-1m ''
'' out
file out
full out
loop out
sdar-1m/config.json out
sdar-1m out --family x
sdar-1m out --family llada
sdar-1m out --dtype int8
sdar-1m out --dtype ''
sdar-1m out --block-length 3
sdar-1m out --block-length x
sdar-1m out --mask-id 5
sdar-1m out --mask-id -1
sdar-1m out --mask-id 999999999999
sdar-1m out --verify -1
sdar-1m out --verify x
sdar-1m out --export
full out --export
missing out --export
sdar-1m out --export --dry-run
sdar-1m out --export --overwrite
sdar-1m out x
sdar-1m out --quantize int8
sdar-1m out --dryrun
"""
_GOOD = """
--help
-h
--version
policies
drafts
policies --help
generate --help
eval --help
train --help
demo --help
calibrate --help
generate Hello
generate Hello --json
generate Hello --method static
generate Hello --method threshold
generate Hello --threshold 0.5
generate Hello --tokens-per-step 4
generate Hello --policy static:tokens_per_step=4
generate Hello --policy entropy:steps=4
generate Hello --policy wino
generate Hello --policy lopa --lossy
generate Hello --temperature 0.7 --seed 3 --top-k 5 --top-p 0.9
generate Hello --temperature 1e-400
generate Hello --top-k 99999
generate Hello --no-stop
generate Hello --stop-last
generate Hello --dtype bfloat16
generate Hello --quantize int8
generate Hello --model sdar-1m/
generate Hello --model ./sdar-1m
generate Hello --draft nested
generate Hello --draft copy --draft-text Hello
generate Hello --draft-text ''
generate Hello --block-length 8
generate Hello --numerics exact
generate Hello --no-compile-cache
generate Hello --template-arg a=1 --template-arg b=x
generate --prompts good.jsonl --batch-size 2
generate --prompts good.jsonl --json
generate -- --help
calibrate --model sdar-1m/ --prompts good.jsonl --max-new-tokens 8
eval --limit 1 --methods static --tasks demo-math --out out --max-new-tokens 32
train --out out --steps 1
demo --problems 1
"""
_GOOD_CONVERT = """
--help
sdar-1m out
sdar-1m out --dry-run
sdar-1m out --verify 999 --dtype float32
llada out --block-length 4
sdar-1m new/deep/out
"""


def _split(text: str, program: str, expected: str) -> Iterator[Line]:
    import shlex

    for line in text.strip().splitlines():
        words = shlex.split(line)
        if (
            words
            and words[0] == "generate"
            and expected == GOOD
            and "--help" != words[1]
        ):
            at = words.index("--") if "--" in words else len(words)
            words[at:at] = _SMALL
        yield Line(expected, (program, *words))


def lines(count: int, seed: int) -> list[Line]:
    """Command lines over all commands.

    Args:
        count: How many at least; those that are not listed are drawn.
        seed: Of what is drawn.

    Returns:
        The command lines.
    """
    program = "jaxdave"
    listed = [
        *_split(_BAD, program, BAD),
        *_split(_BAD_CONVERT, "jaxdave-convert", BAD),
        *_split(_GOOD, program, GOOD),
        *_split(_GOOD_CONVERT, "jaxdave-convert", GOOD),
        *_special(),
    ]
    bad = (
        "empty blank latin list broken both number float nul far mask none odd args "
        "deep half roles second long utf16 draft negative maskword nan"
    )
    for name in bad.split():
        words = ("generate", "--prompts", f"bad-{name}.jsonl", *_SMALL)
        listed.append(Line(BAD, (program, *words)))
    listed += [
        Line(BAD, (program, "generate", "a\udcff", *_SMALL)),
        Line(BAD, (program, "generate", "a", "--model", "\udcff")),
        Line(BAD, (program, "generate", "a", "--model", "x" * 5000)),
        Line(BAD, (program, "generate", "--prompts", "\udcff")),
        Line(BAD, (program, "generate", "--prompts", "x" * 5000)),
        Line(BAD, (program, "generate", "a", "--policy", "x" * 10**5)),
        Line(BAD, (program, "generate", "word " * 20_000)),
        Line(BAD, (program, "generate", "a", "--max-new-tokens", "9" * 5000)),
        Line(BAD, (program, "generate", "a", "--seed", "9" * 5000)),
        Line(BAD, (program, "generate", "a", f"--{'x' * 5000}")),
        Line(BAD, (program, "x" * 5000)),
        Line(BAD, (program, "train", "--out", "x" * 5000, "--steps", "1")),
        Line(BAD, (program, "eval", "--limit", "1", "--out", "x" * 5000)),
        Line(BAD, ("jaxdave-convert", "sdar-1m", "x" * 5000)),
        Line(BAD, ("jaxdave-convert", "x" * 5000, "out")),
        Line(BAD, ("jaxdave-convert", "sdar-1m", "out\udcff")),
        Line(GOOD, (program, "generate", "é\u2028\U0001f600", *_SMALL)),
    ]
    rng = random.Random(seed)
    return [*listed, *_drawn(rng, max(40, count - len(listed)))]


def _special() -> Iterator[Line]:
    """Those whose streams are not what they mostly are."""
    hello = ("jaxdave", "generate", "Hello", *_SMALL)
    many = ("jaxdave", "generate", "--prompts", "good.jsonl", *_SMALL)
    bad = ("jaxdave", "generate", "")
    for words in (hello, many, (*hello, "--json"), ("jaxdave", "policies")):
        yield Line(BAD, words, stdout="full")
        yield Line(EITHER, words, stdout="head")
        yield Line(EITHER, words, stdout="closed")
    for words in (("jaxdave", "--help"), ("jaxdave", "generate", "--help")):
        yield Line(BAD, words, stdout="full")
        yield Line(EITHER, words, stdout="head")
        yield Line(EITHER, words, stdout="closed")
    yield Line(BAD, ("jaxdave", "demo", "--problems", "1"), stdout="full")
    yield Line(BAD, ("jaxdave-convert", "sdar-1m", "out", "--dry-run"), stdout="full")
    yield Line(EITHER, ("jaxdave-convert", "sdar-1m", "out"), stdout="closed")
    yield Line(GOOD, hello, stdin="closed")
    yield Line(BAD, bad, stdin="closed")
    yield Line(BAD, bad, stdout="closed")
    yield Line(BAD, bad, stderr="closed")
    yield Line(GOOD, hello, stderr="closed")
    yield Line(BAD, bad, stdin="closed", stdout="closed", stderr="closed")
    piped = ("jaxdave", "generate", "--prompts", "/dev/stdin", *_SMALL)
    yield Line(EITHER, piped, stdin='{"prompt": "Hello"}')
    yield Line(BAD, piped, stdin="")
    yield Line(GOOD, hello, stdin="ignored\n")
