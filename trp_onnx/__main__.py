"""`python -m trp_onnx` is the command line."""

from trp_onnx.cli import main

main(prog_name="trp-onnx")
