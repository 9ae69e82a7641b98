"""--stop-last, --no-stop and LLaDA's two: what they do, with every method."""

import json
from dataclasses import replace

import pytest

from jaxdave.engine.decode_config import DecodeConfig
from jaxdave.engine.decoders import make_decoder
from jaxdave.models.presets import preset

PROMPT = "Mia has 3 pens. She buys 4 more pens. How many pens does Mia have now?"
CONFIG = preset("llada-1m")
PLAIN = DecodeConfig(max_new_tokens=32)
LAST = replace(PLAIN, stop_last=True)


def test_the_help_names_all(run):
    code, out, _ = run("generate", "--help")
    names = "--stop-last --no-stop --logits-eos-inf --confidence-eos-eot-inf"
    assert code == 0 and all(name in out for name in names.split())


@pytest.mark.parametrize(
    ("changes", "inner"),
    [
        ({}, "static(1)"),
        ({"method": "static"}, "static(1)"),
        ({"tokens_per_step": 2}, "static(2)"),
        ({"method": "threshold"}, "threshold(0.9)"),
        ({"threshold": 0.5}, "threshold(0.5)"),
        ({"policy": "entropy:steps=8"}, None),
        ({"policy": "static:small_blocks=8", "method": "static"}, None),
    ],
)
def test_any_method_and_policy_can_put_end_tokens_last(changes, inner):
    plain, last = replace(PLAIN, **changes), replace(LAST, **changes)
    name = make_decoder(CONFIG, plain).spec.policy.name
    if inner is not None:
        assert name == inner
    decoder = make_decoder(CONFIG, last)
    assert decoder.spec.policy.name == f"demote({name}, 772+774)"
    is_drafted = changes.get("method", "freedave") == "freedave"
    assert (decoder.max_num_drafts > 1) == is_drafted


def test_llada_s_end_tokens_are_both_of_them():
    """<|endoftext|> and <|eot_id|>, as confidence_eos_eot_inf names them."""
    assert preset("llada-8b").stop_ids == (126081, 126348)


def test_end_tokens_come_after_the_answer(run):
    """One block of 32: by default the end is sure long before the answer is."""
    options = ("--model", "llada-1m", "--max-new-tokens", 32, "--cache", "none")
    options += ("--draft-steps", 8)
    answers = {}
    for extra in ((), ("--stop-last",), ("--stop-last", "--method", "static")):
        code, out, _ = run("generate", PROMPT, *options, "--json", *extra)
        assert code == 0
        answers[extra] = json.loads(out)
    usual, last, plain = answers.values()
    assert last["token_ids"] == plain["token_ids"]
    # The answer, and then an end token, which ends it. The public loop fills the block.
    assert last["nfe"]["total"] < plain["nfe"]["total"] == plain["valid_tokens"] + 1
    assert plain["reference_nfe"] == usual["reference_nfe"] == 32


def test_they_exclude_each_other(run):
    code, out, err = run("generate", "x", "--stop-last", "--no-stop")
    assert (code, out) == (2, "") and err.count("\n") == 1 and "Traceback" not in err
    assert "leave one of --no-stop and --stop-last out" in err


def test_a_lossy_policy_is_taken_when_asked_for(run):
    asked = ("generate", PROMPT, "--policy", "lopa:branches=2", "--max-new-tokens", 16)
    code, out, err = run(*asked)
    assert (code, out) == (2, "") and err.count("\n") == 1 and "Traceback" not in err
    assert "lopa(branches=2" in err and "--lossy" in err
    code, out, _ = run(*asked, "--lossy", "--draft-steps", 2)
    assert code == 0 and out.strip()
