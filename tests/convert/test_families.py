"""The families' tables against the published counts of tensors and parameters."""

import math

import pytest

from jaxdave.io import families
from jaxdave.models.presets import PRESETS, preset

# Tensors and parameters of the published checkpoints: index files, or layer counts.
TOTALS = {
    "dream-7b": (339, 7_615_616_512),
    "dream-coder-7b": (339, 7_615_616_512),
    "diffucoder-7b": (339, 7_615_616_512),
    "llada-8b": (291, 8_015_581_184),
    "llada-1.5": (291, 8_015_581_184),
    "sdar-1.7b": (311, 2_031_739_904),
    "sdar-4b": (399, 4_411_424_256),
    "sdar-8b": (399, 8_190_735_360),
    "trado-4b": (399, 4_411_424_256),
    "trado-8b": (399, 8_190_735_360),
    "fast-dllm-v2-1.5b": (338, 1_543_714_304),
    "fast-dllm-v2-7b": (339, 7_615_616_512),
    # By its config: the index was not at hand.
    "llada2-mini": (14_813, 16_255_643_392),
    "nemotron-14b": (363, 13_506_073_600),
}


@pytest.mark.parametrize("name", [n for n in PRESETS if not n.endswith("-1m")])
def test_totals(name):
    config = preset(name)
    tensors = families.checkpoint_tensors(families.FAMILIES[config.family], config)
    sizes = sum(math.prod(target.shape) for target in tensors.values())
    assert (len(tensors), sizes) == TOTALS[name]


def test_llada_calls_two_tensors_ff_out():
    tensors = families.checkpoint_tensors(families.LLADA, preset("llada-8b"))
    head = tensors["model.transformer.ff_out.weight"]
    down = tensors["model.transformer.blocks.3.ff_out.weight"]
    gate = tensors["model.transformer.blocks.3.ff_proj.weight"]
    assert (head.parts[0].path, head.shape) == ("head", (126464, 4096))
    part = down.parts[0]
    assert (part.path, part.index) == ("blocks/mlp/down/kernel", (3,))
    assert (gate.parts[0].path, gate.shape) == ("blocks/mlp/gate/kernel", (12288, 4096))


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"model_type": "diffusion_gemma"}, "no draft can equal it"),
        ({"model_type": "deepseek", "n_routed_experts": 64}, "unknown mixture of exp"),
    ],
)
def test_what_does_not_load_is_told_why(raw, words):
    with pytest.raises(ValueError, match=words) as caught:
        families.detect(raw, None)
    assert "\n" not in str(caught.value)


LLADA = {
    "model_type": "llada",
    "d_model": 64,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": None,
    "mlp_hidden_size": 96,
    "embedding_size": None,
    "vocab_size": 128,
    "max_sequence_length": 4096,
    "rope_theta": 5e5,
    "rms_norm_eps": 1e-5,
    "rope_full_precision": True,
    "rope": True,
}


def test_llada_config_with_nulls():
    fields = families.config_fields(families.LLADA, LLADA)
    assert (fields["kv_heads"], fields["vocab_rows"], fields["head_dim"]) == (
        4,
        128,
        16,
    )
    assert fields["rope_fp32"] and fields["attention"] == "full"
    wrong = {**LLADA, "block_group_size": 2, "attention_layer_norm": True}
    with pytest.raises(ValueError) as caught:
        families.config_fields(families.LLADA, wrong)
    assert "block_group_size=2 must be 1" in str(caught.value)
    assert "attention_layer_norm=True must be False" in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "tensors", "expected"),
    [
        ({"model_type": "Dream"}, ["model.layers.0.self_attn.q_proj.bias"], "dream"),
        (
            {"architectures": ["Fast_dLLM_QwenForCausalLM"]},
            ["model.layers.0.self_attn.q_proj.bias"],
            "fast-dllm-v2",
        ),
        ({"model_type": "llada"}, ["model.transformer.wte.weight"], "llada"),
        ({"model_type": "sdar"}, ["m.layers.1.self_attn.q_norm.weight"], "sdar"),
        ({"model_type": "llada"}, ["model.layers.0.mlp.experts.0.up"], None),
        ({"model_type": "sdar"}, ["m.self_attn.q_norm.weight", "m.experts.1"], None),
        ({"model_type": "qwen2"}, ["m.self_attn.q_proj.bias"], None),
        ({"model_type": "sdar_moe"}, ["model.layers.0.mlp.experts.0.up"], "sdar-moe"),
        (
            {"model_type": "llada", "architectures": ["LLaDAMoEModelLM"]},
            ["model.layers.0.mlp.experts.0.up"],
            "llada-moe",
        ),
        (
            {"model_type": "llada", "num_experts": 64},
            ["model.layers.0.mlp.experts.0.up"],
            "llada-moe",
        ),
        (
            {"model_type": "llada", "architectures": ["LLaDAModelLM"]},
            ["model.transformer.wte.weight"],
            "llada",
        ),
        (
            {"model_type": "sdar", "architectures": ["LLaDAMoEModelLM"]},
            ["model.layers.0.mlp.experts.0.up"],
            None,
        ),
    ],
)
def test_detection(raw, tensors, expected):
    if expected is not None:
        assert families.detect(raw, tensors).name == expected
        return
    with pytest.raises(ValueError, match="unknown architecture"):
        families.detect(raw, tensors)


