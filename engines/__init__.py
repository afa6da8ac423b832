"""Enhancement engines: arrays and physics, never DICOM."""

import os

# ONNX Runtime 1.29 and newer report to their maker over the network, and keep an identity of the machine, unless this
# is there when the library starts. Nothing leaves a hospital unasked, whatever the environment says.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
