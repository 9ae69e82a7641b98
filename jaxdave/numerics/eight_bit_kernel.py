"""A product with an 8-bit matrix that reads it as it is stored, as a GPU kernel.

XLA multiplies by a widened copy of an 8-bit matrix: it reads one byte of a weight,
writes two and reads them again, five times the traffic of the weights themselves. Where
few vectors are multiplied, the weights are nearly all that is read. This kernel widens
them in registers.

A program of the kernel computes `BLOCK_OUT` output channels of `MAX_BLOCK_ROWS` vectors
at most, and adds up products over the inputs in blocks of `BLOCK_IN`, from the first to
the last. A matrix with few channels is cut along its inputs too, so that all processors
have work; the sums of its parts are added from the first to the last. There are no
atomic additions, and the order of a sum depends on the matrix's shape alone, not on how
many vectors there are: equal inputs give equal bits.
"""

import functools

import jax
import jax.numpy as jnp

BLOCK_OUT = 128
"""Output channels of a program: two warp groups, each the 64 rows of a matrix unit's
instruction. Vectors are read again for every such block, so it must not be small."""
BLOCK_IN = 64
"""Inputs of a step of its loop. Two programs fit into a processor's shared memory."""
MIN_BLOCK_ROWS, MAX_BLOCK_ROWS = 16, 64
"""Vectors of a program: a power of two."""
MAX_ROWS = 256
"""Vectors up to which reading weights is what a product costs. With more it is the
multiplications, and the library's products with a widened copy are as fast."""
PROCESSORS = 132
"""Of an H100. A matrix is cut along its inputs into as many parts as they can hold."""
MAX_SPLITS = 4
"""Parts that a matrix is cut into at most: each writes sums that are read again."""
WARPS, STAGES = 8, 4
"""Warps of a program, and steps of its loop for which memory is read ahead."""


def eight_bit_matmul(
    x_PRI: jax.Array, values_OI: jax.Array, scale_O: jax.Array, *, interpret: bool
) -> jax.Array:
    """Multiply vectors, given as sums of parts, by an 8-bit matrix.

    Under `vmap` over the vectors all of them become rows of one product.

    Args:
        x_PRI: Parts of the vectors, [P, R, I], bfloat16 or float16. A vector is the sum
            of its P parts.
        values_OI: The matrix, [O, I], int8 or float8_e4m3fn.
        scale_O: A factor for each output channel, float32 [O].
        interpret: Run the kernel as plain JAX, without a GPU.

    Returns:
        Scaled products, float32 [R, O].
    """

    @jax.custom_batching.custom_vmap
    def product(x_PRI, values_OI, scale_O):
        return _add_in_order(_partial_products(x_PRI, values_OI, scale_O, interpret))

    @product.def_vmap
    def product_of_batch(axis_size, is_batched, x, values, scale):
        if any(is_batched[1:]):
            raise NotImplementedError(
                "a batch of 8-bit matrices has no product; map over the matrices"
            )
        # The kernel would read the weights for each element of a batch.
        num_parts, _, inputs = x.shape[1:]
        rows = jnp.moveaxis(x, 0, 1).reshape(num_parts, -1, inputs)
        y = eight_bit_matmul(rows, values, scale, interpret=interpret)
        return y.reshape(axis_size, -1, y.shape[-1]), True

    return product(x_PRI, values_OI, scale_O)


def _partial_products(x_PRI, values_OI, scale_O, interpret: bool) -> jax.Array:
    """Scaled products with each part of the matrix's inputs, [parts, R, O]."""
    # Imported here, as Pallas takes half a second, and most starts trace nothing.
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    (num_parts, rows, inputs), outputs = x_PRI.shape, values_OI.shape[0]
    block_rows = rows_per_program(rows)
    steps, splits = split_inputs(outputs, inputs)
    grid = pl.cdiv(rows, block_rows), splits, pl.cdiv(outputs, BLOCK_OUT)
    kernel = functools.partial(
        _kernel, rows=rows, inputs=inputs, outputs=outputs, steps=steps
    )
    # Blocks of rows are neighbours in the grid, so that weights that one of them has
    # read are still in the cache when the next one does.
    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=[
            pl.BlockSpec(
                (num_parts, block_rows, steps * BLOCK_IN), lambda r, s, o: (0, r, s)
            ),
            pl.BlockSpec((BLOCK_OUT, steps * BLOCK_IN), lambda r, s, o: (o, s)),
            pl.BlockSpec((BLOCK_OUT,), lambda r, s, o: (o,)),
        ],
        out_specs=pl.BlockSpec(
            (None, block_rows, BLOCK_OUT), lambda r, s, o: (s, r, o)
        ),
        out_shape=jax.ShapeDtypeStruct((splits, rows, outputs), jnp.float32),
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=STAGES),
        interpret=interpret,
        name="eight_bit_matmul",
    )(x_PRI, values_OI, scale_O)


