"""What `jaxdave generate --model FOLDER "..."` decodes with, for each kind of mixture.

The folders are tiny and random, with the config.json keys of the published ones.
"""

import dataclasses
import functools
import json
import shutil

import pytest
from helpers.conversion_sources import change_json
from helpers.conversion_sources import run as convert

import jaxdave
from jaxdave import policies
from jaxdave.cli import generate, main
from jaxdave.engine.decoders import freedave
from jaxdave.io.checkpoint import describe, save
from jaxdave.io.family_defaults import decode_defaults
from jaxdave.models.presets import preset

pytest.importorskip("torch")
from helpers import torch_mixtures  # noqa: E402

FAMILIES = ("sdar-moe", "rnd1", "llada-moe", "llada2")
DYNAMIC = policies.low_confidence_dynamic


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a family, made once, without a block length in its config.json."""

    @functools.cache
    def make(name: str):
        path = tmp_path_factory.mktemp(name) / "model"
        torch_mixtures.save(name, torch_mixtures.build(name), path)
        change_json(path / "config.json", block_size=...)
        return path

    return make


@pytest.fixture
def sampler_of(monkeypatch, capsys):
    """The sampler that a command line builds, which then decodes nothing."""

    def call(path, *options: object):
        built = []

        def keep(sampler, *args, **kwargs):
            built.append(sampler)
            raise ValueError("seen")

        monkeypatch.setattr(generate, "decode_prompts", keep)
        words = ["generate", "How many?", "--model", path, "--no-compile-cache"]
        with pytest.raises(SystemExit):
            main.main([str(word) for word in (*words, *options)])
        assert built, capsys.readouterr().err
        return built[0]

    return call


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("sdar-moe", {"policy": DYNAMIC(4, 0.85), "block_length": 4, "temperature": 1}),
        (
            "rnd1",
            {
                "policy": policies.entropy(256),
                "block_length": 256,
                "cache": "none",
                "temperature": 0.01,
            },
        ),
        ("llada-moe", {"policy": None, "block_length": 32, "cache": "none"}),
        ("llada2", {"policy": DYNAMIC(32, 0.95), "block_length": 32}),
    ],
)
def test_a_family_is_decoded_as_its_authors_do(folder, sampler_of, name, fields):
    sampler = sampler_of(folder(name))
    config = sampler.model.config
    assert sampler.decoder == freedave(config, **fields, max_new_tokens=256)
    assert sampler.decoder.numerics == "exact"
    assert sampler.decoder.spec.sampling.plain_confidence is (name == "llada-moe")
    assert config.stop_ids[0] == 772
    assert sampler.model.codec.encode_prompt("How many?")  # by the folder's template


@pytest.mark.parametrize("name", FAMILIES)
def test_an_explicit_option_wins(folder, sampler_of, name):
    common = ("--temperature", 0, "--block-length", 8, "--max-new-tokens", 24)
    cache = "dual" if name in ("rnd1", "llada-moe") else None
    common += ("--cache", cache) if cache else ()
    for options, policy in (
        (("--threshold", 0.7), policies.threshold(0.7)),
        (("--tokens-per-step", 1), policies.static(1)),
        (("--policy", "random"), policies.random()),
    ):
        sampler = sampler_of(folder(name), *common, *options)
        fields = {"block_length": 8, "max_new_tokens": 24, "cache": cache}
        assert sampler.decoder == freedave(sampler.model.config, policy, **fields)


def test_llada2_1_edits(folder, tmp_path, sampler_of):
    """Its files are those of LLaDA2.0, whose decoder does not."""
    path = tmp_path / "LLaDA2.1-mini"
    shutil.copytree(folder("llada2"), path)
    assert sampler_of(path).decoder.spec.policy == policies.joint_threshold()
    assert sampler_of(path, "--policy", "llada2_s").decoder.spec.policy.edits
    other = dataclasses.replace(preset("sdar-4b"), name="like-LLaDA2.1")
    assert decode_defaults(other, {}).policy is None


def test_nemotron_has_a_threshold():
    found = decode_defaults(preset("nemotron-14b"), {})
    assert policies.parse(str(found.policy)) == policies.threshold(0.9)


def test_steps_follow_the_length_of_a_block(folder, sampler_of):
    spec = sampler_of(folder("llada2"), "--block-length", 16).decoder.spec
    assert spec.policy == DYNAMIC(16, 0.95)


def test_stop_tokens_of_a_family_end_an_answer(tmp_path):
    """<|role_end|> of the tokenizer, which generation_config.json leaves out."""
    path = tmp_path / "model"
    torch_mixtures.save("llada2", torch_mixtures.build("llada2"), path)
    assert describe(path).config.stop_ids == (772,)
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    (token,) = [t for t in tokenizer["added_tokens"] if t["id"] == 774]
    text = (path / "tokenizer.json").read_text()
    (path / "tokenizer.json").write_text(text.replace(token["content"], "<|role_end|>"))
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (path / name).exists():
            old = (path / name).read_text()
            (path / name).write_text(old.replace(token["content"], "<|role_end|>"))
    assert describe(path).config.stop_ids == (772, 774)


@pytest.mark.parametrize(
    ("generation", "sampling"),
    [
        (
            {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95},
            (0.6, 20, 0.95),
        ),
        ({"do_sample": False, "temperature": 0.6}, (0.0, 0, 1.0)),
        ({"temperature": None, "top_k": 20}, (1.0, 20, 1.0)),
    ],
)
def test_sdar_s_sampling_is_that_of_its_file(folder, tmp_path, generation, sampling):
    found = decode_defaults(describe(folder("sdar-moe")).config, generation)
    assert (found.temperature, found.top_k, found.top_p) == sampling
    other = decode_defaults(preset("llada2-mini"), generation)
    assert other.temperature == 0  # LLaDA2's own code does not read it


@pytest.mark.parametrize(
    ("generation", "words"),
    [
        ({"temperature": "hot"}, "temperature='hot' must be of type float"),
        ({"temperature": -1}, "temperature=-1 must be"),
        ({"top_k": 2.5}, "top_k=2.5 must be of type int"),
        ({"top_p": 0}, "top_p=0 must be"),
        ({"top_p": float("nan")}, "top_p=nan must be"),
        ({"do_sample": "no"}, "do_sample='no' must be true or false"),
    ],
    ids=str,
)
def test_a_bad_sampling_is_one_line(folder, tmp_path, capsys, generation, words):
    path = tmp_path / "model"
    torch_mixtures.save("sdar-moe", torch_mixtures.build("sdar-moe"), path)
    change_json(path / "generation_config.json", **generation)
    with pytest.raises(SystemExit) as end:
        main.main(["generate", "x", "--model", str(path)])
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.count("\n") == 1 and words in err


def test_defaults_outlast_a_conversion(folder, tmp_path):
    source = folder("sdar-moe")
    assert convert(source, tmp_path / "ours") == 0
    assert describe(tmp_path / "ours").decode_defaults == decode_defaults(
        describe(source).config, {}
    )
    assert describe(tmp_path / "ours").config.block_length == 4


@pytest.mark.parametrize(
    ("name", "length"),
    [
        ("SDAR-4B-Chat", 4),
        ("SDAR-4B-Chat-b8", 8),
        ("SDAR-30B-A3B-Chat-b16", 16),
        ("TraDo-8B-Thinking", 4),
        ("SDAR-4B-Chat-mine", None),
        ("my-SDAR-4B-Chat", None),
    ],
)
def test_published_names_say_the_length_of_a_block(tmp_path, name, length):
    model = jaxdave.load("sdar-1m")
    path = tmp_path / name
    save(path, model.config, model.params, dtype="float32", tokenizer=model.folder)
    change_json(path / "config.json", block_size=...)
    if length is not None:
        assert describe(path).config.block_length == length
        return
    with pytest.raises(ValueError, match="give it with --block-length"):
        describe(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_no_option_is_needed(tmp_path, name, capsys, monkeypatch):
    monkeypatch.setenv("JAXDAVE_NO_CACHE", "1")
    path = tmp_path / "model"
    torch_mixtures.save(name, torch_mixtures.build(name), path)
    change_json(path / "generation_config.json", max_new_tokens=32)
    with pytest.raises(SystemExit) as end:
        main.main(["generate", "How many?", "--model", str(path)])
    err = capsys.readouterr().err
    assert end.value.code == 0 and " calls, " in err
