"""`jaxdave chat`: a conversation with a model, in a terminal or in a pipe.

conversation  turns and settings, a frozen record with pure transitions
settings      the options of a decode as `/set` reads and lists them
commands      lines that begin with a slash
history       conversations in files
line_input    lines of a terminal or a pipe
answering     decodes in a thread of their own, which Ctrl-C can leave behind
live_view     an answer in a terminal while it is decoded
plain_view    an answer where nothing can be drawn over
session       the loop over lines
"""
