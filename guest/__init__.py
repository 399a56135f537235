"""What runs inside the domU: a user-space virtio driver on the frontend half of cpp_ring (docs/protocol.md)."""
