"""Train a draft model for the demo model, and compare the calls that it saves.

    python examples/train_draft_model.py --out draft.safetensors

The demo model answers prompts of the training split, and a small recurrent draft model
learns to guess those texts. Prompts of a frozen test set, which neither has seen, are
then answered without drafts, with the default drafts, with the draft model, and with
the answer that the draft model writes by itself beforehand. The texts are the same; the
calls of the model are not. `--problems names` has people and
things that the demo model was not trained on, so that its own lookahead is often wrong;
with `--problems usual` it is nearly always right. A draft model guesses tokens, so it
helps most where the order of positions is fixed (`--policy left_to_right`).
"""

import argparse
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from safetensors import numpy as safetensors

import jaxdave
from jaxdave.demo_tasks import problem_sets, training_problem, words
from jaxdave.drafting import draft_model
from jaxdave.drafting.context_init import GreedyText, context_init
from jaxdave.drafting.draft_model import DraftModelConfig
from jaxdave.eval.report.metrics import gain, ratio_of_sums
from jaxdave.runtime.files import replace_file
from jaxdave.training.draft_loss import Texts, draft_loss, pad_texts

BATCH_SIZE = 64
TRAIN_BATCH_SIZE = 32
TEST_SETS = {"names": "words_names", "usual": "words_test"}


def training_prompts(problems: str, count: int) -> list[str]:
    """Prompts of the training split: no test set has one of their chains of numbers."""
    if problems == "usual":
        return [training_problem(1, index).prompt for index in range(count)]
    rng, new = np.random.default_rng(1), (words.HELD_OUT_PEOPLE, words.HELD_OUT_ITEMS)
    kind = "train", problem_sets.TEST_OPS, None, *new
    return [words.sample_from_split(rng, *kind).prompt for _ in range(count)]


def answer_all(sampler: jaxdave.Sampler, prompts: list[Any]) -> list[Any]:
    """Answer prompts in batches of one size, as every size is a program to compile."""
    answers = []
    for start in range(0, len(prompts), BATCH_SIZE):
        part = prompts[start : start + BATCH_SIZE]
        filled = part + part[:1] * (BATCH_SIZE - len(part))
        requests = range(start, start + BATCH_SIZE)  # they key the noise
        answers += sampler.batch(filled, requests=requests)[: len(part)]
    return answers


def make_texts(sampler: jaxdave.Sampler, prompts: list[Any]) -> Texts:
    """Let the model answer prompts; what it wrote is learnt, with its end token."""
    end = {"stop": sampler.model.config.stop_ids[:1], "length": ()}
    answers = answer_all(sampler, prompts)
    ids = [[*answer.token_ids, *end[answer.finish_reason]] for answer in answers]
    return pad_texts([sampler.encode(prompt) for prompt in prompts], ids)


def train(config: DraftModelConfig, texts: Texts, steps: int, seed: int = 0):
    """Train a draft model; returns its parameters and the loss of every step."""
    rate = optax.cosine_decay_schedule(5e-3, steps)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    params = draft_model.init_draft_params(config, seed)
    state, rng, losses = optimiser.init(params), np.random.default_rng(seed), []

    @jax.jit
    def step(params, state, batch: Texts):
        loss, grads = jax.value_and_grad(draft_loss)(params, batch)
        updates, state = optimiser.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    for _ in range(steps):
        index_B = rng.integers(0, len(texts.tokens_BT), TRAIN_BATCH_SIZE)
        params, state, loss = step(params, state, texts.take(index_B))
        losses.append(float(loss))
    return params, losses


def save(path: Path, params: dict[str, Any]) -> None:
    """Write parameters in one step: the file is complete, or as it was."""
    arrays = {name: np.asarray(array) for name, array in params.items()}
    replace_file(path, safetensors.save(arrays))


def samplers(model, config, params, **settings) -> dict[str, jaxdave.Sampler]:
    """The ways to decode: one text, several numbers of calls."""
    default = jaxdave.Sampler(model, jaxdave.DecodeConfig(**settings))
    # Guesses compete for places with the very drafts that they are compared with.
    base = default.decoder.spec.draft
    drafts = {
        "draft model": draft_model.draft_model(config, base=base),
        "its answer beforehand": context_init(GreedyText(config), base=base),
    }
    return {
        "no drafts": default.undrafted(),
        "default drafts": default,
        **{
            name: jaxdave.Sampler(
                model,
                jaxdave.DecodeConfig(draft=draft, **settings),
                draft_params=params,
            )
            for name, draft in drafts.items()
        },
    }


def compare(ways: dict[str, jaxdave.Sampler], prompts: list[Any]) -> list[str]:
    """The lines of a table, with bootstrap intervals over the prompts."""
    answers = {name: answer_all(sampler, prompts) for name, sampler in ways.items()}
    calls = {name: [a.nfe.total for a in row] for name, row in answers.items()}
    ones = [1] * len(prompts)
    head = "| | calls per answer | steps accepted per verify call | texts equal |"
    lines = [head, "| --- | --- | --- | --- |"]
    for name, row in answers.items():
        steps = [sum(a.completion.accepted) for a in row]
        verify = [a.nfe.verify for a in row]
        rates = ratio_of_sums(calls[name], ones), ratio_of_sums(steps, verify)
        shown = " | ".join("{:.2f} [{:.2f}, {:.2f}]".format(*rate) for rate in rates)
        equal = sum(a == b for a, b in zip(row, answers["no drafts"], strict=True))
        lines.append(f"| {name} | {shown} | {equal} of {len(row)} |")
    for name in ("draft model", "its answer beforehand"):
        share = gain(calls[name], ones, calls["default drafts"], ones)
        lines.append(f"{name} / default: " + "{:.3f} [{:.3f}, {:.3f}]".format(*share))
    return lines


def main() -> None:
    """Train, save, and print the table."""
    parser = argparse.ArgumentParser(description="Train a draft model and compare.")
    parser.add_argument("--out", type=Path, default=Path("draft.safetensors"))
    parser.add_argument("--problems", choices=TEST_SETS, default="names")
    parser.add_argument("--policy", default="left_to_right", help="or static, ...")
    parser.add_argument("--temperature", type=float, default=0.0)
    numbers = {"train": 2048, "steps": 800, "features": 128, "test": 100}
    for name, value in {**numbers, "draft-steps": 8, "max-new-tokens": 64}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    fields = "policy", "draft_steps", "temperature", "max_new_tokens"
    settings = {name: getattr(args, name) for name in fields}
    model = jaxdave.load("sdar-1m")
    sampler = jaxdave.Sampler(model, jaxdave.DecodeConfig(**settings))
    texts = make_texts(sampler, training_prompts(args.problems, args.train))
    ids = model.config.vocab_rows, model.config.mask_id
    config, start = DraftModelConfig(*ids, args.features), time.perf_counter()
    params, losses = train(config, texts, args.steps)
    change = f"{losses[0]:.2f} -> {np.mean(losses[-20:]):.2f} nats a token"
    print(f"trained in {time.perf_counter() - start:.0f} s: {change}", flush=True)
    save(args.out, params)
    ways = samplers(model, config, safetensors.load_file(args.out), **settings)
    test = problem_sets.load(TEST_SETS[args.problems])[: args.test]
    print(*compare(ways, [problem.prompt for problem in test]), sep="\n")


if __name__ == "__main__":
    main()
