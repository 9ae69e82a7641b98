"""What a compiled decode does on devices that are not here.

    python -m bench.compiled --target h100 --model sdar-4b --draft-steps 8
    python -m bench.compiled --target v5e:2x2 --model sdar-4b --mesh data=1,model=4

Compiles the decode's own programs for a GPU (h100, h200; needs `jax[cuda12]`) or TPUs
(v5e:2x2, v6e:2x2, v4:2x2x1, ...; needs `jax[tpu]`) from shapes alone, at two depths,
and prints memory, copies, launches, collectives, bytes and the least time for these.
The compilers are the real ones, so what is printed is what such a device would run; how
long it would take is not known. Without a device products are not tuned.

Counted is one round of the loop, over executions: a layer's share is the difference of
the two depths. A loop whose number of turns is unknown counts as often as there are
drafts, or not at all where it is around the model (a guard call); of branches the one
with most launches counts. All of them are listed. Activations are counted as read from
memory, although a part of them stays in the caches of the device.
"""

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.harness.abstract_decode import PROGRAMS, DecodeShape
from bench.harness.compiled_report import report_decode
from bench.harness.compiled_words import describe
from bench.harness.device_topology import target_devices
from jaxdave.models.presets import preset
from jaxdave.numerics.quantization import QUANTIZATIONS
from jaxdave.runtime.files import replace_file


def parse_mesh(text: str) -> tuple[tuple[str, int], ...]:
    """Read a mesh from the command line.

    Args:
        text: E.g. "data=1,model=4"; empty: no mesh.

    Returns:
        (axis, devices along it), in this order.

    Raises:
        ValueError: A part is no name and number.

    Example:
        >>> parse_mesh("data=1,model=4")
        (('data', 1), ('model', 4))
    """
    axes = []
    for part in text.split(",") if text else ():
        name, _, size = part.partition("=")
        if not (name and size.isdecimal() and int(size)):
            raise ValueError(
                f"--mesh {text!r} must be axes and their sizes; write data=1,model=4"
            )
        axes.append((name, int(size)))
    return tuple(axes)


def parse_options(texts: Sequence[str]) -> dict[str, str | int | bool]:
    """Read options of the compiler from the command line.

    Args:
        texts: E.g. "xla_gpu_graph_min_graph_size=1".

    Returns:
        Name -> value.

    Raises:
        ValueError: One has no value.
    """
    options: dict[str, str | int | bool] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--xla {text!r} has no value; write NAME=VALUE")
        flags = {"true": True, "false": False}
        options[name] = int(value) if value.isdecimal() else flags.get(value, value)
    return options


def check_folder(file: Path) -> None:
    """Refuse a file that cannot be written, before anything is compiled.

    Args:
        file: The file.

    Raises:
        ValueError: Its folder is not there.
    """
    if not file.absolute().parent.is_dir():
        raise ValueError(f"{file} cannot be written: its folder is not there; make it")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.compiled",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--target", required=True, help="h100, or v5e:2x2 and so on")
    parser.add_argument("--model", default="sdar-4b", help="a preset's name")
    parser.add_argument("--mesh", default="", help="data=1,model=4; default one device")
    parser.add_argument("--draft-steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=1, help="rows")
    parser.add_argument(
        "--bucket", type=int, default=1024, help="length of the prefill"
    )
    parser.add_argument("--dtype", default="bfloat16", help="of the weights")
    parser.add_argument("--quantize", choices=sorted(QUANTIZATIONS))
    parser.add_argument("--numerics", default="guarded")
    parser.add_argument("--layers", type=int, help="default: the model's")
    parser.add_argument("--program", choices=PROGRAMS, default="loop")
    parser.add_argument(
        "--xla", action="append", default=[], metavar="NAME=VALUE", help="more options"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report")
    parser.add_argument(
        "--text", type=Path, metavar="FILE", help="write the compiled program"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Its arguments; None: those of the process.

    Returns:
        The exit code.
    """
    args = _parser().parse_args(arguments)
    try:
        mesh = parse_mesh(args.mesh)
        changes = {} if args.layers is None else {"num_layers": args.layers}
        shape = DecodeShape(
            config=preset(args.model, **changes),
            draft_steps=args.draft_steps,
            batch=args.batch,
            bucket=args.bucket,
            dtype=args.dtype,
            quantize=args.quantize,
            numerics=args.numerics,
            mesh=mesh,
        )
        options = parse_options(args.xla)
        for file in filter(None, (args.json, args.text)):
            check_folder(file)
        target = target_devices(args.target, math.prod(size for _, size in mesh))
        report = report_decode(shape, target, args.program, options, args.text)
    except (ValueError, OSError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    print(describe(report))
    if args.json is not None:
        text = json.dumps(dataclasses.asdict(report), indent=1)
        replace_file(args.json, (text + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
