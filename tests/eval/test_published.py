"""Deviations of the paper's evaluation, which are there only with `--as-published`."""

import dataclasses
import functools

import jax.numpy as jnp
import pytest
from helpers import checkpoint_folders, replays
from helpers import reference_policies as rules
from helpers.replays import WIDE, random_trace, run_policy, run_rule

from jaxdave import policies
from jaxdave.core.prediction import ErrorBound, Prediction
from jaxdave.distributed.processes import ALONE
from jaxdave.engine.decode_config import DecodeConfig
from jaxdave.eval import command, deviations
from jaxdave.eval.benchmarks import demo
from jaxdave.eval.benchmarks.registry import TASKS
from jaxdave.eval.deviations import ProtocolDeviations
from jaxdave.eval.protocols import registry as protocol_registry
from jaxdave.eval.protocols.registry import open_preset
from jaxdave.eval.run import plan
from jaxdave.eval.run.eval_config import EvalConfig, methods_of
from jaxdave.eval.run.progress import progress_display
from jaxdave.io import checkpoint
from jaxdave.models.presets import preset as model_preset
from jaxdave.policies import wino

ROOM = 8
MANY = ("static", "threshold", "freedave", "freedave-threshold")
FAMILIES = {"sdar": "sdar-4b", "llada": "llada-8b", "dream": "dream-7b"}
# So many ids end an answer that no answer of random weights lacks one.
ENDS = tuple(range(0, 770, 2))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> checkpoint.Model:
    path = tmp_path_factory.mktemp("published") / "tiny"
    checkpoint_folders.make(
        path, dataclasses.replace(checkpoint_folders.CONFIG, stop_ids=ENDS)
    )
    return checkpoint.load(str(path))


def chosen(model, wanted: EvalConfig) -> dict[str, DecodeConfig]:
    """The settings of every method, on GSM8K."""
    preset = open_preset("paper-2025", as_published=wanted.as_published)
    made = plan._chosen(wanted, model, preset, TASKS["gsm8k"])
    return {method.name: settings for method, settings in made}


def test_rows_over_a_threshold_were_sampled_and_others_greedy(model):
    corrected = chosen(model, EvalConfig(methods=MANY))
    assert {(s.temperature, s.top_k) for s in corrected.values()} == {(0.0, None)}
    paper = chosen(model, EvalConfig(methods=MANY, as_published=True))
    for name, settings in paper.items():
        filtered = 0 if "threshold" in name else 1
        assert (settings.temperature, settings.top_k) == (1.0, filtered)
    assert paper["freedave"].draft_steps == paper["freedave-threshold"].draft_steps


@pytest.mark.parametrize("asked", [None, 16])
def test_dreams_rows_over_a_threshold_had_short_blocks(model, asked):
    dream = dataclasses.replace(model, config=model_preset("dream-7b"))
    wanted = EvalConfig(
        methods=MANY, as_published=True, overrides={"block_length": asked}
    )
    block_lengths = {name: s.block_length for name, s in chosen(dream, wanted).items()}
    usual, short = asked or 32, asked or 4
    assert block_lengths == dict(zip(MANY, (usual, short, usual, short), strict=True))
    assert chosen(dream, wanted)["threshold"].temperature == 0.1


def test_confidence_behind_top_k_1_is_a_tie():
    wrapped = [
        deviations.confidence_after_top_k(
            DecodeConfig(temperature=1.0, top_k=k), policies.static(1)
        )
        for k in (1, 0, 40)
    ]
    plain = policies.static(1).name
    assert [policy.name for policy in wrapped] == [f"certain({plain})", plain, plain]


def test_a_certain_model_is_decoded_from_the_left():
    def rule(inner, view, memory):
        view.odds, view.entropy = [1e30] * WIDE, [0.0] * WIDE
        return inner(view, memory)

    for policy, inner in (
        (policies.low_confidence(5), rules.low_confidence(5)),
        (policies.threshold(0.999999), rules.threshold(0.999999)),
        (policies.entropy(7), rules.dream("entropy", 7, 1e-3)),
    ):
        want = run_rule(functools.partial(rule, inner), random_trace("grid"))
        assert (
            run_policy(policies.certain(policy), random_trace("grid")) == want
        ).all()
        assert (run_policy(policy, random_trace("grid")) != want).any()


