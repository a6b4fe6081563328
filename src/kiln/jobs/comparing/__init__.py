"""What `compare` is made of: models on the same samples, recipes over seeds, speed."""
