# pyright: reportCallIssue=false
"""Law 1 for every policy: drafts change the number of calls and nothing else."""

import full_toys
import pytest
import toys
from toys import VARIANTS, capped, prompts_of, texts, weights

from jaxdave import decoders, policies
from jaxdave.config import preset
from jaxdave.run import generate

pytestmark = pytest.mark.usefixtures("quick_compiles")

NAMES = [entry.name for entry in policies.listing()]
LAYOUTS = ("causal", "none", "prefix", "dual")
LENGTH, ROOM, DRAFTS = 8, 16, 5


def said(name: str) -> str:
    """The policy as text, its schedule short enough to commit several tokens a step."""
    entry = next(e for e in policies.listing() if e.name == name)
    return f"{name}:steps=5" if "steps" in entry.parameters else name


def built(name: str, kind: str, shift: bool, temperature: float):
    """FreeDave over a policy on a hash network."""
    policy, settings = policies.parse(said(name)), {"temperature": temperature}
    if kind == "causal":
        return toys.build(policy, DRAFTS, LENGTH, ROOM, **settings)
    return full_toys.build(policy, DRAFTS, LENGTH, ROOM, kind, shift, **settings)


def holds(name: str, kind: str, shift: bool, temperature: float) -> int:
    """How many calls drafts have saved over several networks, their text the same."""
    decoder, saved = built(name, kind, shift, temperature), 0
    for salt, variant in enumerate(("table", "fixed", "saturated", "stops")):
        net, prompts = weights(salt, **VARIANTS[variant]), prompts_of([5, 12, 3], salt)
        plain, canvases = toys.decode(capped(decoder, 1), net, prompts, seed=7)
        quick, others = toys.decode(decoder, net, prompts, seed=7)
        assert texts(quick) == texts(plain)
        assert (canvases == others).all()
        for a, b in zip(quick.rows, plain.rows, strict=True):
            assert a.nfe.total <= b.nfe.total == b.steps
            saved += b.nfe.total - a.nfe.total
        assert texts(generate(decoder, net, prompts[1:2], seed=7)) == texts(plain)[1:2]
    return saved


@pytest.mark.parametrize(("index", "name"), list(enumerate(NAMES)), ids=NAMES)
def test_drafts_keep_the_text_of_every_policy(index, name):
    kind = LAYOUTS[index % len(LAYOUTS)]
    saved = holds(name, kind, index % 8 >= 4, 0.7 if index % 3 == 1 else 0.0)
    # Policies that fill a block at once leave drafts nothing to save.
    assert saved > 0 or name in ("prophet", "sched", "deferred", "klass", "saber")


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_drafts_keep_the_text_of_every_policy_everywhere(
    name, kind, shift, temperature
):
    holds(name, kind, shift, temperature)


@pytest.mark.parametrize("wrap", ["small_blocks", "demote"])
def test_wrapped_policies_keep_their_text(wrap):
    inner = policies.threshold(0.6)
    policy = {
        "small_blocks": lambda: policies.small_blocks(inner, 4),
        "demote": lambda: policies.demote(policies.static(1), (toys.STOP,)),
    }[wrap]()
    decoder = full_toys.build(policy, DRAFTS, LENGTH, ROOM, "dual", True)
    for salt in range(3):
        net, prompts = weights(salt, **VARIANTS["stops"]), prompts_of([4, 9], salt)
        plain = generate(capped(decoder, 1), net, prompts)
        assert texts(generate(decoder, net, prompts)) == texts(plain)


def test_a_shifted_block_causal_model_decides_first_tokens_alone():
    """Fast-dLLM v2: at a prompt of whole blocks, too, and with small blocks inside."""
    config = preset(
        "fast-dllm-v2-7b", num_layers=2, hidden=32, inter=40, heads=4, kv_heads=2,
        head_dim=8, rotary_dim=8, vocab_rows=40, vocab_size=37, mask_id=36, pad_id=35,
        stop_ids=(34,), block_length=8, max_positions=512,
    )  # fmt: skip
    params = toys.scaled(config, 0)
    policy = policies.small_blocks(policies.threshold(0.3), 4)
    decoder = decoders.freedave(
        config, policy, draft_steps=DRAFTS, max_new_tokens=24, numerics="exact"
    )
    prompts = prompts_of([8, 5, 16], 2, 30)
    plain = generate(capped(decoder, 1), params, prompts)
    quick = generate(decoder, params, prompts)
    assert texts(quick) == texts(plain)
    for prompt, row in zip(prompts, plain.rows, strict=True):
        told = dict(zip(range(len(prompt), 512), row.committed_at, strict=False))
        for place in range(-(-len(prompt) // 8) * 8, len(prompt) + 24, 8):
            if place in told:
                assert list(told.values()).count(told[place]) == 1
