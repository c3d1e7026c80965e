"""Which images are labelled, unlabelled, validation and test images."""
