"""Service: bundles in, HTTP answers out, under ``bentoml serve service.app:DigitClassifier``.

Of the other stages it knows the torch-free rooms of ``export`` alone: the bundle, its golden
samples, and the one way in which an ONNX file is opened.
"""
