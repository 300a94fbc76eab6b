"""Other servers of the same ONNX model, each as its own documentation shows it: to compare with."""
