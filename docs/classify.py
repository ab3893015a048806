"""Run a model on a board. Usage: python classify.py MODEL SAMPLES.npz."""

import sys

import numpy as np
import onnxruntime as ort

SCALE, MEAN, STD = 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # as in training

options = ort.SessionOptions()
options.intra_op_num_threads = 2
options.add_session_config_entry("session.intra_op.allow_spinning", "0")
session = ort.InferenceSession(sys.argv[1], options)

images = np.load(sys.argv[2])["x"]  # (n, height, width, channels)
name = session.get_inputs()[0].name
for image in images[:4]:
    x = ((image * SCALE - MEAN) / STD).transpose(2, 0, 1)[None].astype(np.float32)
    (scores,) = session.run(None, {name: x})
    print("class", int(scores.argmax()))
