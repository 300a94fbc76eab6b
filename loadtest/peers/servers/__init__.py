"""Other servers of the same ONNX model for comparison, each set up as its documentation shows."""
