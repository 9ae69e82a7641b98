"""Running untrusted programs in a process of their own, with limits.

`launcher` is the caller's side; `worker` is the source text of the interpreter that it
starts.
"""
