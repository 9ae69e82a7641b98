"""Draft trees calibrated on one kind of problem, used on another."""

from typing import Any

from bench.harness.draft_decodes import decode, make_decoder
from bench.harness.loading import LoadedModel
from bench.harness.paired import ratio_of_sums
from jaxdave import policies
from jaxdave.demo_tasks import problem_sets
from jaxdave.drafting import tree
from jaxdave.drafting.nested import nested
from jaxdave.engine.calibration import calibrate
from jaxdave.engine.decode_config import MAX_DRAFT_STEPS

NUM_CALIBRATED = 30
CALIBRATION_BATCH = 10


def compare_transfer(
    loaded: LoadedModel, draft_steps: list[int], limit: int
) -> list[dict[str, Any]]:
    """Count the calls of every test set with the tables of every other.

    Args:
        loaded: the model.
        draft_steps: numbers of drafts.
        limit: problems of each set that calls are counted on, behind those that tables
            are calibrated on.

    Returns:
        Rows of the table, one for each set and number of drafts.
    """
    static = policies.static(1)
    # A block-causal window is as long as its drafts need; others are not.
    causal = loaded.config.attention != "full"
    plain = make_decoder(loaded, static, nested, MAX_DRAFT_STEPS if causal else 2)
    counted, tables = {}, {}
    for name in problem_sets.SETS:
        problems = problem_sets.load(name)[: NUM_CALIBRATED + limit]
        prompts = loaded.encode_prompts(problems)
        own, counted[name] = prompts[:NUM_CALIBRATED], prompts[NUM_CALIBRATED:]
        starts = range(0, len(own), CALIBRATION_BATCH)
        batches = [own[start : start + CALIBRATION_BATCH] for start in starts]
        tables[name] = calibrate(plain, loaded.params, batches, lambda count: None)
    table = []
    for d in draft_steps:
        # [set that was calibrated on][set that is decoded] -> calls of its problems.
        calls = {
            source: {
                name: [
                    row.nfe.total
                    for row in decode(loaded, static, draft, d, d, prompts)
                ]
                for name, prompts in counted.items()
            }
            for source, draft in [
                ("nested", nested),
                *((name, tree.tree(tables[name])) for name in tables),
            ]
        }
        for name in counted:
            own = calls[name][name]
            table_row: dict[str, Any] = {"decoded": name, "d": d, "own": sum(own)}
            table_row["nested / own"] = str(ratio_of_sums(calls["nested"][name], own))
            for source in tables:
                ratio = ratio_of_sums(calls[source][name], own)
                table_row[f"{source} / own"] = str(ratio)
            print(table_row, flush=True)
            table.append(table_row)
    return table
