"""Loading the model that a benchmark decodes with."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from jaxdave.demo_tasks.problem import Problem
from jaxdave.io import checkpoint, hub
from jaxdave.io.tokenizer import Codec, load_codec
from jaxdave.models import transformer
from jaxdave.numerics.weight_layout import to_device_layout
from jaxdave.training.demo.recipes import SDAR_1M


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model with what is needed to ask it something.

    Attributes:
        config: its `ModelConfig`.
        params: parameters in the layout of this machine.
        codec: its tokenizer and chat template.
        tables: calibrated draft tables, by the name of the policy and cache rule;
            empty where none was calibrated.
    """

    config: Any
    params: Any
    codec: Codec
    tables: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def encode_prompts(self, problems: Sequence[Problem]) -> list[list[int]]:
        """Encode the prompts of some problems with the model's chat template.

        Args:
            problems: the problems.

        Returns:
            Token ids, one list per problem.
        """
        return [self.codec.encode_prompt(problem.prompt) for problem in problems]


def load_model(weights: str) -> LoadedModel:
    """Load the model that `--weights` names.

    Args:
        weights: the name of a packaged model, a checkpoint folder or hub id, or
            `random` for the demo model's shape with untrained parameters.

    Returns:
        The model.

    Raises:
        SystemExit: with status 2 and a sentence on stderr, if it cannot be loaded.
    """
    if weights == "random":
        folder = checkpoint.find_model(hub.DEFAULT_MODEL)[1]
        params = to_device_layout(transformer.init(SDAR_1M, 0), SDAR_1M)
        return LoadedModel(SDAR_1M, params, load_codec(folder, None))
    try:
        model = checkpoint.load(weights)
    except (ValueError, OSError) as error:
        print(f"cannot load {weights!r}: {error}", file=sys.stderr)
        sys.exit(2)
    return LoadedModel(model.config, model.params, model.codec, model.tables)
