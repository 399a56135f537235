"""The configuration space and the feature bits of virtio-net (virtio 1.3 sections 5.1.3 and 5.1.4)."""

from __future__ import annotations

from devices.config_space import ConfigSpace, array, le16, le32, u8
from devices.features import FeatureTable, Requires, mask

# Feature bits, section 5.1.3.
F_CSUM = 0
F_GUEST_CSUM = 1
F_CTRL_GUEST_OFFLOADS = 2
F_MTU = 3
F_MAC = 5
F_GUEST_TSO4 = 7
F_GUEST_TSO6 = 8
F_GUEST_ECN = 9
F_GUEST_UFO = 10
F_HOST_TSO4 = 11
F_HOST_TSO6 = 12
F_HOST_ECN = 13
F_HOST_UFO = 14
F_MRG_RXBUF = 15
F_STATUS = 16
F_CTRL_VQ = 17
F_CTRL_RX = 18
F_CTRL_VLAN = 19
F_CTRL_RX_EXTRA = 20
F_GUEST_ANNOUNCE = 21
F_MQ = 22
F_CTRL_MAC_ADDR = 23
F_HASH_TUNNEL = 51
F_VQ_NOTF_COAL = 52
F_NOTF_COAL = 53
F_GUEST_USO4 = 54
F_GUEST_USO6 = 55
F_HOST_USO = 56
F_HASH_REPORT = 57
F_GUEST_HDRLEN = 59
F_RSS = 60
F_RSC_EXT = 61
F_STANDBY = 62
F_SPEED_DUPLEX = 63

# What a backend that carries headers makes possible: checksums and TCP's segments left to the other side, in both
# directions.
GUEST_OFFLOADS = mask(F_GUEST_CSUM, F_GUEST_TSO4, F_GUEST_TSO6, F_GUEST_ECN)
OFFLOADS = GUEST_OFFLOADS | mask(F_CSUM, F_HOST_TSO4, F_HOST_TSO6, F_HOST_ECN, F_CTRL_GUEST_OFFLOADS)

# Values of `status`, `speed` and `duplex`, section 5.1.4.
S_LINK_UP = 1
S_ANNOUNCE = 2
SPEED_UNKNOWN = 0xFFFFFFFF
DUPLEX_UNKNOWN = 0xFF
DUPLEX_HALF = 0
DUPLEX_FULL = 1


class NetConfig(ConfigSpace):
    """struct virtio_net_config (virtio 1.3 section 5.1.4)."""

    mac = array(u8, 6, 0, feature=F_MAC)
    status = le16(6, feature=F_STATUS)
    max_virtqueue_pairs = le16(8, feature=(F_MQ, F_RSS))
    mtu = le16(10, feature=F_MTU)
    speed = le32(12, feature=F_SPEED_DUPLEX)
    duplex = u8(16, feature=F_SPEED_DUPLEX)
    rss_max_key_size = u8(17, feature=(F_RSS, F_HASH_REPORT))
    rss_max_indirection_table_length = le16(18, feature=F_RSS)
    supported_hash_types = le32(20, feature=(F_RSS, F_HASH_REPORT))
    supported_tunnel_types = le32(24, feature=F_HASH_TUNNEL)


