"""The decode loop on the device: prefill, propose, evaluate, verify, commit, recheck.

`prefill`, `step` and `run` are the public, pure functions; `loop.py` is the file to
read first. Tokens are written in one place, `commit.py`. It knows no files and no host
loop.
"""

from jaxdave.decoding.loop import prefill as prefill
from jaxdave.decoding.loop import run as run
from jaxdave.decoding.loop import step as step
