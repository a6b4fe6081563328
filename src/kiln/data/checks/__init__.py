"""What can be wrong with a data set: files, duplicates, classes; and the decisions that a user makes about it."""
