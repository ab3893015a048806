"""What a network is, whatever file it stands in: a hash of its nodes and weights, not of names of files or metadata."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx_ir as ir

from trp_onnx.graph.model import open_model, weight_files


def fingerprint(model: ir.Model) -> str:
    """SHA-256 of the operators, their attributes and connections, and the weights of the main graph, in order."""
    digest = hashlib.sha256()
    for node in (*model.graph, *(node for function in model.functions.values() for node in function)):
        parts = (node.domain, node.op_type, *(v.name if v is not None else "" for v in (*node.inputs, *node.outputs)))
        digest.update("\0".join(part or "" for part in parts).encode())
        for name in sorted(node.attributes):
            digest.update(name.encode() + ir.to_proto(node.attributes[name]).SerializeToString(deterministic=True))
    for name in sorted(model.graph.initializers):
        tensor = model.graph.initializers[name].const_value
        if tensor is not None:
            digest.update(f"\0{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.tobytes())
    return digest.hexdigest()


def file_hash(path: Path, model: ir.Model | None = None) -> str:
    """SHA-256 of a file; of several, of their hashes in order, where a model keeps its weights beside it.

    `model` is what was opened of it, if it was.
    """
    hashes = []
    for each in (path, *weight_files(open_model(path) if model is None else model)):
        with each.open("rb") as file:
            hashes.append(hashlib.file_digest(file, "sha256"))
    if len(hashes) == 1:
        return hashes[0].hexdigest()
    return hashlib.sha256(b"".join(found.digest() for found in hashes)).hexdigest()
