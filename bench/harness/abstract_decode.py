"""The programs of a decode, compiled from shapes: without weights and without a device.

They are the functions that `engine.generation.prepare` compiles, with its options, of
arguments of which only the shapes exist.
"""

import dataclasses
import glob
import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import (
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    SingleDeviceSharding,
)

from bench.harness.device_topology import Target
from jaxdave.core.config import ModelConfig
from jaxdave.decoding import loop as decode_loop
from jaxdave.engine import decoders
from jaxdave.engine.batching import pack_prompts
from jaxdave.engine.placement import Placement
from jaxdave.io.safetensors_io import DTYPES, check_dtype
from jaxdave.io.sharding import mesh_structs
from jaxdave.models.param_shapes import param_shapes
from jaxdave.numerics.quantization import QUANTIZATIONS, transform_params
from jaxdave.numerics.weight_layout import to_device_layout, unstack_layers
from jaxdave.runtime.meshes import split_specs
from jaxdave.runtime.platform import compiler_options, in_32_bits

PROGRAMS = ("loop", "prefill", "guard")
"""The programs of a decode: its loop, the prefill before it, and a guard call (the
recheck of a row), which the loop contains too."""

_THUNKS = "thunk_sequence_after_thunk_passes.txt", "thunk_sequence.txt"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeShape:
    """What decides the shapes of a decode's programs.

    Attributes:
        config: The model.
        draft_steps: Drafts of a call.
        batch: Rows.
        bucket: Positions that the prefill covers, a power of two.
        max_new_tokens: Positions that may be decoded after the prompt.
        dtype: Of the weights.
        quantize: How matrices are rounded, a key of `QUANTIZATIONS`, or None.
        numerics: "guarded", "exact" or "fast".
        mesh: (axis, devices along it); empty: one device.
    """

    config: ModelConfig
    draft_steps: int = 8
    batch: int = 1
    bucket: int = 1024
    max_new_tokens: int = 256
    dtype: str = "bfloat16"
    quantize: str | None = None
    numerics: str = "guarded"
    mesh: tuple[tuple[str, int], ...] = ()

    @property
    def capacity(self) -> int:
        """Positions of a row's cache."""
        return self.bucket + self.max_new_tokens

    @property
    def model_parts(self) -> int:
        """Devices that the matrices are split over."""
        return dict(self.mesh).get("model", 1)

    def with_layers(self, count: int) -> "DecodeShape":
        """The same decode with another number of layers.

        Args:
            count: Layers.

        Returns:
            The shape.
        """
        config = dataclasses.replace(self.config, num_layers=count)
        return dataclasses.replace(self, config=config)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Argument:
    """An argument of a compiled program.

    Attributes:
        path: Where it is in the tree of arguments.
        num_bytes: Its bytes, on one device.
        dims: Its dimensions, on one device.
    """

    path: str
    num_bytes: int
    dims: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompiledDecode:
    """A compiled program of a decode.

    Attributes:
        text: The program, as XLA prints it.
        thunks: A GPU's list of thunks (`bench.hlo.thunks`); empty for others.
        seconds: What tracing and compiling took.
        cpu_seconds: The same in seconds of all cores, which says more where other
            processes run.
        argument_bytes: Bytes of its arguments, on one device.
        temporary_bytes: Bytes that it needs beside them, on one device.
        weights: Number of an argument -> the argument, of those that are weights.
        cache: The same of those that are the KV cache.
    """

    text: str
    thunks: str
    seconds: float
    cpu_seconds: float
    argument_bytes: int
    temporary_bytes: int
    weights: Mapping[int, Argument]
    cache: Mapping[int, Argument]


@in_32_bits()
def compile_decode(
    shape: DecodeShape,
    target: Target,
    program: str = "loop",
    options: Mapping[str, Any] | None = None,
) -> CompiledDecode:
    """Compile a program of a decode.

    Args:
        shape: What decides its shapes.
        target: The devices.
        program: One of `PROGRAMS`.
        options: Options of the compiler, beside those that jaxdave gives it.

    Returns:
        The compiled program.

    Raises:
        ValueError: A setting is unknown or does not fit the model, or the compiler
            cannot compile the program.
    """
    function, args, donate = _program(shape, target, program)
    start, cpu_start = time.perf_counter(), time.process_time()
    compiled, thunks = _compile(function, args, donate, target, options or {})
    seconds = time.perf_counter() - start
    cpu_seconds = time.process_time() - cpu_start
    memory = compiled.memory_analysis()
    leaves = jax.tree_util.tree_flatten_with_path(args)[0]
    is_cache = [path[0].idx == 2 and ".cache" in str(path[1]) for path, _ in leaves]
    numbered = {
        number: _argument(path[1:], leaf) for number, (path, leaf) in enumerate(leaves)
    }
    return CompiledDecode(
        text=compiled.as_text(),
        thunks=thunks,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        weights={n: one for n, one in numbered.items() if leaves[n][0][0].idx == 0},
        cache={n: one for n, one in numbered.items() if is_cache[n]},
    )


def _argument(path: Any, leaf: jax.ShapeDtypeStruct) -> Argument:
    assert leaf.sharding is not None
    dims = leaf.sharding.shard_shape(leaf.shape)
    return Argument(
        path=jax.tree_util.keystr(path, simple=True, separator="/"),
        num_bytes=math.prod(dims) * leaf.dtype.itemsize,
        dims=dims,
    )


