"""From settings to the objects of a training."""
