"""What the network is held to beside labels: the teacher's outputs, run on the same samples."""

from __future__ import annotations

import numpy as np

from trp_onnx.graph.inputs import Run
from trp_onnx.graph.session import Arrays
from trp_onnx.training.job import Job
from trp_onnx.training.losses import entropy, soften
from trp_onnx.training.worker.engine import Network


class Teacher:
    """A network with the outputs of the one that learns."""

    def __init__(self, network: Network, job: Job) -> None:
        """`job` says what each output is held to."""
        self._network, self._outputs, self._temperature = network, job.outputs, job.options.temperature

    def answers(self, run: Run) -> Arrays:
        """Its outputs, by the names of ours."""
        names = [output.name for output in self._outputs]
        return dict(zip(names, self._network.run_on(run).values(), strict=True))

    def targets(self, run: Run) -> tuple[Arrays, float]:
        """What the loss takes, by the names of its inputs, and the entropy that the divergence does not have."""
        answers, found, own = self.answers(run), {}, 0.0
        for output in self._outputs:
            if output.distill_weight:
                value = answers[output.name]
                if output.logits:
                    value = soften(value, self._temperature, output)
                    own += output.distill_weight * self._temperature**2 * entropy(value)
                found[output.target] = np.ascontiguousarray(value, np.float32)
        return found, own

    def distance(self, run: Run, outputs: Arrays) -> float:
        """Weighted distance of outputs to its own, summed over samples."""
        distance, targets = 0.0, self.targets(run)[0]
        for output in self._outputs:
            target = targets.get(output.target)
            if target is None or output.inner:
                continue
            if output.logits:
                own = soften(outputs[output.name], self._temperature, output)
                divergence = float(np.sum(target * (np.log(target + 1e-12) - np.log(own + 1e-12))))
                divergence *= run.count / len(target)  # places of a sample count as one
                distance += output.distill_weight * self._temperature**2 * divergence
            else:
                gap = float(np.mean(np.square(outputs[output.name] - target)))
                distance += output.distill_weight * gap * run.count
        return distance
