"""What runs models: this process, another interpreter, Node, a browser, a board. One interface, `Runner`.

`runner` is the interface, `transport` how a request gets to a worker; `worker.py` and `worker.mjs` are the workers, and
turns are taken inside them. `providers` knows what to ask of each execution provider.
"""

from trp_onnx.runners.open import open_runner
from trp_onnx.runners.providers import PROVIDERS
from trp_onnx.runners.runner import Description, NodeTime, Profile, Rounds, Runner

__all__ = ["PROVIDERS", "Description", "NodeTime", "Profile", "Rounds", "Runner", "open_runner"]
