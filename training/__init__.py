"""Train networks on MNIST images and write checkpoints.

A checkpoint consists of two files: weights (safetensors), and a JSON record of how they were
trained and of their metrics. The next stage, ``export``, turns a checkpoint into a bundle.
"""
