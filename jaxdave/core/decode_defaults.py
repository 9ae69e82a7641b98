"""How a model's authors decode it, where the caller says nothing else."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeDefaults:
    """What `DecodeConfig` takes from a model where a field of it is None.

    Attributes:
        policy: Text as of `policies.parse`, in which "{block_length}" stands for the
            length of a block; None: `policies.static(1)`.
        cache: "none", "prefix" or "dual" for full attention; None: "dual".
        temperature: 0 takes the best token; above, tokens are drawn.
        top_k: Draw from the best k tokens only; 0: off.
        top_p: Draw from the best tokens of this much probability only; 1: off.
        is_one_block: The whole answer is one block; only under full attention.
    """

    policy: str | None = None
    cache: str | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    is_one_block: bool = False


NO_DEFAULTS = DecodeDefaults()
"""One token a step, the best one."""
