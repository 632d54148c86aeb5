"""What the GPU is that rows were got on: its name, driver and clocks, and the bandwidth of its memory, measured there."""

from __future__ import annotations

import subprocess
import time

from musiclm_deploy.runtime.bench.record import Row
from musiclm_deploy.runtime.device.cuda import CudaDriver

COPIED = 1 << 28  # bytes of a copy by which the bandwidth is measured: more than any cache holds
_ASKED = {
    "gpu_driver": "driver_version",
    "sm_mhz": "clocks.sm",
    "most_sm_mhz": "clocks.max.sm",
    "memory_mhz": "clocks.mem",
    "watts_at_most": "power.limit",
}


def describe(driver: CudaDriver) -> Row:
    """Name and capability; and, where nvidia-smi is installed, the version of the driver, clocks in MHz and the limit of power."""
    row: Row = {"gpu": driver.name, "capability": driver.capability}
    command = ["nvidia-smi", f"--id={driver.index}", f"--query-gpu={','.join(_ASKED.values())}", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().split(", ")
    except (OSError, subprocess.CalledProcessError):
        return row
    return row | dict(zip(_ASKED, found, strict=False))


def bandwidth_of(driver: CudaDriver) -> float:
    """Bytes a second that the GPU's memory reads and writes, by its own copies."""
    one, other = (driver.allocate("fp32", (COPIED // 4,)) for _ in range(2))
    flag = driver.allocate("int64", (1,))

    def copies(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            driver.call("cuMemcpyDtoDAsync", other.address, one.address, COPIED, driver.stream)
        driver.download([flag])()
        return time.perf_counter() - started

    copies(2)
    return 2 * COPIED * 20 / min(copies(20) for _ in range(3))
