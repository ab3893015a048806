"""The projection of a running training: every worker projects its share of the targets, and all take the result."""

from __future__ import annotations

import numpy as np

from trp_onnx.graph.session import Arrays
from trp_onnx.training.communicator import Communicator
from trp_onnx.training.flat import Flat
from trp_onnx.training.projection import Projection, project, spectra_of
from trp_onnx.training.schedules import Fixed, Ranks


class Projector:
    """Puts every target on its rank.

    Attributes:
        ranks: Of all targets, now.
        direction: The nuclear norm's sub-gradient of all targets at the last projection, flat; None without one.
    """

    def __init__(self, projection: Projection, tensors: Arrays, world: Communicator) -> None:
        """`tensors`: The network's weights by name, projected in place."""
        self._projection, self._tensors, self._world = projection, tensors, world
        self.ranks = Ranks(projection.targets, projection.schedule, projection.total_macs, projection.rest_macs)
        self._flat = Flat({target.weight: tensors[target.weight].shape for target in projection.targets})
        self._mine = range(world.rank, len(projection.targets), world.size)
        self.direction: np.ndarray | None = None

    def due(self, step: int) -> bool:
        """Whether a step begins with a projection."""
        return bool(self._projection.targets) and step % self._projection.every == 0

    def project(self, progress: float) -> None:
        """Decide on ranks, and put every target on its own.

        Args:
            progress: Part of the training that is behind, 0 to 1.
        """
        targets = self._projection.targets
        if not isinstance(self._projection.schedule, Fixed):
            own = {i: spectra_of(targets[i], self._tensors[targets[i].weight]) for i in self._mine}
            everybody = {i: modes for part in self._world.gather(own) for i, modes in part.items()}
            self.ranks.update([everybody[i] for i in range(len(targets))], progress)
        nuclear = self._projection.nuclear > 0
        projected, direction = self._nearest(nuclear)
        for name, view in self._flat.views(projected).items():
            self._tensors[name][...] = view
        self.direction = direction if nuclear else None

    def projected(self) -> Arrays:
        """The targets' weights at their ranks, by name; the network's own stay as they are."""
        return self._flat.views(self._nearest(False)[0]) if self._projection.targets else {}

    def add_nuclear(self, gradients: Arrays, *, projected: bool) -> None:
        """Add the nuclear norm's sub-gradient to the gradients of a step, by name.

        Args:
            gradients: Changed in place.
            projected: Whether the step began with a projection.
        """
        every_step = self._projection.nuclear_every_step
        if self.direction is None or not (projected or every_step):
            return
        weight = np.float32(self._projection.nuclear / (self._projection.every if every_step else 1))
        for name, direction in self._flat.views(self.direction).items():
            gradients[name] += weight * direction

    def _nearest(self, nuclear: bool) -> tuple[np.ndarray, np.ndarray]:
        """Every target at its current rank, and the nuclear directions there, in flat buffers."""
        both = np.zeros((2, self._flat.size), np.float32)
        weights, directions = (self._flat.views(part) for part in both)
        for i in self._mine:
            target = self._projection.targets[i]
            name = target.weight
            near, direction = project(target, self._tensors[name], self.ranks.current[i], nuclear=nuclear)
            weights[name][...] = near
            if direction is not None:
                directions[name][...] = direction
        self._world.sum(both)  # everybody else holds zeros there
        return both[0], both[1]
