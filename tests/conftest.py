"""Settings that must stand before torch and transformers are imported; subprocesses inherit them."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")  # the tests' arrays are tiny: more threads only wait for each other
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that asks a model hub fails at once
