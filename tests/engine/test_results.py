"""Results: printed, compared, and as JSON."""

import dataclasses
import json

from jaxdave.engine.results import Completion, Nfe, Result, TextCompletion
from jaxdave.runtime.memory import PeakMemory

COMPLETION = Completion(
    token_ids=tuple(range(10)),
    finish_reason="stop",
    valid_tokens=10,
    nfe=Nfe(prefill=1, verify=3, recheck=1),
    reference_nfe=14,
    accepted=(3, 3, 4),
    committed_at=(0,) * 10,
    steps=11,
    proposed_drafts=12,
    accepted_drafts=6,
)
ANSWER = TextCompletion(
    text="four\npens",
    token_ids=COMPLETION.token_ids,
    finish_reason="stop",
    completion=COMPLETION,
    seconds=0.5,
    settings={"method": "freedave"},
)


def test_they_can_be_read():
    line = "5 calls, 10 tokens, 2.00 tokens/call, stop"
    assert str(COMPLETION) == f"[0, 1, 2, 3, 4, 5, 6, 7, ...] ({line})"
    assert repr(COMPLETION) == f"Completion({COMPLETION})"
    assert str(ANSWER) == f"four\npens\n({line})"
    assert repr(ANSWER) == f"TextCompletion('four\\npens', {line})"
    result = Result((COMPLETION,), seconds=0.5, compile_seconds=2.0)
    assert str(result) == f"[0] {COMPLETION}\n0.50 s"


def test_they_can_be_compared():
    assert dataclasses.replace(COMPLETION) == COMPLETION
    assert dataclasses.replace(COMPLETION, steps=12) != COMPLETION
    # Texts are the same whatever they took.
    slower = dataclasses.replace(COMPLETION, nfe=Nfe(prefill=1, verify=10))
    assert dataclasses.replace(ANSWER, completion=slower, seconds=1.0) == ANSWER
    assert dataclasses.replace(ANSWER, token_ids=(1,)) != ANSWER
    assert hash(dataclasses.replace(ANSWER, seconds=1.0)) == hash(ANSWER)


def test_they_are_json():
    nfe = {"prefill": 1, "verify": 3, "commit": 0, "refresh": 0, "recheck": 1}
    fields = {
        "token_ids": list(range(10)),
        "finish_reason": "stop",
        "valid_tokens": 10,
        "nfe": {**nfe, "total": 5},
        "reference_nfe": 14,
        "tokens_per_nfe": 2.0,
        "steps": 11,
        "proposed_drafts": 12,
        "accepted_drafts": 6,
        "hit_rate": 0.5,
    }
    assert json.loads(COMPLETION.to_json()) == fields
    result = Result((COMPLETION,), seconds=0.5, compile_seconds=2.0)
    assert json.loads(result.to_json()) == {
        "completions": [fields],
        "seconds": 0.5,
        "compile_seconds": 2.0,
        "memory": {"bytes": None, "source": None},
    }
    with_memory = dataclasses.replace(result, memory=PeakMemory(7, "process_peak"))
    memory = {"bytes": 7, "source": "process_peak"}
    assert json.loads(with_memory.to_json())["memory"] == memory
    nothing = dataclasses.replace(COMPLETION, proposed_drafts=0, accepted_drafts=0)
    assert (
        nothing.hit_rate is None and json.loads(nothing.to_json())["hit_rate"] is None
    )
    answer = json.loads(ANSWER.to_json())
    assert fields.items() <= answer.items()
    assert (answer["text"], answer["index"], answer["batch_rows"]) == (
        "four\npens",
        0,
        1,
    )
    assert (ANSWER.proposed_drafts, ANSWER.accepted_drafts) == (12, 6)
    assert ANSWER.hit_rate == answer["hit_rate"] == 0.5
    assert (answer["tokens_per_second"], answer["method"]) == (20.0, "freedave")