def _kernel(
    x_ref, values_ref, scale_ref, y_ref, *, rows: int, inputs: int, outputs, steps: int
):
    """One program: a block of channels and rows, over one part of the inputs."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    has_row = which_exist(rows, pl.program_id(0), x_ref.shape[1])
    has_channel = which_exist(outputs, pl.program_id(2), BLOCK_OUT)
    y = multiply_block(
        x_ref,
        values_ref,
        has_row,
        has_channel,
        inputs=inputs,
        first_step=pl.program_id(1) * steps,
        steps=steps,
    )
    scale = triton.load(scale_ref, mask=has_channel)
    mask = _outer(has_row, has_channel, (x_ref.shape[1], BLOCK_OUT))
    triton.store(y_ref, (y * scale[:, None]).T, mask=mask)


def which_exist(size: int, index: jax.Array, block: int) -> jax.Array | None:
    """Which elements of a block of an axis exist.

    Args:
        size: Length of the axis.
        index: The block, int32 scalar.
        block: Length of a block.

    Returns:
        bool [block]; None: all, in every block.
    """
    if size % block == 0:
        return None
    return index * block + jnp.arange(block, dtype=jnp.int32) < size


def multiply_block(
    x_ref,
    values_ref,
    has_row: jax.Array | None,
    has_channel: jax.Array | None,
    *,
    inputs: int,
    first_step: jax.Array | int,
    steps: int,
) -> jax.Array:
    """The products of a program: a block of channels by a block of vectors.

    Args:
        x_ref: Parts of the vectors, [P, rows, steps * BLOCK_IN].
        values_ref: The matrix's block, [BLOCK_OUT, steps * BLOCK_IN].
        has_row: Which vectors exist; None: all.
        has_channel: Which channels exist; None: all.
        inputs: Inputs of the whole matrix.
        first_step: The block of `BLOCK_IN` inputs that the refs begin with.
        steps: Blocks of inputs to add up; the matrix may end before.

    Returns:
        Sums over these inputs, from the first to the last, float32 [BLOCK_OUT, rows].
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    num_parts, block_rows = x_ref.shape[:2]

    def load(ref, has_line, has_input):
        lines, columns = ref.shape
        mask = _outer(has_line, has_input, (lines, columns))
        other = None if mask is None else jnp.zeros((), ref.dtype)
        return triton.load(ref, mask=mask, other=other)

    def step(index, y):
        at = pl.ds(index * BLOCK_IN, BLOCK_IN)
        has_input = which_exist(inputs, first_step + index, BLOCK_IN)
        # Weights are the first operand, which the matrix units can read from registers;
        # the second one has to lie in shared memory.
        weights = load(values_ref.at[:, at], has_channel, has_input).astype(x_ref.dtype)
        for number in range(num_parts):
            x = load(x_ref.at[jnp.int32(number), :, at], has_row, has_input)
            y += triton.dot(weights, x, trans_b=True)
        return y

    # The last part of the inputs may be shorter.
    count = jnp.minimum(steps, pl.cdiv(inputs, BLOCK_IN) - first_step)
    return jax.lax.fori_loop(
        0, count, step, jnp.zeros((BLOCK_OUT, block_rows), jnp.float32)
    )


def _outer(
    has_line: jax.Array | None, has_column: jax.Array | None, shape: tuple[int, int]
) -> jax.Array | None:
    """A mask of lines and one of columns as one of elements; None: all."""
    masks = []
    if has_line is not None:
        masks.append(jnp.broadcast_to(has_line[:, None], shape))
    if has_column is not None:
        masks.append(jnp.broadcast_to(has_column[None], shape))
    return functools.reduce(jnp.logical_and, masks) if masks else None


def split_inputs(outputs: int, inputs: int) -> tuple[int, int]:
    """How a matrix is cut along its inputs.

    Args:
        outputs: Its output channels.
        inputs: Its inputs.

    Returns:
        Blocks of `BLOCK_IN` inputs in a part (the last part may have fewer), and the
        number of parts.

    Example:
        >>> split_inputs(outputs=2560, inputs=4096)
        (16, 4)
    """
    blocks = -(-inputs // BLOCK_IN)
    fitting = PROCESSORS // -(-outputs // BLOCK_OUT)
    steps = -(-blocks // min(max(1, fitting), MAX_SPLITS))
    return steps, -(-blocks // steps)


def rows_per_program(rows: int) -> int:
    """The least power of two that holds all vectors, within the limits.

    Args:
        rows: Vectors of a product.

    Returns:
        Vectors of a program.
    """
    size = MIN_BLOCK_ROWS
    while size < min(rows, MAX_BLOCK_ROWS):
        size *= 2
    return size


def _add_in_order(y_SRO: jax.Array) -> jax.Array:
    """The sum over the first axis; a reduction would leave its order to XLA."""
    return functools.reduce(jnp.add, list(y_SRO))
