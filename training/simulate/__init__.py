"""Truth to train on, and the physics that spoils it: doses, k-space, kernels."""
