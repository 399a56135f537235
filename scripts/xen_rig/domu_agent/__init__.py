"""Programs in a domU under the command of a test in dom0, over libxenvchan: no console, no network.

`agent` runs in the domU, `client` in dom0; both speak `frames` over `vchan`. The kernel's console stays free for
the kernel.
"""
