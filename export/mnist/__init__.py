"""What is special to this project's MNIST networks: their task, detector and feature maps."""
