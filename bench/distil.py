"""Distillation for fewer calls: a demo model before and after, at equal accuracy.

    python -m bench.distil [--plan first|second] [--quick] [--work FOLDER] [--out FILE]

Both plans, fixed before each was run:

- Model: `llada-1m`, full attention, for which both methods were published.
- Training: steps of 32 problems of the training side, one optimiser (Muon and Adam as
  in the demo's recipe), a rate that falls to 0 over the last two thirds, one seed
  (2121).
- Decoding: guarded numerics, temperature 0, 64 new tokens in blocks of 32, no cache.
  Calls with drafts are lossless, those of the text that the same weights decode without
  drafts and with the same policy: on the first problems of each set the two texts are
  compared. Without drafts there is a call for every step, so the steps are their calls.
- Statistics: sum of calls before over after, with the 95 % bootstrap interval over
  problems; change of accuracy, paired, with Agresti and Min's 95 % interval. "No worse"
  is a lower end above -2 points.
- Aim: at least 1.3 times fewer calls, and no worse.

The first plan missed the aim (docs/results.md):

- Arms, from the packaged weights, 300 steps at 2e-3: `certainty` (dParallel: random
  halves and their complement, T = 0.5, weight 2), `consistency` (CD4LM: T = 2, share
  0.9 to 0.5; states in the order in which the model committed its tokens, student ratio
  0.1 to 1, teacher 0.5 to 1 of that, as drafts are about the next few steps), both on
  the model's own answers to 1,024 prompts; `plain`, the demo's recipe continued for 480
  steps on reference answers. That many were meant to take as much processor time as the
  others; they took less (195 s against 308 s of `consistency`).
- Not `sdar-1m`: of its calls with 8 drafts at most a sixth could be saved (its own
  calls and those of perfect drafts are the second table).
- Settings were narrowed down on 96 other problems of the training side (seed 555), in
  runs of 100 steps at half the rate, from 9.83 calls with `static` and 8 drafts:
  consistency in the recorded order with T = 4 9.24, with CD4LM's own masks 9.37,
  certainty forcing 9.09. What is run here was not tried there as it is.
- `--quick` had been run once before, on the first 10 held-out problems of each set.
- Held-out: the first 200 problems of words_test and the first 100 of lists_test.
- Aim with `static` and 8 drafts; `threshold(0.9)` without and with 8 beside it.

The second plan:

- The packaged model is sure of nearly every token at once, so that only the order of
  its tokens is left to learn. Both methods are for models that are sure late. The start
  is therefore the demo's recipe stopped early: 48 steps of 32 problems (seed 7).
- Arms, from that start, at 1e-3: `certainty`, dParallel's loss for 100 steps on the
  start's own answers to 512 prompts, right or wrong, decoded with `threshold(0.9)`.
  Masked are random tokens of the active block with ratios from 0.5 to 1 where dParallel
  has 0.5 and the complement: the first call of a decode sees the whole block masked.
  `plain`, the recipe continued for 170 steps on reference answers: about as much
  processor time, and answers that the other arms never see. `halves`, as `certainty`
  with dParallel's own masks.
- Narrowed down on 144 other problems of the training side (seed 555), `threshold(0.9)`
  with 8 drafts, after 60 steps on 512 prompts: 2.67 calls and 77.8 % right before, 2.04
  and 81.2 % after; with dParallel's own masks 2.07 and 76.4 %.
- Held-out: the first 450 problems of words_test and the first 150 of lists_test.
- Aim of `certainty` with `threshold(0.9)` and 8 drafts; `static` with 8 on the first 20
  problems of each set beside it.

A run with --work goes on where it was interrupted; FOLDER/results.jsonl has a line for
everything that was decoded.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.harness import distil_arms, distil_plans, paired, report
from bench.harness.distil_plans import DRAFTS, MODEL, ROWS, Plan, Setting
from bench.harness.loading import LoadedModel, load_model
from jaxdave.demo_tasks.grade import is_correct
from jaxdave.demo_tasks.problem import Problem
from jaxdave.engine import decoders
from jaxdave.engine.generation import generate
from jaxdave.engine.results import Completion
from jaxdave.numerics.weight_layout import to_device_layout, to_stacked
from jaxdave.runtime.journal import journal_writer, read_journal
from jaxdave.training.demo.recipes import CANVAS_LENGTH

AIM, MARGIN = 1.3, 0.02


class Log:
    """The lines of `results.jsonl`, found by what they are about."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        """Read the lines there are.

        Args:
            path: the file.
            header: settings of the run; a file of others is refused.
        """
        self.path, self.header = path, header
        self.rows: list[dict[str, Any]] = read_journal(path, header)

    def find(self, **about: Any) -> dict[str, Any] | None:
        """Look for a line.

        Args:
            **about: fields that it must have.

        Returns:
            The first one, or None.
        """
        for row in self.rows:
            if all(row.get(key) == value for key, value in about.items()):
                return row
        return None

    def add(self, row: dict[str, Any]) -> dict[str, Any]:
        """Write a line.

        Args:
            row: the line.

        Returns:
            The same.
        """
        with journal_writer(self.path, self.header) as write:
            write(row)
        self.rows.append(row)
        return row


def decode(
    loaded: LoadedModel, params: Any, problems: list[Problem], policy: str, drafts: int
) -> list[Completion]:
    """Decode problems in batches of one size.

    Args:
        loaded: the model.
        params: its parameters.
        problems: the problems.
        policy: the policy.
        drafts: drafts of a call.

    Returns:
        One row for each problem.
    """
    decoder = decoders.freedave(
        loaded.config, policy, draft_steps=drafts, max_new_tokens=CANVAS_LENGTH
    )
    prompts = loaded.encode_prompts(problems)
    rows: list[Completion] = []
    for start in range(0, len(prompts), ROWS):
        rows += generate(decoder, params, prompts[start : start + ROWS]).completions
    return rows


def measure(
    log: Log,
    loaded: LoadedModel,
    params: Any,
    arm: str,
    problems: list[Problem],
    name: str,
    policy: str,
    drafts: int,
) -> dict[str, Any]:
    """Decode a set, unless that was done.

    Args:
        log: where it is looked for and written.
        loaded: the model.
        params: its parameters.
        arm: whose they are.
        problems: the problems.
        name: what they are called.
        policy: the policy.
        drafts: drafts of a call.

    Returns:
        The line: calls, steps, right answers and texts by problem.
    """
    about = {"kind": "decode", "arm": arm, "set": name, "policy": policy, "d": drafts}
    if (found := log.find(**about)) is not None:
        return found
    rows = decode(loaded, params, problems, policy, drafts)
    texts = [loaded.codec.decode(row.token_ids) for row in rows]
    graded = zip(problems, texts, strict=True)
    row = about | {
        "calls": [row.nfe.total for row in rows],
        "rechecks": sum(row.nfe.recheck for row in rows),
        "steps": [row.steps for row in rows],
        "right": [bool(is_correct(problem, text)) for problem, text in graded],
        "tokens": [list(row.token_ids) for row in rows],
    }
    calls, right = sum(row["calls"]) / len(rows), sum(row["right"])
    print(f"{arm}, {name}, {policy} d={drafts}: {calls:.3f} calls, {right} right")
    return log.add(row)


def comparison(log: Log, plan: Plan, arm: str, setting: Setting) -> dict[str, Any]:
    """Compare an arm with the model before it.

    Args:
        log: what was decoded.
        plan: the plan.
        arm: the arm.
        setting: how it was decoded.

    Returns:
        A row of the table.
    """
    before, after = (
        column(log, plan, whose, setting, "calls") for whose in ("before", arm)
    )
    right, now = (
        column(log, plan, whose, setting, "right") for whose in ("before", arm)
    )
    change = paired.accuracy_change(right, now)
    return {
        "arm": arm,
        "policy": setting.policy,
        "d": setting.drafts,
        "calls before": round(sum(before) / len(before), 3),
        "after": round(sum(after) / len(after), 3),
        "times fewer": str(paired.ratio_of_sums(before, after)),
        "right before": f"{sum(right)} of {len(right)}",
        "right after": sum(now),
        "change": str(change),
        "no worse": change.low > -MARGIN,
    }


def headroom_rows(plan: Plan, log: Log) -> list[dict[str, Any]]:
    """Count what perfect drafts would take.

    Args:
        plan: the plan.
        log: what was decoded.

    Returns:
        A row for each model and policy.
    """
    rows = []
    measured = [(MODEL, "before", setting) for setting in plan.settings]
    if plan.other_model is not None:
        other = load_model(plan.other_model)
        for setting in plan.settings[:1]:
            measure_all(log, plan, other, other.params, "other", setting)
            measured.append((plan.other_model, "other", setting))
    for model, arm, setting in measured:
        calls = column(log, plan, arm, setting, "calls")
        steps = column(log, plan, arm, setting, "steps")
        floor = sum(1 + -(-(one - 1) // setting.drafts) for one in steps)
        rows.append(
            {
                "model": model,
                "policy": setting.policy,
                "d": setting.drafts,
                "calls": sum(calls),
                "perfect drafts": floor,
                "times fewer at most": sum(calls) / floor,
            }
        )
    return rows


def column(log: Log, plan: Plan, arm: str, setting: Setting, name: str) -> list[Any]:
    """Find what was measured of all held-out problems.

    Args:
        log: what was decoded.
        plan: the plan.
        arm: whose.
        setting: how.
        name: the field.

    Returns:
        A value for each problem.
    """
    about = {"kind": "decode", "policy": setting.policy, "d": setting.drafts}
    rows = [log.find(**about, arm=arm, set=set_name) for set_name in plan.held_out]
    return [value for row in rows if row is not None for value in row[name]]


def measure_all(
    log: Log, plan: Plan, loaded: LoadedModel, params: Any, arm: str, setting: Setting
) -> None:
    """Decode all held-out problems in one way, unless that was done.

    Args:
        log: where it is looked for and written.
        plan: the plan.
        loaded: the model.
        params: its parameters.
        arm: whose they are.
        setting: how.
    """
    for name in plan.held_out:
        problems = plan.problems(name, setting.most)
        policy, drafts = setting.policy, setting.drafts
        measure(log, loaded, params, arm, problems, name, policy, drafts)


def run(plan: Plan, folder: Path) -> tuple[Log, list[dict[str, Any]]]:
    """Train and decode what is missing.

    Args:
        plan: the plan.
        folder: where results are kept.

    Returns:
        What was measured, and a row for each training.
    """
    log = Log(folder / "results.jsonl", plan.header())
    loaded = distil_plans.start_of(plan, load_model(MODEL), folder)

    def measure_arm(params: Any, arm: str) -> None:
        for setting in plan.settings:
            measure_all(log, plan, loaded, params, arm, setting)
        for policy in plan.policies:
            for name in plan.held_out:
                problems = plan.problems(name, plan.compared)
                measure(log, loaded, params, arm, problems, f"{name}*", policy, 1)

    measure_arm(loaded.params, "before")
    start = distil_plans.in_float32(to_stacked(loaded.params))
    trained = []
    for name, (arm, recipe) in distil_plans.arms_of(plan, loaded, folder).items():
        params, row = distil_arms.train_arm(arm, recipe, start, folder)
        print(row, flush=True)
        measure_arm(to_device_layout(params, loaded.config), name)
        trained.append(row)
    return log, trained


def same_texts(log: Log, plan: Plan) -> bool:
    """Compare texts with drafts and without.

    Args:
        log: what was decoded.
        plan: the plan.

    Returns:
        True if all are the same.
    """
    for arm in ("before", *plan.arms):
        for name in plan.held_out:
            for policy in plan.policies:
                about = {"kind": "decode", "arm": arm, "policy": policy}
                drafted = log.find(**about, set=name, d=DRAFTS)
                alone = log.find(**about, set=f"{name}*", d=1)
                assert drafted is not None and alone is not None
                if drafted["tokens"][: plan.compared] != alone["tokens"]:
                    return False
    return True


def main() -> None:
    """Run the benchmark."""
    parser = report.argument_parser(__doc__)
    parser.add_argument(
        "--plan", choices=("first", "second"), default="second", help="see above"
    )
    parser.add_argument("--quick", action="store_true", help="two steps, 20 problems")
    parser.add_argument("--work", type=Path, help="folder of results, to go on with")
    args = parser.parse_args()
    plan = distil_plans.FIRST if args.plan == "first" else distil_plans.SECOND
    if args.quick:
        plan = distil_plans.QUICK
    results = report.start_report(MODEL)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.work or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        log, trained = run(plan, folder)
        headroom = headroom_rows(plan, log)
    rows = [
        comparison(log, plan, arm, setting)
        for arm in plan.arms
        for setting in plan.settings
    ]
    results.add_table("Calls of an answer before and after", rows)
    results.add_table("Room for fewer calls", headroom)
    results.add_table("Training", trained)
    results.claims.append(
        report.Claim("drafts change no text, after training too", same_texts(log, plan))
    )
    if not args.quick:
        aimed = plan.settings[0]
        for row in rows:
            if row["arm"] not in plan.aimed or row["policy"] != aimed.policy:
                continue
            if row["d"] == aimed.drafts:
                is_met = row["no worse"] and row["calls before"] >= AIM * row["after"]
                claim = (
                    f"{row['arm']} takes {AIM} times fewer lossless calls with "
                    f"{aimed.policy}, and is no worse"
                )
                results.claims.append(report.Claim(claim, is_met))
    results.finish(args.out)


if __name__ == "__main__":
    main()
