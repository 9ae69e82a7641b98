"""Losslessness on meshes of eight virtual CPU devices, mesh by mesh.

    python -m bench.lossless_mesh [--decodes 1000] [--numerics guarded exact fast]
        [--meshes data=2,model=4 ...] [--kept FILE]

Every case is a mesh, a dtype, a temperature and a kind of numerics, of one of two
models (the packaged block-causal one, and a random one of full attention). Its prompts
are decoded without drafts and with 4 or 8 of them, all rows together or one by one.
Under `exact` and `guarded` every text must be that of static decoding on the same mesh,
and under `guarded` also that of every other mesh. Under `fast` the share is printed.

The devices are virtual: a process of its own is started with eight of them.
"""

import dataclasses
import functools
import itertools
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bench.harness import report
from bench.lossless import read_or_compute, tiny_config, tiny_params
from jaxdave.core.config import ModelConfig
from jaxdave.demo_tasks import problem_sets
from jaxdave.engine import decoders
from jaxdave.engine.generation import generate
from jaxdave.io import checkpoint
from jaxdave.io.sharding import put_on_mesh
from jaxdave.runtime import compilation
from jaxdave.runtime.mesh_shape import parse_mesh
from jaxdave.runtime.meshes import make_mesh

NUM_DEVICES = 8
MESHES = (
    "data=1,model=1",
    "data=1,model=2",
    "data=2,model=2",
    "data=1,model=4",
    "data=8,model=1",
    "data=2,model=4",
)
MODELS, DTYPES, TEMPERATURES = (
    ("sdar-1m", "random"),
    ("float32", "bfloat16"),
    (0.0, 0.7),
)
# Programs are compiled for minutes and run for moments.
_QUICK = {
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}


@dataclasses.dataclass(frozen=True)
class MeshCase:
    """One comparison of decoding with drafts and without.

    Attributes:
        numerics: "guarded", "exact" or "fast".
        mesh: the mesh, as `--mesh` takes it.
        model: "sdar-1m" or "random".
        dtype: of the weights.
        temperature: sampling temperature.
        draft_steps: drafts of a call.
        is_batched: all prompts are decoded together; otherwise one by one.
    """

    numerics: str
    mesh: str
    model: str
    dtype: str
    temperature: float
    draft_steps: int
    is_batched: bool


