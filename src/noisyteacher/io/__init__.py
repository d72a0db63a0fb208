"""Files on disk: durable writes with checksums, named tensors with a record, and locks between processes."""
