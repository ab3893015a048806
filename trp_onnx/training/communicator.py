"""Data parallelism: one process, or the ranks of an MPI job. Both sum in place and agree."""

from __future__ import annotations

import os
from typing import Any, Protocol

import numpy as np

_RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")


def launched_rank() -> int | None:
    """Our rank if an MPI launcher started this process, else None. Does not import MPI."""
    for name in _RANK_VARIABLES:
        value = os.environ.get(name, "")
        if value.isdigit():
            return int(value)
    return None


class Communicator(Protocol):
    """What training needs of a group of processes."""

    rank: int
    size: int

    def sum(self, array: np.ndarray) -> None:
        """Add up over the ranks, in place."""

    def gather(self, value: Any) -> list[Any]:
        """Everybody's value, on every rank, in the order of ranks."""

    def share(self, value: Any) -> Any:
        """The first rank's value, on every rank."""

    def abort(self) -> None:
        """End every rank."""


class Alone:
    """A single process."""

    rank = 0
    size = 1

    def sum(self, array: np.ndarray) -> None:
        """Nothing to add."""

    def gather(self, value: Any) -> list[Any]:
        """One value."""
        return [value]

    def share(self, value: Any) -> Any:
        """The value."""
        return value

    def abort(self) -> None:
        """Nobody else to end."""


class Mpi:
    """MPI's world, through mpi4py."""

    def __init__(self) -> None:
        """Join it."""
        from mpi4py import MPI

        self._mpi = MPI
        self._world = MPI.COMM_WORLD
        self.rank = self._world.Get_rank()
        self.size = self._world.Get_size()

    def sum(self, array: np.ndarray) -> None:
        """One Allreduce on the buffer itself."""
        self._world.Allreduce(self._mpi.IN_PLACE, array, op=self._mpi.SUM)

    def gather(self, value: Any) -> list[Any]:
        """Small objects; mpi4py's own encoding, between processes of one job."""
        return list(self._world.allgather(value))

    def share(self, value: Any) -> Any:
        """From rank 0."""
        return self._world.bcast(value, root=0)

    def abort(self) -> None:
        """MPI_Abort."""
        self._world.Abort(1)


def connect() -> Communicator:
    """The group that this process was started in."""
    if launched_rank() is None:
        return Alone()
    return Mpi()
