"""The command line: options, prompts, printing and exit codes."""