QWEN = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 128,
    "max_position_embeddings": 4096,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-6,
}
RAW = {"sdar": QWEN, "dream": QWEN, "llada": LLADA}


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        *(
            ("sdar", {"rope_scaling": rope})
            for rope in (
                {"rope_type": "default"},
                {"type": "default"},
                {"rope_type": "default", "rope_theta": 1e6},
                {"rope_type": "linear", "factor": 1.0},
                {"type": "dynamic", "factor": 1},
                {"rope_type": "yarn", "factor": 1.0},
                {},
            )
        ),
        ("dream", {"rope_parameters": {"rope_theta": 1e6}}),
        ("sdar", {"rope_parameters": {"partial_rotary_factor": 1.0}}),
        ("sdar", {"partial_rotary_factor": None}),
        ("sdar", {"attention_bias": None, "tie_word_embeddings": None}),
        ("dream", {"use_sliding_window": None, "use_mrope": None}),
        ("sdar", {"layer_types": ["full_attention"] * 2}),
        ("llada", {"bias_for_layer_norm": None, "alibi": None}),
        ("llada", {"include_qkv_bias": None, "weight_tying": None}),
        ("llada", {"multi_query_attention": False}),
        ("llada", {"multi_query_attention": False, "n_kv_heads": 4}),
        ("llada", {"mlp_hidden_size": None, "mlp_ratio": 2}),
    ],
    ids=str,
)
def test_what_says_the_same_is_read_as_the_same(family, changes):
    raw = {**RAW[family]}
    if family == "llada":
        raw["mlp_hidden_size"] = 2 * raw["d_model"]
    fields = families.config_fields(families.FAMILIES[family], {**raw, **changes})
    assert fields == families.config_fields(families.FAMILIES[family], raw)


@pytest.mark.parametrize(
    ("family", "changes", "read"),
    [
        # transformers 5: what stands in rope_parameters goes before rope_theta, and
        # rope_scaling, unless empty, is rope_parameters.
        (
            "sdar",
            {"rope_parameters": {"rope_theta": 5e5}},
            {"rope_theta": 5e5},
        ),
        (
            "sdar",
            {
                "rope_scaling": {"rope_type": "default"},
                "rope_parameters": {"rope_theta": 5e5},
            },
            {"rope_theta": 1e6},
        ),
        ("llada", {"multi_query_attention": True}, {"kv_heads": 1}),
        ("llada", {"rope_full_precision": None}, {"rope_fp32": False}),
        ("sdar", {"num_key_value_heads": None}, {"kv_heads": 4}),
        (
            "sdar",
            {"attention_bias": True},
            {"qkv_bias": True, "o_bias": True},
        ),
    ],
    ids=str,
)
def test_what_the_official_classes_read(family, changes, read):
    fields = families.config_fields(
        families.FAMILIES[family], {**RAW[family], **changes}
    )
    assert {name: fields[name] for name in read} == read


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("sdar", {"rope_scaling": {"rope_type": "linear", "factor": 2}}, "rope"),
        ("sdar", {"rope_scaling": {"factor": 2}}, "must be None"),
        ("sdar", {"rope_scaling": "linear"}, "must be None or an object"),
        ("sdar", {"rope_parameters": {"rope_type": "llama3"}}, "must be None"),
        ("sdar", {"partial_rotary_factor": 0.5}, "must be 1"),
        ("sdar", {"layer_types": ["sliding_attention"]}, "full_attention"),
        ("llada", {"layer_norm_with_affine": None}, "must be True"),
        ("llada", {"rope": None}, "rope=None must be True"),
        (
            "llada",
            {"multi_query_attention": True, "n_kv_heads": 2},
            "multi_query_attention=True must be null where n_kv_heads=2",
        ),
        ("sdar", {"attention_bias": 1}, "must be of type bool"),
    ],
    ids=str,
)
def test_what_says_something_else_is_refused(family, changes, words):
    with pytest.raises(ValueError) as caught:
        families.config_fields(families.FAMILIES[family], {**RAW[family], **changes})
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_transformers_reads_the_base_of_rotations_so():
    transformers = pytest.importorskip("transformers")
    for changes in (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"rope_scaling": {"rope_type": "default", "rope_theta": 5e5}},
        {
            "rope_scaling": {"rope_type": "default"},
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
        },
    ):
        theirs = transformers.Qwen3Config(**QWEN, **changes).rope_parameters
        ours = families.config_fields(families.SDAR, {**QWEN, **changes})
        assert ours["rope_theta"] == theirs["rope_theta"]
