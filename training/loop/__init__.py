"""The training loop: tasks, averaged weights, distillation, distributed training, resumption."""
