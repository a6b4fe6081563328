"""What ensembles and soups are made of."""
