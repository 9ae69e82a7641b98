"""Adapters from and to folders as the peft library writes them."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.checkpoint_folders import CONFIG, assert_equal
from helpers.family_cases import CASES
from safetensors.numpy import load_file, save_file

from jaxdave.io.peft_io import load_adapters, save_adapters
from jaxdave.models.lora import TARGET_PATHS, LoraConfig, adapter_shapes
from jaxdave.models.presets import preset

LORA = LoraConfig(rank=4, alpha=6.0, targets=("q", "v", "down"))
WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
NUMBERS = np.random.default_rng(0)


def random_adapters(config=CONFIG, lora=LORA):
    return jax.tree.map(
        lambda s: jnp.float32(NUMBERS.normal(size=s.shape)),
        adapter_shapes(config, lora),
    )


@pytest.fixture
def folder(tmp_path):
    save_adapters(tmp_path / "a", CONFIG, random_adapters(), LORA, base_model="x/y")
    return tmp_path / "a"


@pytest.mark.parametrize("name", ["sdar-1m", "llada-1m", "dream-1m"])
@pytest.mark.parametrize("targets", [("k",), tuple(TARGET_PATHS)])
def test_a_folder_holds_the_adapters(tmp_path, name, targets):
    config = preset(name)
    lora = LoraConfig(rank=3, alpha=5.0, targets=targets, rank_stabilized=True)
    adapters = random_adapters(config, lora)
    save_adapters(tmp_path / "a", config, adapters, lora)
    loaded, settings = load_adapters(tmp_path / "a", config)
    assert_equal(loaded, adapters)
    assert settings == lora
    # Again, over the older folder, whose notes stay.
    (tmp_path / "a" / "README.md").write_text("notes")
    save_adapters(tmp_path / "a", config, adapters, lora)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["README.md", SETTINGS, WEIGHTS]


def test_names_and_settings_are_the_library_s(folder):
    """As docs/source/developer_guides/checkpoint.md of huggingface/peft has them."""
    tensors = load_file(folder / WEIGHTS)
    modules = ["self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"]
    assert sorted(tensors) == sorted(
        f"base_model.model.model.layers.{layer}.{module}.lora_{letter}.weight"
        for layer in range(2)
        for module in modules
        for letter in "AB"
    )
    raw = json.loads((folder / SETTINGS).read_text())
    assert raw["peft_type"] == "LORA" and raw["base_model_name_or_path"] == "x/y"
    assert (raw["r"], raw["lora_alpha"], raw["lora_dropout"]) == (4, 6.0, 0.0)
    assert raw["target_modules"] == ["q_proj", "v_proj", "down_proj"]
    assert raw["bias"] == "none" and raw["use_rslora"] is False


@pytest.mark.parametrize("family", ["sdar", "dream", "llada", "fast-dllm-v2"])
def test_target_modules_are_those_that_have_tensors(tmp_path, family):
    """A list means "the name ends so", a text a pattern of the whole name."""
    name = {"fast-dllm-v2": "fast-dllm-v2-1.5b"}.get(family, f"{family}-1m")
    config = preset(name, num_layers=2, hidden=128, inter=64, vocab_rows=151936)
    lora = LoraConfig(rank=1)
    save_adapters(tmp_path / "a", config, random_adapters(config, lora), lora)
    tensors = load_file(tmp_path / "a" / WEIGHTS)
    adapted = {
        re.sub(r"^base_model\.model\.|\.lora_[AB]\.weight$", "", t) for t in tensors
    }
    head = "model.transformer.ff_out" if family == "llada" else "lm_head"
    modules = {*adapted, head, "model.norm", "model.embed_tokens"}
    wanted = json.loads((tmp_path / "a" / SETTINGS).read_text())["target_modules"]
    if isinstance(wanted, str):
        matched = {module for module in modules if re.fullmatch(wanted, module)}
    else:
        matched = {
            module
            for module in modules
            if any(module == one or module.endswith(f".{one}") for one in wanted)
        }
    assert matched == adapted and len(adapted) == 2 * 7


@pytest.mark.parametrize("case", [c for c in CASES if c.family != "llada"][:2])
def test_pytorch_reads_the_tensors_as_weights(tmp_path, case):
    """W + (alpha / r) B A in a module of transformers gives our merged logits."""
    torch = pytest.importorskip("torch")
    from helpers import torch_families

    from jaxdave.io import checkpoint
    from jaxdave.models.forward import forward
    from jaxdave.numerics.weight_layout import to_stacked
    from jaxdave.training.lora import join_lora

    module = torch_families.build(case)
    source = torch_families.save(case, module, tmp_path / "base")
    model = checkpoint.load(source, block_length=case.block)
    lora = LoraConfig(rank=2, alpha=3.0)
    adapters = jax.tree.map(lambda a: 0.1 * a, random_adapters(model.config, lora))
    save_adapters(tmp_path / "a", model.config, adapters, lora)
    tensors = load_file(tmp_path / "a" / WEIGHTS)
    with torch.no_grad():
        for name in tensors:
            if not name.endswith(".lora_A.weight"):
                continue
            a, b = (torch.tensor(tensors[name.replace("_A.", f"_{x}.")]) for x in "AB")
            # Found by its name, as the library finds it.
            path = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            linear = module.get_submodule(path)
            linear.weight += 3.0 / 2 * b @ a
    tokens = np.random.default_rng(3).integers(0, 700, 24).astype(np.int32)
    config = dataclasses.replace(model.config, logits_shift="none")
    block = config.block_length if config.attention == "block_causal" else None
    expected, _ = torch_families.run(module, tokens, block)
    joined = join_lora(adapters, to_stacked(model.params), lora)
    ours = jax.jit(forward(config))(joined, tokens[None])[0]
    plain = jax.jit(forward(config))(to_stacked(model.params), tokens[None])[0]
    scale = np.abs(expected).max()
    assert np.abs(np.asarray(ours) - expected).max() < 1e-5 * scale
    assert np.abs(np.asarray(plain) - expected).max() > 0.01 * scale


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_files_are_read_as_float32(folder, dtype):
    tensors = load_file(folder / WEIGHTS)
    narrow = {name: np.asarray(jnp.asarray(t, dtype)) for name, t in tensors.items()}
    save_file(narrow, folder / WEIGHTS)
    leaf = load_adapters(folder, CONFIG)[0]["blocks"]["attn"]["q"]["lora_a"]
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
    assert leaf.dtype == np.float32
    np.testing.assert_array_equal(leaf[1].T, narrow[name].astype(np.float32))


def test_absent_settings_are_the_library_s_defaults(tmp_path):
    lora = LoraConfig(rank=8, alpha=8.0, targets=("o",))
    save_adapters(tmp_path / "a", CONFIG, random_adapters(lora=lora), lora)
    (tmp_path / "a" / SETTINGS).write_text(
        '{"peft_type": "LORA", "target_modules": ["o_proj"]}'
    )
    assert load_adapters(tmp_path / "a", CONFIG)[1] == lora


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"peft_type": "IA3"}, "peft_type='IA3' must be 'LORA'"),
        ({"use_dora": True}, "use_dora=True must be False"),
        ({"bias": "all"}, "bias='all' must be 'none'"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern={'q_proj': 2} must be {}"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save=.* must be None"),
        ({"r": "4"}, "adapter_config.json: rank='4' must be a whole number"),
        ({"lora_alpha": "much"}, "adapter_config.json: could not convert"),
        ({"lora_alpha": -1}, "adapter_config.json: alpha=-1.0 must be above 0"),
        ({"r": 5}, rf"{re.escape(FIRST)} has shape \(4, 16\), not \(5, 16\)"),
        ({"r": 64}, "adapter_config.json: rank=64 is larger than a side"),
    ],
)
def test_settings_of_other_adapters_are_refused(folder, changes, message):
    raw = json.loads((folder / SETTINGS).read_text())
    (folder / SETTINGS).write_text(json.dumps({**raw, **changes}))
    refuse(folder, message)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({FIRST: None}, f"missing tensor {FIRST}"),
        ({"base_model.model.lm_head.lora_A.weight": np.ones(1)}, "extra tensor .*head"),
        ({FIRST: np.ones((4, 16), np.int32)}, "has dtype int32, not float32/bfloat16"),
        ({FIRST: np.full((4, 16), np.nan, np.float32)}, "not finite"),
        ({FIRST: np.ones((4, 8), np.float32)}, r"has shape \(4, 8\), not \(4, 16\)"),
    ],
)
def test_wrong_tensors_are_named(folder, changes, message):
    tensors = {**load_file(folder / WEIGHTS), **changes}
    kept = {name: t for name, t in tensors.items() if t is not None}
    save_file(kept, folder / WEIGHTS)
    refuse(folder, message)


def test_incomplete_folders_are_refused(folder):
    refuse(folder, "no tensor .* of a projection of 'llada-1m'", preset("llada-1m"))
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:-4])
    refuse(folder, "truncated or unreadable")
    (folder / WEIGHTS).unlink()
    refuse(folder, "adapter_model.safetensors: missing file")
    (folder / SETTINGS).unlink()
    refuse(folder, "adapter_config.json: missing file")


def refuse(folder, message, config=CONFIG):
    with pytest.raises(ValueError, match=message) as caught:
        load_adapters(folder, config)
    assert "\n" not in str(caught.value)


def test_nothing_is_saved_over_other_files(folder, tmp_path):
    before = (folder / WEIGHTS).read_bytes()
    wrong = dataclasses.replace(LORA, rank=2)
    with pytest.raises(ValueError, match="adapters blocks/attn/q/lora_a, .*rank=2"):
        save_adapters(folder, CONFIG, random_adapters(), wrong)
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds 'thesis.txt'"):
        save_adapters(folder, CONFIG, random_adapters(), LORA)
    assert (folder / WEIGHTS).read_bytes() == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file"):
        save_adapters(tmp_path / "file", CONFIG, random_adapters(), LORA)
