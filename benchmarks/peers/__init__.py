"""What the project is compared with, on the same tokens and weights: audiolm-pytorch itself, and the PyTorch one would write instead."""
