"""Running untrusted programs in a process of their own, with limits."""