def mesh_cases(meshes: Sequence[str], numerics: Sequence[str]) -> Iterator[MeshCase]:
    """List the cases: models, draft lengths and batches in turn.

    Args:
        meshes: the meshes.
        numerics: the kinds of numerics.

    Yields:
        The cases.
    """
    settings = list(itertools.product(DTYPES, TEMPERATURES))
    for kind, (j, mesh), (k, (dtype, temperature)) in itertools.product(
        numerics, enumerate(meshes), enumerate(settings)
    ):
        # Each kind of numerics has each model at one temperature in each dtype, the
        # same on all meshes.
        is_first = k in (0, 3) if kind == "guarded" else k in (1, 2)
        yield MeshCase(
            numerics=kind,
            mesh=mesh,
            model=MODELS[0 if is_first else 1],
            dtype=dtype,
            temperature=temperature,
            draft_steps=(4, 8)[(j + k // 2) % 2],
            is_batched=(j + k) % 2 == 0,
        )


@functools.cache
def whole_model(name: str, dtype: str) -> tuple[ModelConfig, Any, list[list[int]]]:
    """Load a model and its prompts.

    Args:
        name: "sdar-1m" or "random".
        dtype: of the weights.

    Returns:
        Config, stacked parameters of one device, and prompts.
    """
    if name == "random":
        config = dataclasses.replace(tiny_config(), attention="full")
        params = jax.tree.map(lambda a: a.astype(dtype), tiny_params(config, 0))
        rng = np.random.default_rng(0)
        lengths = rng.integers(1, 30, 64)
        return config, params, [rng.integers(0, 34, n).tolist() for n in lengths]
    model = checkpoint.load(name, dtype=dtype, mesh="data=1")
    problems = [*problem_sets.load("words_test")[:40], *problem_sets.load("lists_test")]
    prompts = [model.codec.encode_prompt(problem.prompt) for problem in problems]
    order = np.random.default_rng(0).permutation(len(prompts))
    return model.config, model.params, [prompts[i] for i in order]


@functools.cache
def mesh_params(name: str, dtype: str, mesh: str) -> Any:
    """Put a model on a mesh.

    Args:
        name: "sdar-1m" or "random".
        dtype: of the weights.
        mesh: the mesh.

    Returns:
        Its parameters there.
    """
    config, params, _ = whole_model(name, dtype)
    host = jax.tree.map(np.asarray, params)
    return put_on_mesh(host, config, make_mesh(parse_mesh(mesh)))


def run_case(case: MeshCase, num_prompts: int) -> dict[str, Any]:
    """Decode the prompts of a case both ways.

    Args:
        case: the case.
        num_prompts: how many prompts.

    Returns:
        The case's row of the table, with the texts of static decoding.
    """
    config, _, prompts = whole_model(case.model, case.dtype)
    params, prompts = (
        mesh_params(case.model, case.dtype, case.mesh),
        prompts[:num_prompts],
    )
    settings = {
        "max_new_tokens": 48 if case.model == "sdar-1m" else 16,
        "temperature": case.temperature,
        "numerics": case.numerics,
    }
    drafted = decoders.freedave(config, draft_steps=case.draft_steps, **settings)
    slots = case.draft_steps if case.numerics == "exact" else 1
    plain = decoders.freedave(config, draft_steps=slots, **settings).undrafted()
    batches = [prompts] if case.is_batched else [[prompt] for prompt in prompts]

    def texts(decoder: Any) -> list[list[int]]:
        return [
            list(completion.token_ids)
            for batch in batches
            for completion in generate(decoder, params, batch, seed=1).completions
        ]

    static, with_drafts = texts(plain), texts(drafted)
    same = sum(a == b for a, b in zip(static, with_drafts, strict=True))
    row = dataclasses.asdict(case) | {"decodes": len(static), "identical": same}
    return row | {"texts": static}


def across_meshes(rows: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """Compare the texts of every mesh with those of the first.

    Args:
        rows: what `run_case` has returned under guarded numerics.

    Returns:
        (texts that are the same, texts).
    """
    groups = defaultdict(list)
    for row in rows:
        groups[row["model"], row["dtype"], row["temperature"]].append(row["texts"])
    pairs = [
        a == b
        for first, *others in groups.values()
        for texts in others
        for a, b in zip(first, texts, strict=True)
    ]
    return sum(pairs), len(pairs)


def main() -> None:
    """Run the benchmark, in a process that has eight devices."""
    parser = report.argument_parser(__doc__)
    parser.add_argument("--decodes", type=int, default=1000, help="at least so many")
    parser.add_argument(
        "--numerics", nargs="+", choices=decoders.NUMERICS, default=["guarded", "exact"]
    )
    parser.add_argument("--meshes", nargs="+", default=MESHES)
    parser.add_argument("--kept", type=Path, help="file of the cases done so far")
    args = parser.parse_args()
    if jax.device_count() < NUM_DEVICES:
        flags = os.environ.get("XLA_FLAGS", "")
        flags += f" --xla_force_host_platform_device_count={NUM_DEVICES}"
        env = {**os.environ, "XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-m", "bench.lossless_mesh", *sys.argv[1:]]
        sys.exit(subprocess.run(command, env=env).returncode)
    jax.config.update("jax_disable_most_optimizations", True)
    compilation.EXTRA_OPTIONS.update(_QUICK)
    results = report.start_report("sdar-1m, random")
    cases = list(mesh_cases(args.meshes, args.numerics))
    num_prompts = -(-args.decodes // len(cases))
    rows = []
    for case in cases:
        compute = functools.partial(run_case, case, num_prompts)
        rows.append(read_or_compute(args.kept, repr((case, num_prompts)), compute))
        shown = {k: v for k, v in rows[-1].items() if k != "texts"}
        print(*shown.values(), file=sys.stderr, flush=True)
        compilation.clear_executables()
    shown = [{k: v for k, v in row.items() if k != "texts"} for row in rows]
    results.add_table("Identical texts on meshes", shown)
    for kind in args.numerics:
        own = [row for row in rows if row["numerics"] == kind]
        same, total = (sum(row[k] for row in own) for k in ("identical", "decodes"))
        sentence = f"{kind}: {same} of {total} texts are those of static decoding"
        print(sentence)
        if kind != "fast":
            claim = report.Claim(f"{sentence} on the same mesh", same == total)
            results.claims.append(claim)
        same, total = across_meshes(own)
        sentence = f"{kind}: {same} of {total} texts are those of the first mesh"
        print(sentence)
        if kind == "guarded":
            results.claims.append(report.Claim(sentence, same == total))
    results.finish(args.out)


if __name__ == "__main__":
    main()
