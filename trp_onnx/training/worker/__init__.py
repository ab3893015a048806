"""The training worker, a program of its own in the training runtime: `python -m trp_onnx.training.worker`."""
