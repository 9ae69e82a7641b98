"""Which Ray cluster decodes, and by how many workers. Imports neither Ray nor JAX."""

import dataclasses
import re

LOCAL, RUNNING = "local", "auto"
"""Addresses that are words: a cluster of this run alone, and the one that runs here."""
_HOST_AND_PORT = re.compile(r"(?P<host>[^\s:/]+|\[[0-9A-Fa-f:.]+\]):(?P<port>\d{1,5})")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RayConfig:
    """Which cluster decodes, and by how many workers.

    Attributes:
        address: "local" starts a cluster on this machine and ends it with the run;
            "auto" is the one that this machine is part of; "HOST:PORT" names its head.
        workers: Processes that decode, each with a model of its own.

    Raises:
        ValueError: The address is none of these, or there are no workers.

    Example:
        >>> RayConfig(address="local", workers=2).host_and_port is None
        True
    """

    address: str
    workers: int = 1

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers={self.workers} must be at least 1; try 2")
        if self.address.startswith("ray://"):
            raise ValueError(
                f"ray={self.address!r} is an address for Ray's client; run this on a "
                "machine of the cluster with 'auto', or submit it as a job of Ray's"
            )
        if self.address not in (LOCAL, RUNNING) and self.host_and_port is None:
            raise ValueError(
                f"ray={self.address!r} must be local, auto or HOST:PORT of the "
                "cluster's head, e.g. 10.0.0.1:6379"
            )

    @property
    def is_local(self) -> bool:
        """True if this run starts the cluster and ends it."""
        return self.address == LOCAL

    @property
    def host_and_port(self) -> tuple[str, int] | None:
        """Where the head of the cluster listens; None for the two words."""
        match = _HOST_AND_PORT.fullmatch(self.address)
        if match is None or not 0 < int(match["port"]) < 2**16:
            return None
        return match["host"].strip("[]"), int(match["port"])
