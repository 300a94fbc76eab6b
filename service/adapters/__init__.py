"""What models take and answer beyond bare tensors, one module a task; see ``tensors``."""
