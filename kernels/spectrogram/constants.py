"""What the kernel and the numpy reference have in common; model/spectrogram.py has the same."""

FLOOR = 1e-5  # of a band's energy
