"""`python -m trp_onnx` is the command line."""

import os
import sys

if sys.path[0] == os.getcwd():  # noqa: PTH109 - what `-m` puts there: nothing is imported from among a user's files
    del sys.path[0]

from trp_onnx.cli.main import main

main(prog_name="trp-onnx")
