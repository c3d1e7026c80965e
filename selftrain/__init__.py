"""Self-training as a pipeline: few labels and many unlabelled images in, the best classifier they allow out."""
