"""The declared configuration spaces, against the layouts of virtio 1.3 typed out here from the specification."""

import numpy as np
import pytest

from devices.blk import BlkConfig
from devices.config_space import ConfigSpace
from devices.net_config import FEATURES, NetConfig

# Section 5.2.4: (type, count, name, feature bits of which one must be offered).
BLK = [
    ("le64", 1, "capacity", ()),
    ("le32", 1, "size_max", (1,)),
    ("le32", 1, "seg_max", (2,)),
    ("le16", 1, "geometry_cylinders", (4,)),
    ("u8", 1, "geometry_heads", (4,)),
    ("u8", 1, "geometry_sectors", (4,)),
    ("le32", 1, "blk_size", (6,)),
    ("u8", 1, "topology_physical_block_exp", (10,)),
    ("u8", 1, "topology_alignment_offset", (10,)),
    ("le16", 1, "topology_min_io_size", (10,)),
    ("le32", 1, "topology_opt_io_size", (10,)),
    ("u8", 1, "writeback", (11,)),
    ("u8", 1, "unused0", (12,)),
    ("le16", 1, "num_queues", (12,)),
    ("le32", 1, "max_discard_sectors", (13,)),
    ("le32", 1, "max_discard_seg", (13,)),
    ("le32", 1, "discard_sector_alignment", (13,)),
    ("le32", 1, "max_write_zeroes_sectors", (14,)),
    ("le32", 1, "max_write_zeroes_seg", (14,)),
    ("u8", 1, "write_zeroes_may_unmap", (14,)),
    ("u8", 3, "unused1", (14,)),
    ("le32", 1, "max_secure_erase_sectors", (16,)),
    ("le32", 1, "max_secure_erase_seg", (16,)),
    ("le32", 1, "secure_erase_sector_alignment", (16,)),
    ("le32", 1, "zoned_zone_sectors", (17,)),
    ("le32", 1, "zoned_max_open_zones", (17,)),
    ("le32", 1, "zoned_max_active_zones", (17,)),
    ("le32", 1, "zoned_max_append_sectors", (17,)),
    ("le32", 1, "zoned_write_granularity", (17,)),
    ("u8", 1, "zoned_model", (17,)),
    ("u8", 3, "zoned_unused2", (17,)),
]

# Section 5.1.4.
NET = [
    ("u8", 6, "mac", (5,)),
    ("le16", 1, "status", (16,)),
    ("le16", 1, "max_virtqueue_pairs", (22, 60)),
    ("le16", 1, "mtu", (3,)),
    ("le32", 1, "speed", (63,)),
    ("u8", 1, "duplex", (63,)),
    ("u8", 1, "rss_max_key_size", (60, 57)),
    ("le16", 1, "rss_max_indirection_table_length", (60,)),
    ("le32", 1, "supported_hash_types", (60, 57)),
    ("le32", 1, "supported_tunnel_types", (51,)),
]

# sizeof() of the two structures, and offsets known from elsewhere, so that sums over the tables are not all there is.
KNOWN = [
    (BlkConfig, BLK, 96, {"seg_max": 12, "blk_size": 20, "writeback": 32, "num_queues": 34, "max_discard_sectors": 36,
                          "unused1": 57, "max_secure_erase_sectors": 60, "zoned_zone_sectors": 72, "zoned_model": 92}),
    (NetConfig, NET, 28, {"status": 6, "max_virtqueue_pairs": 8, "mtu": 10, "speed": 12, "duplex": 16,
                          "rss_max_key_size": 17, "supported_hash_types": 20, "supported_tunnel_types": 24}),
]  # fmt: skip
SIZES = {"u8": 1, "le16": 2, "le32": 4, "le64": 8}
CASES = [(config, layout) for config, layout, _, _ in KNOWN]


@pytest.mark.parametrize(("config", "layout"), CASES)
def test_every_field_stands_where_the_specification_puts_it(
    config: type[ConfigSpace], layout: list[tuple[str, int, str, tuple[int, ...]]]
) -> None:
    expected = []
    offset = 0
    for kind, count, name, feature in layout:
        expected.append((name, offset, SIZES[kind] * count, kind, count, set(feature)))
        offset += SIZES[kind] * count
    declared = [(f.name, f.offset, f.size, f.kind, f.count, set(f.feature)) for f in config.fields]
    assert declared == expected
    assert config.size == offset


@pytest.mark.parametrize(("config", "layout", "size", "offsets"), KNOWN)
def test_well_known_offsets(config: type[ConfigSpace], layout: object, size: int, offsets: dict[str, int]) -> None:
    assert config.size == size
    assert {f.name: f.offset for f in config.fields if f.name in offsets} == offsets


@pytest.mark.parametrize(("config", "layout"), CASES)
def test_numpy_sees_the_same_layout(config: type[ConfigSpace], layout: list[tuple[str, int, str, object]]) -> None:
    space = config((1 << 128) - 1)
    codes = {"u8": "u1", "le16": "<u2", "le32": "<u4", "le64": "<u8"}
    packed = np.dtype([(name, codes[kind], (count,) if count > 1 else ()) for kind, count, name, _ in layout])
    assert space.array.shape == ()
    assert space.array.dtype == packed


def test_only_writeback_can_be_written() -> None:
    assert [f.name for f in (*BlkConfig.fields, *NetConfig.fields) if f.writable] == ["writeback"]


# Section 5.1.3.1, as rows "feature: one of these".
NET_REQUIRES = {
    (7, (1,)), (8, (1,)), (9, (7, 8)), (10, (1,)), (54, (1,)), (55, (1,)),
    (11, (0,)), (12, (0,)), (13, (11, 12)), (14, (0,)), (56, (0,)),
    (18, (17,)), (19, (17,)), (21, (17,)), (22, (17,)), (23, (17,)), (53, (17,)), (61, (11, 12)), (60, (17,)),
    (52, (17,)), (51, (17,)), (51, (60, 57)),
}  # fmt: skip


def test_net_feature_dependencies_are_those_of_the_specification() -> None:
    assert {(rule.bit, rule.any_of) for rule in FEATURES.requires} == NET_REQUIRES
