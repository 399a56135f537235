"""The commands of `virtio-dm`, one module each."""
