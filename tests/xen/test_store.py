"""xenstored refuses, or ends: whoever it concerns says so in a line, and nobody else notices."""

from __future__ import annotations

import pytest

from guest.__main__ import NO_HYPERVISOR
from tests.xen.domu import Domu, GuestAgent
from tests.xen.serving import Emulator

FILL = """
from cpp_ring import xen
from cpp_ring.store import StoreError
store, count, depth, reason = xen.open_store(), 0, 64, ""
while depth:
    try:
        store.write(f"data/quota/{count}" + "/node" * (depth - 1), "")
        count += 1
    except StoreError as error:
        depth, reason = depth // 2, str(error)
print(reason)
"""
"""Makes nodes until there is no room for one more."""


@pytest.mark.parametrize("domu", ["pvh"], indirect=True)  # the kind makes no difference
def test_a_domain_with_its_quota_used_up_hears_so_and_the_others_go_on(
    domu: Domu, other: Domu, guest: GuestAgent
) -> None:
    with Emulator(domu, "rng") as emulator, Emulator(other, "rng"), other.agent() as stranger:
        stranger("connect", dev=0)
        try:
            code, output = domu.run(["python3", "-c", FILL])
            assert (code, "this domain's quota is used up" in output) == (0, True), output
            code, output = domu.run(["python3", "-m", "guest", "probe", "0"])
        finally:
            domu.run(["xenstore-rm", "data/quota"])
        assert (code, output.count("\n")) == (NO_HYPERVISOR, 1), output
        assert output.startswith("guest: xenstore write 'device/virtio-msg/0/"), output
        assert "quota is used up: remove" in output
        assert len(stranger("rng", dev=0, size=16)["data"]) == 32
        guest("connect", dev=0)
        assert len(guest("rng", dev=0, size=16)["data"]) == 32
        guest("close", dev=0)
        assert not [line for line in emulator.lines if "refused" in line], emulator.lines
