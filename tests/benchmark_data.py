"""Where the benchmarks' files are, for the tests that need them."""

from pathlib import Path

import pytest

DATA = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(
    not (DATA / "gsm8k_test.jsonl").is_file(),
    reason=f"needs the benchmarks' files in {DATA}",
)
