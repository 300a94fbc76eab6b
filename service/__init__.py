"""Serves the models in bundles over HTTP: ``bentoml serve service.app:DigitClassifier``.

From the other stages it imports only the torch-free modules of ``export``: the bundle, its golden
samples, the out-of-distribution detector, and the function that opens an ONNX file.
"""