def _compile(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    donate: int | None,
    target: Target,
    options: Mapping[str, Any],
) -> tuple[Any, str]:
    """A compiled program and, of a GPU's, its list of thunks."""
    # Arguments that are not read are kept, so that all have the numbers of the tree.
    jitted = jax.jit(
        function, donate_argnums=() if donate is None else donate, keep_unused=True
    )
    lowered = jitted.trace(*args).lower(lowering_platforms=(target.platform,))
    given = compiler_options(target.machine) | dict(options)
    with tempfile.TemporaryDirectory() as folder:
        if target.machine.is_gpu:
            given |= {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        try:
            compiled = lowered.compile(given)
        except jax.errors.JaxRuntimeError as error:
            line = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{target.name} cannot compile this program ({line}); try fewer layers "
                "or other options"
            ) from None
        for name in _THUNKS:
            for path in glob.glob(os.path.join(folder, f"*{name}")):
                with open(path) as file:
                    return compiled, file.read()
    return compiled, ""


def _program(
    shape: DecodeShape, target: Target, program: str
) -> tuple[Callable[..., Any], tuple[Any, ...], int | None]:
    """A program's function, its arguments and which of them is donated."""
    check_dtype(shape.dtype)
    if shape.batch < 1:
        raise ValueError(f"batch={shape.batch} must be at least 1; use 1")
    decoder = decoders.freedave(
        shape.config,
        draft_steps=shape.draft_steps,
        max_new_tokens=shape.max_new_tokens,
        numerics=shape.numerics,
        machine=target.machine,
    )
    spec = decoder.spec
    # As long as prompts of this bucket may be.
    length = shape.bucket - spec.layout.window_length
    if length < 1:
        raise ValueError(
            f"bucket {shape.bucket} leaves no room for a prompt beside a window of "
            f"{spec.layout.window_length}; use a larger power of two"
        )
    packed, prefill_length = pack_prompts(decoder, [[0] * length] * shape.batch)
    if prefill_length != shape.bucket:
        raise ValueError(
            f"bucket {shape.bucket} is no power of two of 64 and more; "
            f"use {prefill_length}"
        )
    mesh = _mesh(shape, target)
    placement = Placement(mesh)
    spec, packed = placement.spec_of(spec), placement.pad_rows(packed)
    params = _params(shape, target, mesh)
    place = _everywhere(target, mesh)
    runtime = place(spec.runtime(decoder.max_num_drafts, decoder.max_rounds))
    num_rows = len(packed.begin_B)
    prefill = placement.prefill_program(spec, params, num_rows, prefill_length)
    prompts = place(packed) if mesh is None else packed
    prompts = placement.structs(prompts, placement.rows_spec)
    prefill_args = params, runtime, prompts
    if program == "prefill":
        return prefill, prefill_args, None
    state = jax.eval_shape(prefill, *prefill_args)
    states = placement.state_specs(spec, state.is_single)
    is_single = state.is_single
    state = place(state) if mesh is None else placement.structs(state, states)
    if program == "loop":
        run = placement.loop_program(spec, params, is_single)
        return run, (params, runtime, state), 2

    def guard(params, runtime, state):
        del runtime
        return decode_loop.recheck_uncertain_rows(spec, params, state)

    splits = split_specs(params), PartitionSpec(), states
    return placement.program(guard, splits, states), (params, runtime, state), 2


def _mesh(shape: DecodeShape, target: Target) -> Mesh | None:
    sizes = dict(shape.mesh)
    if not sizes:
        return None
    devices = np.asarray(target.devices).reshape(tuple(sizes.values()))
    types = (AxisType.Auto,) * len(sizes)
    return Mesh(devices, tuple(sizes), axis_types=types)


def _params(shape: DecodeShape, target: Target, mesh: Mesh | None) -> Any:
    """Shapes of the parameters as such devices hold them, and where they lie."""
    params = param_shapes(shape.config, DTYPES[shape.dtype])
    if shape.quantize is not None:
        transform = QUANTIZATIONS[shape.quantize]
        params = jax.eval_shape(lambda tree: transform_params(tree, transform), params)
    if mesh is not None:
        structs = mesh_structs(params, shape.config, mesh)
        return unstack_layers(structs, target.machine)
    params = to_device_layout(
        jax.tree.map(_weightless, params),
        shape.config,
        target.machine,
        place=lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
    )
    return _everywhere(target, None)(params)


def _weightless(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    """An array of a shape that takes no memory: one zero, seen many times."""
    return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)


def _everywhere(target: Target, mesh: Mesh | None) -> Callable[[Any], Any]:
    """A function that puts a tree of shapes on every device."""
    whole = (
        SingleDeviceSharding(target.devices[0])
        if mesh is None
        else NamedSharding(mesh, PartitionSpec())
    )
    return lambda tree: jax.tree.map(lambda leaf: _struct(leaf, whole), tree)


def _struct(leaf: Any, sharding: Any = None) -> jax.ShapeDtypeStruct:
    """The shape of an array, and where it lies."""
    return jax.ShapeDtypeStruct(
        jnp.shape(leaf),
        jnp.result_type(leaf),
        sharding=leaf.sharding if sharding is None else sharding,
    )
