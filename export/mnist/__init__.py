"""Code specific to this project's MNIST networks: task, out-of-distribution guard, feature maps."""
