"""A model's versions on disk, and the decisions of roll-outs; opens no model and no connection."""