def test_a_certain_model_leaves_nothing_in_doubt():
    near_W, lead_W = jnp.linspace(0.0, 1.0, 4), jnp.full(4, 99.0)
    token_W = jnp.arange(4, dtype=jnp.int32)
    pred = Prediction(token_W, near_W, near_W, near_W, near_W, -token_W, lead_W)
    masks_W = jnp.full(4, replays.MASK, jnp.int32)
    view = replays.view_of(
        pred, jnp.zeros((4, 6)), masks_W, jnp.int32(0), jnp.int32(4), jnp.int32(0),
        replays.key_of(0, 0),
    )  # fmt: skip
    for plain in (policies.static(1), policies.low_confidence(3)):
        tied, memory = policies.certain(plain), plain.init(4, 6)
        assert tied.is_certain is not None and plain.is_certain is not None
        assert tied.is_certain(view, memory, ErrorBound.uniform(jnp.float32(9)))
        assert not plain.is_certain(view, memory, ErrorBound.uniform(jnp.float32(9)))
    # What is random by itself is not made certain.
    drawn = policies.certain(policies.maskgit_plus(4, alg_temp=1e-30))
    assert drawn.is_certain is not None
    assert not drawn.is_certain(
        view, drawn.init(4, 6), ErrorBound.uniform(jnp.float32(0))
    )
    assert policies.certain(wino()).is_certain is None


@pytest.mark.parametrize("name", protocol_registry.NAMES)
@pytest.mark.parametrize("family", FAMILIES)
def test_protocols_do_not_deviate_by_default(name, family):
    assert (
        protocol_registry.PRESETS[name].deviations(family, TASKS["gsm8k"])
        == ProtocolDeviations()
    )


def test_deviations_of_the_paper_and_of_dllm_rl():
    def of(name, family, task="gsm8k"):
        return open_preset(name, as_published=True).deviations(family, TASKS[task])

    for name in ("paper-2025", "paper-2025-thinking"):
        trado = of(name, "sdar")
        assert (trado.adapt_model, trado.extract_output) == (
            deviations.without_stop_ids,
            deviations.prompt_and_answer,
        )
    dream = of("paper-2025", "dream")
    assert (dream.adapt_model, dream.extract_output) == (
        ProtocolDeviations().adapt_model,
        deviations.answer_only,
    )
    assert dream.wrap_policy is trado.wrap_policy is deviations.confidence_after_top_k
    assert (
        of("dllm-rl", "sdar")
        == of("paper-2025", "sdar", "demo-math")
        == ProtocolDeviations()
    )


@pytest.fixture
def decoded(model, monkeypatch):
    """Two items of the demo by every method, with the paper's deviations."""
    paper = open_preset("paper-2025", as_published=True)
    math = TASKS["gsm8k"]
    mixed = demo.PRESETS["demo"]._replace(
        settings=lambda family, _: paper.settings(family, math),
        deviations=lambda family, _: paper.deviations(family, math),
    )
    monkeypatch.setattr(plan, "preset_of", lambda _: mixed)
    wanted = EvalConfig(
        tasks=("demo-math",),
        limit=2,
        batch_size=2,
        overrides={"draft_steps": "2", "max_new_tokens": ROOM, "threshold": 0.02},
    )
    with progress_display() as display:
        results = command._run_cells(plan.cells(wanted, model), model, display, ALONE)
    names = [method.name for method in methods_of(wanted)]
    return {name: pair for name, pair in zip(names, results, strict=True)}


def test_decoding_goes_on_and_the_prompt_counts(model, decoded):
    for cell, records in decoded.values():
        for entry, record in zip(cell.entries, records, strict=True):
            ids = [*entry.prompt, *record.token_ids]
            assert len(record.token_ids) == record.decoded_tokens == ROOM
            assert record.finish_reason == "length" and {*ENDS} & {*record.token_ids}
            removed = {*model.codec.stop_ids, model.codec.mask_id, model.codec.pad_id}
            counted = [i for i in ids if i not in removed]
            assert record.valid_tokens == len(counted)
            assert record.text == model.codec.decode(counted)
    # Where all are equally sure, the first is first.
    for record in decoded["static"][1]:
        first_call = record.committed_at[0]
        assert record.committed_at == tuple(range(first_call, first_call + ROOM))
    sampled, greedy, fast = (
        [record.token_ids for record in decoded[name][1]]
        for name in ("threshold", "static", "freedave")
    )
    assert sampled != greedy == fast
