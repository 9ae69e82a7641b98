"""Mutated checkpoint folders: what a broken download or a clumsy hand makes of a model.

Every mutation says what may come of it. Those of single values are drawn; those of
files and of their encodings are listed.
"""

import dataclasses
import json
import math
import random
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import text_mutations, weight_mutations
from bench.harness.file_changes import EITHER, OTHER, SAME, Change, json_change
from jaxdave.core.config import ModelConfig
from jaxdave.core.param_paths import param_path
from jaxdave.io import checkpoint
from jaxdave.io.hub import DEFAULT_MODEL, find_model
from jaxdave.models.param_shapes import param_shapes

BASES = (DEFAULT_MODEL, "llada", "fast-dllm-v2")
"""The demo model, and tiny random models of two other families, the last with a head
that is its embedding."""


@dataclasses.dataclass(frozen=True)
class Mutation:
    """A change of a checkpoint folder.

    Attributes:
        name: What is changed, and to what.
        group: The row of the table that it counts in.
        base: Name of the model that it starts from.
        effect: One of the effects above.
        apply: Changes a folder.
    """

    name: str
    group: str
    base: str
    effect: str
    apply: Callable[[Path], object] = dataclasses.field(repr=False)


def make_base(name: str, folder: Path) -> None:
    """Make an unmutated folder.

    Args:
        name: One of the models of `mutations`.
        folder: The folder to make.
    """
    if name == DEFAULT_MODEL:
        shutil.copytree(find_model(name)[1], folder)
        return
    is_full = name == "llada"
    switches: dict[str, Any] = dict(qkv_bias=True, tie_embeddings=True)
    switches |= {"logits_shift": "block", "block_length": 4}
    if is_full:
        switches = dict(attention="full", rope_fp32=True, block_length=32)
    config = ModelConfig(
        name=name, family=name, num_layers=2, hidden=16, inter=24, heads=4,
        kv_heads=2, head_dim=4, rotary_dim=4, vocab_rows=784, vocab_size=776,
        mask_id=775, pad_id=772, stop_ids=(774, 772), max_positions=512, **switches,
    )  # fmt: skip
    import jax

    draw = np.random.default_rng(0).normal

    def random_leaf(key_path, leaf):
        mean = float("scale" in param_path(key_path))
        return np.asarray(mean + 0.5 * draw(size=leaf.shape), leaf.dtype)

    params = jax.tree_util.tree_map_with_path(random_leaf, param_shapes(config))
    tokenizer = find_model(None)[1]
    checkpoint.save(folder, config, params, dtype="float32", tokenizer=tokenizer)


def mutations(count: int, seed: int) -> list[Mutation]:
    """Mutations of several models.

    Args:
        count: About how many; those of groups that have more are drawn.
        seed: Of what is drawn.

    Returns:
        The mutations, in a drawn order.
    """
    rng = random.Random(seed)
    listed: list[Mutation] = []
    makers = (
        weight_mutations.weights,
        weight_mutations.shards,
        text_mutations.tokenizer,
        text_mutations.templates,
        text_mutations.generation,
        text_mutations.drafts,
        text_mutations.files,
    )
    for number, make in enumerate(makers):
        for index, (name, effect, apply) in enumerate(make(rng)):
            # Every mutation once, and the bases in turn.
            base = BASES[(number + index) % len(BASES)]
            group = make.__name__
            listed.append(Mutation(f"{name}", group, base, effect, apply))
    for base in BASES:
        for name, effect, apply in _config_values(base):
            listed.append(Mutation(name, "config", base, effect, apply))
    drawn = []
    for group in groups(listed):
        own = [one for one in listed if one.group == group]
        drawn += rng.sample(own, min(len(own), count // 7))
    rng.shuffle(drawn)
    return drawn


_OF_THE_MODEL = {
    "rope_theta", "rms_norm_eps", "block_size", "bd_size", "eos_token_id",
    "pad_token_id", "real_vocab_size", "rope_full_precision", "n_heads", "n_kv_heads",
    "num_attention_heads", "num_key_value_heads", "head_dim", "rope_scaling",
    "rope_parameters",
}  # fmt: skip
"""Keys of which another good value is another model, or another length of text."""
_VALUES: tuple[Any, ...] = (
    None, -1, 0, 1, 2, 1.5, 1e30, 1e-30, math.nan, math.inf, -math.inf, 2**31, 2**63,
    10**30, "text", "", "8", [], [1, 2], {}, {"a": 1}, True, False, [[[[1]]]], ["x"],
)  # fmt: skip
_EXTRA_KEYS = (
    "quantization_config", "auto_map", "rope_parameters", "multi_query_attention",
    "mlp_ratio", "layer_types", "partial_rotary_factor", "sliding_window", "rope_local",
    "max_window_layers", "transformers_version", "__proto__", "", "ключ",
)  # fmt: skip


def _config_values(base: str) -> list[Change]:
    """Values of keys of config.json: types, signs, nulls, sizes, missing ones."""
    with tempfile.TemporaryDirectory() as name:
        make_base(base, Path(name) / "base")
        raw = json.loads((Path(name) / "base" / "config.json").read_text())
    changes: list[Change] = []
    for key in (*raw, *_EXTRA_KEYS):
        value = raw.get(key)
        own = [value, ...]
        if type(value) in (int, float):
            own += [-value, 2 * value, value + 1, str(value), float(value), [value]]
        for new in (*own, *_VALUES):
            effect = EITHER
            is_number = type(new) in (int, float) and math.isfinite(new)
            is_kind = (
                is_number or new is None or new is ... or type(new) in (dict, bool)
            )
            if key in _OF_THE_MODEL and (is_kind or isinstance(new, list)):
                effect = OTHER
            if new is value:
                effect = SAME
            shown = "missing" if new is ... else json.dumps(new)[:40]
            changes.append(
                (f"config.json {key}={shown}", effect, json_change(key, new))
            )
    return changes


def groups(everything: Sequence[Mutation]) -> Mapping[str, int]:
    """How many mutations there are of each group."""
    counts: dict[str, int] = {}
    for one in everything:
        counts[one.group] = counts.get(one.group, 0) + 1
    return counts
