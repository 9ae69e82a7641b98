"""What generated texts have taken: a summary for the harness's results, and a file.

The file has a JSON line for every text that was decoded. Texts out of the harness's own
cache are not decoded and have none.
"""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jaxdave.engine.results import hit_rate, memory_dict
from jaxdave.integrations.lm_eval.generate_until import Answer
from jaxdave.runtime.files import replace_file
from jaxdave.runtime.memory import peak_memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextStats:
    """What one text has taken.

    Attributes:
        task: Name of its task.
        doc_id: Number of its document in the task.
        repeat: Number of the request among those of the document.
        answer: The text and what it took.
    """

    task: str | None
    doc_id: int | None
    repeat: int | None
    answer: Answer

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON values, under the names of `jaxdave generate --json`."""
        fields = self.answer.completion.to_dict()
        del fields["token_ids"]
        return {
            "task": self.task,
            "doc_id": self.doc_id,
            "repeat": self.repeat,
            **fields,
            "seconds": self.answer.seconds,
            "batch_rows": self.answer.batch_rows,
        }


def text_stats(request: Any, answer: Answer) -> TextStats:
    """What the text of a request has taken.

    Args:
        request: An `Instance` of the harness.
        answer: Its text.

    Returns:
        The record.
    """
    return TextStats(
        task=request.task_name,
        doc_id=request.doc_id,
        repeat=request.idx,
        answer=answer,
    )


def summary(records: Sequence[TextStats]) -> dict[str, Any]:
    """What all texts have taken together, and those of every task.

    Args:
        records: One for every text.

    Returns:
        JSON values; rates are ratios of sums.
    """
    tasks = dict.fromkeys(record.task for record in records)
    by_task = {
        str(task): _totals([one for one in records if one.task == task])
        for task in tasks
    }
    memory = memory_dict(peak_memory())
    return {**_totals(records), "memory": memory, "tasks": by_task}


def write_lines(path: Path, records: Iterable[TextStats]) -> None:
    """Write the file of all texts, or replace it, in one step.

    Args:
        path: The file.
        records: One for every text.

    Raises:
        OSError: It cannot be written.
    """
    lines = (json.dumps(record.to_dict(), ensure_ascii=False) for record in records)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, "".join(f"{line}\n" for line in lines).encode())


def _totals(records: Sequence[TextStats]) -> dict[str, Any]:
    answers = [record.answer for record in records]
    rows = [answer.completion for answer in answers]
    kinds = [row.nfe.counts() for row in rows]
    nfe = {kind: sum(one[kind] for one in kinds) for kind in kinds[0]} if kinds else {}
    tokens = sum(row.valid_tokens for row in rows)
    seconds = sum(answer.seconds for answer in answers)
    proposed = sum(row.proposed_drafts for row in rows)
    accepted = sum(row.accepted_drafts for row in rows)
    return {
        "texts": len(records),
        "valid_tokens": tokens,
        "nfe": nfe,
        "reference_nfe": sum(row.reference_nfe for row in rows),
        "steps": sum(row.steps for row in rows),
        "proposed_drafts": proposed,
        "accepted_drafts": accepted,
        "hit_rate": hit_rate(accepted, proposed),
        "tokens_per_nfe": tokens / nfe["total"] if nfe else None,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds if seconds else None,
    }
