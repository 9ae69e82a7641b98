"""The settings of a supervised training run, and the TOML file that they come from.

[model]
start = "sdar-1m"                 # or a folder, a Hub id, "scratch"

[data]
files = ["train.jsonl"]

[objective]
name = "sdar"

[train]
steps = 200
"""

import dataclasses
import inspect
import math
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from jaxdave.core.config import ModelConfig
from jaxdave.models.lora import LoraConfig
from jaxdave.runtime.mesh_shape import MeshShape, parse_mesh
from jaxdave.training.config_file import ConfigFile, read_config_file
from jaxdave.training.objective.objectives import OBJECTIVES, Objective
from jaxdave.training.optimisers import OptimiserConfig
from jaxdave.training.trainer import LoopConfig
from jaxdave.training.update import UpdateConfig

SCRATCH = "scratch"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSection:
    """Where training starts.

    Attributes:
        start: A demo model, a folder or a Hub id: a diffusion model, or an
            autoregressive Qwen2, Qwen3 or Llama; "scratch": random parameters.
        preset: The architecture, with "scratch".
        tokenizer: A model whose tokenizer is taken, with "scratch"; None: the preset's.
        attention: "full" or "block_causal", of an autoregressive start.
        block_length: Tokens of a block; None: the model's own.
        shift: Whether the output at i - 1 predicts token i, of an autoregressive start.
        mask_token: Its mask token; None: one that the tokenizer has, or a new one.
        dtype: What parameters are stored as in the model that comes out.
        max_new_tokens: Answer length that it names; None: as the start.
    """

    start: str
    preset: str | None = None
    tokenizer: str | None = None
    attention: Literal["full", "block_causal"] | None = None
    block_length: int | None = None
    shift: bool = True
    mask_token: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        if (self.start == SCRATCH) != (self.preset is not None):
            raise ValueError(
                f"start={self.start!r} with preset={self.preset!r}: give a preset with "
                f"{SCRATCH!r}, and only there"
            )
        if self.preset is None and self.tokenizer is not None:
            raise ValueError(
                f"tokenizer={self.tokenizer!r} is for start={SCRATCH!r}; a model has "
                "its own"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSection:
    """What is trained on.

    Attributes:
        files: JSON lines of {"prompt", "response"} or {"messages"}.
        validation: The same; their loss is reported and not trained.
        length: Positions of a row.
        packing: "pack" or "one" (`BatchConfig`).
        end_padding: Padding behind an answer that is trained with it
            (`BatchConfig`); None: "block" for block-causal attention, else "none".
        too_long: A sample that does not fit is an "error", or a "skip".
        chat_template: Prompts are rendered by the chat template.
        shuffle: Whether there is another order than that of the files.
        prefetch: Batches that are made ahead.
    """

    files: tuple[str, ...]
    validation: tuple[str, ...] = ()
    length: int = 256
    packing: Literal["pack", "one"] | None = None
    end_padding: int | str | None = None
    too_long: Literal["error", "skip"] = "error"
    chat_template: bool = True
    shuffle: bool = True
    prefetch: int = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSection:
    """How long, how much at once, and where.

    Attributes:
        steps: Updates.
        batch_size: Rows of an update.
        seed: Of the order of samples and of all noise.
        accumulate: Parts that a batch is evaluated in, one after another.
        ema_decay: Decay of the moving average of parameters, which becomes the model;
            None: there is none.
        dtype: What the network computes with.
        remat: Compute the insides of layers again for the gradient, to save memory.
        columns_at_once: Of so many columns of a row logits are in memory; None: all.
        expert_balance: What it counts, beside a token's loss, that a mixture's experts
            get equally many tokens, e.g. 0.001 (`trained_experts.balanced`); 0: none.
        save_every: Steps between checkpoints.
        keep: The latest so many stay.
        log_every: Steps between looks at the metrics.
        validate_every: Steps between validations; None: as `save_every`.
        mesh: "data=2,model=4"; None: one device.
    """

    steps: int
    batch_size: int = 16
    seed: int = 0
    accumulate: int = 1
    ema_decay: float | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    columns_at_once: int | None = None
    expert_balance: float = 0.0
    save_every: int = 100
    keep: int = 2
    log_every: int = 10
    validate_every: int | None = None
    mesh: str | None = None

    def __post_init__(self) -> None:
        # What they are made into refuses values.
        _ = self.update, self.loop, self.mesh_shape
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must be at least 0")
        if not 0 <= self.expert_balance < math.inf:
            raise ValueError(
                f"expert_balance={self.expert_balance} must be 0 (off) or more, and "
                "finite"
            )
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size={self.batch_size} must be a multiple of accumulate="
                f"{self.accumulate}"
            )
        if self.columns_at_once is not None and self.columns_at_once < 1:
            raise ValueError(
                f"columns_at_once={self.columns_at_once} must be at least 1"
            )

    @property
    def update(self) -> UpdateConfig:
        """The settings of an update."""
        return UpdateConfig(
            accumulate=self.accumulate, ema_decay=self.ema_decay, dtype=self.dtype
        )

    @property
    def loop(self) -> LoopConfig:
        """The settings of the loop."""
        return LoopConfig(
            steps=self.steps,
            save_every=self.save_every,
            keep=self.keep,
            log_every=self.log_every,
            validate_every=self.validate_every,
        )

    @property
    def mesh_shape(self) -> MeshShape | None:
        """The devices; None: one."""
        return None if self.mesh is None else parse_mesh(self.mesh)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All settings of a run.

    Attributes:
        model: Where it starts.
        data: What is trained on.
        objective_name: The objective, a key of `OBJECTIVES`.
        objective_settings: Arguments of its maker.
        optimiser: How parameters follow gradients.
        train: How long, how much at once, and where.
        lora: Adapters that are trained in the parameters' place; None: all parameters
            are trained.
    """

    model: ModelSection
    data: DataSection
    objective_name: str
    objective_settings: Mapping[str, Any]
    optimiser: OptimiserConfig
    train: TrainSection
    lora: LoraConfig | None = None

    def objective(self, config: ModelConfig) -> Objective:
        """The objective for a model.

        Args:
            config: The model, whose blocks and shift it takes where none are set.

        Returns:
            The objective.

        Raises:
            ValueError: Its settings do not go together.
        """
        make = OBJECTIVES[self.objective_name]
        settings = dict(self.objective_settings)
        parameters = inspect.signature(make).parameters
        if "block_length" in parameters and "block_length" not in settings:
            settings["block_length"] = config.block_length
        if "shift" in parameters and "shift" not in settings:
            settings["shift"] = config.logits_shift != "none"
        return make(**settings)


def read_train_config(path: Path) -> TrainConfig:
    """Read the settings of a run.

    Args:
        path: A TOML file.

    Returns:
        The settings.

    Raises:
        ValueError: Names file, line and value, and what is wrong with it.
    """
    file = read_config_file(path)
    file.check_sections(("model", "data", "objective", "optimiser", "train", "lora"))
    name, settings = _read_objective(file)
    train = file.read("train", TrainSection)
    return TrainConfig(
        model=file.read("model", ModelSection),
        data=file.read("data", DataSection),
        objective_name=name,
        objective_settings=settings,
        optimiser=file.read("optimiser", OptimiserConfig),
        train=train,
        lora=file.read("lora", LoraConfig) if "lora" in file.sections else None,
    )


@dataclasses.dataclass(frozen=True)
class _ObjectiveName:
    name: str

    def __post_init__(self) -> None:
        if self.name not in OBJECTIVES:
            raise ValueError(
                f"name={self.name!r} must be one of {', '.join(OBJECTIVES)}"
            )


def _read_objective(file: ConfigFile) -> tuple[str, dict[str, Any]]:
    """The objective's name, and the arguments of its maker."""
    table = file.sections.get("objective", {})
    named = {key: value for key, value in table.items() if key == "name"}
    name = (
        dataclasses.replace(file, sections={"objective": named})
        .read("objective", _ObjectiveName)
        .name
    )
    parameters = typing.get_type_hints(OBJECTIVES[name])
    record = dataclasses.make_dataclass(
        "Settings",
        [
            (key, parameters[key], dataclasses.field(default=None))
            for key in inspect.signature(OBJECTIVES[name]).parameters
            if key != "editing"
        ],
    )
    given = {key: value for key, value in table.items() if key != "name"}
    read = dataclasses.replace(file, sections={"objective": given}).read(
        "objective", record
    )
    return name, {key: getattr(read, key) for key in given}
