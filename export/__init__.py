"""What leaves the training machine: ONNX graphs, quantisation, parity, the family's manifest, latency, report.

`manifest`, `session`, `latency` and `report` import no torch: a serving machine has onnxruntime and numpy.
"""
