"""Mixtures of experts with broken files or configs: both commands refuse in one line.

Exit code 2, the value, the rule and what to do; nothing is left of a conversion.
"""

import json
import re

import pytest
from helpers.conversion_sources import change_json, refused
from safetensors.numpy import load_file, save_file

from jaxdave.cli import main

pytest.importorskip("torch")
from helpers import torch_mixtures  # noqa: E402

INDEX = "model.safetensors.index.json"


@pytest.fixture
def refused_by_both(tmp_path, capsys):
    """Run both commands on a folder; each must print one line with one of the words."""

    def call(source, words, *options: object) -> None:
        words = (words,) if isinstance(words, str) else words
        line = refused(tmp_path, capsys, source, *options)
        assert any(one in line for one in words), line
        arguments = ["generate", "How many?", "--model", source, "--no-compile-cache"]
        with pytest.raises(SystemExit) as end:
            main.main([str(word) for word in (*arguments, *options)])
        out, err = capsys.readouterr()
        assert (end.value.code, out) == (2, "") and err.count("\n") == 1, err
        assert err.startswith("jaxdave: ") and any(one in err for one in words), err
        assert "; " in err

    return call


def first_expert(source) -> tuple[str, str]:
    """(name, file) of a tensor of an expert."""
    index = json.loads((source / "model.safetensors.index.json").read_text())
    names = sorted(n for n in index["weight_map"] if ".experts.0.up" in n)
    return names[0], index["weight_map"][names[0]]


@pytest.fixture
def source(tmp_path):
    """A folder of LLaDA2 that a test may break."""
    state = torch_mixtures.build("llada2")
    return torch_mixtures.save("llada2", state, tmp_path / "source")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"score_function": "tanh"},
            "score_function='tanh' must be one of",
        ),
        ({"score_function": 3}, "score_function=3 must be of type str"),
        ({"num_experts": 8}, "experts.8."),
        ({"num_experts": 32}, "missing tensor"),
        ({"num_experts": ...}, "num_experts is missing"),
        ({"num_experts": 0}, "num_experts=0 must be in 1.."),
        ({"num_experts": 2**70}, "must be in 1.."),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok=9 must be at most the 8"),
        ({"num_experts_per_tok": 17, "n_group": 1, "topk_group": 1}, "at most the 16"),
        ({"topk_group": 5}, "topk_group=5 must be in 1..n_group=4"),
        ({"routed_scaling_factor": -1.0}, "routed_scaling_factor=-1.0 must be above 0"),
        ({"first_k_dense_replace": 3}, "dense_layers=3 must be below"),
        ({"n_group": 5}, "n_group=5 must divide the 16 experts"),
        ({"router_dtype": "bf16"}, "router_dtype='bf16' must be 'fp32'"),
        ({"partial_rotary_factor": 0}, "partial_rotary_factor=0 must be above 0"),
        ({"rotary_dim": 8}, "rotary_dim=8 must be 4"),
        ({"moe_router_enable_expert_bias": False}, ("unknown tensor", "extra tensor")),
        ({"num_shared_experts": 2}, "has shape"),
        ({"first_k_dense_replace": 0}, "missing tensor"),
    ],
    ids=str,
)
def test_a_wrong_config_is_one_line(source, refused_by_both, changes, words):
    change_json(source / "config.json", **changes)
    refused_by_both(source, words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda name: {name: None}, "missing tensor {name}"),
        (
            lambda name: {"twice": name},
            ("tensor {name} is twice", "{name}: extra, in both"),
        ),
        (
            lambda name: {re.sub(r"mlp.*", "self_attn.q_proj.weight", name): name},
            ("unknown tensor", "extra tensor"),
        ),
        (
            lambda name: {re.sub(r"experts\.0\.", "experts.", name): name, name: None},
            "missing tensor {name}",
        ),
    ],
    ids=["missing", "twice", "split and fused", "stacked"],
)
def test_wrong_experts_are_one_line(source, refused_by_both, change, words):
    name, file = first_expert(source)
    tensors = load_file(source / file)
    index = json.loads((source / "model.safetensors.index.json").read_text())
    value = tensors[name]
    for new, old in change(name).items():
        if new == "twice":
            other = next(f for f in index["weight_map"].values() if f != file)
            more = load_file(source / other) | {name: value}
            save_file(more, source / other, {"format": "pt"})
        elif old is None:
            del tensors[new], index["weight_map"][new]
        else:
            tensors[new], index["weight_map"][new] = value, file
    save_file(tensors, source / file, {"format": "pt"})
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    words = (words,) if isinstance(words, str) else words
    refused_by_both(source, [one.format(name=name) for one in words])


def test_a_mask_id_that_no_file_has(source, refused_by_both):
    change_json(source / "config.json", mask_token_id=...)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (source / name).exists():
            change_json(source / name, mask_token=...)
    refused_by_both(source, "knows the mask id; give it with --mask-id")
    change_json(source / "config.json", mask_token_id=100_000)
    refused_by_both(source, "mask_id=100000 must be a row of the embedding")


def test_an_index_that_names_missing_files(source, refused_by_both):
    path = source / INDEX
    index = json.loads(path.read_text())
    name = next(iter(index["weight_map"]))
    index["weight_map"][name] = "model-00009.safetensors"
    path.write_text(json.dumps(index))
    refused_by_both(source, "model-00009.safetensors: missing file")
    (source / "model-00001.safetensors").unlink()
    refused_by_both(source, "model-00001.safetensors: missing file")


@pytest.mark.parametrize(
    ("model_type", "words"),
    [
        ("diffusion_gemma", "its next state depends on the logits themselves"),
        ("llada2_moe_veomni", "its experts are stacked in the files"),
        ("grok_moe", "unknown mixture of experts"),
    ],
)
def test_a_model_that_is_not_supported(source, refused_by_both, model_type, words):
    change_json(source / "config.json", model_type=model_type, architectures=["Other"])
    refused_by_both(source, words)
