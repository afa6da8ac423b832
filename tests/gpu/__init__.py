"""What needs an NVIDIA GPU: tests that skip without one, and the measurement behind `make gpu`."""
