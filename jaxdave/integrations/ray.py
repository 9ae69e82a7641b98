"""Ray Data: a class for `map_batches` that decodes batches of prompts.

`jaxdave generate --ray` does the same for a file. The extra `[ray]` installs Ray.
"""

from jaxdave.distributed.ray_decoder import PROMPT_COLUMNS, RayDecoder

__all__ = ["PROMPT_COLUMNS", "RayDecoder"]
