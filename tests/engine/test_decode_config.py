"""One configuration of a decode: its fields, what it refuses, what it is built into."""

import dataclasses
import subprocess
import sys

import pytest
from helpers import fake_model

from jaxdave import policies
from jaxdave.drafting import registry
from jaxdave.drafting.nested import nested
from jaxdave.engine.config_record import options
from jaxdave.engine.decode_config import DecodeConfig, LoadConfig
from jaxdave.engine.decoders import Decoder, freedave, make_decoder, static, threshold
from jaxdave.models.presets import preset

CONFIG = preset("sdar-1m")
ROOM = 8


@pytest.mark.parametrize(
    "config",
    [
        DecodeConfig(),
        DecodeConfig(method="threshold", threshold=0.5, seed=3),
        DecodeConfig(draft_steps=(1, 4), policy="entropy:steps=4", suppressed_ids=(7,)),
        DecodeConfig(policy=policies.wino(), draft=nested, temperature=0.5, top_k=3),
        LoadConfig(model="dream-1m", dtype="bfloat16"),
    ],
)
def test_a_mapping_and_back(config):
    assert type(config).from_dict(config.to_dict()) == config


def test_words_and_lists_of_json_are_read():
    read = DecodeConfig.from_dict
    assert read({"draft_steps": "8"}).draft_steps == 8
    assert read({"draft_steps": "auto"}).draft_steps == "auto"
    assert read({"draft_steps": [1, 4]}).draft_steps == (1, 4)
    assert read({"suppressed_ids": [3]}).suppressed_ids == (3,)


def test_nothing_can_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        DecodeConfig().seed = 1  # pyright: ignore


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"temperatur": 1.0}, "no field 'temperatur'; did you mean temperature?"),
        ({"batch_size": 2}, "has no field 'batch_size'"),
        ({"zzz": 2}, "has no field 'zzz'; use one of block_length, cache"),
        ({"method": "fast"}, "method 'fast' is unknown; use freedave"),
        ({"draft": "forest"}, "draft='forest' is unknown; use tree, nested, copy"),
        ({"numerics": "loose"}, "numerics='loose' is unknown"),
        ({"cache": "all"}, "cache='all' is unknown"),
        ({"confidence": "both"}, "confidence='both' is unknown"),
        ({"draft_steps": "two"}, "draft_steps='two' must be a whole number"),
        ({"draft_steps": 0}, "draft_steps=0 must be at least 1; try 8"),
        ({"draft_steps": 33}, "draft_steps=33 must be in 1..32"),
        ({"draft_steps": (4, 1)}, "must ascend"),
        ({"draft_steps": (1, 4), "numerics": "exact"}, "exact numerics tell apart"),
        ({"seed": -1}, "seed=-1 must be in 0.."),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"guidance": -1.0}, "guidance=-1.0 must be 0 (off) to"),
        ({"temperature": -1.0}, "temperature=-1.0 must be"),
        ({"top_k": -1}, "top_k=-1 must be"),
        ({"top_p": 0.0}, "top_p=0.0 must be"),
        ({"threshold": 0.9, "method": "static"}, "no meaning with method 'static'"),
        ({"threshold": 0.9, "tokens_per_step": 2}, "no meaning with a threshold"),
        ({"policy": "wino", "threshold": 0.9}, "policy='wino' says what a step"),
        ({"policy": policies.wino(), "tokens_per_step": 2}, "says what a step commits"),
        (
            {"stop_last": True, "no_stop": True},
            "leave one of --no-stop and --stop-last",
        ),
        (
            {"confidence_eos_eot_inf": True, "stop_last": True},
            "leave one of --stop-last and --confidence-eos-eot-inf out",
        ),
        ({"logits_eos_inf": True, "no_stop": True}, "and --logits-eos-inf out"),
    ],
)
def test_bad_settings_are_one_line(values, words):
    with pytest.raises(ValueError) as caught:
        DecodeConfig.from_dict(values)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_keyword_is_named():
    with pytest.raises(TypeError, match="'typo'") as caught:
        DecodeConfig(typo=1)  # pyright: ignore
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="no field 'blok_length'; did you mean block"):
        freedave(CONFIG, blok_length=4)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (DecodeConfig(policy="magic"), "policy 'magic' is unknown"),
        (DecodeConfig(policy=3), "policy=3 has no 'name'"),  # pyright: ignore
        (DecodeConfig(policy="lopa"), "say lossy=True"),
        (DecodeConfig(threshold=2.0), "threshold=2.0 must be"),
        (DecodeConfig(guidance=1.0), "needs full attention"),
        (DecodeConfig(cache="dual"), "is for full-attention models"),
        (DecodeConfig(block_length=3), "block_length=3 must divide 64"),
        (DecodeConfig(draft=3), "draft=3 is no draft function"),
        (DecodeConfig(draft=lambda: None), "is no draft function, which takes"),
        (DecodeConfig(draft=len), "is no draft function"),
    ],
)
def test_what_does_not_fit_the_model_is_one_line(config, words):
    with pytest.raises(ValueError) as caught:
        Decoder.from_config(CONFIG, config)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_named_decoders_are_built_from_the_same_fields():
    def made(**fields) -> Decoder:
        config = DecodeConfig(max_new_tokens=ROOM, **fields)
        return Decoder.from_config(CONFIG, config)

    assert made() == freedave(CONFIG, max_new_tokens=ROOM)
    assert made(method="static") == static(CONFIG, max_new_tokens=ROOM)
    assert made(method="threshold") == threshold(CONFIG, max_new_tokens=ROOM)
    exact = made(method="static", numerics="exact", draft_steps=4)
    assert exact == static(CONFIG, draft_steps=4, numerics="exact", max_new_tokens=ROOM)
    by_name = made(policy="left_to_right", draft_steps=4)
    policy = policies.left_to_right()
    assert by_name == freedave(CONFIG, policy, draft_steps=4, max_new_tokens=ROOM)
    assert Decoder.from_config(CONFIG, DecodeConfig()).max_new_tokens == 256


