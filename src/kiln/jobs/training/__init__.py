"""What surrounds the loop of a training: its beginning, what it keeps, its end."""
