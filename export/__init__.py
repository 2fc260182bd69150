"""What leaves the training machine: ONNX graphs, shared weights, parity, the family's manifest, latency, report.

`manifest`, `weights`, `session`, `latency` and `report` import no torch: a serving machine has onnxruntime and numpy.
"""
