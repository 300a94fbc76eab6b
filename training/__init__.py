"""Training: MNIST images in, checkpoints out.

A checkpoint is two files: weights (safetensors) and a JSON record that says how they were made
and what they reach. The next stage, ``export``, turns a checkpoint into a bundle.
"""
