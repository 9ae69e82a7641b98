"""Several processes that decode one file, as options say it. Imports no JAX."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessConfig:
    """Which processes work together, as `jax.distributed.initialize` takes it.

    Attributes:
        coordinator: "HOST:PORT" of the first process; None: as JAX finds it in the
            environment (Slurm, Open MPI, Kubernetes, TPU pods).
        num_processes: How many there are; None: likewise.
        process_id: Which this one is, from 0; None: likewise.
        connect_seconds: How long to wait until all of them are there.

    Raises:
        ValueError: A value is out of range, or only some of the first three are given.

    Example:
        >>> config = ProcessConfig(coordinator="a:1", num_processes=2, process_id=1)
        >>> config.is_given
        True
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    connect_seconds: int = 60

    def __post_init__(self) -> None:
        given = (self.coordinator, self.num_processes, self.process_id)
        if any(one is None for one in given) and any(one is not None for one in given):
            raise ValueError(
                f"coordinator={self.coordinator}, num_processes={self.num_processes} "
                f"and process_id={self.process_id} go together; give all of them, or "
                "none where the environment tells"
            )
        if self.connect_seconds < 1:
            raise ValueError(
                f"connect_seconds={self.connect_seconds} must be at least 1; try 60"
            )
        if self.coordinator is not None:
            host, _, port = self.coordinator.rpartition(":")
            if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
                raise ValueError(
                    f"coordinator={self.coordinator!r} must be HOST:PORT of the first "
                    "process, e.g. 10.0.0.1:9000"
                )
        if self.num_processes is not None and self.num_processes < 1:
            raise ValueError(
                f"num_processes={self.num_processes} must be at least 1; try 2"
            )
        count, index = self.num_processes, self.process_id
        if count is not None and index is not None and not 0 <= index < count:
            raise ValueError(
                f"process_id={index} must be in 0..{count - 1}, as num_processes="
                f"{count}"
            )

    @property
    def is_given(self) -> bool:
        """True if nothing is left to the environment."""
        return self.coordinator is not None
