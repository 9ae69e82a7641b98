"""Records and reports made by hand, for the tests of the evaluation."""

from jaxdave.eval.report import metrics
from jaxdave.eval.run.records import Record

NFE = {"prefill": 1, "verify": 3, "commit": 0, "refresh": 0, "recheck": 0, "total": 4}


def record(id: str = "a", **changes) -> Record:
    """An item of four calls."""
    fields = {
        "digest": "d", "right": True, "extracted": "7", "reason": "",
        "text": "#### 7 \u00e9", "token_ids": (5, 6, 7), "committed_at": (0, 1, 2),
        "finish_reason": "stop", "valid_tokens": 3, "decoded_tokens": 4, "nfe": NFE,
        "rows": 25, "reference_nfe": 6, "steps": 4, "proposed_drafts": 6,
        "accepted_drafts": 3, "batch_rows": 1, "seconds": 0.5,
        "compile_seconds": 0.0, "memory": None,
    }  # fmt: skip
    return Record(id=id, **{**fields, **changes})


def cell(task: str, kind: str, method: str, drafts: int, records, **changes) -> dict:
    """A cell of a report."""
    fields = {
        "task": task, "kind": kind, "method": method, "title": f"{method} {drafts}",
        "drafted": drafts > 1, "draft_steps": drafts,
        "settings": {"dtype": "float32", "numerics": "guarded", "batch_size": 1},
        **metrics.count_metrics(records), "timing": metrics.timing_metrics(records),
        "memory": {"bytes": 6_600_000, "source": "program"},
    }  # fmt: skip
    return {**fields, **changes}


def report(*cells: dict) -> dict:
    """A report of some cells."""
    return {
        "model": "tiny",
        "preset": "demo",
        "as_published": False,
        "cells": list(cells),
        "machine": {
            "command": "jaxdave eval",
            "device": "cpu (cpu), 2 cores",
            "versions": {"jax": "0.10.2"},
            "load": [1.5, 1.0, 0.25],
            "date": "2026-11-25 12:00 UTC",
        },
    }
