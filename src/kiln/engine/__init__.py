"""The training loop and what it stands on. Knows nothing of images: any module, any iterable of inputs and targets."""
