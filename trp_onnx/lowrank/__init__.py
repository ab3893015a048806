"""The maths of low rank. Knows no ONNX."""
