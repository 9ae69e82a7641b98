"""Every key of a mixture's config.json with values that it should not have.

A folder is refused in one line with exit code 2 by both commands, and nothing of a
conversion is left; or it loads, and then it decodes.
"""

import functools
import json
import math
import random
import shutil

import pytest
from helpers.conversion_sources import names_in
from helpers.conversion_sources import run as convert

from jaxdave.cli import generate, main
from jaxdave.engine.decode_config import DecodeConfig
from jaxdave.engine.sampler import Sampler

pytest.importorskip("torch")
from helpers import torch_mixtures  # noqa: E402

FAMILIES = ("sdar-moe", "rnd1", "llada-moe", "llada2")
VALUES = (
    ..., None, -1, 0, 1, 3, 2.5, 1e30, math.nan, math.inf, 2**31, 2**70, "text", "",
    "8", [], [1, 2], [0, 1, 1], {}, {"type": "yarn"}, True, False,
)  # fmt: skip
EXTRA_KEYS = (
    "n_routed_experts", "num_local_experts", "rope_parameters", "layer_types",
    "quantization_config", "moe_layer_freq", "n_shared_experts", "mask_token_id",
    "block_size", "head_dim", "real_vocab_size", "partial_rotary_factor",
)  # fmt: skip


def mutations(family: str) -> list[tuple[str, object]]:
    """(key, value) for every key of the family's config.json and some others."""
    keys = dict.fromkeys((*torch_mixtures.CONFIGS[family], *EXTRA_KEYS))
    return [(key, value) for key in keys for value in VALUES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a family, made once."""

    @functools.cache
    def make(name: str):
        path = tmp_path_factory.mktemp(name) / "model"
        return torch_mixtures.save(name, torch_mixtures.build(name), path)

    return make


def mutate(path, family: str, key: str, value: object) -> None:
    raw = {**torch_mixtures.CONFIGS[family], key: value}
    raw = {k: v for k, v in raw.items() if v is not ...}
    (path / "config.json").write_text(json.dumps(raw))


def outcome(capsys, code: int) -> str:
    """The one line of a command that has refused its input; "" where it has not."""
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    if code == 0:
        return ""
    assert code == 2 and not out and err.count("\n") == 1, err
    assert len(err) < 3000 and "; " in err, err  # what to do comes after it
    return err


@pytest.fixture
def try_one(monkeypatch, capsys, tmp_path):
    """Run both commands; the sampler that the first has built, or None."""

    def call(path):
        built = []

        def keep(sampler, *args, **kwargs):
            built.append(sampler)
            raise ValueError("seen; well")

        monkeypatch.setattr(generate, "decode_prompts", keep)
        words = ["generate", "How many?", "--model", str(path), "--no-compile-cache"]
        with pytest.raises(SystemExit) as end:
            main.main([*words, "--max-new-tokens", "64", "--block-length", "4"])
        assert isinstance(end.value.code, int)
        line = outcome(capsys, end.value.code)
        code = convert(path, tmp_path / "ours", "--block-length", "4")
        if code == 0:
            capsys.readouterr()
            shutil.rmtree(tmp_path / "ours")
        else:
            outcome(capsys, code)
        assert names_in(tmp_path) == []
        # Both commands take the same folders; the prompt may be too long for one.
        assert bool(built) == (code == 0) or "the model allows" in line, line
        return built[0] if built else None

    return call


def judge_all(path, family, chosen, try_one):
    """The samplers of what has loaded, one for each model config."""
    loaded = {}
    try:
        for key, value in chosen:
            mutate(path, family, key, value)
            try:
                sampler = try_one(path)
            except BaseException as error:
                error.add_note(f"{family}: {key}={value!r}")
                raise
            if sampler is not None:
                loaded[repr(sampler.model.config)] = sampler
    finally:
        mutate(path, family, "model_type", torch_mixtures.CONFIGS[family]["model_type"])
    return list(loaded.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_some_values_are_refused_or_load(folder, family, try_one):
    chosen = random.Random(0).sample(mutations(family), 40)
    judge_all(folder(family), family, chosen, try_one)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_value_is_refused_or_decodes(folder, family, try_one):
    loaded = judge_all(folder(family), family, mutations(family), try_one)
    assert len(loaded) > 3
    for sampler in random.Random(1).sample(loaded, min(len(loaded), 10)):
        config = DecodeConfig(max_new_tokens=8, block_length=4, draft_steps=2)
        short = Sampler(sampler.model, config)
        try:
            drafted = short("How many?")
        except ValueError as error:
            assert "\n" not in str(error) and "; " in str(error)
            continue
        assert drafted.token_ids == short.undrafted()("How many?").token_ids