def test_no_stop_suppresses_end_tokens():
    spec = freedave(CONFIG, no_stop=True, suppressed_ids=(3,)).spec
    assert {3, *CONFIG.stop_ids} <= {*spec.model.suppressed_ids}


def test_logits_eos_inf_suppresses_the_end_of_a_text_alone():
    llada = preset("llada-8b")
    assert (llada.eos_id, llada.stop_ids) == (126081, (126081, 126348))
    assert CONFIG.eos_id == 772 and CONFIG.stop_ids == (774, 772)
    spec = freedave(CONFIG, logits_eos_inf=True).spec
    assert {*spec.model.suppressed_ids} == {772, CONFIG.mask_id}
    without_pads = dataclasses.replace(CONFIG, pad_id=0)
    assert without_pads.eos_id == 774


def test_another_policy_takes_every_setting_s_place():
    config = DecodeConfig(method="threshold", threshold=0.5, seed=3)
    changed = config.with_policy("wino")
    assert changed == DecodeConfig(method="static", policy="wino", seed=3)
    assert DecodeConfig().with_policy("wino").method == "freedave"


@pytest.mark.parametrize(
    ("config", "method"),
    [
        (DecodeConfig(), "static"),
        (DecodeConfig(threshold=0.5), "threshold"),
        (DecodeConfig(method="threshold"), "threshold"),
        (DecodeConfig(policy="entropy:steps=4"), "static"),
    ],
)
def test_undrafted_keeps_the_policy(config, method):
    plain = config.undrafted()
    assert plain.method == method and plain.undrafted() == plain
    assert plain.make_policy() == config.make_policy()
    assert make_decoder(CONFIG, plain).max_num_drafts == 1


def test_drafts_by_name_and_by_function():
    def spec(draft, **more):
        config = DecodeConfig(draft=draft, draft_steps=4)
        return make_decoder(fake_model.TINY, config, **more).spec

    assert spec("nested") is spec(nested) is spec("tree")
    assert spec("copy").draft.propose != spec("tree").draft.propose
    assert spec("nested", has_draft_text=True).draft.reads_text


class Point:
    """A stand-in for an installed entry point."""

    def __init__(self, name, value):
        self.name, self.value = name, repr(value)
        self._value = value

    def load(self):
        if isinstance(self._value, Exception):
            raise self._value
        return self._value


@pytest.fixture
def install(monkeypatch):
    """Entry points that are there for one test."""

    def clear():
        registry.names.cache_clear()
        registry._entry_points.cache_clear()
        registry._load_entry_point.cache_clear()

    def call(*points):
        clear()
        monkeypatch.setattr(registry.metadata, "entry_points", lambda group: points)

    yield call
    monkeypatch.undo()
    clear()


def test_drafts_of_other_packages_have_names(install):
    def mine(context, first, num_drafts):
        return nested.propose(context, first, num_drafts)

    install(Point("mine", mine), Point("broken", ImportError("no")), Point("odd", 3))
    assert registry.names() == ("tree", "nested", "copy", "mine", "broken", "odd")
    built = make_decoder(CONFIG, DecodeConfig(draft="mine", draft_steps=4))
    same = make_decoder(CONFIG, DecodeConfig(draft=mine, draft_steps=4))
    assert built.spec is same.spec
    for name, words in (
        ("broken", "cannot be loaded (no); mend or uninstall its package"),
        ("odd", "draft='odd' is no draft function"),
    ):
        with pytest.raises(ValueError) as caught:
            make_decoder(CONFIG, DecodeConfig(draft=name))
        assert words in str(caught.value) and "\n" not in str(caught.value)
    install(Point("tree", mine))
    with pytest.raises(ValueError, match="takes the name of a draft function that is"):
        registry.names()


def test_every_draft_function_says_what_it_drafts(install):
    def mine(context, first, num_drafts):
        """Mine.

        More.
        """
        return nested.propose(context, first, num_drafts)

    install(Point("mine", mine))
    found = registry.listing()
    assert tuple(found) == registry.names() and found["mine"] == "Mine."
    assert all(summary.endswith(".") for summary in found.values())
    install(Point("broken", ImportError("two\nlines")))
    with pytest.raises(ValueError, match=r"loaded \(two lines\)"):
        registry.listing()


def test_every_option_says_its_help_once():
    for record in (DecodeConfig, LoadConfig):
        names = {field.name for field in dataclasses.fields(record)}
        assert {o.name for o in options(record)} | {"suppressed_ids"} >= names
        assert all(option.help for option in options(record))


def test_a_configuration_needs_no_jax():
    code = (
        "import sys, jaxdave\n"
        "jaxdave.DecodeConfig(draft='copy', threshold=0.9).undrafted()\n"
        "assert 'jax' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("name", "confidence", "is_plain"),
    [
        ("llada-1m", None, True),
        ("dream-1m", None, False),
        ("sdar-1m", None, False),
        ("llada-1m", "tempered", False),
        ("sdar-1m", "plain", True),
    ],
)
def test_confidences_are_those_of_the_familys_code(name, confidence, is_plain):
    config = DecodeConfig(temperature=0.7, confidence=confidence)
    decoder = make_decoder(preset(name), config)
    assert decoder.spec.sampling.plain_confidence is is_plain
