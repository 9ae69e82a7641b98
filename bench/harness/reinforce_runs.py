"""Training runs from one checkpoint, on word problems of one length: see `bench.grpo`.

Axes: as in `jaxdave.training.reinforce`.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax
from tokenizers import Tokenizer

import jaxdave
from jaxdave.demo_tasks import grade, words
from jaxdave.demo_tasks.problem import Problem, Split
from jaxdave.io.checkpoint import Model
from jaxdave.numerics.weight_layout import to_stacked
from jaxdave.training.demo.block_batches import encode_pair, pack_pairs
from jaxdave.training.demo.block_loss import make_block_loss
from jaxdave.training.objective.objective_loss import LossSums
from jaxdave.training.optimisers import OptimiserConfig, make_optimiser
from jaxdave.training.reinforce.learner import Learner
from jaxdave.training.reinforce.learner_config import ReinforceConfig
from jaxdave.training.reinforce.rollouts import with_params
from jaxdave.training.update import TrainState, UpdateConfig, init_state, make_update

SPLIT_SEED = 21
"""Of held-out problems; 1 is added for the development problems."""
EVALUATION = jaxdave.DecodeConfig(
    draft_steps=4, max_new_tokens=48, numerics="exact", block_length=None
)
ROLLOUTS = dataclasses.replace(EVALUATION, temperature=1.5, record_steps=True)
START_SEED, START_PROMPTS = 77, 32
BATCH = 64
SHAPE = (128, 48)
"""Lengths of the sequences and of the masked windows of supervised batches."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """How a run trains.

    Attributes:
        name: As the tables have it.
        learning_rate: Of AdamW, constant after its warm-up.
        reinforce: Settings of the learner; None: supervised, on reference answers.
        prompts: Problems of a step.
    """

    name: str
    learning_rate: float
    reinforce: ReinforceConfig | None
    prompts: int

    def optimiser(self) -> optax.GradientTransformation:
        """AdamW, clipped, the same for all methods but for its rate."""
        config = OptimiserConfig(
            learning_rate=self.learning_rate, warmup_steps=5, decay="none"
        )
        return make_optimiser(config, steps=1_000_000)


def held_out(ops: int, count: int, *, development: bool = False) -> list[Problem]:
    """Problems of the test side, each with a key of its own.

    Args:
        ops: Operations of each.
        count: How many.
        development: Problems for choosing settings, of keys that no held-out problem
            has (of those that were asked for by the same count).

    Returns:
        The problems.
    """
    taken = {p.key for p in held_out(ops, count)} if development else set()
    rng = np.random.default_rng((SPLIT_SEED + development, ops))
    found: dict[str, Problem] = {}
    while len(found) < count:
        problem = draw(rng, ops, "test")
        if problem.key not in taken:
            found.setdefault(problem.key, problem)
    return list(found.values())


def draw(rng: np.random.Generator, ops: int, split: Split) -> Problem:
    """Draw a problem of one side of the split.

    Args:
        rng: Source of randomness; it advances.
        ops: Its operations.
        split: The side.

    Returns:
        The problem.
    """
    return words.sample_from_split(rng, split, (ops,), None)


def step_problems(seed: int, step: int, ops: int, count: int) -> list[Problem]:
    """The training problems of a step.

    Args:
        seed: Of the run.
        step: Its index.
        ops: Operations of each.
        count: How many.

    Returns:
        Problems of the train side.
    """
    rng = np.random.default_rng((seed, step, ops, 5))
    return [draw(rng, ops, "train") for _ in range(count)]


def accuracy(model: Model, params: Any, problems: Sequence[Problem]) -> np.ndarray:
    """Answer problems at temperature 0.

    Args:
        model: The model.
        params: Its parameters, stacked.
        problems: The problems.

    Returns:
        bool [problems], True where the answer is right.
    """
    sampler = with_params(jaxdave.Sampler(model, EVALUATION), params)
    found = []
    for first in range(0, len(problems), BATCH):
        part = problems[first : first + BATCH]
        answers = sampler.batch([problem.prompt for problem in part])
        found += [
            grade.is_correct(problem, answer.text)
            for problem, answer in zip(part, answers, strict=True)
        ]
    return np.array(found)


def make_steps(
    model: Model, method: Method, ops: int, seed: int, tokenizer: Tokenizer
) -> Callable[[TrainState], tuple[TrainState, dict[str, Any]]]:
    """Make the function of one step.

    Args:
        model: The model.
        method: How it is trained.
        ops: Operations of its problems.
        seed: Of the run.
        tokenizer: The demo's, for reference answers.

    Returns:
        A function from a state to the state after a step, and metrics.
    """
    if method.reinforce is None:
        return _supervised_steps(model, method, ops, seed, tokenizer)

    def task(index: int):
        problems = step_problems(seed, index, ops, method.prompts)

        def reward_of(at: int, answer) -> float:
            return float(grade.is_correct(problems[at], answer.text))

        return [problem.prompt for problem in problems], reward_of

    config = dataclasses.replace(ROLLOUTS, seed=seed)
    sampler = jaxdave.Sampler(model, config)
    learner = Learner(sampler, task, method.optimiser(), method.reinforce)
    return lambda state: (lambda found: (found[0], dict(found[1])))(learner(state))


def _supervised_steps(
    model: Model, method: Method, ops: int, seed: int, tokenizer: Tokenizer
):
    """Steps of the objective that the demo was trained with."""
    block_loss = make_block_loss(model.config)

    def loss(params, batch, key):
        del key
        return LossSums(*block_loss(params, batch))

    update = jax.jit(make_update(loss, method.optimiser(), UpdateConfig()))

    def step(state: TrainState):
        index = int(state.step)
        pairs = [
            encode_pair(tokenizer, problem.prompt, problem.answer)
            for problem in step_problems(seed, index, ops, method.prompts)
        ]
        rng = np.random.default_rng((seed, index, ops, 6))
        batch = pack_pairs(pairs, SHAPE, model.config.block_length, tokenizer, rng)
        state, metrics = update(state, batch, None)
        jax.block_until_ready(state.params)
        return state, {"loss": float(metrics.loss)}

    return step


def cold_start(model: Model, ops: int, steps: int, tokenizer: Tokenizer) -> Any:
    """Show a model a few problems that it has never seen, with reference answers.

    It then answers some of them, so that answers to one prompt can differ in reward.

    Args:
        model: The model.
        ops: Operations of the problems.
        steps: Steps of 32 problems.
        tokenizer: The demo's.

    Returns:
        Parameters, stacked.
    """
    method = Method(
        name="supervised", learning_rate=2e-5, reinforce=None, prompts=START_PROMPTS
    )
    step = make_steps(model, method, ops, START_SEED, tokenizer)
    state = init_state(
        to_stacked(model.params), method.optimiser(), START_SEED, ema=False
    )
    for _ in range(steps):
        state, _ = step(state)
    return state.params


def run(
    model: Model,
    start: Any,
    method: Method,
    ops: int,
    seed: int,
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    *,
    steps: int | None = None,
    seconds: float | None = None,
) -> dict[str, Any]:
    """Train from a checkpoint, and answer held-out problems afterwards.

    Args:
        model: The model.
        start: The parameters of the checkpoint, stacked.
        method: How it is trained.
        ops: Operations of its training problems.
        seed: Of the run.
        tokenizer: The demo's.
        problems: Held-out problems.
        steps: How many; None: until `seconds` are over.
        seconds: Processor time of the run; None: `steps` says how long it is.

    Returns:
        A record of JSON values. Seconds are those of the process, without compilation
        of the first step, which is taken twice.
    """
    step = make_steps(model, method, ops, seed, tokenizer)
    state = init_state(start, method.optimiser(), seed, ema=False)
    step(state)
    curve, begin = [], time.process_time()

    def goes_on() -> bool:
        if steps is not None:
            return len(curve) < steps
        return seconds is not None and time.process_time() - begin < seconds

    while goes_on():
        state, metrics = step(state)
        curve.append({name: _round(value) for name, value in metrics.items()})
    spent = time.process_time() - begin
    after = accuracy(model, state.params, problems)
    return {
        "method": method.name,
        "ops": ops,
        "seed": seed,
        "steps": len(curve),
        "learning_rate": method.learning_rate,
        "seconds": round(spent, 1),
        "after": bits(after),
        "curve": curve,
    }


def bits(right: np.ndarray) -> str:
    """Write which problems were answered, for a file.

    Args:
        right: bool [problems].

    Returns:
        One character for each problem, 1 where it was answered.
    """
    return "".join("01"[int(one)] for one in right)


def _round(value: Any) -> float:
    return float(f"{float(value):.5g}")
