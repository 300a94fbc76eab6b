"""The training loop: tasks, averaged weights, distillation, several processes, resumption."""