FEATURES = FeatureTable(
    {
        F_CSUM: "VIRTIO_NET_F_CSUM",
        F_GUEST_CSUM: "VIRTIO_NET_F_GUEST_CSUM",
        F_CTRL_GUEST_OFFLOADS: "VIRTIO_NET_F_CTRL_GUEST_OFFLOADS",
        F_MTU: "VIRTIO_NET_F_MTU",
        F_MAC: "VIRTIO_NET_F_MAC",
        F_GUEST_TSO4: "VIRTIO_NET_F_GUEST_TSO4",
        F_GUEST_TSO6: "VIRTIO_NET_F_GUEST_TSO6",
        F_GUEST_ECN: "VIRTIO_NET_F_GUEST_ECN",
        F_GUEST_UFO: "VIRTIO_NET_F_GUEST_UFO",
        F_HOST_TSO4: "VIRTIO_NET_F_HOST_TSO4",
        F_HOST_TSO6: "VIRTIO_NET_F_HOST_TSO6",
        F_HOST_ECN: "VIRTIO_NET_F_HOST_ECN",
        F_HOST_UFO: "VIRTIO_NET_F_HOST_UFO",
        F_MRG_RXBUF: "VIRTIO_NET_F_MRG_RXBUF",
        F_STATUS: "VIRTIO_NET_F_STATUS",
        F_CTRL_VQ: "VIRTIO_NET_F_CTRL_VQ",
        F_CTRL_RX: "VIRTIO_NET_F_CTRL_RX",
        F_CTRL_VLAN: "VIRTIO_NET_F_CTRL_VLAN",
        F_CTRL_RX_EXTRA: "VIRTIO_NET_F_CTRL_RX_EXTRA",
        F_GUEST_ANNOUNCE: "VIRTIO_NET_F_GUEST_ANNOUNCE",
        F_MQ: "VIRTIO_NET_F_MQ",
        F_CTRL_MAC_ADDR: "VIRTIO_NET_F_CTRL_MAC_ADDR",
        F_HASH_TUNNEL: "VIRTIO_NET_F_HASH_TUNNEL",
        F_VQ_NOTF_COAL: "VIRTIO_NET_F_VQ_NOTF_COAL",
        F_NOTF_COAL: "VIRTIO_NET_F_NOTF_COAL",
        F_GUEST_USO4: "VIRTIO_NET_F_GUEST_USO4",
        F_GUEST_USO6: "VIRTIO_NET_F_GUEST_USO6",
        F_HOST_USO: "VIRTIO_NET_F_HOST_USO",
        F_HASH_REPORT: "VIRTIO_NET_F_HASH_REPORT",
        F_GUEST_HDRLEN: "VIRTIO_NET_F_GUEST_HDRLEN",
        F_RSS: "VIRTIO_NET_F_RSS",
        F_RSC_EXT: "VIRTIO_NET_F_RSC_EXT",
        F_STANDBY: "VIRTIO_NET_F_STANDBY",
        F_SPEED_DUPLEX: "VIRTIO_NET_F_SPEED_DUPLEX",
    },
    # Section 5.1.3.1.
    (
        Requires(F_GUEST_TSO4, (F_GUEST_CSUM,)),
        Requires(F_GUEST_TSO6, (F_GUEST_CSUM,)),
        Requires(F_GUEST_ECN, (F_GUEST_TSO4, F_GUEST_TSO6)),
        Requires(F_GUEST_UFO, (F_GUEST_CSUM,)),
        Requires(F_GUEST_USO4, (F_GUEST_CSUM,)),
        Requires(F_GUEST_USO6, (F_GUEST_CSUM,)),
        Requires(F_HOST_TSO4, (F_CSUM,)),
        Requires(F_HOST_TSO6, (F_CSUM,)),
        Requires(F_HOST_ECN, (F_HOST_TSO4, F_HOST_TSO6)),
        Requires(F_HOST_UFO, (F_CSUM,)),
        Requires(F_HOST_USO, (F_CSUM,)),
        Requires(F_CTRL_RX, (F_CTRL_VQ,)),
        Requires(F_CTRL_VLAN, (F_CTRL_VQ,)),
        Requires(F_GUEST_ANNOUNCE, (F_CTRL_VQ,)),
        Requires(F_MQ, (F_CTRL_VQ,)),
        Requires(F_CTRL_MAC_ADDR, (F_CTRL_VQ,)),
        Requires(F_NOTF_COAL, (F_CTRL_VQ,)),
        Requires(F_RSC_EXT, (F_HOST_TSO4, F_HOST_TSO6)),
        Requires(F_RSS, (F_CTRL_VQ,)),
        Requires(F_VQ_NOTF_COAL, (F_CTRL_VQ,)),
        Requires(F_HASH_TUNNEL, (F_CTRL_VQ,)),
        Requires(F_HASH_TUNNEL, (F_RSS, F_HASH_REPORT)),
    ),
)
